//! Near neighbours: who they should be, and how neighbours agree on it.
//!
//! Every member tells its near neighbours whom it has an edge with around them, whenever that
//! changes (T-Man: Jelasity et al. 2009: tell the other what is nearest *to it*), and a digest of
//! its near neighbours travels in every keepalive, so that a list that was lost is asked for. Only
//! members with a living edge are told as such; what a member has by hearsay is told apart, is
//! never told on, and serves when all edges of a side are gone. So a rumour of a dead member ends
//! where its edges end, and two neighbours cannot keep it alive between them.

use super::{
    Event, NEAR_EACH_SIDE, Node, Output, Pending, Position, Ring,
    known::around,
    message::{MAX_GONE, MAX_IDS, Message, Roles},
};
use crate::id::MemberId;
use std::time::{Duration, Instant};

/// Changes within this time are told in one list.
const LIST_DELAY: Duration = Duration::from_millis(50);
/// One neighbour is given a list on request this often at most.
const LIST_EVERY: Duration = Duration::from_millis(250);
/// Members of each side in a list.
const LIST_EACH_SIDE: usize = MAX_IDS / 4;
/// For this long a dead neighbour is named in lists.
const MOURNING: Duration = Duration::from_secs(10);
/// An edge that takes longer to make no longer keeps us from trying the next candidate,
const SLOW_LINK: Duration = Duration::from_secs(1);
/// but of each side only this many are tried at once, however many a liar names,
const TRIED_EACH_SIDE: usize = 2 * NEAR_EACH_SIDE;
/// nor, after this, does it keep us from joining without it: it may be dead.
const JOIN_WITHOUT: Duration = Duration::from_secs(6);

/// What the near part remembers.
#[derive(Default)]
pub(super) struct Near {
    digest: u32,
    lists_at: Option<Instant>,
    /// When time alone makes another plan: a candidate may be tried again, or has been waited for
    /// long enough.
    plan_at: Option<Instant>,
    gone: Vec<(Instant, Node)>,
}

impl Near {
    pub fn digest(&self) -> u32 {
        self.digest
    }

    pub fn wake_at(&self) -> Option<Instant> {
        self.lists_at.into_iter().chain(self.plan_at).min()
    }

    /// Whether to plan although nothing happened.
    pub fn plan_is_due(&self, now: Instant) -> bool {
        self.plan_at.is_some_and(|at| at <= now)
    }

    /// Remembers who died, to tell the neighbours that it had.
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

/// A candidate for a near edge: how far it is going clockwise, who, and through whom a lookup found
/// it.
type Candidate = (u64, Node, Option<Position>);
/// A neighbour that has spoken: how far it is going clockwise, who, and whether it has joined.
type Linked = (u64, Node, bool);

impl Ring {
    /// Works out who our near neighbours are and should be, and asks for the edges that are
    /// missing.
    pub(super) fn plan_near(&mut self, now: Instant) {
        let me = self.me.position;
        let mut linked: Vec<Linked> = Vec::with_capacity(self.edges.len());
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
        for clockwise in [true, false] {
            // Who is nearest on the one side is farthest on the other: one order serves both.
            let way = |far: u64| if clockwise { far } else { far.wrapping_neg() };
            let nth = |i: usize| {
                linked.get(if clockwise {
                    i
                } else {
                    linked.len().wrapping_sub(i + 1)
                })
            };
            // The nearest of all, and the nearest of those that have joined: joiners replace nobody
            // until they carry packets.
            let mut carriers = 0;
            for (rank, (_, node, joined)) in (0..).map_while(|i| Some((i, nth(i)?))) {
                if rank >= NEAR_EACH_SIDE && carriers == NEAR_EACH_SIDE {
                    break;
                }
                if rank < NEAR_EACH_SIDE || *joined {
                    carriers += usize::from(*joined);
                    near.push(*node);
                }
            }

            let (mut taken, mut tried) = (0, 0);
            for candidates in &candidates {
                let count = candidates.len();
                for (far, node, agent) in
                    (0..count).map(|i| candidates[if clockwise { i } else { count - 1 - i }])
                {
                    let before = (0..NEAR_EACH_SIDE)
                        .take_while(|i| nth(*i).is_some_and(|l| way(l.0) < way(far)))
                        .count();
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

    /// Notes when the plan of now is overtaken by time: nothing else may happen in a ring that is
    /// quiet but for one edge it lacks.
    fn plan_again(&mut self, now: Instant) {
        let near = self.pending.values().filter(|p| p.roles.has(Roles::NEAR));
        let waited = near
            .flat_map(|p| [SLOW_LINK, JOIN_WITHOUT].map(|limit| p.since + limit))
            .filter(|at| *at > now);
        self.near.plan_at = waited.chain(self.known.retry_at(now)).min();
    }

    /// Members that may be nearer than our near neighbours, going clockwise: those that somebody
    /// has an edge with, and those known by hearsay only. `linked` is in that order too.
    fn candidates(&self, now: Instant, linked: &[Linked]) -> [Vec<Candidate>; 2] {
        let me = self.me.position;
        // Who is farther than enough neighbours of its side is no candidate: most of what lists
        // name, so this is asked first.
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
        // Of two who name the same member a lookup comes first: it says through whom.
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

    /// Joins when our place is found: a lookup has been answered, every nearer member known has an
    /// edge with us, and the nearest on both sides have told whom they know around us.
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
        // One that could not be reached before was waited for then: else a few dead ones that take
        // turns keep us out for ever.
        let awaited = |m: &MemberId, p: &Pending| {
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

    /// What to tell `to`: our neighbours around it, and whom we know around it by hearsay.
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

    /// A neighbour told whom it knows.
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
        // A list often says what the one before said: something changed, but not around us.
        self.changed |=
            edge.list_digest.is_none() || edge.direct != direct || edge.hearsay != hearsay;
        edge.list_digest = Some(digest);
        (edge.direct, edge.hearsay) = (direct, hearsay);
        for node in nodes(gone) {
            self.suspect(now, node);
        }
    }
}
