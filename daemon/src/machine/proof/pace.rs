//! The delay of a proof after news of this machine.

use std::time::{Duration, Instant};

/// How many proofs may follow each other closely after news, and how closely.
const BURST: u32 = 4;
const AFTER_NEWS: Duration = Duration::from_millis(200);
/// How long between proofs after a burst of news. Reason: a host on which containers come and go
/// has news all the time, and a rule that cuts this host off must still be reported within about
/// two seconds. A proof costs some packets.
const EACH: Duration = Duration::from_secs(1);

/// When the next proof after news may be made: a token bucket of [`BURST`] proofs, refilled by one
/// every [`EACH`]. Results do not matter.
pub(super) struct Pace {
    tokens: u32,
    /// Up to when the bucket was refilled.
    filled: Instant,
    last: Instant,
}

impl Pace {
    pub fn new(now: Instant) -> Self {
        Self {
            tokens: BURST,
            filled: now,
            last: now,
        }
    }

    fn fill(&mut self, now: Instant) {
        while self.tokens < BURST && now.saturating_duration_since(self.filled) >= EACH {
            (self.tokens, self.filled) = (self.tokens + 1, self.filled + EACH);
        }
        if self.tokens >= BURST {
            self.filled = now;
        }
    }

    /// How long from now.
    pub fn gap(&mut self, now: Instant) -> Duration {
        self.fill(now);
        let next = self.last + AFTER_NEWS;
        let next = if self.tokens > 0 {
            next
        } else {
            next.max(self.filled + EACH)
        };
        next.saturating_duration_since(now)
    }

    /// Counts a proof that was made after news.
    pub fn spend(&mut self, now: Instant) {
        self.fill(now);
        (self.tokens, self.last) = (self.tokens.saturating_sub(1), now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    pub fn news_are_heeded_soon_and_a_flood_costs_bounded_work() {
        let start = Instant::now();
        let (mut pace, mut now, mut proofs, mut longest) =
            (Pace::new(start), start, 0, Duration::ZERO);
        while now < start + Duration::from_secs(600) {
            let gap = pace.gap(now);
            (now, longest, proofs) = (now + gap, longest.max(gap), proofs + 1);
            pace.spend(now);
        }
        assert!(longest <= EACH, "{longest:?}");
        assert!(
            (600..=600 + BURST + 1).contains(&proofs),
            "{proofs} in ten minutes"
        );
        // A quiet while, and several changes one after the other are heeded at once again.
        now += EACH * BURST;
        for _ in 0..BURST {
            assert!(pace.gap(now) <= AFTER_NEWS);
            now += AFTER_NEWS;
            pace.spend(now);
        }
    }
}
