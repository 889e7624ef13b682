//! Handles a move of this host, or of another. libp2p's QUIC does not survive a change of address
//! (its migration is off), so that a connection may be dead until its idle timeout without either
//! end knowing. A host that has moved asks each connection for a sign of life and dials again if
//! none comes. A host that is dialled from a new address no longer prefers the old connection.

use super::{Driver, PUBLISH_DELAY, mesh::Input};
use crate::control::{address::member_of, shared::Command, wire::PROBE_SERVICE};
use std::time::{Duration, Instant};

/// How long a connection may take after a move to show life before it counts as dead.
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
