//! When a better path to a member is tried next: soon after the loss, then ever less often, but for
//! a link in use never so seldom that it stays off the direct path for a minute after that would do
//! again. News (another NAT or address on either side, a control connection that came back) begins
//! anew. Sans-IO.

use crate::id::MemberId;
use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

/// First pause between two tries.
pub(crate) const FIRST: Duration = Duration::from_secs(5);
/// Last pause where both NATs, as far as they are known, allow a direct path. Reason: with a try's
/// own few seconds a direct path is there within half a minute of the end of what kept it away.
pub(crate) const LAST: Duration = Duration::from_secs(25);
/// Last pause where they do not: what is known may have become wrong.
pub(crate) const LAST_HOPELESS: Duration = Duration::from_secs(45);

#[derive(Clone, Copy)]
struct Retry {
    next: Instant,
    pause: Duration,
    tries: u32,
}

/// The members off the direct path.
#[derive(Default)]
pub(crate) struct Retries(HashMap<MemberId, Retry>);

impl Retries {
    /// Something is being tried for this member now: nothing else is for a while.
    pub fn hold_off(&mut self, member: MemberId, now: Instant) {
        self.0.entry(member).or_insert(Retry {
            next: now + FIRST,
            pause: FIRST,
            tries: 0,
        });
    }

    /// Which try is due now, if one is: the first is number 1. `hopeless`: by what is known it will
    /// fail.
    pub fn due(&mut self, member: MemberId, now: Instant, hopeless: bool) -> Option<u32> {
        let retry = self.0.entry(member).or_insert(Retry {
            next: now,
            pause: FIRST / 2,
            tries: 0,
        });
        let last = if hopeless { LAST_HOPELESS } else { LAST };
        // What seemed hopeless may not be any more.
        if retry.next > now && retry.next <= now + last {
            return None;
        }
        retry.pause = (retry.pause * 2).min(last);
        retry.next = now + retry.pause;
        retry.tries = retry.tries.saturating_add(1);
        Some(retry.tries)
    }

    /// There is news of this member: it is tried at `at`, and again soon after that.
    pub fn begin_anew(&mut self, member: MemberId, at: Instant) {
        if let Some(retry) = self.0.get_mut(&member) {
            (retry.next, retry.pause) = (retry.next.min(at), FIRST / 2);
        }
    }

    /// There is news of this node: all are tried at `at`.
    pub fn all_anew(&mut self, at: Instant) {
        for retry in self.0.values_mut() {
            (retry.next, retry.pause) = (retry.next.min(at), FIRST / 2);
        }
    }

    /// Forgets those that are direct, or gone.
    pub fn retain(&mut self, is_off: impl Fn(&MemberId) -> bool) {
        self.0.retain(|member, _| is_off(member));
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: MemberId = MemberId([1; 32]);

    /// The times of the tries within `until` seconds, in seconds.
    fn tries(
        retries: &mut Retries,
        start: Instant,
        from: u64,
        until: u64,
        hopeless: bool,
    ) -> Vec<u64> {
        (from..until)
            .filter(|s| {
                retries
                    .due(A, start + Duration::from_secs(*s), hopeless)
                    .is_some()
            })
            .collect()
    }

    #[test]
    fn a_link_in_use_is_tried_again_within_half_a_minute_however_long_it_was_not_direct() {
        let (mut retries, start) = (Retries::default(), Instant::now());
        retries.hold_off(A, start);
        let at = tries(&mut retries, start, 0, 3600, false);
        assert_eq!(at[..4], [5, 15, 35, 60]);
        assert!(at.windows(2).all(|two| two[1] - two[0] <= 30), "{at:?}");
        assert!(at.len() < 3600 / 20, "and not much more often");
    }

    #[test]
    fn news_begins_anew_at_once_and_what_seemed_hopeless_is_tried_less_often() {
        let (mut retries, start) = (Retries::default(), Instant::now());
        retries.hold_off(A, start);
        let at = tries(&mut retries, start, 0, 600, true);
        assert!(at.windows(2).all(|two| two[1] - two[0] <= 60), "{at:?}");
        retries.begin_anew(A, start + Duration::from_secs(600));
        assert_eq!(
            tries(&mut retries, start, 600, 640, true),
            [600, 605, 615, 635]
        );
        retries.all_anew(start + Duration::from_secs(640));
        assert_eq!(tries(&mut retries, start, 640, 641, false), [640]);
    }
}
