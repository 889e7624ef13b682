//! Where VMs run, as the control API asks: decisions, and emptying this host.

use super::{drain::Drains, manager::Manager};
use crate::http::report::Reporter;
use p2pvm_api::{Decided, DrainAnswer, DrainStopping, Outcome};
use std::sync::Arc;

/// How many decisions of all VMs are shown.
const DECISIONS: usize = 32;

/// The placement of VMs.
pub(crate) struct Placement {
    manager: Arc<Manager>,
    drains: Drains,
}

impl Placement {
    pub(crate) fn new(manager: Arc<Manager>, drains: Drains) -> Arc<Self> {
        Arc::new(Self { manager, drains })
    }

    /// What the autonomic manager decided here lately.
    pub fn decisions(&self) -> Vec<Decided> {
        self.manager.decisions(DECISIONS)
    }

    /// Moves every VM that runs here elsewhere.
    pub async fn drain(&self, reporter: &Reporter) -> Outcome<DrainAnswer> {
        self.drains.drain(reporter).await
    }

    /// Begins no more moves of a drain.
    pub fn stop_draining(&self) -> DrainStopping {
        self.drains.stop()
    }
}
