//! One connection to a member, and the attempts to make one.

use super::super::address::{is_quic, is_relayed, relay_of};
use libp2p::{Multiaddr, PeerId, swarm::ConnectionId};
use rand::Rng;
use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

/// How long before a member is dialled again after the first failed attempt.
pub(super) const FIRST_BACKOFF: Duration = Duration::from_secs(1);
/// How long before a member is dialled again at most.
pub(super) const LAST_BACKOFF: Duration = Duration::from_secs(60);

/// A connection.
pub(super) struct Link {
    pub id: ConnectionId,
    pub address: Multiaddr,
    pub by_smaller: bool,
    pub proved: Option<Instant>,
    pub since: Instant,
    /// Whether it is probably dead: the member has since connected from elsewhere, or does not
    /// answer on it.
    pub doubted: bool,
    /// When this node last opened a stream on it, or found one in use.
    pub used: Instant,
    pub probed: Option<Instant>,
    /// Whether this node made it, and closes it when it is unused.
    pub dialled: bool,
    /// Until when the other end may close it. Until then no stream is opened on it.
    pub parting: Option<Instant>,
}

impl Link {
    /// The sort key, the best first: direct before relayed, QUIC before TCP, then a key that is
    /// equal at both ends, so that they prefer the same one; old before new only among equals.
    pub fn rank(&self) -> (bool, bool, bool, Option<PeerId>, bool, Instant) {
        (
            self.doubted,
            is_relayed(&self.address),
            !is_quic(&self.address),
            relay_of(&self.address),
            !self.by_smaller,
            self.since,
        )
    }
}

/// The attempts to connect to one member.
#[derive(Default)]
pub(super) struct Attempt {
    pub failures: u32,
    pub not_before: Option<Instant>,
    pub dialling: BTreeSet<ConnectionId>,
}

impl Attempt {
    /// Plans the next attempt after a failed one, with a longer wait each time.
    pub fn failed(&mut self, now: Instant, rng: &mut impl Rng) {
        let backoff = FIRST_BACKOFF
            .saturating_mul(1 << self.failures.min(6))
            .min(LAST_BACKOFF);
        self.failures += 1;
        self.not_before = Some(now + backoff.mul_f64(rng.random_range(0.75..1.25)));
    }
}
