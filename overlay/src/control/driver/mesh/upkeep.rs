//! Which connections end, which are probed, and which lookups keep the address book fresh.

use super::{Action, Mesh, View};
use crate::{
    control::address::{is_quic, is_relayed, member_of, peer_of},
    id::{MemberId, RingAddr},
};
use rand::Rng;
use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

/// How old and unused a second connection to the same member is before it is closed.
const SUPERFLUOUS_AFTER: Duration = Duration::from_secs(10);
/// How long the other end may take to agree that a connection ends.
pub const PART_TIMEOUT: Duration = Duration::from_secs(3);
/// How long before the next lookup for the address book, at first and later. Reason: the density of
/// members is needed soon; afterwards 20 questions of 1 kB make 70 B/s.
const REFRESH_FIRST: Duration = Duration::from_secs(1);
const REFRESH_EVERY: Duration = Duration::from_secs(300);
const FIRST_REFRESHES: u32 = 10;
/// How long before a connection over TCP is probed again. Reason: QUIC detects a dead peer by
/// itself, TCP does not.
pub(super) const PROBE_EVERY: Duration = Duration::from_secs(6);
/// How long before a circuit is probed again. Reason: its legs are direct connections, each watched
/// by its two ends, and a relay that loses one leg ends the circuit on the other. A probe costs a
/// kilobyte on the wire and only detects a relay that has forgotten the circuit.
const PROBE_CIRCUIT_EVERY: Duration = Duration::from_secs(120);

/// The lookups for the address book.
pub struct Refresh {
    at: Instant,
    done: u32,
}

impl Refresh {
    pub fn new(now: Instant) -> Self {
        Self { at: now, done: 0 }
    }
}

impl Mesh {
    /// Of several connections to a member, the smaller id closes all but the best once they are
    /// unused.
    pub(super) fn close_superfluous(&mut self, now: Instant, view: &View<'_>) {
        let mut close = Vec::new();
        for (peer, links) in self.links.iter().filter(|(_, links)| links.len() > 1) {
            if member_of(peer).is_none_or(|member| self.me > member) {
                continue;
            }
            let Some(best) = self.best_link(peer) else {
                continue;
            };
            // The other end must have had time to prefer the best one too.
            let settled = |at| now.duration_since(at) >= SUPERFLUOUS_AFTER;
            if !best.proved.is_some_and(settled) {
                continue;
            }
            let relays = self.relaying.contains(peer);
            let others = links.iter().filter(|l| {
                l.id != best.id
                    && (!relays || is_relayed(&l.address))
                    && now.duration_since(l.since) > SUPERFLUOUS_AFTER
                    && (view.streams)(l.id) == 0
            });
            close.extend(others.map(|l| Action::Close(l.id)));
        }
        self.actions.extend(close);
    }

    /// The work that only a large network needs.
    pub(super) fn tend_large(&mut self, now: Instant, view: &View<'_>) {
        let wanted: BTreeSet<MemberId> = view.wanted.iter().copied().collect();
        let connected = self.links.keys().filter_map(member_of);
        let pinned = connected.chain(wanted.iter().copied()).collect();
        self.actions.push_back(Action::Pin(pinned));
        self.close_unused(now, &wanted, view);
        // Attempts to reach members that the book has dropped are no longer of use.
        self.attempts.retain(|member, attempt| {
            (view.is_known)(*member) || wanted.contains(member) || !attempt.dialling.is_empty()
        });
        if self.refresh.at <= now && !self.links.is_empty() {
            self.refresh(now);
        }
    }

    fn refresh(&mut self, now: Instant) {
        self.refresh.done += 1;
        let every = if self.refresh.done < FIRST_REFRESHES {
            REFRESH_FIRST
        } else {
            REFRESH_EVERY
        };
        self.refresh.at = now + every.mul_f64(self.rng.random_range(0.75..1.25));
        let place = if self.refresh.done % 2 == 1 {
            self.me.ring_addr()
        } else {
            RingAddr(self.rng.random())
        };
        self.actions.push_back(Action::Refresh(place));
    }

    /// Uses connections again that the other end did not close after all.
    pub(super) fn end_partings(&mut self, now: Instant) {
        for (peer, links) in &mut self.links {
            let mut kept = false;
            for link in links {
                kept |= link.parting.take_if(|until| *until <= now).is_some();
            }
            if let Some(member) = member_of(peer).filter(|_| kept) {
                self.actions.push_back(Action::Reopen(member));
            }
        }
    }

    /// The end that made a connection closes it when it no longer needs it and the other agrees.
    fn close_unused(&mut self, now: Instant, wanted: &BTreeSet<MemberId>, view: &View<'_>) {
        for (peer, links) in &mut self.links {
            let Some(member) = member_of(peer) else {
                continue;
            };
            let relays = self.relaying.contains(peer) || (view.is_reserved)(peer);
            let needed = relays || wanted.contains(&member);
            for link in links {
                if needed || (view.streams)(link.id) > 0 {
                    link.used = now;
                } else if link.dialled
                    && link.proved.is_some()
                    && now.duration_since(link.used) > self.unused_after
                {
                    // If the other does not agree it is asked again after the same time.
                    link.used = now;
                    self.actions.push_back(Action::AskToPart(member));
                }
            }
        }
    }

    /// Whether this end needs no connection to a member that asks to end them. If so it opens
    /// nothing more on them.
    pub fn agrees_to_part(
        &mut self,
        now: Instant,
        member: MemberId,
        has_waiters: bool,
        view: &View<'_>,
    ) -> bool {
        let Some(peer) = peer_of(member) else {
            return false;
        };
        let needed = !view.is_large
            || self.relaying.contains(&peer)
            || (view.is_reserved)(&peer)
            || has_waiters
            || view.wanted.contains(&member);
        let recent = self.unused_after / 2;
        let Some(links) = self.links.get_mut(&peer) else {
            return false;
        };
        // One stream is that of the question itself.
        let in_use = links
            .iter()
            .any(|l| (view.streams)(l.id) > 1 || now.duration_since(l.used) < recent);
        if needed || in_use {
            return false;
        }
        for link in links {
            link.parting = Some(now + 2 * PART_TIMEOUT);
        }
        true
    }

    /// The other end has agreed: the connections to it end, unless one has been used since.
    pub(super) fn parted(&mut self, member: MemberId, view: &View<'_>) {
        let Some(links) = peer_of(member).and_then(|peer| self.links.get(&peer)) else {
            return;
        };
        let idle = links.iter().filter(|l| (view.streams)(l.id) == 0);
        self.actions.extend(idle.map(|l| Action::Close(l.id)));
    }

    /// Probes the members over connections that do not detect a dead peer.
    pub(super) fn probe(&mut self, now: Instant) {
        if self.probe_at > now {
            return;
        }
        self.probe_at = now + PROBE_EVERY;
        for peer in self.links.keys().copied().collect::<Vec<_>>() {
            let (Some(member), Some(best)) = (member_of(&peer), self.best_link(&peer)) else {
                continue;
            };
            // The first question also measures the round trip.
            let pause = if is_relayed(&best.address) {
                PROBE_CIRCUIT_EVERY
            } else {
                PROBE_EVERY / 2
            };
            let asked = best.probed.is_some_and(|at| now.duration_since(at) < pause);
            if is_quic(&best.address) || asked {
                continue;
            }
            let id = best.id;
            if let Some(link) = self.link_mut(&peer, id) {
                link.probed = Some(now);
            }
            self.actions.push_back(Action::Probe(member));
        }
    }
}
