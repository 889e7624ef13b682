//! Lookups of one's own place: with them a joiner finds its place, a member notices that it has
//! lost its place, and two rings find each other.
//!
//! A lookup is routed to the member closest to the asker other than the asker itself, starting with
//! a given neighbour; the answer comes back through that neighbour. So it works for an asker that
//! no member can route to yet, and along an edge into another ring it is answered by that ring. In
//! a whole ring a near neighbour answers it and it brings nothing new; the pause until the next one
//! then doubles.

use super::{
    Edge, NEAR_EACH_SIDE, Node, Output, Position, Ring,
    far::Draw,
    known::around,
    message::{Message, Purpose, Roles},
    wire::{Header, Kind, Packet},
};
use crate::{coordinates::Coordinate, id::MemberId};
use rand::{Rng, seq::IteratorRandom};
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// How long a member named by a lookup or a dead neighbour stays a candidate.
pub(super) const RUMOUR_LIFE: Duration = Duration::from_secs(60);
/// How many members of each side an answer names.
const FOUND_EACH_SIDE: usize = 4;
/// How long before a joiner repeats a lookup that was lost; doubled each time.
const JOIN_RETRY: Duration = Duration::from_secs(1);
/// How long before it repeats such a lookup at most.
const JOIN_RETRY_MAX: Duration = Duration::from_secs(8);
/// How long after a change of its neighbours a member looks itself up; doubled each time.
const CHECK: Duration = Duration::from_secs(4);
/// How long before it looks itself up at most. Reason: at 10 000 members 8 hops of 170 B each every
/// two minutes are 11 B/s.
const CHECK_MAX: Duration = Duration::from_secs(128);
/// How long to wait for an answer: 32 hops of 300 ms.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// How many lookups are under way at once.
const MAX_ASKED: usize = 64;
/// How long an edge from outside is kept. Reason: by then it has led into the ring, or into another
/// one.
const SEED_LIFE: Duration = Duration::from_secs(30);

/// The purpose of a lookup.
enum Goal {
    Near,
    Far(Draw),
}

struct OpenLookup {
    goal: Goal,
    agent: Option<Position>,
    deadline: Instant,
}

/// The state of the seeking part.
#[derive(Default)]
pub(super) struct SeekState {
    located: bool,
    at: Option<Instant>,
    pause: Option<Duration>,
    asked: BTreeMap<u32, OpenLookup>,
}

impl SeekState {
    /// Whether a lookup of our own place has been answered since we were last out of the ring.
    pub fn located(&self) -> bool {
        self.located
    }

    pub fn wake_at(&self) -> Option<Instant> {
        self.asked.values().map(|a| a.deadline).chain(self.at).min()
    }
}

impl Ring {
    /// Takes a member named from outside of the ring.
    pub(super) fn seed(&mut self, now: Instant, member: MemberId) {
        match self.edges.get(&member).filter(|e| e.heard).map(|e| e.node) {
            Some(node) => self.locate_self(now, node),
            None => {
                self.link(now, member, Roles::SEED, None);
            }
        }
    }

    /// A new neighbour has spoken for the first time.
    pub(super) fn met(&mut self, now: Instant, member: MemberId, joined: bool) {
        let Some(edge) = self.edges.get(&member) else {
            return;
        };
        // A near edge comes from near neighbours' lists; any other edge may lead into a ring that
        // they do not know.
        if !self.joined || (joined && !edge.near()) {
            let node = edge.node;
            self.locate_self(now, node);
        }
        if !self.joined {
            self.seek.pause = Some(JOIN_RETRY);
            self.seek.at = Some(now + JOIN_RETRY);
        }
    }

    /// Looks ourselves up soon, because something has changed.
    pub(super) fn seek_soon(&mut self, now: Instant) {
        self.seek.located &= self.joined;
        let first = if self.joined { CHECK } else { JOIN_RETRY };
        let spread = 0.5 + self.rng.random::<f64>();
        self.seek.pause = Some(first);
        let at = now + first.mul_f64(spread);
        self.seek.at = Some(self.seek.at.map_or(at, |old| old.min(at)));
        self.wake_by(at);
    }

    /// Does the lookups that are due.
    pub(super) fn keep_seeking(&mut self, now: Instant) {
        self.seek.asked.retain(|_, a| a.deadline > now);
        if let Some(member) = self.known.next_lost(now) {
            self.link(now, member, Roles::SEED, None);
        }
        if self.joined {
            for edge in self
                .edges
                .values_mut()
                .filter(|e| e.since + SEED_LIFE <= now)
            {
                edge.mine.set(Roles::SEED, false);
            }
        }
        if self.seek.at.is_none_or(|at| at > now) {
            return;
        }
        let (first, most) = if self.joined {
            (CHECK, CHECK_MAX)
        } else {
            (JOIN_RETRY, JOIN_RETRY_MAX)
        };
        let pause = self.seek.pause.unwrap_or(first);
        self.seek.pause = Some((pause * 2).min(most));
        self.seek.at = Some(now + pause.mul_f64(self.rng.random_range(0.9..1.1)));
        let speaks = self.edges.values().filter(|e| e.heard);
        let carrier = speaks
            .clone()
            .filter(|e| e.joined)
            .map(|e| e.node)
            .choose(&mut self.rng);
        if let Some(via) = carrier.or_else(|| speaks.map(|e| e.node).choose(&mut self.rng)) {
            self.locate_self(now, via);
        } else if !self.joined {
            self.seek.at = None;
        }
    }

    /// Asks for the members nearest to us, beginning with `via`.
    fn locate_self(&mut self, now: Instant, via: Node) {
        let header = Header {
            agent: Some(via.position),
            ..Header::new(Kind::ControlClosest, self.me.position, self.me.position)
        };
        self.locate(now, via.member, header, Goal::Near);
    }

    /// Asks for members around `target`, through the ring.
    pub(super) fn locate_far(&mut self, now: Instant, via: MemberId, target: Position, draw: Draw) {
        let header = Header::new(Kind::ControlClosest, self.me.position, target);
        self.locate(now, via, header, Goal::Far(draw));
    }

    fn locate(&mut self, now: Instant, via: MemberId, header: Header, goal: Goal) {
        if self.seek.asked.len() >= MAX_ASKED {
            return;
        }
        let nonce = self.rng.random();
        let purpose = if matches!(goal, Goal::Near) {
            Purpose::Near
        } else {
            Purpose::Far
        };
        let body = Message::Locate {
            nonce,
            origin: self.me.member,
            purpose,
        }
        .encode();
        self.seek.asked.insert(
            nonce,
            OpenLookup {
                goal,
                agent: header.agent,
                deadline: now + ANSWER_LIMIT,
            },
        );
        self.outputs.push_back(Output::Send {
            to: via,
            packet: Packet { header, body },
        });
        self.wake_by(now + ANSWER_LIMIT);
    }

    /// We are the closest to a place that somebody asked for.
    pub(super) fn answer_locate(
        &mut self,
        header: &Header,
        nonce: u32,
        origin: MemberId,
        purpose: Purpose,
    ) {
        if Position::of(&origin) != header.from || origin == self.me.member {
            return;
        }
        let told =
            |e: &&Edge| e.heard && e.member() != origin && (purpose == Purpose::Near || e.joined);
        let places: BTreeMap<Node, Option<Coordinate>> = self
            .edges
            .values()
            .filter(told)
            .map(|e| (e.node, e.coordinate))
            .collect();
        let each = if purpose == Purpose::Near {
            FOUND_EACH_SIDE
        } else {
            NEAR_EACH_SIDE
        };
        let found = around(header.to, places.keys().copied(), each);
        let others = found.into_iter().map(|n| {
            (
                n.member,
                places
                    .get(&n)
                    .copied()
                    .flatten()
                    .filter(|_| purpose == Purpose::Far),
            )
        });
        let members = std::iter::once((self.me.member, Some(self.vivaldi.mine())))
            .chain(others)
            .collect();
        self.reply(
            header,
            Kind::Control,
            Message::Found { nonce, members }.encode(),
        );
    }

    /// A lookup was answered.
    pub(super) fn found(
        &mut self,
        now: Instant,
        nonce: u32,
        members: Vec<(MemberId, Option<Coordinate>)>,
    ) {
        // Only the first answer to a question of ours counts.
        let Some(asked) = self.seek.asked.remove(&nonce) else {
            return;
        };
        match asked.goal {
            Goal::Far(draw) => self.found_far(now, draw, members),
            Goal::Near => {
                // In a whole ring the answer names neighbours only, and changes nothing.
                self.changed |= !std::mem::replace(&mut self.seek.located, true);
                for (member, _) in members {
                    if member != self.me.member && !self.edges.contains_key(&member) {
                        self.known.rumour(
                            self.me.position,
                            Node::from(member),
                            asked.agent,
                            now + RUMOUR_LIFE,
                        );
                        self.changed = true;
                    }
                }
            }
        }
    }
}
