//! Near neighbours: which members they should be, and how neighbours agree on it.
//!
//! Every member sends its near neighbours a list of its own neighbours around them, whenever that
//! changes (T-Man: Jelasity et al. 2009: send a peer the members nearest *to it*). A digest of its
//! near neighbours travels in every keepalive, so that a lost list is asked for. A list names
//! members with a living edge. Members known by hearsay are listed apart; the receiver does not
//! pass them on, and uses them only when all edges of a side are gone. So a rumour of a dead member
//! ends where its edges end, and two neighbours cannot keep it alive between them.

use super::{
    Event, NEAR_EACH_SIDE, Node, Output, PendingEdge, Position, Ring,
    known::around,
    message::{MAX_GONE, MAX_IDS, Message, Roles},
};
use crate::id::MemberId;
use std::time::{Duration, Instant};

/// How long changes are gathered into one list.
const LIST_DELAY: Duration = Duration::from_millis(50);
/// How long before a neighbour gets another list on request.
const LIST_EVERY: Duration = Duration::from_millis(250);
/// How many members of each side a list has.
const LIST_EACH_SIDE: usize = MAX_IDS / 4;
/// How long lists name a dead neighbour.
const MOURNING: Duration = Duration::from_secs(10);
/// How long an edge may take to be made before the next candidate is tried too.
const SLOW_LINK: Duration = Duration::from_secs(1);
/// How many candidates of each side are tried at once. Reason: a liar may name any number.
const TRIED_EACH_SIDE: usize = 2 * NEAR_EACH_SIDE;
/// How long a candidate keeps us from joining without it. Reason: it may be dead.
const JOIN_WITHOUT: Duration = Duration::from_secs(6);

/// The state of the near part.
#[derive(Default)]
pub(super) struct NearState {
    digest: u32,
    lists_at: Option<Instant>,
    /// When the plan may change without an event: a candidate may be tried again, or was waited for
    /// long enough.
    plan_at: Option<Instant>,
    gone: Vec<(Instant, Node)>,
}

impl NearState {
    pub fn digest(&self) -> u32 {
        self.digest
    }

    pub fn wake_at(&self) -> Option<Instant> {
        self.lists_at.into_iter().chain(self.plan_at).min()
    }

    /// Whether to plan although nothing has happened.
    pub fn plan_is_due(&self, now: Instant) -> bool {
        self.plan_at.is_some_and(|at| at <= now)
    }

    /// Notes a dead member, to name it to the neighbours that it had.
    pub fn mourn(&mut self, now: Instant, node: Node, near: bool) {
        self.gone
            .retain(|(since, _)| now.saturating_duration_since(*since) < MOURNING);
        if near {
            self.gone.push((now, node));
            let excess = self.gone.len().saturating_sub(MAX_GONE);
            self.gone.drain(..excess);
            self.lists_at.get_or_insert(now + LIST_DELAY);
        }
    }

    fn renew(&mut self, now: Instant, near: &[Node]) {
        // The same for any order; a finalizer of splitmix64 spreads each place over all bits.
        let digest = near.iter().map(|n| n.position).fold(0u64, |sum, at| {
            sum.wrapping_add((at.0 ^ (at.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9))
        });
        let digest = (digest >> 32) as u32;
        if digest != self.digest {
            self.lists_at.get_or_insert(now + LIST_DELAY);
        }
        self.digest = digest;
    }
}

/// A candidate for a near edge: its distance clockwise, the member, and the neighbour by which a
/// lookup found it.
type Candidate = (u64, Node, Option<Position>);
/// A neighbour that has spoken: its distance clockwise, the member, and whether it has joined.
type LinkedNode = (u64, Node, bool);

/// One side of us. The nearest on one side is the farthest on the other, so one order, clockwise,
/// serves both.
#[derive(Clone, Copy)]
struct Side {
    clockwise: bool,
}

impl Side {
    /// How far a member is on this side, by its distance clockwise.
    fn way(self, far: u64) -> u64 {
        if self.clockwise {
            far
        } else {
            far.wrapping_neg()
        }
    }

    /// The members of a list in clockwise order, the nearest on this side first.
    fn of<T: Copy>(self, sorted: &[T]) -> impl Iterator<Item = T> {
        let count = sorted.len();
        (0..count).map(move |i| sorted[if self.clockwise { i } else { count - 1 - i }])
    }

    /// The nearest of all, and the nearest of those that have joined: a joiner replaces nobody
    /// until it carries packets.
    fn add_nearest(self, linked: &[LinkedNode], near: &mut Vec<Node>) {
        let mut carriers = 0;
        for (rank, (_, node, joined)) in self.of(linked).enumerate() {
            if rank >= NEAR_EACH_SIDE && carriers == NEAR_EACH_SIDE {
                break;
            }
            if rank < NEAR_EACH_SIDE || joined {
                carriers += usize::from(joined);
                near.push(node);
            }
        }
    }

    /// How many neighbours are nearer than a member at this distance clockwise, up to
    /// as many as a side has.
    fn nearer_than(self, far: u64, linked: &[LinkedNode]) -> usize {
        self.of(linked)
            .take(NEAR_EACH_SIDE)
            .take_while(|l| self.way(l.0) < self.way(far))
            .count()
    }
}

impl Ring {
    /// Determines our near neighbours, present and wanted, and asks for the missing edges.
    pub(super) fn plan_near(&mut self, now: Instant) {
        let me = self.me.position;
        let mut linked: Vec<LinkedNode> = Vec::with_capacity(self.edges.len());
        linked.extend(
            self.edges
                .values()
                .filter(|e| e.heard)
                .map(|e| (me.clockwise(e.node.position), e.node, e.joined)),
        );
        linked.sort_unstable_by_key(|l| l.0);
        let candidates = self.candidates(now, &linked);
        let mut near: Vec<Node> = Vec::with_capacity(4 * NEAR_EACH_SIDE);
        let mut wanted: Vec<(Node, Option<Position>)> = Vec::new();
        for side in [true, false].map(|clockwise| Side { clockwise }) {
            side.add_nearest(&linked, &mut near);
            self.add_wanted(now, side, (&linked, &candidates), &mut wanted);
        }
        near.sort_unstable();
        near.dedup();
        for edge in self.edges.values_mut().filter(|e| e.heard) {
            edge.mine
                .set(Roles::NEAR, near.binary_search(&edge.node).is_ok());
            if !edge.near() {
                edge.forget_list();
            }
        }
        for (node, agent) in wanted {
            let fresh = !self.pending.contains_key(&node.member);
            if self.link(now, node.member, Roles::NEAR, agent) && fresh && self.joined {
                self.repaired(node.member);
                self.seek_soon(now);
            }
        }
        self.near.renew(now, &near);
        self.check_joined(now);
        self.plan_again(now);
    }

    /// Adds one side's candidates that are nearer than its near neighbours. A slow one takes no
    /// place: the next is tried too.
    fn add_wanted(
        &self,
        now: Instant,
        side: Side,
        (linked, candidates): (&[LinkedNode], &[Vec<Candidate>; 2]),
        wanted: &mut Vec<(Node, Option<Position>)>,
    ) {
        let (mut taken, mut tried) = (0, 0);
        for candidates in candidates {
            for (far, node, agent) in side.of(candidates) {
                let before = side.nearer_than(far, linked);
                if before + taken >= NEAR_EACH_SIDE || tried == TRIED_EACH_SIDE {
                    break;
                }
                wanted.push((node, agent));
                tried += 1;
                let slow = self
                    .pending
                    .get(&node.member)
                    .is_some_and(|p| p.since + SLOW_LINK <= now);
                taken += usize::from(!slow);
            }
        }
    }

    /// Notes when the present plan has to be made again. Reason: in a quiet ring that lacks one
    /// edge no event would cause it.
    fn plan_again(&mut self, now: Instant) {
        let near = self.pending.values().filter(|p| p.roles.has(Roles::NEAR));
        let waited = near
            .flat_map(|p| [SLOW_LINK, JOIN_WITHOUT].map(|limit| p.since + limit))
            .filter(|at| *at > now);
        self.near.plan_at = waited.chain(self.known.retry_at(now)).min();
    }

    /// Members that may be nearer than our near neighbours, going clockwise: those that another
    /// member has an edge with, and those known by hearsay only. `linked` is in that order too.
    fn candidates(&self, now: Instant, linked: &[LinkedNode]) -> [Vec<Candidate>; 2] {
        // The bounds below and the sides of a plan count neighbours by their place in this order.
        assert!(
            linked.is_sorted_by_key(|l| l.0),
            "a plan goes around the ring clockwise"
        );
        let me = self.me.position;
        // A member farther than enough neighbours of its side is no candidate. That holds for most
        // members in lists, so it is checked first.
        let ahead = linked.get(NEAR_EACH_SIDE - 1).map_or(u64::MAX, |l| l.0);
        let behind = linked
            .len()
            .checked_sub(NEAR_EACH_SIDE)
            .map_or(0, |i| linked[i].0);
        let usable = |n: &Node, far: u64| {
            (far <= ahead || far >= behind)
                && *n != self.me
                && !self.edges.contains_key(&n.member)
                && !self.known.is_failed(&n.member, now)
        };
        let with = |(n, agent): (Node, Option<Position>)| {
            let far = me.clockwise(n.position);
            usable(&n, far).then_some((far, n, agent))
        };
        let (mut first, mut second) = (Vec::new(), Vec::new());
        // A lookup comes first of two that name the same member: it has the neighbour to call it
        // by.
        first.extend(self.known.rumours().filter_map(with));
        for edge in self.edges.values().filter(|e| e.heard) {
            first.extend(edge.direct.iter().filter_map(|n| with((*n, None))));
            second.extend(edge.hearsay.iter().filter_map(|n| with((*n, None))));
        }
        for candidates in [&mut first, &mut second] {
            candidates.sort_by_key(|c| c.0);
            candidates.dedup_by_key(|c| c.1);
        }
        second.retain(|c| first.binary_search_by_key(&c.0, |f| f.0).is_err());
        [first, second]
    }

    /// Joins when our place is found: a lookup has been answered, we have an edge to every nearer
    /// member known, and the nearest on both sides have sent their lists around us.
    fn check_joined(&mut self, now: Instant) {
        let carriers = self.edges.values().filter(|e| e.heard && e.joined).count();
        if self.joined {
            if carriers == 0 {
                self.joined = false;
                self.seek_soon(now);
                self.outputs.push_back(Output::Event(Event::Alone));
            }
            return;
        }
        // A candidate that failed before was waited for then. Otherwise a few dead members could
        // keep us out for ever by turns.
        let awaited = |m: &MemberId, p: &PendingEdge| {
            p.roles.has(Roles::NEAR) && now < p.since + JOIN_WITHOUT && !self.known.was_tried(m)
        };
        let open = self.pending.iter().any(|(m, p)| awaited(m, p));
        let me = self.me.position;
        let nearest = |way: fn(Position, Position) -> u64| {
            self.edges
                .values()
                .filter(|e| e.heard)
                .min_by_key(|e| way(me, e.node.position))
        };
        let sides = [
            nearest(|me, to| me.clockwise(to)),
            nearest(|me, to| to.clockwise(me)),
        ];
        let told = sides
            .iter()
            .all(|side| side.is_some_and(|e| e.list_digest.is_some()));
        if self.seek.located() && told && !open {
            (self.joined, self.was_joined) = (true, true);
            for edge in self.edges.values_mut() {
                edge.mine.set(Roles::SEED, false);
            }
            self.seek_soon(now);
            self.outputs.push_back(Output::Event(Event::Joined));
        }
    }

    /// The list to send to `to`: our neighbours around it, and the members around it known by
    /// hearsay.
    fn list_for(&self, now: Instant, to: Node) -> Message {
        let neighbours = self
            .edges
            .values()
            .filter(|e| e.heard && e.node != to)
            .map(|e| e.node);
        let direct = around(to.position, neighbours, LIST_EACH_SIDE);
        let edges = self.edges.values().filter(|e| e.heard);
        let hearsay = edges.flat_map(|e| e.direct.iter().copied());
        let new = |n: &Node| {
            *n != to
                && *n != self.me
                && !self.edges.contains_key(&n.member)
                && !self.known.is_failed(&n.member, now)
        };
        let heard = around(to.position, hearsay.filter(new), LIST_EACH_SIDE);
        let gone = self
            .near
            .gone
            .iter()
            .filter(|(since, _)| now.saturating_duration_since(*since) < MOURNING);
        let gone = gone
            .map(|(_, n)| n.member)
            .filter(|m| !self.edges.contains_key(m))
            .collect();
        let ids = |nodes: Vec<Node>| nodes.into_iter().map(|n| n.member).collect();
        Message::List {
            digest: self.near.digest,
            direct: ids(direct),
            heard: ids(heard),
            gone,
        }
    }

    /// Sends our list to the near neighbours if it is time.
    pub(super) fn push_lists(&mut self, now: Instant) {
        if self.near.lists_at.is_none_or(|at| at > now) {
            return;
        }
        self.near.lists_at = None;
        let near: Vec<Node> = self
            .edges
            .values()
            .filter(|e| e.heard && e.near())
            .map(|e| e.node)
            .collect();
        for node in near {
            let list = self.list_for(now, node);
            self.send(node.member, &list);
        }
    }

    pub(super) fn asked_for_list(&mut self, now: Instant, from: MemberId) {
        let Some(edge) = self.edges.get_mut(&from) else {
            return;
        };
        if edge.listed_at.is_some_and(|at| now < at + LIST_EVERY) {
            return;
        }
        edge.listed_at = Some(now);
        let node = edge.node;
        let list = self.list_for(now, node);
        self.send(from, &list);
    }

    /// A neighbour has sent its list.
    pub(super) fn listed(
        &mut self,
        now: Instant,
        from: MemberId,
        digest: u32,
        direct: Vec<MemberId>,
        heard: Vec<MemberId>,
        gone: Vec<MemberId>,
    ) {
        let me = self.me.member;
        let nodes = |ids: Vec<MemberId>| {
            ids.into_iter()
                .filter(|m| *m != me && *m != from)
                .map(Node::from)
                .collect::<Vec<_>>()
        };
        let Some(edge) = self.edges.get_mut(&from) else {
            return;
        };
        edge.last_heard = now;
        let (direct, hearsay) = (nodes(direct), nodes(heard));
        // A list often equals the previous one: something changed, but not around us.
        self.changed |=
            edge.list_digest.is_none() || edge.direct != direct || edge.hearsay != hearsay;
        edge.list_digest = Some(digest);
        (edge.direct, edge.hearsay) = (direct, hearsay);
        for node in nodes(gone) {
            self.suspect(now, node);
        }
    }
}
