//! Whom to stay connected to: in a small network everyone, in a large one the nearest, the ring's
//! neighbours (or, as long as there is no ring, one far member in each doubling of the distance),
//! and whom this node talks to. Connections that neither needs are closed by the one who made them;
//! lookups of this node's own place and of random ones keep the address book fresh.

use super::{Driver, Link};
use crate::{
    control::{
        address::{dials, is_relayed, member_of, peer_of},
        shared::Command,
        wire::{Contact, PART_SERVICE},
    },
    id::{MemberId, RingAddr},
};
use libp2p::{
    PeerId,
    multiaddr::Protocol,
    swarm::dial_opts::{DialOpts, PeerCondition},
};
use std::{collections::BTreeSet, sync::PoisonError, time::Duration};
use tokio::time::Instant;

/// Beyond the full mesh, connections to so many of the nearest: twice the replicas of a record, so
/// that the replicas of the records held here are all connected.
const NEAR: usize = 10;
/// And to so many far members, as long as no ring names them.
const FAR: usize = 8;
/// A relayed member is dialled directly this often, and more rarely if nobody has found it
/// reachable.
const DIRECT_RETRY: Duration = Duration::from_secs(30);
const DIRECT_RETRY_HIDDEN: Duration = Duration::from_secs(600);
/// A second connection to the same member is closed when it is this old and unused.
const SUPERFLUOUS_AFTER: Duration = Duration::from_secs(10);
/// A connection of a large network that nobody needs to keep is closed when unused for this long.
const UNUSED_AFTER: Duration = Duration::from_secs(if cfg!(test) { 6 } else { 60 });
/// How long the other may take to agree.
const PART_TIMEOUT: Duration = Duration::from_secs(3);
/// Others of the members out of reach are tried in each such round.
const ROUND: Duration = Duration::from_secs(30);
/// Dials under way for connections that this node wants to keep, not those that somebody waits for:
/// joining a large network is no storm.
const MAX_WANTED_DIALS: usize = 16;
/// Lookups that keep the book fresh: quickly until the density is known, then rarely (20 questions
/// of 1 kB: 70 B/s).
const REFRESH_FIRST: Duration = Duration::from_secs(1);
const REFRESH_EVERY: Duration = Duration::from_secs(300);
const FIRST_REFRESHES: u32 = 10;

/// When the next lookup of the node's own is due.
pub struct Refresh {
    at: Instant,
    done: u32,
}

impl Refresh {
    pub fn new(now: Instant) -> Self {
        Self { at: now, done: 0 }
    }
}

impl Driver {
    fn wanted(&self) -> Vec<MemberId> {
        let book = self
            .shared
            .book
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        if book.len() < self.shared.full_mesh {
            // Who has left is to be found nowhere: a search for it would ask everyone in vain.
            let there = book
                .iter()
                .filter(|contact| !contact.is_farewell())
                .map(Contact::member);
            return there.filter(|m| *m != self.shared.me).collect();
        }
        let ring = self
            .shared
            .ring_neighbours
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let round = self.started.elapsed().as_secs() / ROUND.as_secs();
        let mut wanted = book.worth_connecting(
            NEAR.min(self.shared.full_mesh),
            if ring.is_empty() { FAR } else { 0 },
            round,
        );
        wanted.extend(ring.iter());
        wanted
    }

    pub(super) fn dial_wanted(&mut self, now: Instant) {
        let mut dialling = self
            .attempts
            .values()
            .filter(|a| !a.dialling.is_empty())
            .count();
        for member in self.wanted() {
            if let Some(peer) = peer_of(member)
                .filter(|p| self.best_link(p).is_some_and(|l| is_relayed(&l.address)))
            {
                self.dial_past_relay(member, peer, now);
                continue;
            }
            let attempt = self.attempts.entry(member).or_default();
            let due = attempt.dialling.is_empty() && attempt.not_before.is_none_or(|at| at <= now);
            if due
                && dialling < MAX_WANTED_DIALS
                && peer_of(member).is_some_and(|peer| !self.links.contains_key(&peer))
            {
                if self.dial(member) {
                    dialling += 1;
                } else {
                    self.look_for(member, now);
                }
            }
        }
        // After the members known: whom of them the bootstrap names is being dialled now, and is
        // not dialled twice.
        if self.links.is_empty() && self.bootstrap_at <= now {
            self.bootstrap_at = now + Duration::from_secs(10);
            for options in dials(&self.bootstrap) {
                let _ = self.swarm.dial(options);
            }
        }
    }

    /// The ring names a neighbour of which the book has nothing, or nothing that can be dialled:
    /// others are asked.
    fn look_for(&mut self, member: MemberId, now: Instant) {
        self.attempts.entry(member).or_default().failed(now);
        self.may_search.insert(member);
        self.search_or_give_up(member);
    }

    /// Hole punching tries what NATs hide. A member that can simply be dialled, but was first met
    /// through a relay, is dialled here: libp2p's DCUtR does not offer an address that is confirmed
    /// already.
    fn dial_past_relay(&mut self, member: MemberId, peer: PeerId, now: Instant) {
        let attempt = self.attempts.entry(member).or_default();
        if attempt.not_before.is_some_and(|at| at > now) {
            return;
        }
        let public = self
            .shared
            .book
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(member)
            .is_some_and(|c| c.public);
        attempt.not_before = Some(
            now + if public {
                DIRECT_RETRY
            } else {
                DIRECT_RETRY_HIDDEN
            },
        );
        let direct = self
            .addresses_of(member)
            .into_iter()
            .filter(|a| !is_relayed(a))
            .map(|a| a.with(Protocol::P2p(peer)));
        let options = DialOpts::peer_id(peer)
            .condition(PeerCondition::Always)
            .addresses(direct.collect())
            .build();
        let _ = self.swarm.dial(options);
    }

    /// Of several connections to a member, the smaller id closes all but the best once they are
    /// unused.
    pub(super) fn close_superfluous(&mut self, now: Instant) {
        let mut close = Vec::new();
        for (peer, links) in self.links.iter().filter(|(_, links)| links.len() > 1) {
            if member_of(peer).is_none_or(|member| self.shared.me > member) {
                continue;
            }
            let Some(best) = self.best_link(peer) else {
                continue;
            };
            // The other end must have had time to prefer the best one too.
            if best
                .proved
                .is_none_or(|at| now.duration_since(at) < SUPERFLUOUS_AFTER)
            {
                continue;
            }
            let best = best.id;
            let streams = &self.swarm.behaviour().inner.streams;
            let carries = |l: &Link| !is_relayed(&l.address) && self.relaying.contains(peer);
            let old = |l: &&Link| {
                l.id != best && !carries(l) && now.duration_since(l.since) > SUPERFLUOUS_AFTER
            };
            close.extend(
                links
                    .iter()
                    .filter(old)
                    .map(|l| l.id)
                    .filter(|id| streams.in_use(*id) == 0),
            );
        }
        for id in close {
            self.swarm.close_connection(id);
        }
    }

    /// What only a large network needs: closing what nobody uses, and the lookups that keep the
    /// book fresh.
    pub(super) fn tend_large(&mut self, now: Instant) {
        if !self.shared.is_large() {
            return;
        }
        let wanted: BTreeSet<MemberId> = self.wanted().into_iter().collect();
        let connected = self.links.keys().filter_map(member_of);
        let pinned = connected.chain(wanted.iter().copied()).collect();
        self.shared
            .book
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .pin(pinned);
        self.close_unused(&wanted, now);
        // Attempts of members that the book has dropped are of no use any more.
        let book = self
            .shared
            .book
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        self.attempts.retain(|member, attempt| {
            book.get(*member).is_some() || wanted.contains(member) || !attempt.dialling.is_empty()
        });
        drop(book);
        if self.refresh.at <= now && !self.links.is_empty() {
            self.refresh.done += 1;
            let every = if self.refresh.done < FIRST_REFRESHES {
                REFRESH_FIRST
            } else {
                REFRESH_EVERY
            };
            self.refresh.at = now + every.mul_f64(rand::random_range(0.75..1.25));
            let own = self.refresh.done % 2 == 1;
            let place = if own {
                self.shared.me.ring_addr()
            } else {
                RingAddr(rand::random())
            };
            let shared = self.shared.clone();
            tokio::spawn(async move {
                if let Err(e) = shared.refresh(place).await {
                    tracing::debug!("a lookup to keep the address book fresh failed: {e}");
                }
            });
        }
    }

    /// The one who made a connection closes it when it wants it no more and the other agrees.
    fn close_unused(&mut self, wanted: &BTreeSet<MemberId>, now: Instant) {
        let streams = &self.swarm.behaviour().inner.streams;
        let (mut ask, mut stayed) = (Vec::new(), Vec::new());
        for (peer, links) in &mut self.links {
            let Some(member) = member_of(peer) else {
                continue;
            };
            let relay = self.relaying.contains(peer) || self.reservations.contains_key(peer);
            let needed = relay || wanted.contains(&member);
            for link in links.iter_mut() {
                if link.parting.take_if(|until| *until <= now).is_some() {
                    stayed.push(member);
                }
                if needed || streams.in_use(link.id) > 0 {
                    link.used = now;
                } else if link.dialled
                    && link.proved.is_some()
                    && now.duration_since(link.used) > UNUSED_AFTER
                {
                    // The next question, if the other does not agree, is due after as long again.
                    link.used = now;
                    ask.push(member);
                }
            }
        }
        // The other end did not close it after all.
        for member in stayed {
            for waiter in self.waiting.remove(&member).unwrap_or_default() {
                self.open(member, waiter, false);
            }
        }
        for member in ask {
            let shared = self.shared.clone();
            tokio::spawn(async move {
                if shared
                    .call_known(member, PART_SERVICE, Vec::new(), PART_TIMEOUT)
                    .await
                    .is_ok()
                {
                    let _ = shared.commands.send(Command::Parted(member)).await;
                }
            });
        }
    }

    /// Whether this end has no use for its connections to a member that asks to end them. If so it
    /// opens nothing more on them.
    pub(super) fn agrees_to_part(&mut self, member: MemberId) -> bool {
        let Some(peer) = peer_of(member) else {
            return false;
        };
        let needed = !self.shared.is_large()
            || self.relaying.contains(&peer)
            || self.reservations.contains_key(&peer)
            || self.waiting.contains_key(&member)
            || self.wanted().contains(&member);
        let now = Instant::now();
        let streams = &self.swarm.behaviour().inner.streams;
        let Some(links) = self.links.get_mut(&peer) else {
            return false;
        };
        // The question itself comes in a stream.
        if needed
            || links
                .iter()
                .any(|l| streams.in_use(l.id) > 1 || now.duration_since(l.used) < UNUSED_AFTER / 2)
        {
            return false;
        }
        links
            .iter_mut()
            .for_each(|l| l.parting = Some(now + 2 * PART_TIMEOUT));
        true
    }

    /// The other end has agreed: its connections end, unless one has been used since.
    pub(super) fn parted(&mut self, member: MemberId) {
        let Some(peer) = peer_of(member) else { return };
        let streams = &self.swarm.behaviour().inner.streams;
        let idle = |l: &&Link| streams.in_use(l.id) == 0;
        let close: Vec<_> = self
            .links
            .get(&peer)
            .into_iter()
            .flatten()
            .filter(idle)
            .map(|l| l.id)
            .collect();
        for id in close {
            self.swarm.close_connection(id);
        }
    }
}
