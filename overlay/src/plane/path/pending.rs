//! Answers that callers of the plane wait for.

use super::arrival::Arrival;
use crate::lock;
use crate::stun::TransactionId;
use std::{collections::HashMap, net::SocketAddr, sync::Mutex, time::Instant};
use tokio::sync::oneshot;

/// Marks the token of a ping that a user asked for; a path's own probes have the bit clear.
pub(crate) const USER_PING: u64 = 1 << 63;

/// What was asked, by token or transaction id.
#[derive(Default)]
pub(crate) struct OpenPings {
    pub pings: Mutex<HashMap<u64, oneshot::Sender<(Instant, Arrival)>>>,
    pub stuns: Mutex<HashMap<TransactionId, oneshot::Sender<SocketAddr>>>,
}

impl OpenPings {
    /// Ends the wait of everyone that waits for a pong.
    pub fn clear_pings(&self) {
        lock(&self.pings).clear();
    }
}
