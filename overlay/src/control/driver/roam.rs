//! What the control plane does when this host has moved, and when another has. QUIC as libp2p has
//! it does not survive a change of address (its migration is off), so that a connection may be dead
//! for as long as its idle timeout without either end knowing. A host that moved asks each
//! connection for a sign of life and dials anew where none comes; a host that is dialled anew from
//! elsewhere no longer prefers the connection it had.

use super::{Driver, PUBLISH_DELAY, mesh::Input};
use crate::control::{address::member_of, shared::Command, wire::PROBE_SERVICE};
use std::time::{Duration, Instant};

/// A connection that gives no sign of life within this after a move is dead.
const SIGN_OF_LIFE: Duration = Duration::from_millis(1200);

impl Driver {
    /// This host has moved.
    pub(super) fn on_roamed(&mut self, now: Instant) {
        self.mesh.handle(now, Input::Moved);
        self.publish_at.get_or_insert(now + PUBLISH_DELAY);
        for peer in self.mesh.peers() {
            let (Some(member), Some(link)) = (member_of(peer), self.mesh.best_link(peer)) else {
                continue;
            };
            let (shared, id) = (self.shared.clone(), link.id);
            tokio::spawn(async move {
                if shared
                    .call(member, PROBE_SERVICE, Vec::new(), SIGN_OF_LIFE)
                    .await
                    .is_err()
                {
                    drop(shared.commands.send(Command::DeadLink(id)).await);
                }
            });
        }
    }
}
