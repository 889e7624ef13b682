//! Near neighbours: who they should be, and how neighbours agree on it.
//!
//! Every member tells its near neighbours whom it has an edge with around them, whenever that changes (T-Man: Jelasity et al. 2009: tell the other
//! what is nearest *to it*), and a digest of its near neighbours travels in every keepalive, so that a list that was lost is asked for. Only
//! members with a living edge are told as such; what a member has by hearsay is told apart, is never told on, and serves when all edges of a
//! side are gone. So a rumour of a dead member ends where its edges end, and two neighbours cannot keep it alive between them.

use super::{
    Edge, Event, NEAR_EACH_SIDE, Node, Output, Pending, Position, Ring,
    known::around,
    message::{MAX_GONE, MAX_IDS, Message, Roles},
};
use crate::id::MemberId;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

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
    members: BTreeSet<MemberId>,
    lists_at: Option<Instant>,
    /// When time alone makes another plan: a candidate may be tried again, or has been waited for long enough.
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
        self.gone.retain(|(since, _)| now.saturating_duration_since(*since) < MOURNING);
        if near {
            self.gone.push((now, node));
            let excess = self.gone.len().saturating_sub(MAX_GONE);
            self.gone.drain(..excess);
            self.lists_at.get_or_insert(now + LIST_DELAY);
        }
    }

    fn renew(&mut self, now: Instant, members: BTreeSet<MemberId>, nodes: impl Iterator<Item = Position>) {
        // The same for any order; a finalizer of splitmix64 spreads each place over all bits.
        let digest = nodes.fold(0u64, |sum, at| sum.wrapping_add((at.0 ^ (at.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9)));
        let digest = (digest >> 32) as u32;
        if digest != self.digest {
            self.lists_at.get_or_insert(now + LIST_DELAY);
        }
        self.digest = digest;
        self.members = members;
    }
}

/// A candidate for a near edge, and through whom a lookup found it.
type Candidate = (Node, Option<Position>);

impl Ring {
    /// Works out who our near neighbours are and should be, and asks for the edges that are missing.
    pub(super) fn plan_near(&mut self, now: Instant) {
        let (first, second) = self.candidates(now);
        let mut near = BTreeMap::new();
        let mut wanted: Vec<Candidate> = Vec::new();
        for clockwise in [true, false] {
            let me = self.me.position;
            let way = |to: Position| if clockwise { me.clockwise(to) } else { to.clockwise(me) };
            let mut linked: Vec<(u64, &Edge)> = self.edges.values().filter(|e| e.heard).map(|e| (way(e.node.position), e)).collect();
            linked.sort_unstable_by_key(|(far, _)| *far);
            // The nearest of all, and the nearest of those that have joined: joiners replace nobody until they carry packets.
            let joined = linked.iter().filter(|(_, e)| e.joined).take(NEAR_EACH_SIDE);
            near.extend(linked.iter().take(NEAR_EACH_SIDE).chain(joined).map(|(_, e)| (e.member(), e.node.position)));

            let (mut taken, mut tried) = (0, 0);
            for candidates in [&first, &second] {
                let mut sorted: Vec<(u64, &Candidate)> = candidates.iter().map(|c| (way(c.0.position), c)).collect();
                sorted.sort_unstable_by_key(|(far, _)| *far);
                for (far, candidate) in sorted {
                    let before = linked.partition_point(|(other, _)| *other < far);
                    if before + taken >= NEAR_EACH_SIDE || tried == TRIED_EACH_SIDE {
                        break;
                    }
                    wanted.push(*candidate);
                    tried += 1;
                    let slow = self.pending.get(&candidate.0.member).is_some_and(|p| p.since + SLOW_LINK <= now);
                    taken += usize::from(!slow);
                }
            }
        }
        for edge in self.edges.values_mut().filter(|e| e.heard) {
            edge.mine.set(Roles::NEAR, near.contains_key(&edge.node.member));
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
        let places: Vec<Position> = near.values().copied().collect();
        self.near.renew(now, near.into_keys().collect(), places.into_iter());
        self.check_joined(now);
        self.plan_again(now);
    }

    /// Notes when the plan of now is overtaken by time: nothing else may happen in a ring that is quiet but for one edge it lacks.
    fn plan_again(&mut self, now: Instant) {
        let near = self.pending.values().filter(|p| p.roles.has(Roles::NEAR));
        let waited = near.flat_map(|p| [SLOW_LINK, JOIN_WITHOUT].map(|limit| p.since + limit)).filter(|at| *at > now);
        self.near.plan_at = waited.chain(self.known.retry_at(now)).min();
    }

    /// Members that may be nearer than our near neighbours: those that somebody has an edge with, and those known by hearsay only.
    fn candidates(&self, now: Instant) -> (Vec<Candidate>, Vec<Candidate>) {
        let me = self.me.position;
        // Who is farther than enough neighbours of its side is no candidate: most of what lists name, so this is asked first.
        let limit = |way: fn(Position, Position) -> u64| {
            let mut ways: Vec<u64> = self.edges.values().filter(|e| e.heard).map(|e| way(me, e.node.position)).collect();
            ways.sort_unstable();
            ways.get(NEAR_EACH_SIDE - 1).copied().unwrap_or(u64::MAX)
        };
        let (ahead, behind) = (limit(|me, to| me.clockwise(to)), limit(|me, to| to.clockwise(me)));
        let near = |n: &Node| me.clockwise(n.position) <= ahead || n.position.clockwise(me) <= behind;
        let usable = |n: &Node| near(n) && *n != self.me && !self.edges.contains_key(&n.member) && !self.known.is_failed(&n.member, now);
        let mut first = BTreeMap::new();
        let mut second = BTreeMap::new();
        for edge in self.edges.values().filter(|e| e.heard) {
            first.extend(edge.direct.iter().filter(|n| usable(n)).map(|n| (*n, None)));
            second.extend(edge.hearsay.iter().filter(|n| usable(n)).map(|n| (*n, None)));
        }
        for (node, agent) in self.known.rumours().filter(|(n, _)| usable(n)) {
            first.insert(node, agent);
        }
        second.retain(|node, _| !first.contains_key(node));
        (first.into_iter().collect(), second.into_iter().collect())
    }

    /// Joins when our place is found: a lookup has been answered, every nearer member known has an edge with us, and the nearest on both
    /// sides have told whom they know around us.
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
        // One that could not be reached before was waited for then: else a few dead ones that take turns keep us out for ever.
        let awaited = |m: &MemberId, p: &Pending| p.roles.has(Roles::NEAR) && now < p.since + JOIN_WITHOUT && !self.known.was_tried(m);
        let open = self.pending.iter().any(|(m, p)| awaited(m, p));
        let me = self.me.position;
        let nearest = |way: fn(Position, Position) -> u64| self.edges.values().filter(|e| e.heard).min_by_key(|e| way(me, e.node.position));
        let sides = [nearest(|me, to| me.clockwise(to)), nearest(|me, to| to.clockwise(me))];
        let told = sides.iter().all(|side| side.is_some_and(|e| e.list_digest.is_some()));
        if self.seek.located() && told && !open {
            self.joined = true;
            for edge in self.edges.values_mut() {
                edge.mine.set(Roles::SEED, false);
            }
            self.seek_soon(now);
            self.outputs.push_back(Output::Event(Event::Joined));
        }
    }

    /// What to tell `to`: our neighbours around it, and whom we know around it by hearsay.
    fn list_for(&self, now: Instant, to: Node) -> Message {
        let neighbours = self.edges.values().filter(|e| e.heard && e.node != to).map(|e| e.node);
        let direct = around(to.position, neighbours, LIST_EACH_SIDE);
        let edges = self.edges.values().filter(|e| e.heard);
        let hearsay = edges.flat_map(|e| e.direct.iter().copied());
        let new = |n: &Node| *n != to && *n != self.me && !self.edges.contains_key(&n.member) && !self.known.is_failed(&n.member, now);
        let heard = around(to.position, hearsay.filter(new), LIST_EACH_SIDE);
        let gone = self.near.gone.iter().filter(|(since, _)| now.saturating_duration_since(*since) < MOURNING);
        let gone = gone.map(|(_, n)| n.member).filter(|m| !self.edges.contains_key(m)).collect();
        let ids = |nodes: Vec<Node>| nodes.into_iter().map(|n| n.member).collect();
        Message::List { digest: self.near.digest, direct: ids(direct), heard: ids(heard), gone }
    }

    /// Sends our list to the near neighbours if it is time.
    pub(super) fn push_lists(&mut self, now: Instant) {
        if self.near.lists_at.is_none_or(|at| at > now) {
            return;
        }
        self.near.lists_at = None;
        let near: Vec<Node> = self.edges.values().filter(|e| e.heard && e.near()).map(|e| e.node).collect();
        for node in near {
            let list = self.list_for(now, node);
            self.send(node.member, &list);
        }
    }

    pub(super) fn asked_for_list(&mut self, now: Instant, from: MemberId) {
        let Some(edge) = self.edges.get_mut(&from) else { return };
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
        let nodes = |ids: Vec<MemberId>| ids.into_iter().filter(|m| *m != me && *m != from).map(Node::from).collect::<Vec<_>>();
        let Some(edge) = self.edges.get_mut(&from) else { return };
        edge.last_heard = now;
        edge.list_digest = Some(digest);
        edge.direct = nodes(direct);
        edge.hearsay = nodes(heard);
        for node in nodes(gone) {
            self.suspect(now, node);
        }
        self.changed = true;
    }
}
