//! The placement of VMs for the control API: decisions, draining this host, and its shutdown.

use super::{
    drain::Drains,
    manager::Manager,
    shutdown::{CLOSED, Ended, MOVE_LIMIT, end_all},
};
use crate::{config::AtShutdown, http::report::Reporter};
use p2pvm_api::{Decided, DrainAnswer, DrainItem, DrainStopping, Outcome, ShutdownAnswer};
use std::sync::Arc;

/// How many decisions of all VMs are shown.
const DECISIONS: usize = 32;

/// The placement of VMs.
pub(crate) struct Placement {
    manager: Arc<Manager>,
    drains: Arc<Drains>,
    at_shutdown: AtShutdown,
}

impl Placement {
    pub(crate) fn new(
        manager: Arc<Manager>,
        drains: Arc<Drains>,
        at_shutdown: AtShutdown,
    ) -> Arc<Self> {
        Arc::new(Self {
            manager,
            drains,
            at_shutdown,
        })
    }

    /// The last decisions of the autonomic manager here.
    pub fn decisions(&self) -> Vec<Decided> {
        self.manager.decisions(DECISIONS)
    }

    /// Moves every VM that runs here elsewhere.
    pub async fn drain(&self, reporter: &Reporter<DrainItem>) -> Outcome<DrainAnswer> {
        self.drains.drain(reporter).await
    }

    /// Has no guest run here any more, because this host shuts down.
    pub async fn for_shutdown(&self, reporter: &Reporter<DrainItem>) -> Outcome<ShutdownAnswer> {
        self.manager.accept(false);
        self.drains.host().close_for(CLOSED);
        let mut moved = Vec::new();
        if self.at_shutdown == AtShutdown::Move {
            reporter.phase("moving");
            match tokio::time::timeout(MOVE_LIMIT, self.drains.drain(reporter)).await {
                Ok(drained) => moved = drained?.moved,
                Err(_) => {
                    self.drains.stop();
                }
            }
        }
        reporter.phase("powering down");
        let Ended { stopped, stayed } = end_all(self.drains.host()).await;
        // In case that the machine goes on after all.
        self.manager.rest();
        tracing::info!(
            moved = moved.len(),
            stopped = stopped.len(),
            stayed = stayed.len(),
            "this host shuts down: its guests have moved or ended"
        );
        Ok(ShutdownAnswer {
            moved,
            stopped,
            stayed,
        })
    }

    /// Starts no more moves of a drain.
    pub fn stop_draining(&self) -> DrainStopping {
        self.drains.stop()
    }
}
