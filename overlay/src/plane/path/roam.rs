//! What happens to the links when this host has moved, or has tunnels that it had not.

use crate::plane::{core::Inner, types::Path};
use std::time::Instant;

impl Inner {
    /// Gives up every path that is now known to lead through a tunnel of this machine.
    pub fn leave_tunnels(&self) {
        let (view, now) = (self.underlay.view(), Instant::now());
        for peer in self.tables.peers.load().iter() {
            peer.paths().forget(
                |path| matches!(path, Path::Direct(to) if view.is_inside(&to.ip())),
                now,
            );
            self.run_paths(peer, now);
        }
    }

    /// Probes every path of every link again, and tells the connector.
    pub fn roamed(&self, why: &'static str) {
        let now = Instant::now();
        for peer in self
            .tables
            .peers
            .load()
            .iter()
            .filter(|p| p.sending.load().is_some())
        {
            peer.paths().rouse(now);
            peer.pmtu().restart(now);
            peer.show_limit();
            self.run_paths(peer, now);
        }
        self.moves.note(now, why);
        self.clock.wake();
    }
}
