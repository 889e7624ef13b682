//! Members that are known but no neighbours: the leaf set beyond the edges, and members that are
//! not tried for now.
//!
//! The members in a neighbour's list are kept with the neighbour ([`super::neighbour`]) and
//! replaced by its next list. Here are the others: those that lookups found, those in the lists of
//! dead neighbours (the repair when half of all die at once), those to which no edge could be made,
//! and lost neighbours. A lost neighbour is tried again for an hour, so that the halves of a
//! divided network find each other when it heals. Everything is bounded; if there are more, the
//! members nearest to us are kept.

use super::position::{Node, Position};
use crate::id::MemberId;
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// How many members named by lookups or dead neighbours are kept.
const MAX_RUMOURS: usize = 64;
/// How many members are kept that are not tried for now.
const MAX_FAILED: usize = 256;
/// How many lost neighbours are tried again.
const MAX_LOST: usize = 16;
/// How long before a failed member is tried again; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
/// How long before it is tried again at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How long before the next lost neighbour is tried. Reason: all members of a part try, and one
/// success is enough, so that a healed cut is noticed within seconds; a dead half costs each member
/// one attempt every 20 s.
const LOST_EVERY: Duration = Duration::from_secs(20);
/// How long a lost neighbour is tried. Reason: this finds it after a cut of the wide area; a
/// machine that is gone must not cost attempts for ever.
const LOST_LIFE: Duration = Duration::from_secs(3600);

struct Rumour {
    node: Node,
    agent: Option<Position>,
    expires: Instant,
}

struct Failure {
    until: Instant,
    pause: Duration,
}

struct LostNeighbour {
    since: Instant,
    tried: Instant,
}

/// The members by kind.
#[derive(Default)]
pub(super) struct KnownMembers {
    rumours: BTreeMap<MemberId, Rumour>,
    failed: BTreeMap<MemberId, Failure>,
    lost: BTreeMap<MemberId, LostNeighbour>,
    /// When the next lost neighbour is tried.
    lost_at: Option<Instant>,
}

impl KnownMembers {
    /// Whether an edge to the member died or could not be made lately.
    pub fn was_tried(&self, member: &MemberId) -> bool {
        self.failed.contains_key(member) || self.lost.contains_key(member)
    }

    /// When the next failed member may be tried again.
    pub fn retry_at(&self, now: Instant) -> Option<Instant> {
        self.failed
            .values()
            .map(|f| f.until)
            .filter(|until| *until > now)
            .min()
    }

    /// Notes that `node` lives by hearsay, and can be called through `agent`.
    pub fn rumour(&mut self, me: Position, node: Node, agent: Option<Position>, expires: Instant) {
        self.rumours.insert(
            node.member,
            Rumour {
                node,
                agent,
                expires,
            },
        );
        if self.rumours.len() > MAX_RUMOURS {
            let farthest = self
                .rumours
                .values()
                .max_by_key(|r| me.distance(r.node.position))
                .map(|r| r.node.member);
            farthest.map(|member| self.rumours.remove(&member));
        }
    }

    /// The members known by hearsay, each with the neighbour to call it through.
    pub fn rumours(&self) -> impl Iterator<Item = (Node, Option<Position>)> {
        self.rumours.values().map(|r| (r.node, r.agent))
    }

    /// Whether the member is not tried for now.
    pub fn is_failed(&self, member: &MemberId, now: Instant) -> bool {
        self.failed.get(member).is_some_and(|f| f.until > now)
    }

    /// Notes that an edge to the member could not be made, or died.
    pub fn fail(&mut self, member: MemberId, now: Instant) {
        self.rumours.remove(&member);
        let pause = self
            .failed
            .get(&member)
            .map_or(FIRST_PAUSE, |f| (f.pause * 2).min(LONGEST_PAUSE));
        self.failed.insert(
            member,
            Failure {
                until: now + pause,
                pause,
            },
        );
        if self.failed.len() > MAX_FAILED {
            let first = self
                .failed
                .iter()
                .min_by_key(|(_, f)| f.until)
                .map(|(m, _)| *m);
            first.map(|m| self.failed.remove(&m));
        }
    }

    /// Notes that an edge to the member stands.
    pub fn works(&mut self, member: &MemberId) {
        self.rumours.remove(member);
        self.failed.remove(member);
        self.lost.remove(member);
    }

    /// Notes a dead neighbour: it may be behind a cut that heals. The newest are kept.
    pub fn lose(&mut self, member: MemberId, now: Instant) {
        self.lost.insert(
            member,
            LostNeighbour {
                since: now,
                tried: now,
            },
        );
        self.lost_at.get_or_insert(now + LOST_EVERY / 2);
        if self.lost.len() > MAX_LOST {
            let oldest = self
                .lost
                .iter()
                .min_by_key(|(_, l)| l.since)
                .map(|(m, _)| *m);
            oldest.map(|m| self.lost.remove(&m));
        }
    }

    /// Whether the member is a lost neighbour.
    pub fn is_lost(&self, member: &MemberId) -> bool {
        self.lost.contains_key(member)
    }

    /// The lost neighbour to try again, if that is due.
    pub fn next_lost(&mut self, now: Instant) -> Option<MemberId> {
        self.lost_at.filter(|at| *at <= now)?;
        self.lost
            .retain(|_, l| now.saturating_duration_since(l.since) < LOST_LIFE);
        self.lost_at = (!self.lost.is_empty()).then(|| now + LOST_EVERY);
        let (member, lost) = self.lost.iter_mut().min_by_key(|(_, l)| l.tried)?;
        lost.tried = now;
        // Its earlier failures do not count here: the cut may have healed since.
        self.failed.remove(member);
        Some(*member)
    }

    /// When something here is due.
    pub fn wake_at(&self) -> Option<Instant> {
        self.lost_at
    }

    /// Drops entries that are too old.
    pub fn expire(&mut self, now: Instant) {
        self.rumours.retain(|_, r| r.expires > now);
        self.failed.retain(|_, f| now < f.until + f.pause);
    }
}

/// The `each` nodes nearest to `place` on each of its sides, clockwise side first.
pub(super) fn around(
    place: Position,
    nodes: impl IntoIterator<Item = Node>,
    each: usize,
) -> Vec<Node> {
    let mut sorted: Vec<Node> = nodes.into_iter().filter(|n| n.position != place).collect();
    sorted.sort_unstable_by_key(|n| place.clockwise(n.position));
    sorted.dedup();
    if sorted.len() > 2 * each {
        sorted.drain(each..sorted.len() - each);
    }
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(n: u8) -> Node {
        Node::from(MemberId([n; 32]))
    }

    #[test]
    fn memory_for_rumoured_members_is_bounded_and_keeps_the_nearest() {
        let (me, now) = (node(0).position, Instant::now());
        let mut known = KnownMembers::default();
        for n in 1..=255 {
            known.rumour(me, node(n), None, now + FIRST_PAUSE);
            known.lose(node(n).member, now + Duration::from_secs(n.into()));
        }
        assert_eq!(
            (known.rumours.len(), known.lost.len()),
            (MAX_RUMOURS, MAX_LOST)
        );
        let mut all: Vec<Node> = (1..=255).map(node).collect();
        all.sort_by_key(|n| me.distance(n.position));
        assert!(
            all[..MAX_RUMOURS]
                .iter()
                .all(|n| known.rumours.contains_key(&n.member))
        );
        assert!(known.is_lost(&node(255).member) && !known.is_lost(&node(1).member));
        known.expire(now + FIRST_PAUSE);
        assert!(known.rumours.is_empty());
    }

    #[test]
    fn who_fails_again_waits_longer() {
        let (now, member) = (Instant::now(), node(1).member);
        let mut known = KnownMembers::default();
        known.fail(member, now);
        assert!(known.is_failed(&member, now) && !known.is_failed(&member, now + FIRST_PAUSE));
        known.fail(member, now + FIRST_PAUSE);
        assert!(known.is_failed(&member, now + FIRST_PAUSE * 2));
        known.works(&member);
        assert!(!known.is_failed(&member, now));
    }

    #[test]
    fn around_a_place_are_the_nearest_of_both_sides() {
        let nodes: Vec<Node> = (1..=9)
            .map(|n| Node {
                position: Position(n * 10),
                member: MemberId([n as u8; 32]),
            })
            .collect();
        let found = around(Position(45), nodes.clone(), 2);
        assert_eq!(
            found.iter().map(|n| n.position.0).collect::<Vec<_>>(),
            [50, 60, 30, 40]
        );
        assert_eq!(around(Position(45), nodes.into_iter().take(3), 2).len(), 3);
    }
}
