//! The placement of VMs for the control API: decisions, and draining this host.

use super::{drain::Drains, manager::Manager};
use crate::http::report::Reporter;
use p2pvm_api::{Decided, DrainAnswer, DrainItem, DrainStopping, Outcome};
use std::sync::Arc;

/// How many decisions of all VMs are shown.
const DECISIONS: usize = 32;

/// The placement of VMs.
pub(crate) struct Placement {
    manager: Arc<Manager>,
    drains: Arc<Drains>,
}

impl Placement {
    pub(crate) fn new(manager: Arc<Manager>, drains: Arc<Drains>) -> Arc<Self> {
        Arc::new(Self { manager, drains })
    }

    /// The last decisions of the autonomic manager here.
    pub fn decisions(&self) -> Vec<Decided> {
        self.manager.decisions(DECISIONS)
    }

    /// Moves every VM that runs here elsewhere.
    pub async fn drain(&self, reporter: &Reporter<DrainItem>) -> Outcome<DrainAnswer> {
        self.drains.drain(reporter).await
    }

    /// Starts no more moves of a drain.
    pub fn stop_draining(&self) -> DrainStopping {
        self.drains.stop()
    }
}
