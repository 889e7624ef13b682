//! Edges: asked for, made, ended in peace, dead. The other modules only set the roles that an edge
//! is wanted for.
//!
//! An edge belongs to both ends. Each tells the other the roles it wants it for; the end that first
//! notices that neither has wanted the edge for a while ends it. After a neighbour's death the
//! members in its list are tried at once in its place.

use super::{
    Edge, Event, Mode, Node, Output, Position, Ring, RingHop,
    message::{Message, Roles},
    seek,
};
use crate::id::MemberId;
use rand::{Rng, seq::IteratorRandom};
use std::time::{Duration, Instant};

/// How many edges of all kinds a member has, whatever others ask for. Most are leaves of a
/// bootstrap while many members join.
const MAX_EDGES: usize = 1024;
/// How many edges are asked for at once.
pub(super) const MAX_PENDING: usize = 48;
/// How long the driver may take to make an edge before it counts as failed.
pub(super) const LINK_LIMIT: Duration = Duration::from_secs(20);
/// How long an edge is kept that neither side has a use for. Reason: roles move while the ring
/// settles.
pub(super) const IDLE_EDGE: Duration = Duration::from_secs(10);
/// How many edges are kept that only the other side counts as near. Reason: more are lies or a ring
/// far from settled; the farthest are dropped.
const MAX_FOREIGN_NEAR: usize = 16;

/// An edge that was asked for.
pub(super) struct PendingEdge {
    pub since: Instant,
    pub roles: Roles,
}

impl Ring {
    /// Asks for an edge, unless there is one or it failed just now.
    pub(super) fn link(
        &mut self,
        now: Instant,
        member: MemberId,
        roles: Roles,
        agent: Option<Position>,
    ) -> bool {
        if member == self.me.member {
            return false;
        }
        if let Some(edge) = self.edges.get_mut(&member) {
            edge.mine.set(roles, true);
            self.hurry = true;
            return true;
        }
        if let Some(pending) = self.pending.get_mut(&member) {
            pending.roles.set(roles, true);
            return true;
        }
        if self.pending.len() >= MAX_PENDING || self.known.is_failed(&member, now) {
            return false;
        }
        let agent = self.through(member, agent);
        self.pending
            .insert(member, PendingEdge { since: now, roles });
        self.outputs.push_back(Output::Link { member, agent });
        self.wake_by(now + LINK_LIMIT);
        true
    }

    /// The neighbour through which to call a member: one of those that claim an edge with it, else
    /// the one that a lookup found it over, else one that has heard of it, else, if we ourselves
    /// know no way, any neighbour. Drawn again for each attempt, because any of them may be wrong.
    fn through(&mut self, member: MemberId, found_over: Option<Position>) -> Option<Position> {
        let (node, rng) = (Node::from(member), &mut self.rng);
        let speaks = || self.edges.values().filter(|e| e.heard);
        let place = |e: &Edge| e.node.position;
        let found_over = found_over.filter(|agent| speaks().any(|e| place(e) == *agent));
        (speaks()
            .filter(|e| e.direct.contains(&node))
            .map(place)
            .choose(rng))
        .or(found_over)
        .or_else(|| {
            speaks()
                .filter(|e| e.hearsay.contains(&node))
                .map(place)
                .choose(rng)
        })
        .or_else(|| {
            let lost =
                self.joined && self.table.next(node.position, Mode::Exact) == RingHop::Nowhere;
            speaks().filter(|e| lost && e.joined).map(place).choose(rng)
        })
    }

    pub(super) fn linked(&mut self, now: Instant, member: MemberId, rtt: Option<Duration>) {
        if member == self.me.member
            || (self.edges.len() >= MAX_EDGES && !self.edges.contains_key(&member))
        {
            self.outputs.push_back(Output::Unlink { member });
            return;
        }
        let lost = self.known.is_lost(&member);
        let mut roles = self
            .pending
            .remove(&member)
            .map_or(Roles::default(), |p| p.roles);
        roles.set(Roles::SEED, lost || roles.has(Roles::SEED));
        self.known.works(&member);
        let first_seq = self.rng.random();
        let edge = self
            .edges
            .entry(member)
            .or_insert_with(|| Edge::new(Node::from(member), roles, rtt, first_seq, now));
        edge.mine.set(roles, true);
        // A new link under an old edge: ask at once whether the other's state is unchanged.
        edge.tries = 0;
        edge.ask_at = now;
        self.changed = true;
    }

    pub(super) fn link_failed(&mut self, now: Instant, member: MemberId) {
        if self.pending.remove(&member).is_some() {
            self.known.fail(member, now);
            self.far_failed(now, member);
            self.shortcut_failed(now, member);
            self.changed = true;
        }
    }

    /// A neighbour is gone. The members in its list around us are the first to be tried in its
    /// place.
    pub(super) fn lose(&mut self, now: Instant, member: MemberId) {
        let Some(edge) = self.edges.remove(&member) else {
            return self.link_failed(now, member);
        };
        self.changed = true;
        self.far_failed(now, member);
        self.shortcut_failed(now, member);
        self.known.fail(member, now);
        if edge.heard {
            self.known.lose(member, now);
            self.near.mourn(now, edge.node, edge.near());
            self.outputs.push_back(Output::Event(Event::Died(member)));
            for node in edge.direct.into_iter().chain(edge.hearsay) {
                if node != self.me
                    && !self.edges.contains_key(&node.member)
                    && !self.known.is_failed(&node.member, now)
                {
                    self.known
                        .rumour(self.me.position, node, None, now + seek::RUMOUR_LIFE);
                }
            }
        }
    }

    pub(super) fn expire(&mut self, now: Instant) {
        let late: Vec<MemberId> = self
            .pending
            .iter()
            .filter(|(_, p)| p.since + LINK_LIMIT <= now)
            .map(|(m, _)| *m)
            .collect();
        for member in late {
            self.link_failed(now, member);
        }
        self.known.expire(now);
    }

    /// Drops edges that neither side has had a use for during [`IDLE_EDGE`].
    pub(super) fn drop_unwanted(&mut self, now: Instant) {
        let mut foreign: Vec<(u64, MemberId)> = Vec::new();
        let mut idle = Vec::new();
        for edge in self.edges.values_mut() {
            if edge.mine.is_empty() && edge.theirs.is_empty() {
                let since = *edge.idle_since.get_or_insert(now);
                // An edge that never spoke ends when its questions stay unanswered.
                if edge.heard && since + IDLE_EDGE <= now {
                    idle.push(edge.member());
                }
            } else {
                edge.idle_since = None;
                if edge.mine.is_empty() && edge.theirs == Roles::NEAR && edge.joined {
                    foreign.push((self.me.position.distance(edge.node.position), edge.member()));
                }
            }
        }
        foreign.sort_unstable();
        idle.extend(
            foreign
                .into_iter()
                .skip(MAX_FOREIGN_NEAR)
                .map(|(_, member)| member),
        );
        for member in idle {
            self.part(member);
        }
    }

    /// Ends an edge in peace.
    pub(super) fn part(&mut self, member: MemberId) {
        self.send(member, &Message::Bye);
        if self.edges.remove(&member).is_some() {
            self.changed = true;
        }
        self.outputs.push_back(Output::Unlink { member });
    }

    pub(super) fn bye(&mut self, now: Instant, from: MemberId) {
        self.edges.remove(&from);
        self.far_failed(now, from);
        self.shortcut_failed(now, from);
        self.outputs.push_back(Output::Unlink { member: from });
        self.changed = true;
    }
}
