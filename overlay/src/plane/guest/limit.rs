//! How much a guest may send or receive: a token bucket as one number, the time at which all that
//! has passed would be through at the rate (GCRA, ITU-T I.371). A packet passes while that time is
//! at most the bucket's depth ahead, else it is dropped: nothing waits, so a fast sender costs no
//! memory. Without a limit a packet costs one comparison.
//!
//! It judges IP packets of the guest. What the daemon answers (ARP, DHCP, DNS) is not counted.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// How much may pass at once, as time at the rate.
/// Reason: a TCP sender's burst within a scheduler's tick must not be cut at high rates.
const DEPTH: Duration = Duration::from_millis(20);
/// How many bytes may pass at once at any rate.
/// Reason: at low rates a guest's joined packet of 64 KiB, and one more, must fit.
const LEAST_DEPTH: u64 = 128 << 10;

/// What a guest's port let through no more, and its limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GuestLimit {
    /// Bits a second in each direction; `None` for no limit.
    pub bits_per_second: Option<u64>,
    /// Bytes of packets that were dropped by the limit, both directions together, since the port
    /// was attached.
    pub dropped_bytes: u64,
}

/// One direction of a port. Its time begins at zero.
#[derive(Debug, Default)]
pub(crate) struct Bucket {
    /// Bits a second; 0 for no limit.
    rate: AtomicU64,
    /// When all that has passed would be through, nanoseconds.
    through: AtomicU64,
    dropped: AtomicU64,
}

impl Bucket {
    pub fn set(&self, bits_per_second: Option<u64>) {
        let rate = bits_per_second.unwrap_or(0);
        if self.rate.swap(rate, Ordering::Relaxed) != rate {
            self.through.store(0, Ordering::Relaxed);
        }
    }

    pub fn rate(&self) -> Option<u64> {
        Some(self.rate.load(Ordering::Relaxed)).filter(|rate| *rate > 0)
    }

    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Whether so many bytes may pass now. The clock is read only where there is a limit.
    #[inline]
    pub fn passes(&self, bytes: usize, now: impl FnOnce() -> Duration) -> bool {
        let rate = self.rate.load(Ordering::Relaxed);
        rate == 0 || self.judge(rate, bytes as u64, nanos(now()))
    }

    #[cold]
    fn judge(&self, rate: u64, bytes: u64, now: u64) -> bool {
        let admitted = |through| admit(rate, through, now, bytes);
        let judged = self
            .through
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, admitted);
        if judged.is_err() {
            self.dropped.fetch_add(bytes, Ordering::Relaxed);
        }
        judged.is_ok()
    }
}

/// The time at which all is through with so many bytes more; `None` if they are dropped.
fn admit(rate: u64, through: u64, now: u64, bytes: u64) -> Option<u64> {
    if through.saturating_sub(now) > depth(rate) {
        return None;
    }
    Some(through.max(now).saturating_add(time_of(bytes, rate)))
}

/// The bucket's depth, nanoseconds.
fn depth(rate: u64) -> u64 {
    nanos(DEPTH).max(time_of(LEAST_DEPTH, rate))
}

/// How long bytes take at a rate, nanoseconds, rounded up: many small packets pass no faster.
fn time_of(bytes: u64, rate: u64) -> u64 {
    let bits = u128::from(bytes) * 8 * 1_000_000_000;
    u64::try_from(bits.div_ceil(u128::from(rate.max(1)))).unwrap_or(u64::MAX)
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn without_a_limit_all_passes_and_the_clock_is_not_read() {
        let bucket = Bucket::default();
        let unread = || -> Duration { unreachable!("the clock was read") };
        assert!((0..1000).all(|_| bucket.passes(65_535, unread)));
        assert_eq!((bucket.rate(), bucket.dropped()), (None, 0));
    }

    #[test]
    fn what_is_dropped_is_counted_and_time_makes_room() {
        let bucket = Bucket::default();
        bucket.set(Some(8_000_000));
        let at = |ms| move || Duration::from_millis(ms);
        // A megabyte a second, of which 128 KiB at once and a packet more.
        let passed = (0..200).filter(|_| bucket.passes(1000, at(0))).count();
        assert_eq!(passed, 132);
        assert_eq!(bucket.dropped(), 68_000);
        let passed = (0..200).filter(|_| bucket.passes(1000, at(50))).count();
        assert_eq!(passed, 50);
        bucket.set(None);
        assert!(bucket.passes(1 << 20, at(50)));
        bucket.set(Some(8_000_000));
        assert!(bucket.passes(1000, at(50)), "a new limit begins anew");
    }

    proptest! {
        /// In any time no more passes than the rate, the depth and one packet; and a packet is
        /// dropped only if as much as the depth passed just before.
        #[test]
        fn no_sender_gets_more_than_the_rate_and_the_depth(
            rate in 8_000u64..1_000_000_000_000,
            packets in proptest::collection::vec((0u64..5_000_000, 1u64..65_536), 1..300),
        ) {
            let (mut through, mut now, mut passed, mut largest) = (0, 0, 0u64, 0);
            for (wait, bytes) in packets {
                now += wait;
                largest = largest.max(bytes);
                match admit(rate, through, now, bytes) {
                    Some(new) => {
                        prop_assert!(new >= through);
                        (through, passed) = (new, passed + bytes);
                    }
                    None => prop_assert!(through > now + depth(rate)),
                }
                let time = u128::from(now) + u128::from(depth(rate)) + 1;
                let most = u128::from(rate) * time / 8 / u128::from(SECOND);
                prop_assert!(u128::from(passed) <= most + u128::from(largest) + 1);
            }
        }

        #[test]
        fn no_value_overflows(rate: u64, through: u64, now: u64, bytes: u64) {
            let _ = admit(rate, through, now, bytes);
        }
    }
}
