//! Decides when a better path to a member is tried next: soon after the loss, then less and less
//! often, but for a link in use often enough that it is back on a direct path within a minute of
//! the time when one works again. News (another NAT or address on either side, a control connection
//! that is back) restarts this. Sans-IO.

use crate::id::MemberId;
use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

/// How long before the second try.
pub(crate) const FIRST: Duration = Duration::from_secs(5);
/// How long before the next try at most, if both NATs, as far as known, allow a direct path.
/// Reason: with a try's own few seconds the direct path is back within half a minute of the time
/// when it works again.
pub(crate) const LAST: Duration = Duration::from_secs(25);
/// How long before the next try at most, if they do not. Reason: what is known of them may have
/// become wrong.
pub(crate) const LAST_HOPELESS: Duration = Duration::from_secs(45);

#[derive(Clone, Copy)]
struct Retry {
    next: Instant,
    pause: Duration,
    tries: u32,
}

/// The members without a direct path.
#[derive(Default)]
pub(crate) struct Retries(HashMap<MemberId, Retry>);

impl Retries {
    /// Notes that a path to this member is being tried: no other try starts for a while.
    pub fn hold_off(&mut self, member: MemberId, now: Instant) {
        self.0.entry(member).or_insert(Retry {
            next: now + FIRST,
            pause: FIRST,
            tries: 0,
        });
    }

    /// The number of the try that is due now, from 1, if one is. `hopeless`: by what is known it
    /// will fail.
    pub fn due(&mut self, member: MemberId, now: Instant, hopeless: bool) -> Option<u32> {
        let retry = self.0.entry(member).or_insert(Retry {
            next: now,
            pause: FIRST / 2,
            tries: 0,
        });
        let last = if hopeless { LAST_HOPELESS } else { LAST };
        // A try that seemed hopeless may not be any more.
        if retry.next > now && retry.next <= now + last {
            return None;
        }
        retry.pause = (retry.pause * 2).min(last);
        retry.next = now + retry.pause;
        retry.tries = retry.tries.saturating_add(1);
        Some(retry.tries)
    }

    /// There is news of this member: it is tried at `at`, and soon after that again.
    pub fn begin_anew(&mut self, member: MemberId, at: Instant) {
        if let Some(retry) = self.0.get_mut(&member) {
            (retry.next, retry.pause) = (retry.next.min(at), FIRST / 2);
        }
    }

    /// There is news of this node: all members are tried at `at`.
    pub fn all_anew(&mut self, at: Instant) {
        for retry in self.0.values_mut() {
            (retry.next, retry.pause) = (retry.next.min(at), FIRST / 2);
        }
    }

    /// Forgets members with a direct path, and those that are gone.
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
    fn a_used_indirect_link_is_retried_within_half_a_minute() {
        let (mut retries, start) = (Retries::default(), Instant::now());
        retries.hold_off(A, start);
        let at = tries(&mut retries, start, 0, 3600, false);
        assert_eq!(at[..4], [5, 15, 35, 60]);
        assert!(at.windows(2).all(|two| two[1] - two[0] <= 30), "{at:?}");
        assert!(at.len() < 3600 / 20, "and not much more often");
    }

    #[test]
    fn news_retries_at_once_and_hopeless_pairs_retry_less_often() {
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
