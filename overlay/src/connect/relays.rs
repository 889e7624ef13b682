//! Which member passes datagrams on between two that cannot reach each other. Any that both reach
//! will do and none is a must; best is the one over which the round trip is shortest, by what both
//! sides have measured to it and, where they have not, by what network coordinates predict
//! ([`crate::coordinates`]). Two are tried at a time: the first that answers is used, the other
//! stays warm beside it (the plane's paths measure it now and then), so that a relay that dies is
//! replaced at once. A clearly better one, looked for now and then, takes over; the paths' own
//! hysteresis decides. A member may be unwilling (`relay = false`), and then says so; how much a
//! willing one passes on is its plane's matter ([`crate::plane::RelayOffer`]).

use super::{
    Shared,
    dial::{CALL_LIMIT, PATIENCE, Reach, ask, current, ensure, selected},
    message::{Answer, NatKind, Request, Whereabouts},
};
use crate::{
    coordinates::Coordinate,
    id::MemberId,
    plane::{Error, Path},
};
use futures::{FutureExt, future::BoxFuture};
use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::task::JoinSet;

/// Having a relay ready may take a dial of its own.
const RELAY_LIMIT: Duration = Duration::from_secs(6);
/// Relays tried before a stream.
const MAX_RELAYS: usize = 6;
/// Tried at a time: one to use and one to spare.
const AT_ONCE: usize = 2;
/// A member that would not relay is not asked again within this.
const REFUSED_FOR: Duration = Duration::from_secs(60);
/// Links through relays are looked at this often.
const TEND_EVERY: Duration = Duration::from_secs(2);
/// A link that has its spare relay is reviewed for a better one this often.
const REVIEW_EVERY: Duration = Duration::from_secs(30);
/// A relay is better only if it saves a fifth of the round trip and at least this.
const WORTH_MS: u64 = 5;
/// Links that carried nothing for this long are left alone.
const IN_USE: Duration = Duration::from_secs(60);

/// A member that may pass datagrams on, as far as both sides know it.
struct Candidate {
    relay: MemberId,
    /// The measured round trips to it from us and from the member, in milliseconds.
    legs: (Option<u32>, Option<u32>),
    /// Whether both sides are connected with it.
    common: bool,
    /// Whether everybody can reach it.
    open: bool,
    /// Where it stands by round trips.
    place: Option<Coordinate>,
}

/// The round trip of a leg in milliseconds: as measured, else as the coordinates of its ends
/// predict, with the error that is to be expected on top: of two alike the measured one is better.
fn leg(measured: Option<u32>, ends: (Option<Coordinate>, Option<Coordinate>)) -> Option<u64> {
    let predicted = || {
        let (one, other) = (ends.0?, ends.1?);
        let error = f64::from(one.error().max(other.error()));
        Some(one.estimate(&other).mul_f64(1.0 + error).as_millis() as u64)
    };
    measured.map(u64::from).or_else(predicted)
}

/// The candidates with the round trip to expect over each, the one to try first first. What is
/// measured on both sides, or open to all and measured or predicted, comes by its round trip; then
/// what both are connected with; then what one side would have to dial. A wrong guess costs a try
/// of some seconds, so who stands open comes first among those.
fn rank(
    candidates: Vec<Candidate>,
    here: Option<Coordinate>,
    there: Option<Coordinate>,
) -> Vec<(MemberId, Option<u64>)> {
    let place = |c: Candidate| {
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

/// The members through which `member` may be reached, best first, with the round trip to expect in
/// milliseconds.
pub(super) fn candidates(
    shared: &Shared,
    member: MemberId,
    theirs: &Whereabouts,
) -> Vec<(MemberId, Option<u64>)> {
    let ours = shared.direct_neighbours();
    let connected = shared.fabric.connected();
    let their_legs: HashMap<MemberId, Option<u32>> = theirs.neighbours.iter().copied().collect();
    let mut relays: Vec<MemberId> = their_legs.keys().chain(&connected).copied().collect();
    relays.sort_unstable();
    relays.dedup();
    relays.retain(|relay| *relay != member && *relay != shared.fabric.me());
    let (here, places) = (shared.here(), shared.places(&relays));
    let state = shared.state();
    let now = Instant::now();
    let willing = |m: &MemberId| {
        let refused = state
            .refused
            .get(m)
            .is_some_and(|at| now.saturating_duration_since(*at) < REFUSED_FOR);
        !refused
            && state
                .known
                .get(m)
                .is_none_or(|(_, w)| w.relay && w.nat != NatKind::Blocked)
    };
    let known = relays
        .iter()
        .zip(places)
        .filter(|(relay, _)| willing(relay))
        .map(|(relay, place)| Candidate {
            relay: *relay,
            legs: (
                ours.get(relay).copied(),
                their_legs.get(relay).copied().flatten(),
            ),
            common: their_legs.contains_key(relay) && connected.contains(relay),
            open: state
                .known
                .get(relay)
                .is_some_and(|(_, w)| w.nat == NatKind::Open),
            place,
        });
    let mut ranked = rank(
        known.collect(),
        here,
        theirs.coordinate.filter(Coordinate::is_known),
    );
    ranked.truncate(MAX_RELAYS);
    ranked
}

/// Finds a relay and takes it into use; `None` if none will do.
pub(super) async fn find(
    shared: &Arc<Shared>,
    member: MemberId,
    theirs: &Whereabouts,
) -> Option<Path> {
    let candidates = candidates(shared, member, theirs);
    for some in candidates.chunks(AT_ONCE) {
        let mut tries = JoinSet::new();
        for (relay, _) in some {
            tries.spawn(via(shared.clone(), member, *relay));
        }
        while let Some(tried) = tries.join_next().await {
            if let Ok(Ok(path)) = tried {
                tries.detach_all();
                return Some(path);
            }
        }
        if let Some(path) = current(shared, member, Reach::Edge) {
            return Some(path);
        }
    }
    None
}

/// Has `relay` pass our datagrams on to `member`.
pub(super) fn via(
    shared: Arc<Shared>,
    member: MemberId,
    relay: MemberId,
) -> BoxFuture<'static, Result<Path, Error>> {
    let tried = async move {
        let (ours, theirs) = tokio::join!(
            ensure(&shared, relay, Reach::WithoutRelay),
            ask(&shared, relay, Request::Relay(member), RELAY_LIMIT)
        );
        if ours? == Path::Stream {
            // Our own stream to the member is no worse than one to a relay.
            return Err(Error::NoPath(member));
        }
        if let Err(error) = theirs {
            shared.state().refused.insert(relay, Instant::now());
            tracing::debug!(?member, ?relay, %error, "not through this member");
            return Err(error);
        }
        shared.plane.try_paths(member, [Path::Relayed(relay)]);
        selected(&shared, member, Reach::Edge, PATIENCE.1)
            .await
            .ok_or(Error::NoPath(member))
    };
    tried.boxed()
}

/// Looks after the links that go through relays: each has a spare one, and the better one.
pub(crate) async fn tend(shared: Arc<Shared>) {
    let mut reviewed: HashMap<MemberId, Instant> = HashMap::new();
    loop {
        tokio::time::sleep(TEND_EVERY).await;
        let now = Instant::now();
        shared
            .state()
            .refused
            .retain(|_, at| now.saturating_duration_since(*at) < REFUSED_FOR);
        let peers = shared.plane.peers();
        reviewed.retain(|member, _| {
            peers
                .iter()
                .any(|(m, info)| m == member && matches!(info.path, Path::Relayed(_)))
        });
        for (member, info) in peers {
            if !matches!(info.path, Path::Relayed(_)) || shared.plane.idle(member, now) > IN_USE {
                continue;
            }
            let relays = shared.plane.relays_of(member);
            let pause = if relays.len() < AT_ONCE {
                TEND_EVERY * 4
            } else {
                REVIEW_EVERY
            };
            if reviewed
                .get(&member)
                .is_some_and(|at| now.saturating_duration_since(*at) < pause)
            {
                continue;
            }
            reviewed.insert(member, now);
            tokio::spawn(review(shared.clone(), member, relays, info.rtt));
        }
    }
}

/// Tries one more relay if the link has no spare one or a better one is known.
async fn review(
    shared: Arc<Shared>,
    member: MemberId,
    relays: Vec<MemberId>,
    rtt: Option<Duration>,
) {
    let Ok(Answer::Here(theirs)) = ask(&shared, member, Request::Where, CALL_LIMIT).await else {
        return;
    };
    shared.remember(member, &theirs);
    let fresh = candidates(&shared, member, &theirs)
        .into_iter()
        .find(|(relay, _)| !relays.contains(relay));
    let Some((next, expected)) = fresh else {
        return;
    };
    let better = expected.zip(rtt).is_some_and(|(new, rtt)| {
        let old = rtt.as_millis() as u64;
        new * 5 <= old * 4 && new + WORTH_MS <= old
    });
    if relays.len() < AT_ONCE || better {
        // The paths measure it and take it if it is better; a failure was noted.
        let _ = via(shared, member, next).await;
    }
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

    fn relay(n: u8, legs: (Option<u32>, Option<u32>), place: Option<Coordinate>) -> Candidate {
        Candidate {
            relay: MemberId([n; 32]),
            legs,
            common: true,
            open: true,
            place,
        }
    }

    fn order(candidates: Vec<Candidate>) -> Vec<u8> {
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
    fn what_is_measured_wins_among_equals_and_a_guess_without_ground_comes_last() {
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
        let closed = Candidate {
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
