//! The members of the network as this one sees them: peers, traffic, pings, traces, this machine's
//! connectivity, invites and revocations.

use crate::parts::Parts;
use std::sync::Arc;

pub(crate) struct Members {
    pub(super) parts: Arc<Parts>,
}

impl Members {
    pub(crate) fn new(parts: Arc<Parts>) -> Arc<Self> {
        Arc::new(Self { parts })
    }
}
