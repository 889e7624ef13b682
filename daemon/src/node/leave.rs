//! Leaves the network: the part of the running daemon.

use super::service::Node;
use p2pvm_api::{Failure, Outcome};
use std::time::Duration;

impl Node {
    /// Leaves the network; the caller removes the files.
    pub async fn leave(&self, force: bool) -> Outcome<()> {
        let here: Vec<_> = self.vms.host.list().into_iter().map(|vm| vm.name).collect();
        if !here.is_empty() && !force {
            return Err(Failure::refused(format!(
                "VMs live here ({}): 'p2pvm drain' or delete them first, or lose them with --force",
                here.join(", ")
            )));
        }
        for name in here {
            // Its state is deleted, so a guest has nothing to save. A guest that cannot be stopped
            // now ends when its state is deleted; its record expires.
            if let Err(error) = self.vms.host.stop_within(&name, Duration::ZERO).await {
                tracing::warn!(vm = %name, error = %p2pvm_host::chain(&error), "not stopped \
                    before leaving");
            }
        }
        if let Err(failure) = self.reach.release().await {
            tracing::warn!(%failure, "the address is not given back; it runs out by itself");
        }
        tracing::info!(dir = %self.layout.dir().display(), "this node leaves the network");
        self.parts.control.farewell().await;
        self.lifecycle.stop();
        Ok(())
    }
}
