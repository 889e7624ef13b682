//! Selects the member that relays datagrams between two that cannot reach each other. Any member
//! that both reach will do; the best is the one with the shortest round trip, as both sides have
//! measured it, or else as network coordinates predict it ([`crate::coordinates`]). A member may be
//! unwilling (`relay = false`) and then says so; how much a willing one relays is up to its plane
//! ([`crate::plane::RelayOffer`]).

use super::State;
use crate::{
    connect::message::{NatKind, Reachability},
    coordinates::Coordinate,
    id::MemberId,
};
use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

/// How many relays are tried before a stream is opened.
const MAX_RELAYS: usize = 6;
/// How many are tried at a time: one to use and one to spare.
pub(crate) const AT_ONCE: usize = 2;
/// How long before a member that refused to relay is asked again.
const REFUSED_FOR: Duration = Duration::from_secs(60);
/// How many milliseconds, and at least a fifth of the round trip, a better relay has to save.
const WORTH_MS: u64 = 5;

/// The members that refused to relay.
#[derive(Default)]
pub(crate) struct Relays {
    refused: HashMap<MemberId, Instant>,
}

impl Relays {
    pub fn refused(&mut self, now: Instant, relay: MemberId) {
        self.refused.insert(relay, now);
    }

    pub fn forget_refusals(&mut self) {
        self.refused.clear();
    }

    pub fn forget_old_refusals(&mut self, now: Instant) {
        self.refused
            .retain(|_, at| now.saturating_duration_since(*at) < REFUSED_FOR);
    }

    fn has_refused(&self, now: Instant, relay: &MemberId) -> bool {
        self.refused
            .get(relay)
            .is_some_and(|at| now.saturating_duration_since(*at) < REFUSED_FOR)
    }
}

/// A member that may relay, as far as both sides know it.
struct RelayCandidate {
    relay: MemberId,
    /// The measured round trips to it from us and from the member, in milliseconds.
    legs: (Option<u32>, Option<u32>),
    /// Whether both sides are connected with it.
    common: bool,
    /// Whether every member can reach it.
    open: bool,
    place: Option<Coordinate>,
}

/// The round trip of a leg in milliseconds: as measured, else as predicted by the coordinates of
/// its ends, plus the expected error, so that of two equal ones the measured one is better.
fn leg(measured: Option<u32>, ends: (Option<Coordinate>, Option<Coordinate>)) -> Option<u64> {
    let predicted = || {
        let (one, other) = (ends.0?, ends.1?);
        let error = f64::from(one.error().max(other.error()));
        Some(one.estimate(&other).mul_f64(1.0 + error).as_millis() as u64)
    };
    measured.map(u64::from).or_else(predicted)
}

/// The candidates with the expected round trip over each, in the order to try them. First those
/// measured on both sides, and those open to all and measured or predicted, by round trip; then
/// those connected to both; then those that one side would have to dial. A wrong choice costs a try
/// of some seconds, so an open member comes first among those.
fn rank(
    candidates: Vec<RelayCandidate>,
    here: Option<Coordinate>,
    there: Option<Coordinate>,
) -> Vec<(MemberId, Option<u64>)> {
    let place = |c: RelayCandidate| {
        let (ours, theirs) = (
            leg(c.legs.0, (here, c.place)),
            leg(c.legs.1, (c.place, there)),
        );
        let whole = ours.zip(theirs).map(|(a, b)| a + b);
        let class = match (c.legs, c.common, c.open) {
            ((Some(_), Some(_)), ..) => 0,
            (_, true, true) if whole.is_some() => 0,
            (_, true, true) => 1,
            (_, true, false) => 2,
            (_, false, true) => 3,
            (_, false, false) => 4,
        };
        (class, whole.is_none(), whole.or(ours).or(theirs), c.relay)
    };
    let mut placed: Vec<_> = candidates.into_iter().map(place).collect();
    placed.sort_unstable_by_key(|(class, unknown, rtt, relay)| {
        (*class, *unknown, rtt.unwrap_or(u64::MAX), *relay)
    });
    placed
        .into_iter()
        .map(|(_, unknown, rtt, relay)| (relay, rtt.filter(|_| !unknown)))
        .collect()
}

/// What this side knows for the choice of a relay.
pub(crate) struct Neighbours<'a> {
    /// Members reached directly, with the round trips in milliseconds.
    pub direct: &'a HashMap<MemberId, u32>,
    pub connected: &'a [MemberId],
    /// This node's network coordinate.
    pub here: Option<Coordinate>,
    /// The network coordinate of a neighbour on the ring.
    pub place: &'a dyn Fn(&MemberId) -> Option<Coordinate>,
}

impl State {
    /// A member's network coordinate: as the ring's neighbour says (`on_ring`), or from the last
    /// meeting.
    pub fn place(&self, member: &MemberId, on_ring: Option<Coordinate>) -> Option<Coordinate> {
        let said = || self.known.get(member)?.1.coordinate;
        on_ring.or_else(said).filter(Coordinate::is_known)
    }

    /// The members that may relay to `member`, best first, each with the expected round trip in
    /// milliseconds.
    pub fn relays_to(
        &self,
        now: Instant,
        member: MemberId,
        theirs: &Reachability,
        ours: &Neighbours<'_>,
    ) -> Vec<(MemberId, Option<u64>)> {
        let their_legs: HashMap<MemberId, Option<u32>> =
            theirs.neighbours.iter().copied().collect();
        let mut relays: Vec<MemberId> = their_legs.keys().chain(ours.connected).copied().collect();
        relays.sort_unstable();
        relays.dedup();
        relays.retain(|relay| *relay != member && *relay != self.me);
        let said = |relay: &MemberId| self.known.get(relay).map(|(_, w)| w);
        let willing = |relay: &MemberId| {
            !self.relays.has_refused(now, relay)
                && said(relay).is_none_or(|w| w.relay && w.nat != NatKind::Blocked)
        };
        let known = relays
            .into_iter()
            .filter(willing)
            .map(|relay| RelayCandidate {
                relay,
                legs: (
                    ours.direct.get(&relay).copied(),
                    their_legs.get(&relay).copied().flatten(),
                ),
                common: their_legs.contains_key(&relay) && ours.connected.contains(&relay),
                open: said(&relay).is_some_and(|w| w.nat == NatKind::Open),
                place: self.place(&relay, (ours.place)(&relay)),
            });
        let there = theirs.coordinate.filter(Coordinate::is_known);
        let mut ranked = rank(known.collect(), ours.here, there);
        ranked.truncate(MAX_RELAYS);
        ranked
    }
}

/// The relay to try beside those of a link, if it has no spare one or a better one is known.
/// `ranked`: see [`State::relays_to`].
pub(crate) fn another(
    ranked: &[(MemberId, Option<u64>)],
    has: &[MemberId],
    rtt: Option<Duration>,
) -> Option<MemberId> {
    let (next, expected) = ranked.iter().find(|(relay, _)| !has.contains(relay))?;
    let better = expected.zip(rtt).is_some_and(|(new, rtt)| {
        let old = rtt.as_millis() as u64;
        new * 5 <= old * 4 && new + WORTH_MS <= old
    });
    (has.len() < AT_ONCE || better).then_some(*next)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A place `ms` along a line, at a height of 1 ms.
    fn at(ms: i32, error: u16) -> Option<Coordinate> {
        Some(
            postcard::from_bytes(
                &postcard::to_stdvec(&([ms * 1000, 0, 0], 1000u32, error)).unwrap(),
            )
            .unwrap(),
        )
    }

    fn relay(n: u8, legs: (Option<u32>, Option<u32>), place: Option<Coordinate>) -> RelayCandidate {
        RelayCandidate {
            relay: MemberId([n; 32]),
            legs,
            common: true,
            open: true,
            place,
        }
    }

    fn order(candidates: Vec<RelayCandidate>) -> Vec<u8> {
        rank(candidates, at(0, 100), at(100, 100))
            .into_iter()
            .map(|(relay, _)| relay.0[0])
            .collect()
    }

    #[test]
    fn a_relay_that_was_never_measured_is_tried_where_coordinates_place_it() {
        // We stand at 0 and the other at 100: one candidate stands between us, one far behind, one
        // aside.
        let never = (None, None);
        assert_eq!(
            order(vec![
                relay(1, never, at(-300, 100)),
                relay(2, never, at(50, 100)),
                relay(3, never, at(150, 100))
            ]),
            [2, 3, 1]
        );
        // Our leg is measured, the other's is predicted.
        let half = |ms| (Some(ms), None);
        assert_eq!(
            order(vec![
                relay(1, half(20), at(-400, 100)),
                relay(2, half(60), at(60, 100))
            ]),
            [2, 1]
        );
    }

    #[test]
    fn among_equals_the_measured_wins_and_a_guess_comes_last() {
        let measured = relay(1, (Some(52), Some(52)), at(50, 100));
        assert_eq!(
            order(vec![relay(2, (None, None), at(50, 100)), measured]),
            [1, 2],
            "the same place, 104 ms either way"
        );
        let slow = relay(1, (Some(300), Some(300)), None);
        assert_eq!(
            order(vec![
                slow,
                relay(2, (None, None), at(50, 100)),
                relay(3, (None, None), None)
            ]),
            [2, 1, 3]
        );
        let closed = RelayCandidate {
            open: false,
            ..relay(2, (None, None), at(50, 100))
        };
        assert_eq!(
            order(vec![closed, relay(1, (Some(300), Some(300)), None)]),
            [1, 2],
            "it may not be reached at all"
        );
        let expected = rank(
            vec![relay(1, (Some(40), None), at(50, 500))],
            at(0, 100),
            at(100, 100),
        )[0]
        .1;
        assert_eq!(
            expected,
            Some(40 + 52 * 3 / 2),
            "the expected error is added"
        );
        assert_eq!(
            rank(
                vec![relay(1, (Some(40), None), at(50, 100))],
                at(0, 100),
                None
            )[0]
            .1,
            None,
            "nothing is made up"
        );
    }
}
