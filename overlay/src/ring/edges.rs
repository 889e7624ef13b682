//! Edges come and go: asked for, made, ended in peace, dead. Everything else says what an edge is
//! wanted for and leaves the rest to this.
//!
//! An edge belongs to both ends. Each tells the other what it wants it for, and one that neither
//! wants for a while is ended by whoever notices first. What a dead neighbour knew is tried at once
//! in its place.

use super::{
    Edge, Event, Mode, Next, Node, Output, Position, Ring,
    message::{Message, Roles},
    seek,
};
use crate::id::MemberId;
use rand::{Rng, seq::IteratorRandom};
use std::time::{Duration, Instant};

/// Edges of all kinds, whatever others ask for; most are leaves of a bootstrap while many join.
const MAX_EDGES: usize = 1024;
/// Edges asked for at once.
pub(super) const MAX_PENDING: usize = 48;
/// The driver has this long to make an edge, then it counts as failed.
pub(super) const LINK_LIMIT: Duration = Duration::from_secs(20);
/// An edge for which neither side has a use is kept for this long: roles move while the ring
/// settles.
pub(super) const IDLE_EDGE: Duration = Duration::from_secs(10);
/// Edges that only the other side counts as near: more than this are lies or a ring far from
/// settled, and the farthest go.
const MAX_FOREIGN_NEAR: usize = 16;

/// An edge that was asked for.
pub(super) struct Pending {
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
        self.pending.insert(member, Pending { since: now, roles });
        self.outputs.push_back(Output::Link { member, agent });
        self.wake_by(now + LINK_LIMIT);
        true
    }

    /// Through whom a member is called: any of those that say that they have an edge with it, else
    /// the neighbour over which it was found, else any that has heard of it, else, where we
    /// ourselves know no way, any neighbour. Drawn for each attempt, as one of them may be wrong.
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
            let lost = self.joined && self.table.next(node.position, Mode::Exact) == Next::Nowhere;
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
        // A new link of an old edge: ask at once whether all is as it was.
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

    /// A neighbour is gone. What it knew around us is the first that we try in its place.
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

    /// Lets go of edges that neither side has had a use for during [`IDLE_EDGE`].
    pub(super) fn drop_unwanted(&mut self, now: Instant) {
        let mut foreign: Vec<(u64, MemberId)> = Vec::new();
        let mut idle = Vec::new();
        for edge in self.edges.values_mut() {
            if edge.mine.is_empty() && edge.theirs.is_empty() {
                let since = *edge.idle_since.get_or_insert(now);
                // An edge that never spoke ends by its unanswered questions.
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
