//! Selects the time to believe among several clocks. Pure.
//!
//! Of three clocks or more the median is used, so that no minority decides, however wrong it is; of
//! an even number the lower of the two in the middle, so that all members with the same reports
//! choose the same. A member with one report, such as one at the edge of a star, follows that one
//! if it has more. Of two clocks it cannot be known which is right: one that is behind a
//! known signature is wrong, and otherwise the earlier one is used, because nothing then expires
//! too soon.
//!
//! The limit: members that lie together and are the majority of the clocks that a member sees can
//! set its time. Certificates count as expired only if the wall clock says so too
//! ([`crate::membership::Trust`]).

/// A member's clocks as offsets from this machine's own time since its start, so that they do not
/// age.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberClock {
    /// Its wall clock.
    pub wall_offset_ms: i64,
    /// Its view of the network's time.
    pub net_offset_ms: i64,
    /// How many clocks that is based on.
    pub clocks: usize,
}

/// All clocks that this member knows.
#[derive(Clone, Copy, Debug)]
pub struct Clocks<'a> {
    /// This machine's wall clock.
    pub own_offset_ms: i64,
    /// The members' clocks.
    pub heard: &'a [MemberClock],
    /// The latest known time of a signature.
    pub floor_offset_ms: Option<i64>,
}

/// How many clocks make a majority possible, and so decide by themselves, without following another
/// member.
const MAJORITY: usize = 3;
/// How far a known signature may be ahead of a right clock. Reason: no two clocks agree to the
/// second.
const FLOOR_SLACK_MS: i64 = 120_000;

impl Clocks<'_> {
    /// The offset to this machine's time since its start.
    pub fn offset_ms(&self) -> i64 {
        let mut walls: Vec<i64> = self.heard.iter().map(|h| h.wall_offset_ms).collect();
        walls.push(self.own_offset_ms);
        // Only where too few clocks are seen here for a majority: how many another one saw is only
        // its word.
        let better = self
            .heard
            .iter()
            .filter(|h| walls.len() < MAJORITY && h.clocks >= MAJORITY);
        if let Some(best) = better.max_by_key(|h| (h.clocks, std::cmp::Reverse(h.net_offset_ms))) {
            return best.net_offset_ms;
        }
        if walls.len() < MAJORITY
            && let Some(floor) = self.floor_offset_ms
            && walls.iter().any(|wall| wall + FLOOR_SLACK_MS >= floor)
        {
            walls.retain(|wall| wall + FLOOR_SLACK_MS >= floor);
        }
        lower_median(walls)
    }
}

/// The middle one, of an even number the lower. At least one is given.
fn lower_median(mut values: Vec<i64>) -> i64 {
    values.sort_unstable();
    values[(values.len() - 1) / 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400_000;

    fn heard(wall: i64) -> MemberClock {
        MemberClock {
            wall_offset_ms: wall,
            net_offset_ms: wall,
            clocks: 1,
        }
    }

    fn judged(own: i64, walls: &[i64]) -> i64 {
        let heard: Vec<MemberClock> = walls.iter().copied().map(heard).collect();
        Clocks {
            own_offset_ms: own,
            heard: &heard,
            floor_offset_ms: None,
        }
        .offset_ms()
    }

    #[test]
    fn a_minority_of_clocks_decides_nothing_however_wrong_it_is() {
        for wrong in [DAY, -DAY, 730 * DAY, -20_000 * DAY] {
            assert_eq!(judged(0, &[0, wrong]), 0, "another's clock is wrong");
            assert_eq!(judged(wrong, &[0, 0]), 0, "this one's is");
            assert_eq!(judged(wrong, &[0, 0, 0, wrong]), 0);
        }
    }

    #[test]
    fn two_members_choose_one_clock_never_behind_what_was_signed() {
        for (one, other) in [(0, DAY), (0, 730 * DAY), (0, -DAY)] {
            assert_eq!(judged(one, &[other]), judged(other, &[one]));
        }
        assert_eq!(judged(0, &[730 * DAY]), 0);
        let behind = Clocks {
            own_offset_ms: -20_000 * DAY,
            heard: &[heard(0)],
            floor_offset_ms: Some(-DAY / 2),
        };
        assert_eq!(behind.offset_ms(), 0);
        let all_behind = Clocks {
            floor_offset_ms: Some(DAY),
            ..behind
        };
        assert_eq!(
            all_behind.offset_ms(),
            -20_000 * DAY,
            "what was signed by a clock ahead of all shows nothing"
        );
    }

    #[test]
    fn a_member_that_claims_to_see_very_many_clocks_decides_nothing_alone() {
        let liar = MemberClock {
            clocks: usize::from(u16::MAX),
            ..heard(3650 * DAY)
        };
        for others in 1..6 {
            let mut all = vec![heard(0); others];
            all.push(liar);
            let judged = Clocks {
                own_offset_ms: 0,
                heard: &all,
                floor_offset_ms: None,
            };
            assert_eq!(judged.offset_ms(), 0, "beside {others} others");
        }
    }

    #[test]
    fn who_sees_one_clock_only_follows_the_one_that_sees_many() {
        let hub = MemberClock {
            wall_offset_ms: 3 * DAY,
            net_offset_ms: 7,
            clocks: 4,
        };
        let leaf = Clocks {
            own_offset_ms: -DAY,
            heard: &[hub],
            floor_offset_ms: None,
        };
        assert_eq!(leaf.offset_ms(), 7);
        let others = [hub, heard(9), heard(9), heard(9), heard(9)];
        assert_eq!(
            Clocks {
                own_offset_ms: 9,
                heard: &others,
                floor_offset_ms: None
            }
            .offset_ms(),
            9,
            "who sees enough decides itself"
        );
    }
}
