//! Shortcuts: a direct edge to a member with much traffic (the scores of Brunet's shortcut
//! overlord; VNET/VTTIF's link adaptation).
//!
//! Traffic above a threshold for some seconds earns a shortcut, and only traffic below a lower
//! threshold for a minute loses it, so that bursts do not make and drop edges. If the number is
//! limited, the busiest members come first, and of those with about the same traffic the nearest by
//! network coordinates: the way over the ring is as long for all, so that the shortest edge gains
//! most.

use super::{Ring, message::Roles};
use crate::{coordinates::Coordinate, id::MemberId};
use std::{
    cmp::Reverse,
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// How long traffic must last before it earns a shortcut.
const HOLD: Duration = Duration::from_secs(5);
/// How long before an idle shortcut is dropped.
const IDLE: Duration = Duration::from_secs(60);
/// How long before a shortcut that was refused or failed is asked for again.
const RETRY: Duration = Duration::from_secs(60);
/// How many members' traffic is followed.
const MAX_SCORES: usize = 256;

struct Score {
    rate: u64,
    place: Option<Coordinate>,
    busy_since: Option<Instant>,
    idle_since: Option<Instant>,
    not_before: Instant,
    wanted: bool,
}

/// The state of the shortcut part.
#[derive(Default)]
pub(super) struct Shortcuts {
    scores: BTreeMap<MemberId, Score>,
}

impl Shortcuts {
    pub fn wake_at(&self) -> Option<Instant> {
        let earned = |s: &Score| {
            s.busy_since
                .filter(|_| !s.wanted)
                .map(|t| (t + HOLD).max(s.not_before))
        };
        let lost = |s: &Score| s.idle_since.map(|t| t + IDLE);
        self.scores
            .values()
            .flat_map(|s| [earned(s), lost(s)])
            .flatten()
            .min()
    }
}

impl Ring {
    /// Takes the present rates of traffic.
    pub(super) fn count_traffic(&mut self, now: Instant, rates: &[(MemberId, u64)]) {
        let (above, below) = (
            self.options.shortcut_above,
            self.options.shortcut_below.min(self.options.shortcut_above),
        );
        let scores = &mut self.shortcuts.scores;
        scores.values_mut().for_each(|s| s.rate = 0);
        for (member, rate) in rates.iter().filter(|(m, _)| *m != self.me.member) {
            let fresh = Score {
                rate: 0,
                place: None,
                busy_since: None,
                idle_since: None,
                not_before: now,
                wanted: false,
            };
            if *rate > below || scores.contains_key(member) {
                scores.entry(*member).or_insert(fresh).rate = *rate;
            }
        }
        for score in scores.values_mut() {
            score.busy_since = (score.rate >= above).then(|| score.busy_since.unwrap_or(now));
            score.idle_since = (score.rate <= below).then(|| score.idle_since.unwrap_or(now));
        }
        while scores.len() > MAX_SCORES {
            let least = scores
                .iter()
                .filter(|(_, s)| !s.wanted)
                .min_by_key(|(_, s)| s.rate)
                .map(|(m, _)| *m);
            let Some(least) = least else { break };
            scores.remove(&least);
        }
        self.hurry = true;
    }

    /// Takes the coordinates of members with traffic.
    pub(super) fn place(&mut self, places: &[(MemberId, Coordinate)]) {
        for (member, place) in places {
            if let Some(score) = self.shortcuts.scores.get_mut(member) {
                score.place = Some(*place);
            }
        }
    }

    /// Asks for shortcuts that are earned, and drops idle ones.
    pub(super) fn keep_shortcuts(&mut self, now: Instant) {
        let idle = |s: &Score| s.idle_since.is_some_and(|t| t + IDLE <= now);
        let scores = &mut self.shortcuts.scores;
        let dropped: Vec<MemberId> = scores
            .iter()
            .filter(|(_, s)| idle(s))
            .map(|(m, _)| *m)
            .collect();
        let earned = |s: &Score| {
            !s.wanted && s.not_before <= now && s.busy_since.is_some_and(|t| t + HOLD <= now)
        };
        let here = self.vivaldi.mine();
        let away = |s: &Score| s.place.map_or(Duration::MAX, |there| here.estimate(&there));
        // Rates within the same power of two are about the same.
        let order = |s: &Score| (Reverse(s.rate.checked_ilog2()), away(s), Reverse(s.rate));
        let mut busy: Vec<_> = scores
            .iter()
            .filter(|(_, s)| earned(s))
            .map(|(m, s)| (order(s), *m))
            .collect();
        for member in dropped {
            scores.remove(&member);
            if let Some(edge) = self.edges.get_mut(&member) {
                edge.mine.set(Roles::SHORTCUT, false);
            }
        }
        let free = self
            .options
            .max_shortcuts
            .saturating_sub(self.shortcuts.scores.values().filter(|s| s.wanted).count());
        busy.sort_unstable();
        for (turn, (_, member)) in busy.into_iter().enumerate() {
            let wanted = turn < free && self.link(now, member, Roles::SHORTCUT, None);
            if let Some(score) = self.shortcuts.scores.get_mut(&member) {
                score.wanted = wanted;
                score.not_before = now + RETRY;
            }
        }
    }

    /// The shortcut was refused, could not be made, or died.
    pub(super) fn shortcut_failed(&mut self, now: Instant, member: MemberId) {
        if let Some(score) = self.shortcuts.scores.get_mut(&member) {
            (score.wanted, score.not_before) = (false, now + RETRY);
            self.hurry = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Input, Output, RingOptions};
    use super::*;

    #[test]
    fn the_last_shortcut_goes_to_the_nearest_of_equal_traffic() {
        let place = |ms: i32| {
            postcard::from_bytes(
                &postcard::to_stdvec(&([ms * 1000, 0, 0], 1000u32, 100u16)).unwrap(),
            )
            .unwrap()
        };
        let (near, far, busy) = (MemberId([1; 32]), MemberId([2; 32]), MemberId([3; 32]));
        let first = |rates: &[(MemberId, u64)], near_ms, far_ms| {
            let mut ring = Ring::new(
                MemberId([9; 32]),
                RingOptions {
                    max_shortcuts: 1,
                    ..RingOptions::default()
                },
                7,
            );
            let now = Instant::now();
            ring.handle(now, Input::Traffic(rates));
            ring.handle(
                now,
                Input::Places(&[(near, place(near_ms)), (far, place(far_ms))]),
            );
            ring.handle(now + HOLD, Input::Tick);
            let links = std::iter::from_fn(|| ring.poll()).filter_map(|o| {
                if let Output::Link { member, .. } = o {
                    Some(member)
                } else {
                    None
                }
            });
            links.collect::<Vec<_>>()
        };
        assert_eq!(first(&[(near, 40_000), (far, 60_000)], 10, 200), [near]);
        assert_eq!(first(&[(near, 40_000), (far, 60_000)], 200, 10), [far]);
        assert_eq!(
            first(&[(near, 40_000), (busy, 400_000)], 10, 200),
            [busy],
            "ten times the traffic decides, wherever it is"
        );
    }
}
