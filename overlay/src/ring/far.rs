//! Far neighbours and the size of the network.
//!
//! A far neighbour at a distance drawn by the harmonic law (probability falling as 1/distance)
//! makes greedy paths short: O(log² n / k) hops with k of them (Kleinberg 2000; Symphony: Manku,
//! Bawa, Raghavan 2003, §3). Packets go both ways round, and so do the draws. Each of the k comes
//! from its own part of the distribution, which keeps the law and reduces the variance. The members
//! around the place drawn are equal by the law; the one nearest by network coordinates is taken.
//!
//! The size is estimated from the spacing of the members around us (Symphony §3.1). The median of
//! our estimate and the neighbours' is used, which no single liar moves far. Incoming far edges are
//! limited; a member that is refused one is told of a neighbour to try.

use super::{
    Edge, NEAR_EACH_SIDE, Position, Ring,
    message::{Message, Roles},
    table::RingHop,
    wire::Mode,
};
use crate::{coordinates::Coordinate, id::MemberId};
use rand::{Rng, seq::IteratorRandom};
use std::time::{Duration, Instant};

/// How many members a network has before it has far neighbours. Reason: in a smaller one all are
/// near.
const SMALL: f64 = (2 * NEAR_EACH_SIDE + 2) as f64;
/// How long before the size is estimated again. Reason: it changes slowly, and each estimate then
/// includes all that neighbours have sent.
const ESTIMATE_EVERY: Duration = Duration::from_millis(250);
/// How far an estimate may differ from the neighbours', in powers of two, before it is made again
/// without an event.
const AT_REST: f64 = 0.01;
/// How many far neighbours a member has at most, whatever the estimate: enough for 2^24 members.
const MAX_FAR: usize = 24;
/// How many members of each side the estimate uses: our near ones, and those in the lists of the
/// outermost of them.
const SPACING: usize = 2 * NEAR_EACH_SIDE;
/// How far the number of far neighbours may be from log2 of the size before it follows. Reason: it
/// must not oscillate.
const FLUTTER: f64 = 0.75;
/// How many powers of two the network grows or shrinks before a far neighbour is drawn again.
const OUTGROWN: f64 = 1.0;
/// How long before another outgrown edge is replaced.
const REDRAW_EVERY: Duration = Duration::from_secs(5);
/// How long to wait after a draw without result; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_secs(3);
/// How long to wait after such a draw at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(120);
/// How many draws are under way at once.
const DRAWS_AT_ONCE: usize = 4;
/// How many times a draw that was refused follows the member named instead.
const MAX_DECLINED: u8 = 3;
/// How many incoming far edges a member accepts in any case, however small its estimate.
const MIN_INCOMING: usize = 8;

/// The draw that a lookup for a far neighbour belongs to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Draw {
    slot: usize,
    distance: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Empty,
    Asking,
    Taken(MemberId),
}

struct Slot {
    state: State,
    /// log2 of the size that it was drawn for.
    drawn_for: f64,
    /// When to draw again if the present draw has no result.
    at: Instant,
    pause: Duration,
    declined: u8,
}

/// The state of the far part.
#[derive(Default)]
pub(super) struct FarState {
    /// Eighths of log2 by our own spacing; 0 if we know no member.
    own: u8,
    log2: f64,
    wanted: usize,
    slots: Vec<Slot>,
    redraw_at: Option<Instant>,
    estimated: Option<Instant>,
    /// Whether the values behind the estimate have changed since, or it has not converged.
    outdated: bool,
}

impl FarState {
    pub fn size(&self) -> f64 {
        self.log2.exp2()
    }

    pub fn own_estimate(&self) -> u8 {
        self.own
    }

    /// Notes a change of the neighbours, their lists or their estimates.
    pub fn neighbours_changed(&mut self) {
        self.outdated = true;
    }

    pub fn wanted(&self) -> usize {
        self.wanted
    }

    pub fn wake_at(&self) -> Option<Instant> {
        let draws = self
            .slots
            .iter()
            .filter(|s| !matches!(s.state, State::Taken(_)))
            .map(|s| s.at);
        draws.chain(self.redraw_at).min()
    }
}

/// The size of a network, from the known members' distances clockwise.
fn size_by_spacing(mut sorted: Vec<u64>) -> f64 {
    sorted.sort_unstable();
    sorted.dedup();
    let each = SPACING.min(sorted.len() / 2);
    if each < NEAR_EACH_SIDE {
        return sorted.len() as f64 + 1.0;
    }
    let span = sorted[each - 1] as f64 + sorted[sorted.len() - each].wrapping_neg() as f64;
    2.0 * each as f64 / (span / 2f64.powi(64))
}

/// A distance by the harmonic law between one n-th of the ring and half of it; `u` in 0..1.
fn harmonic(size: f64, u: f64) -> u64 {
    let share = 0.5 * ((size / 2.0).ln() * (u - 1.0)).exp();
    (share * 2f64.powi(64)) as u64
}

impl Ring {
    /// Estimates the size of the network again, unless that was just done.
    pub(super) fn estimate_size(&mut self, now: Instant) {
        if !self.far.outdated
            || self
                .far
                .estimated
                .is_some_and(|at| now < at + ESTIMATE_EVERY)
        {
            return;
        }
        self.far.estimated = Some(now);
        let near = self.edges.values().filter(|e| e.heard && e.joined);
        let mut ways = Vec::with_capacity(4 * self.edges.len());
        for edge in near.clone() {
            let places = edge
                .direct
                .iter()
                .chain([&edge.node])
                .map(|n| n.position)
                .filter(|place| *place != self.me.position);
            ways.extend(places.map(|place| self.me.position.clockwise(place)));
        }
        let own = size_by_spacing(ways).log2();
        self.far.own = (own * 8.0).round().clamp(0.0, 255.0) as u8;
        let mut all: Vec<f64> = near
            .filter(|e| e.size > 0)
            .map(|e| f64::from(e.size) / 8.0)
            .chain([own])
            .collect();
        all.sort_unstable_by(f64::total_cmp);
        let median = (all[(all.len() - 1) / 2] + all[all.len() / 2]) / 2.0;
        self.far.log2 += (median - self.far.log2) / if self.far.log2 == 0.0 { 1.0 } else { 2.0 };
        self.far.outdated = (median - self.far.log2).abs() > AT_REST;
        let aim = if self.far.size() < SMALL {
            0.0
        } else {
            self.far.log2
        };
        if (aim - self.far.wanted as f64).abs() > FLUTTER {
            self.far.wanted = (aim.round() as usize).min(MAX_FAR);
        }
    }

    /// Draws missing far neighbours, and drops surplus and outgrown ones.
    pub(super) fn keep_far(&mut self, now: Instant) {
        let wanted = self
            .options
            .far
            .map_or(self.far.wanted, |far| far.min(MAX_FAR));
        if self.far.slots.len() > wanted {
            let surplus: Vec<Slot> = self.far.slots.drain(wanted..).collect();
            surplus.iter().for_each(|slot| self.release(slot.state));
        }
        if !self.joined {
            return;
        }
        let fresh = |log2| Slot {
            state: State::Empty,
            drawn_for: log2,
            at: now,
            pause: FIRST_PAUSE,
            declined: 0,
        };
        while self.far.slots.len() < wanted {
            self.far.slots.push(fresh(self.far.log2));
        }
        self.redraw_outgrown(now);
        let is_due = |s: &Slot| s.at <= now && !matches!(s.state, State::Taken(_));
        let due: Vec<usize> = (0..wanted)
            .filter(|i| is_due(&self.far.slots[*i]))
            .collect();
        for (drawn, slot) in due.into_iter().enumerate() {
            if drawn < DRAWS_AT_ONCE {
                self.draw(now, slot);
            } else {
                self.far.slots[slot].at = now + REDRAW_EVERY / 5;
            }
        }
    }

    fn draw(&mut self, now: Instant, slot: usize) {
        let part = (slot as f64 + self.rng.random::<f64>()) / self.far.slots.len() as f64;
        let distance = harmonic(self.far.size().max(SMALL), part);
        let me = self.me.position;
        let target = if self.rng.random() {
            me.plus(distance)
        } else {
            me.minus(distance)
        };
        let state = &mut self.far.slots[slot];
        *state = Slot {
            state: State::Asking,
            drawn_for: self.far.log2,
            at: now + state.pause,
            pause: (state.pause * 2).min(LONGEST_PAUSE),
            declined: 0,
        };
        if let RingHop::Via(via) = self.table.next(target, Mode::Closest) {
            self.locate_far(now, via, target, Draw { slot, distance });
        }
    }

    /// Takes, of the members around the place drawn, the nearest by round trip that is not yet a
    /// neighbour for another reason.
    pub(super) fn found_far(
        &mut self,
        now: Instant,
        draw: Draw,
        members: Vec<(MemberId, Option<Coordinate>)>,
    ) {
        if self
            .far
            .slots
            .get(draw.slot)
            .is_none_or(|s| s.state != State::Asking)
        {
            return;
        }
        let (me, here) = (self.me.position, self.vivaldi.mine());
        let equals = draw.distance / 2..=draw.distance.saturating_mul(2);
        let other_use = |m: &MemberId| {
            self.edges
                .get(m)
                .is_some_and(|e| e.mine.has(Roles::NEAR) || e.mine.has(Roles::FAR))
        };
        let usable = |m: &MemberId| {
            *m != self.me.member && equals.contains(&me.distance(Position::of(m))) && !other_use(m)
        };
        let far =
            |place: &Option<Coordinate>| place.map_or(Duration::MAX, |there| here.estimate(&there));
        let best = members
            .iter()
            .filter(|(m, _)| usable(m))
            .min_by_key(|(_, place)| far(place));
        if let Some((member, _)) = best {
            self.take(now, draw.slot, *member, None);
        }
    }

    fn take(&mut self, now: Instant, slot: usize, member: MemberId, agent: Option<Position>) {
        if self.link(now, member, Roles::FAR, agent)
            && let Some(slot) = self.far.slots.get_mut(slot)
        {
            slot.state = State::Taken(member);
        }
    }

    /// Draws one outgrown far neighbour again at a time.
    fn redraw_outgrown(&mut self, now: Instant) {
        let outgrown = |s: &Slot, log2: f64| {
            matches!(s.state, State::Taken(_)) && (s.drawn_for - log2).abs() > OUTGROWN
        };
        let log2 = self.far.log2;
        if self.far.redraw_at.is_some_and(|at| at > now) {
            return;
        }
        self.far.redraw_at = None;
        if let Some(slot) = self.far.slots.iter_mut().find(|s| outgrown(s, log2)) {
            let old = std::mem::replace(&mut slot.state, State::Empty);
            (slot.at, slot.pause) = (now, FIRST_PAUSE);
            self.release(old);
            self.far.redraw_at = Some(now + REDRAW_EVERY);
        }
    }

    fn release(&mut self, state: State) {
        if let State::Taken(member) = state
            && let Some(edge) = self.edges.get_mut(&member)
        {
            edge.mine.set(Roles::FAR, false);
        }
    }

    /// Draws another far neighbour if the edge that died or could not be made was a far one.
    pub(super) fn far_failed(&mut self, now: Instant, member: MemberId) {
        for slot in self
            .far
            .slots
            .iter_mut()
            .filter(|s| s.state == State::Taken(member))
        {
            slot.state = State::Empty;
            slot.at = now + slot.pause.min(FIRST_PAUSE);
        }
    }

    /// Limits incoming edges: a neighbour whose far edge or shortcut is more than we serve is
    /// refused it.
    pub(super) fn limit_incoming(&mut self, from: MemberId) {
        let limits = [
            (Roles::FAR, (2 * self.far.wanted).max(MIN_INCOMING)),
            (Roles::SHORTCUT, 2 * self.options.max_shortcuts),
        ];
        for (role, limit) in limits {
            let comes = |e: &Edge| e.theirs.has(role) && !e.mine.has(role);
            let it_does = self.edges.get(&from).is_some_and(comes);
            if !it_does || self.edges.values().filter(|e| comes(e)).count() <= limit {
                continue;
            }
            let near = self
                .edges
                .values()
                .filter(|e| e.joined && e.mine.has(Roles::NEAR) && e.member() != from);
            let instead = near
                .map(Edge::member)
                .choose(&mut self.rng)
                .filter(|_| role == Roles::FAR);
            if let Some(edge) = self.edges.get_mut(&from) {
                edge.theirs.set(role, false);
            }
            self.send(from, &Message::Decline { role, instead });
        }
    }

    /// A neighbour has refused us this role.
    pub(super) fn declined(
        &mut self,
        now: Instant,
        from: MemberId,
        role: Roles,
        instead: Option<MemberId>,
    ) {
        let Some(edge) = self.edges.get_mut(&from) else {
            return;
        };
        if role == Roles::SHORTCUT && edge.mine.has(role) {
            edge.mine.set(role, false);
            return self.shortcut_failed(now, from);
        }
        let Some(slot) = self
            .far
            .slots
            .iter()
            .position(|s| s.state == State::Taken(from))
        else {
            return;
        };
        if role != Roles::FAR {
            return;
        }
        edge.mine.set(role, false);
        let agent = Some(edge.node.position);
        self.hurry = true;
        let state = &mut self.far.slots[slot];
        state.state = State::Empty;
        state.at = now + state.pause;
        state.declined += 1;
        if let Some(member) = instead.filter(|_| state.declined <= MAX_DECLINED) {
            self.take(now, slot, member, agent);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{SeedableRng, rngs::StdRng};

    #[test]
    fn the_size_is_estimated_from_the_spacing() {
        let mut rng = StdRng::seed_from_u64(1);
        for size in [4usize, 8, 100, 1000, 10_000] {
            let mut logs = Vec::new();
            for _ in 0..200 {
                let all: Vec<u64> = (1..size).map(|_| rng.random()).collect();
                logs.push(size_by_spacing(all).log2());
            }
            let mean = logs.iter().sum::<f64>() / logs.len() as f64;
            assert!(
                (mean - (size as f64).log2()).abs() < 0.25,
                "{size}: 2^{mean}"
            );
        }
    }

    #[test]
    fn around_the_drawn_place_the_nearest_by_coordinates_is_taken() {
        let place = |ms: i32| {
            postcard::from_bytes(
                &postcard::to_stdvec(&([ms * 1000, 0, 0], 1000u32, 100u16)).unwrap(),
            )
            .unwrap()
        };
        let me = MemberId([9; 32]);
        // Two that the law holds for equal: about as far from us on the ring as drawn.
        let distance = 1u64 << 62;
        let away = |n: u8| Position::of(&me).distance(Position::of(&MemberId([n; 32])));
        let equals: Vec<MemberId> = (0..200)
            .filter(|n| (distance / 2..=distance).contains(&away(*n)))
            .map(|n| MemberId([n; 32]))
            .collect();
        let (one, other) = (equals[0], equals[1]);
        for (ms, wanted) in [([10, 90], one), ([90, 10], other)] {
            let mut ring = Ring::new(me, super::super::RingOptions::default(), 7);
            let now = Instant::now();
            ring.far.slots.push(Slot {
                state: State::Asking,
                drawn_for: 10.0,
                at: now,
                pause: FIRST_PAUSE,
                declined: 0,
            });
            ring.found_far(
                now,
                Draw { slot: 0, distance },
                vec![(one, Some(place(ms[0]))), (other, Some(place(ms[1])))],
            );
            assert_eq!(ring.far.slots[0].state, State::Taken(wanted));
        }
    }

    #[test]
    fn distances_are_harmonic_and_within_half_a_ring() {
        let size = 1024.0;
        let log = |u: f64| (harmonic(size, u) as f64 / 2f64.powi(64)).log2();
        assert!((log(0.0) + 10.0).abs() < 0.01 && (log(1.0) + 1.0).abs() < 0.01);
        // Equal parts of the draw are equal parts of the logarithm: that is the law.
        assert!((log(0.5) + 5.5).abs() < 0.01);
    }
}
