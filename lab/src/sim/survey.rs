//! The ring as an observer of all members at once sees it: whether it is right, and how good its
//! paths are.
//!
//! The invariant of consistent routing: every member has a link to its true neighbours on the ring,
//! and they to it. Then greedy routing from anywhere ends at the one member closest to the target,
//! as at any other a true neighbour would be closer (Kleinberg 2000 needs no more than that for
//! correctness; the far links only make it short).

use super::{
    engine::Sim,
    queue::{Micros, SECOND},
};
use p2pvm_overlay::ring::{HOP_LIMIT, Header, Kind, Mode, Position, RingHop};
use rand::Rng;

/// Near neighbours on each side that a correct ring has ("at least two each side").
pub const NEAR: usize = 2;

/// The living at one time, by position.
pub struct Survey {
    /// Position and number of each, sorted.
    pub living: Vec<(Position, u32)>,
}

/// A path through the ring as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Walk {
    /// Members after the first.
    pub hops: u32,
    /// Round trip along the path without jitter and loss.
    pub rtt: Micros,
    /// The member that it ended at; `None` if a dead member, a missing link or the hop limit
    /// stopped it.
    pub end: Option<u32>,
    /// Whether a member was on it twice.
    pub looped: bool,
}

impl Survey {
    /// The members that live now.
    pub fn of(sim: &Sim) -> Self {
        let living = sim
            .members
            .iter()
            .enumerate()
            .filter(|(_, m)| m.alive())
            .map(|(i, m)| (m.node.position, i as u32));
        let mut living: Vec<_> = living.collect();
        living.sort_unstable();
        Self { living }
    }

    /// The member that is truly closest to a place.
    pub fn closest(&self, to: Position) -> Option<u32> {
        let n = self.living.len();
        let at = self.living.partition_point(|l| l.0 < to);
        let around = [at + n, at + n + n.saturating_sub(1)];
        around
            .into_iter()
            .filter_map(|i| self.living.get(i.checked_rem(n)?))
            .min_by_key(|l| to.closeness(l.0))
            .map(|l| l.1)
    }

    /// The true neighbours of the `i`-th of the living: the next [`NEAR`] on each side, each once.
    fn true_neighbours(&self, i: usize) -> impl Iterator<Item = (Position, u32)> + '_ {
        let n = self.living.len();
        let near = NEAR.min(n.saturating_sub(1));
        let back = near.min(n.saturating_sub(1).saturating_sub(near));
        let clockwise = (1..=near).map(move |d| (i + d) % n);
        let counter = (1..=back).map(move |d| (i + n - d) % n);
        clockwise.chain(counter).map(|j| self.living[j])
    }

    /// How many near links are right, and how many there must be. A near link is counted at each
    /// end, and is right there if the other end is in the table and the link works in both
    /// directions.
    pub fn near_links(&self, sim: &Sim) -> (u64, u64) {
        let (mut right, mut all) = (0, 0);
        for i in 0..self.living.len() {
            let me = self.living[i].1;
            for (position, other) in self.true_neighbours(i) {
                all += 1;
                right += u64::from(lists(sim, me, position) && sim.linked_both_ways(me, other));
            }
        }
        (right, all)
    }

    /// The first few near links that are not right, for a report.
    pub fn wrong_links(&self, sim: &Sim) -> String {
        let pairs =
            (0..self.living.len()).flat_map(|i| self.true_neighbours(i).map(move |n| (i, n)));
        let wrong = pairs.filter_map(|(i, (position, other))| {
            let me = self.living[i].1;
            let listed = lists(sim, me, position);
            let linked = sim.linked_both_ways(me, other);
            (!listed || !linked)
                .then(|| format!("{me}->{other} (in table: {listed}, linked: {linked})"))
        });
        wrong.take(6).collect::<Vec<_>>().join(", ")
    }

    /// Of `walks` paths between random members that live, the share that arrive.
    pub fn reachable(&self, sim: &mut Sim, walks: usize) -> f64 {
        if self.living.len() < 2 {
            return 1.0;
        }
        let arrived = (0..walks).filter(|_| {
            let (from, to) = self.pair(sim);
            walk(sim, from, sim.position(to), Mode::Exact).end == Some(to)
        });
        arrived.count() as f64 / walks as f64
    }

    /// Of `walks` lookups of random places by random members, the share that end at the member
    /// closest to the place.
    pub fn consistent(&self, sim: &mut Sim, walks: usize) -> f64 {
        if self.living.is_empty() {
            return 1.0;
        }
        let right = (0..walks).filter(|_| {
            let (from, place) = (
                self.living[sim.rng().random_range(0..self.living.len())].1,
                Position(sim.rng().random()),
            );
            walk(sim, from, place, Mode::Closest).end == self.closest(place)
        });
        right.count() as f64 / walks as f64
    }

    /// Two different members that live.
    pub fn pair(&self, sim: &mut Sim) -> (u32, u32) {
        let n = self.living.len();
        let a = sim.rng().random_range(0..n);
        let b = (a + sim.rng().random_range(1..n.max(2))) % n;
        (self.living[a].1, self.living[b].1)
    }
}

/// Whether the table of `me` has the member at that position.
fn lists(sim: &Sim, me: u32, position: Position) -> bool {
    let members = sim.members[me as usize].table.members();
    members
        .binary_search_by_key(&position, |n| n.position)
        .is_ok()
}

/// Follows the tables from `from` to `to`, as a packet that takes no time.
pub fn walk(sim: &Sim, from: u32, to: Position, mode: Mode) -> Walk {
    let kind = if mode == Mode::Exact {
        Kind::Datagram
    } else {
        Kind::ControlClosest
    };
    // The origin of a lookup is excepted from the answers to it; no member has the position
    // named here.
    let mut header = Header::new(kind, Position(sim.position(from).0 ^ 1), to);
    let mut walk = Walk {
        hops: 0,
        rtt: 0,
        end: None,
        looped: false,
    };
    let mut visited = Vec::with_capacity(16);
    let mut at = from;
    loop {
        visited.push(at);
        let member = &sim.members[at as usize];
        let next = if at == from {
            member.table.next(to, mode)
        } else {
            member.table.route(&header)
        };
        let via = match next {
            RingHop::Here => {
                walk.end = Some(at);
                return walk;
            }
            RingHop::Nowhere => return walk,
            RingHop::Via(via) => via,
        };
        let Some(next) = sim.number(&via).filter(|next| sim.usable(at, *next)) else {
            return walk;
        };
        walk.looped |= visited.contains(&next);
        if header.hops_left == 0 || walk.looped || walk.hops > u32::from(HOP_LIMIT) {
            return walk;
        }
        header.hops_left -= 1;
        walk.hops += 1;
        walk.rtt += sim.link_rtt(at, next);
        at = next;
    }
}

impl Sim {
    /// Whether what `a` seals for `b` can be opened there.
    pub fn usable(&self, a: u32, b: u32) -> bool {
        let ends = (
            self.members[a as usize].link(b),
            self.members[b as usize].link(a),
        );
        let (Some(here), Some(there)) = ends else {
            return false;
        };
        let stand = here.stands(self.now()) && there.stands(self.now());
        stand
            && there.opens(here.session)
            && here.relay.is_none_or(|r| self.members[r as usize].alive())
    }

    /// Whether a link works in both directions.
    pub fn linked_both_ways(&self, a: u32, b: u32) -> bool {
        self.usable(a, b) && self.usable(b, a)
    }

    /// Round trip of a link without jitter and loss, over its relay if it has one.
    pub fn link_rtt(&self, a: u32, b: u32) -> Micros {
        let rtt = |x: u32, y: u32| {
            self.world.rtt_us(
                &self.members[x as usize].home,
                &self.members[y as usize].home,
            )
        };
        match self.members[a as usize].link(b).and_then(|l| l.relay) {
            Some(relay) => rtt(a, relay) + rtt(relay, b),
            None => rtt(a, b),
        }
    }

    /// Runs until all near links are right, checking every second. Returns how long that took;
    /// `None` if longer than `limit`.
    pub fn until_right(&mut self, limit: Micros) -> Option<Micros> {
        let start = self.now();
        loop {
            let (right, all) = Survey::of(self).near_links(self);
            if right == all {
                return Some(self.now() - start);
            }
            if self.now() - start >= limit {
                return None;
            }
            self.run(SECOND);
        }
    }
}
