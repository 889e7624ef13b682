//! How often a caller may do something: a token bucket for each caller.
//!
//! A bucket is one instant, as in the generic cell rate algorithm (ATM Forum, Traffic Management
//! 4.1): the time at which it is full again. A bucket that is full again is forgotten. Callers
//! beyond a number share one bucket, so that neither memory nor the rate of all of them grows with
//! their number.

use p2pvm_host::lock;
use std::{
    collections::HashMap,
    hash::Hash,
    sync::Mutex,
    time::{Duration, Instant},
};

/// How much a bucket holds, and how fast it fills.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    most: u32,
    each: Duration,
}

impl Rate {
    /// `most` at once, and one more every `each`.
    pub(crate) const fn new(most: u32, each: Duration) -> Self {
        assert!(most > 0);
        Self { most, each }
    }

    /// How long after a bucket is full again the next one may still be taken out.
    fn slack(self) -> Duration {
        self.each * (self.most - 1)
    }
}

/// A bucket for each key.
#[derive(Debug)]
struct State<K> {
    rate: Rate,
    most: usize,
    /// When each bucket that is not full will be.
    full_at: HashMap<K, Instant>,
    /// The same of the bucket that the others share.
    shared: Option<Instant>,
}

impl<K: Eq + Hash> State<K> {
    fn new(rate: Rate, most: usize) -> Self {
        Self {
            rate,
            most,
            full_at: HashMap::new(),
            shared: None,
        }
    }

    /// Takes one out of the key's bucket; if it is empty, says how long until there is one.
    fn take(&mut self, key: K, now: Instant) -> Result<(), Duration> {
        if !self.full_at.contains_key(&key) && self.full_at.len() >= self.most {
            self.full_at.retain(|_, full_at| *full_at > now);
        }
        let place = if self.full_at.contains_key(&key) || self.full_at.len() < self.most {
            self.full_at.entry(key).or_insert(now)
        } else {
            self.shared.get_or_insert(now)
        };
        let full_at = (*place).max(now);
        let early = full_at.duration_since(now);
        if early > self.rate.slack() {
            return Err(early - self.rate.slack());
        }
        *place = full_at + self.rate.each;
        Ok(())
    }
}

/// A bucket for each key, by this machine's clock.
#[derive(Debug)]
pub(crate) struct Buckets<K>(Mutex<State<K>>);

impl<K: Eq + Hash> Buckets<K> {
    /// Buckets of their own for at most `most` keys at a time.
    pub(crate) fn new(rate: Rate, most: usize) -> Self {
        Self(Mutex::new(State::new(rate, most)))
    }

    /// Takes one out of the key's bucket; if it is empty, says how long until there is one.
    pub(crate) fn take(&self, key: K) -> Result<(), Duration> {
        let mut state = lock(&self.0);
        state.take(key, Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RATE: Rate = Rate::new(3, Duration::from_secs(2));

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let mut buckets = State::new(RATE, 8);
        let start = Instant::now();
        for _ in 0..3 {
            assert_eq!(buckets.take("a", start), Ok(()));
        }
        assert_eq!(buckets.take("a", start), Err(Duration::from_secs(2)));
        assert_eq!(
            buckets.take("b", start),
            Ok(()),
            "another source has its own"
        );
        let later = start + Duration::from_millis(1500);
        assert_eq!(buckets.take("a", later), Err(Duration::from_millis(500)));
        assert_eq!(buckets.take("a", start + Duration::from_secs(2)), Ok(()));
        assert!(buckets.take("a", start + Duration::from_secs(2)).is_err());
        let rested = start + Duration::from_secs(60);
        let taken = (0..9).filter(|_| buckets.take("a", rested).is_ok()).count();
        assert_eq!(taken, 3, "a rest earns no more than a burst");
    }

    #[test]
    fn sources_beyond_the_most_share_one_bucket_until_others_rest() {
        let mut buckets = State::new(RATE, 4);
        let start = Instant::now();
        let taken = (0..100).filter(|n| buckets.take(*n, start).is_ok()).count();
        assert_eq!(taken, 4 + 3);
        assert_eq!(buckets.full_at.len(), 4);
        assert_eq!(
            buckets.take(0, start),
            Ok(()),
            "a known source keeps its own"
        );
        let later = start + Duration::from_secs(30);
        assert_eq!(buckets.take(200, later), Ok(()));
        assert_eq!(buckets.full_at.len(), 1, "what is full again is forgotten");
    }

    proptest! {
        #[test]
        fn no_sequence_of_requests_gets_more_than_the_rate(
            steps in prop::collection::vec((0u64..5000, 0u8..3), 1..200),
        ) {
            let start = Instant::now();
            let mut buckets = State::new(RATE, 2);
            let (mut now, mut taken) = (start, [0u32; 3]);
            for (wait, key) in steps {
                now += Duration::from_millis(wait);
                match buckets.take(key, now) {
                    Ok(()) => taken[usize::from(key)] += 1,
                    Err(wait) => prop_assert!(wait > Duration::ZERO && wait <= RATE.each),
                }
                prop_assert!(buckets.full_at.len() <= 2);
            }
            let earned = 3 + (now - start).as_millis() / RATE.each.as_millis();
            // A source may have used its own bucket and the shared one.
            prop_assert!(taken.iter().all(|taken| u128::from(*taken) <= 2 * earned));
        }
    }
}
