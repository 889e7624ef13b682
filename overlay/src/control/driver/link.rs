//! One connection to a member, and the attempts to make one.

use super::{
    super::address::{is_quic, is_relayed, relay_of},
    FIRST_BACKOFF, LAST_BACKOFF,
};
use libp2p::{Multiaddr, PeerId, swarm::ConnectionId};
use std::collections::BTreeSet;
use tokio::time::Instant;

/// A connection that is there.
pub(super) struct Link {
    pub id: ConnectionId,
    pub address: Multiaddr,
    pub by_smaller: bool,
    pub proved: Option<Instant>,
    pub since: Instant,
    /// The member has connected anew from elsewhere: this one is likely dead.
    pub doubted: bool,
    /// When this node last opened a stream on it, or found one in use.
    pub used: Instant,
    /// When this node last asked whether it lives.
    pub probed: Option<Instant>,
    /// This node made it: it is the one to close it for want of use.
    pub dialled: bool,
    /// Until then the other end may close it: nothing more is opened on it.
    pub parting: Option<Instant>,
}

impl Link {
    /// Better sorts first: direct before relayed, QUIC before TCP, then what both ends see alike,
    /// so that they prefer the same one; old before new only among equals.
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
    /// Nothing came of it: the next is due later each time.
    pub fn failed(&mut self, now: Instant) {
        let backoff = FIRST_BACKOFF
            .saturating_mul(1 << self.failures.min(6))
            .min(LAST_BACKOFF);
        self.failures += 1;
        self.not_before = Some(now + backoff.mul_f64(rand::random_range(0.75..1.25)));
    }
}
