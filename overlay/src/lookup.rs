//! Finds the members nearest to a place: an iterative lookup (Kademlia, Maymounkov and Mazières
//! 2002, §2.3) over disjoint paths (S/Kademlia, Baumgart and Mies 2007, §4.4). Without clock and
//! network.
//!
//! Each path asks the nearest members it knows for nearer ones. No member is asked by two paths,
//! and the members that an answer names are used by its path alone. The result is the union of the
//! paths' results. Members are named with signed contacts that the caller has verified, so that
//! liars can leave members out, delay, and name dead or far ones, but not invent any.
//!
//! Promised: every member in the result is a member and has answered in this lookup. One path whose
//! last member is honest and near the place is enough for a right result, since members know all
//! their neighbourhood. A lookup fails rather than returns a result if fewer than two paths came to
//! an end, or if the members named around the place lie more than [`SPARSE`] times sparser than
//! elsewhere ([`Density`], the routing failure test of Castro et al. 2002, §5.2), as if only liars,
//! a third of all, were named. Not promised: to detect a place that liars have taken over by
//! joining with thousands of keys.

use crate::id::{MemberId, RingAddr};
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    time::{Duration, Instant},
};

/// How many members of one answer are read.
pub const NAMED: usize = 16;
/// How many times sparser than the average a place may be. Reason: of honest places 3 in 10 000 are
/// sparser (a sum of 16 exponential distances beyond twice its mean), of those with only a third of
/// the members 93 in 100.
pub const SPARSE: f64 = 2.0;
/// How many lookups' densities are kept, and how many it takes for a verdict.
const DENSITIES: usize = 64;
const ENOUGH_DENSITIES: usize = 8;
/// How many members a path remembers, nearest first: enough for all of four answers.
const SEEN: usize = 64;

/// The limits of a lookup.
#[derive(Clone, Copy, Debug)]
pub struct LookupOptions {
    /// How many members are wanted.
    pub wanted: usize,
    /// How many of the nearest members that a path knows must have answered before it ends. Reason:
    /// with no more than are wanted, a path that has met one liar would not look behind the liars
    /// it names.
    pub window: usize,
    /// How many disjoint paths there are. Reason: with a third of all members lying, liars hardly
    /// ever take over all of three paths of two or three hops.
    pub paths: usize,
    /// How many questions are under way in one path.
    pub at_once: usize,
    /// How long before a question no longer counts among those. Its answer is still read; the dead
    /// thus cost little time.
    pub slow_after: Duration,
    /// How long before a member counts as dead.
    pub ask_timeout: Duration,
    /// How long the whole lookup may take.
    pub give_up_after: Duration,
    /// How many questions one path may ask.
    pub max_asked: usize,
}

impl Default for LookupOptions {
    /// 3 paths of 3 questions at once, measured in the tests of this module to be the fewest that
    /// never believed a liar among 600 members; 600 ms is a dial over a 200 ms path, 3 s one
    /// through a relay.
    fn default() -> Self {
        Self {
            wanted: 5,
            window: 10,
            paths: 3,
            at_once: 3,
            slow_after: Duration::from_millis(600),
            ask_timeout: Duration::from_secs(3),
            give_up_after: Duration::from_secs(15),
            max_asked: 32,
        }
    }
}

/// Why a lookup has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// There is no member to begin with.
    #[error("no other member is known")]
    Alone,
    /// Fewer paths ended than must agree.
    #[error(
        "only {ended} of {paths} search paths came to an end: members do not answer, or name \
            members that do not"
    )]
    Unfinished {
        /// How many ended.
        ended: usize,
        /// How many there were.
        paths: usize,
    },
    /// The members named around the place are too few.
    #[error(
        "the members named around the place are {0} times sparser than elsewhere: some are being \
            kept from this node"
    )]
    TooSparse(u32),
}

type Distance = [u8; 32];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Asked(Instant),
    Answered,
    Dead,
}

#[derive(Debug, Default)]
struct Path {
    seen: BTreeMap<Distance, MemberId>,
    asked: usize,
}

/// A lookup in progress: ask the member that [`Lookup::poll`] returns, report the answer, until
/// [`Lookup::outcome`] has one.
#[derive(Debug)]
pub struct Lookup {
    me: MemberId,
    place: RingAddr,
    options: LookupOptions,
    began: Instant,
    paths: Vec<Path>,
    /// The members asked, and the path that asked each.
    asked: HashMap<MemberId, (usize, State)>,
}

impl Lookup {
    /// A lookup from `seeds`, members that `me` knows, nearest first.
    pub fn new(
        me: MemberId,
        place: RingAddr,
        seeds: &[MemberId],
        options: LookupOptions,
        now: Instant,
    ) -> Self {
        let mut paths: Vec<Path> = Vec::new();
        let others = seeds.iter().filter(|m| **m != me);
        let d = options.paths.max(1);
        for (i, member) in others.enumerate() {
            if paths.len() < d {
                paths.push(Path::default());
            }
            paths[i % d]
                .seen
                .insert(member.ring_addr().distance(&place), *member);
        }
        Self {
            me,
            place,
            options,
            began: now,
            paths,
            asked: HashMap::new(),
        }
    }

    /// The next member to ask for up to [`NAMED`] members near the place; `None` until an answer
    /// comes or the time of [`Lookup::wake_at`].
    pub fn poll(&mut self, now: Instant) -> Option<MemberId> {
        for (_, state) in self.asked.values_mut() {
            if matches!(state, State::Asked(at) if now >= *at + self.options.ask_timeout) {
                *state = State::Dead;
            }
        }
        if now >= self.began + self.options.give_up_after {
            return None;
        }
        for index in 0..self.paths.len() {
            let fresh = |(path, state): &&(usize, State)| {
                *path == index
                    && matches!(state, State::Asked(at) if now < *at + self.options.slow_after)
            };
            if self.paths[index].asked >= self.options.max_asked
                || self.asked.values().filter(fresh).count() >= self.options.at_once
            {
                continue;
            }
            let next = self
                .front(index)
                .find(|member| !self.asked.contains_key(member));
            if let Some(member) = next {
                self.paths[index].asked += 1;
                self.asked.insert(member, (index, State::Asked(now)));
                return Some(member);
            }
        }
        None
    }

    /// The nearest members of a path that are not known to be dead.
    fn front(&self, path: usize) -> impl Iterator<Item = MemberId> + '_ {
        let alive = |m: &&MemberId| !matches!(self.asked.get(*m), Some((_, State::Dead)));
        self.paths[path]
            .seen
            .values()
            .filter(alive)
            .take(self.options.window.max(self.options.wanted).max(1))
            .copied()
    }

    /// Takes a member's answer: these members, whose contacts are verified.
    pub fn answered(&mut self, from: MemberId, named: &[MemberId]) {
        let Some((path, state)) = self.asked.get_mut(&from) else {
            return;
        };
        if *state == State::Answered {
            return;
        }
        *state = State::Answered;
        let seen = &mut self.paths[*path].seen;
        for member in named.iter().take(NAMED).filter(|m| **m != self.me) {
            seen.insert(member.ring_addr().distance(&self.place), *member);
        }
        while seen.len() > SEEN {
            seen.pop_last();
        }
    }

    /// Notes that a member does not answer.
    pub fn failed(&mut self, from: MemberId) {
        if let Some((_, state @ State::Asked(_))) = self.asked.get_mut(&from) {
            *state = State::Dead;
        }
    }

    /// When to call [`Lookup::poll`] again if no answer comes before.
    pub fn wake_at(&self, now: Instant) -> Instant {
        let waits = self.asked.values().filter_map(|(_, state)| match state {
            State::Asked(at) => [
                *at + self.options.slow_after,
                *at + self.options.ask_timeout,
            ]
            .into_iter()
            .find(|t| *t > now),
            _ => None,
        });
        waits
            .chain([self.began + self.options.give_up_after])
            .min()
            .unwrap_or(now)
    }

    /// Whether all of the path's nearest have answered.
    fn has_ended(&self, path: usize) -> bool {
        let mut front = self.front(path).peekable();
        front.peek().is_some()
            && front.all(|m| matches!(self.asked.get(&m), Some((_, State::Answered))))
    }

    /// Whether a path has no member left to ask.
    fn is_stuck(&self, path: usize) -> bool {
        let waiting = |m: MemberId| matches!(self.asked.get(&m), Some((_, State::Asked(_))));
        let may_ask = self.paths[path].asked < self.options.max_asked;
        !self
            .front(path)
            .any(|m| waiting(m) || (may_ask && !self.asked.contains_key(&m)))
    }

    /// The outcome, once it is certain: the nearest members that answered, nearest first, at most
    /// as many as wanted.
    pub fn outcome(
        &self,
        now: Instant,
        density: &Density,
    ) -> Option<Result<Vec<MemberId>, LookupError>> {
        if self.paths.is_empty() {
            return Some(Err(LookupError::Alone));
        }
        let ended = (0..self.paths.len()).filter(|p| self.has_ended(*p)).count();
        let over = now >= self.began + self.options.give_up_after;
        if !over && !(0..self.paths.len()).all(|p| self.has_ended(p) || self.is_stuck(p)) {
            return None;
        }
        if ended < self.paths.len().min(2) {
            return Some(Err(LookupError::Unfinished {
                ended,
                paths: self.paths.len(),
            }));
        }
        if let Some(times) = self.spread().and_then(|spread| density.doubts(spread)) {
            return Some(Err(LookupError::TooSparse(times)));
        }
        let answered = self
            .asked
            .iter()
            .filter(|(_, (_, state))| *state == State::Answered);
        let mut found: Vec<MemberId> = answered.map(|(member, _)| *member).collect();
        found.sort_by_cached_key(|m| m.ring_addr().distance(&self.place));
        found.truncate(self.options.wanted);
        Some(Ok(found))
    }

    /// How far the [`NAMED`]th nearest member named, and not found dead, is from the place, as a
    /// share of all places.
    pub fn spread(&self) -> Option<f64> {
        let all = self.paths.iter().flat_map(|p| &p.seen);
        let alive = all.filter(|(_, m)| !matches!(self.asked.get(*m), Some((_, State::Dead))));
        let mut distances: Vec<&Distance> = alive.map(|(distance, _)| distance).collect();
        distances.sort_unstable();
        distances.dedup();
        distances.get(NAMED - 1).map(|d| share(d))
    }

    /// How many members were asked.
    pub fn questions(&self) -> usize {
        self.asked.len()
    }
}

/// A distance as a share of the whole space.
fn share(distance: &Distance) -> f64 {
    let head: [u8; 8] = distance[..8].try_into().unwrap_or_default();
    u64::from_be_bytes(head) as f64 / 2f64.powi(64)
}

/// The density of members, as recent lookups found it. Places are hashes, so it is the same
/// everywhere.
#[derive(Clone, Debug, Default)]
pub struct Density {
    spreads: VecDeque<f64>,
}

impl Density {
    /// Takes the spread that a lookup found, believed or not: liars at a few places do not move the
    /// mean much.
    pub fn learn(&mut self, spread: f64) {
        self.spreads.push_back(spread);
        if self.spreads.len() > DENSITIES {
            self.spreads.pop_front();
        }
    }

    /// The mean spread, once enough lookups were made.
    fn mean(&self) -> Option<f64> {
        let n = self.spreads.len();
        (n >= ENOUGH_DENSITIES).then(|| self.spreads.iter().sum::<f64>() / n as f64)
    }

    /// The estimated number of members, by the mean spread.
    pub fn members(&self) -> Option<f64> {
        self.mean().map(|mean| NAMED as f64 / mean)
    }

    /// How many times sparser a place is, if that is too much to be believed.
    fn doubts(&self, spread: f64) -> Option<u32> {
        let times = spread / self.mean()?;
        (times > SPARSE).then_some(times.round() as u32)
    }
}

#[cfg(test)]
#[path = "lookup_tests.rs"]
mod tests;
