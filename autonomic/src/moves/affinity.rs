//! How much nearer a VM would come to the members it exchanges traffic with: the traffic that its
//! host's packet plane counts, weighed by the round trips that network coordinates predict (VNET's
//! adaptation: Sundararaj, Gupta and Dinda 2005 move VMs by VTTIF's matrix). Affinity chooses among
//! the peers that the load allows; the load alone decides whether a VM moves.

use crate::load::Talk;
use p2pvm_overlay::{MemberId, coordinates::Coordinate};
use std::time::Duration;

/// How many milliseconds are added to each round trip.
/// Reason: smaller differences are within one site.
const SAME_SITE_MS: f64 = 2.0;

/// A node and its coordinates.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NodePlace {
    pub(crate) member: MemberId,
    pub(crate) place: Option<Coordinate>,
}

/// The round trip between a VM at `at` and the member that it exchanges traffic with.
fn round_trip(at: NodePlace, talk: &Talk) -> Option<Duration> {
    if at.member == talk.member {
        Some(Duration::ZERO)
    } else {
        Some(at.place?.estimate(&talk.place?))
    }
}

/// From 1 (all of the VM's traffic would stay on the host) through 0 (no difference, too little
/// traffic, or unknown places) to -1 (the reverse). Traffic below `least` bytes a second does not
/// count.
pub(crate) fn affinity(talks: &[Talk], here: NodePlace, there: NodePlace, least: f64) -> f64 {
    let all: f64 = talks.iter().map(|talk| talk.rate).sum();
    if !all.is_finite() || all < least.max(1.0) {
        return 0.0;
    }
    let nearer = |talk: &Talk| {
        let (from, to) = (
            round_trip(here, talk)?.as_secs_f64() * 1e3,
            round_trip(there, talk)?.as_secs_f64() * 1e3,
        );
        Some(talk.rate * (from - to) / (from + to + SAME_SITE_MS))
    };
    talks.iter().filter_map(nearer).sum::<f64>() / all
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: MemberId = MemberId([1; 32]);
    const THERE: MemberId = MemberId([2; 32]);
    const OTHER: MemberId = MemberId([3; 32]);

    fn at(ms: i32) -> Option<Coordinate> {
        Some(
            postcard::from_bytes(
                &postcard::to_allocvec(&([ms * 1000, 0, 0], 500u32, 100u16)).unwrap(),
            )
            .unwrap(),
        )
    }

    fn talk(member: MemberId, rate: f64, ms: i32) -> Talk {
        Talk {
            member,
            rate,
            place: at(ms),
        }
    }

    fn between(talks: &[Talk]) -> f64 {
        affinity(
            talks,
            NodePlace {
                member: HERE,
                place: at(0),
            },
            NodePlace {
                member: THERE,
                place: at(100),
            },
            1000.0,
        )
    }

    #[test]
    fn traffic_pulls_to_where_it_goes_and_holds_where_it_is() {
        assert!(between(&[talk(THERE, 1e6, 100)]) > 0.9);
        assert!(between(&[talk(HERE, 1e6, 0)]) < -0.9);
        assert!(
            between(&[talk(OTHER, 1e6, 90)]) > 0.7,
            "a member beside the target pulls too"
        );
        assert!(
            between(&[talk(HERE, 1e6, 0), talk(THERE, 1e6, 100)]).abs() < 1e-9,
            "as much either way"
        );
        assert!(
            between(&[talk(HERE, 9e6, 0), talk(THERE, 1e6, 100)]) < -0.7,
            "the larger part decides"
        );
    }

    #[test]
    fn little_traffic_unknown_places_and_one_site_are_no_reason() {
        assert_eq!(between(&[talk(THERE, 999.0, 100)]), 0.0);
        assert_eq!(
            between(&[Talk {
                place: None,
                ..talk(OTHER, 1e6, 0)
            }]),
            0.0
        );
        assert_eq!(between(&[talk(THERE, f64::NAN, 100)]), 0.0);
        let site = |member, place| NodePlace { member, place };
        let near = affinity(
            &[talk(THERE, 1e6, 0)],
            site(HERE, at(0)),
            site(THERE, at(0)),
            1000.0,
        );
        assert!((0.0..0.5).contains(&near), "{near}");
    }
}
