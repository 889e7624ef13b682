//! How many things one party may ask for: a token bucket.

use std::time::{Duration, Instant};

/// A bucket of tokens that fills up with time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Allowance {
    burst: u32,
    /// How long one token takes to come back.
    each: Duration,
    /// When the bucket is full again.
    full_at: Instant,
}

impl Allowance {
    /// A full bucket.
    pub fn new(now: Instant, burst: u32, each: Duration) -> Self {
        Self {
            burst,
            each,
            full_at: now,
        }
    }

    /// Takes a token, if one is left.
    pub fn take(&mut self, now: Instant) -> bool {
        let after = self.full_at.max(now) + self.each;
        let has_room = after.saturating_duration_since(now) <= self.each * self.burst;
        if has_room {
            self.full_at = after;
        }
        has_room
    }

    /// Whether it is full, as a new one is.
    pub fn is_full(&self, now: Instant) -> bool {
        self.full_at <= now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_allowed_and_then_as_many_as_come_back() {
        let (start, each) = (Instant::now(), Duration::from_millis(100));
        let mut allowance = Allowance::new(start, 3, each);
        let mut taken = |now| (0..10).filter(|_| allowance.take(now)).count();
        assert_eq!(taken(start), 3);
        assert_eq!(taken(start + each), 1);
        assert_eq!(taken(start + each * 3), 2);
        assert_eq!(taken(start + each * 100), 3, "no more than the burst");
        assert!(!allowance.is_full(start + each * 100) && allowance.is_full(start + each * 200));
    }
}
