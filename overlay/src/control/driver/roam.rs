//! What the control plane does when this host has moved, and when another has. QUIC as libp2p has
//! it does not survive a change of address (its migration is off), so that a connection may be dead
//! for as long as its idle timeout without either end knowing. A host that moved asks each
//! connection for a sign of life and dials anew where none comes; a host that is dialled anew from
//! elsewhere no longer prefers the connection it had.

use super::{Driver, PUBLISH_DELAY};
use crate::control::{
    address::{ip_of, is_relayed, member_of},
    shared::Command,
    wire::PROBE_SERVICE,
};
use libp2p::{PeerId, swarm::ConnectionId};
use std::time::Duration;
use tokio::time::Instant;

/// A connection that gives no sign of life within this after a move is dead.
const SIGN_OF_LIFE: Duration = Duration::from_millis(1200);
/// Two connections made within this may be those that both ends began at the same time.
const AT_ONCE: Duration = Duration::from_secs(2);
/// For so long after a move those who are lost are dialled at once.
pub(super) const HASTE: Duration = Duration::from_secs(10);

impl Driver {
    /// This host has moved.
    pub(super) fn on_roamed(&mut self, now: Instant) {
        self.hasty_until = now + HASTE;
        self.bootstrap_at = now;
        self.publish_at.get_or_insert(now + PUBLISH_DELAY);
        for attempt in self.attempts.values_mut() {
            // Dials under way left from addresses that may be gone.
            attempt.dialling.clear();
            (attempt.failures, attempt.not_before) = (0, None);
        }
        for peer in self.links.keys() {
            let (Some(member), Some(link)) = (member_of(peer), self.best_link(peer)) else {
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

    /// A member has a new connection: one from another place that it had is likely dead, and so is
    /// one from before it started anew. Neither is preferred any more. Two that both ends began at
    /// once are not told apart by this.
    pub(super) fn doubt_older(&mut self, peer: &PeerId, new: ConnectionId) {
        let Some(links) = self.links.get_mut(peer) else {
            return;
        };
        let Some(link) = links
            .iter()
            .find(|l| l.id == new && !is_relayed(&l.address))
        else {
            return;
        };
        let (ip, since) = (ip_of(&link.address), link.since);
        for link in links
            .iter_mut()
            .filter(|l| l.id != new && !is_relayed(&l.address))
        {
            link.doubted |=
                ip_of(&link.address) != ip || since.saturating_duration_since(link.since) > AT_ONCE;
        }
    }
}
