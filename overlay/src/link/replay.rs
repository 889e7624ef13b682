//! The sliding window that lets each counter in once (RFC 6479): a ring of bit words, so that
//! moving ahead costs one store for each 64 counters and no shift.

const WORDS: usize = 32;
/// How far a counter may be behind the newest and is still accepted: one word of the ring is always
/// being cleared. Two full GSO batches reordered against each other fit many times over.
pub const WINDOW: u64 = (WORDS as u64 - 1) * 64;

/// Which counters of one session were seen.
#[derive(Clone, Debug)]
pub struct ReplayWindow {
    /// One more than the newest counter accepted.
    next: u64,
    seen: [u64; WORDS],
}

impl Default for ReplayWindow {
    fn default() -> Self {
        Self {
            next: 0,
            seen: [0; WORDS],
        }
    }
}

impl ReplayWindow {
    /// Whether `counter` is still acceptable: neither seen nor too old. Changes nothing, for use
    /// before the tag is verified.
    pub fn may_come(&self, counter: u64) -> bool {
        if counter >= self.next {
            return counter < u64::MAX;
        }
        self.next - counter <= WINDOW && self.seen[word(counter)] & bit(counter) == 0
    }

    /// Marks a verified `counter` as seen; false if it must be dropped.
    pub fn accept(&mut self, counter: u64) -> bool {
        if !self.may_come(counter) {
            return false;
        }
        if counter >= self.next {
            let newest = if self.next == 0 {
                0
            } else {
                (self.next - 1) / 64
            };
            let ahead = (counter / 64 - newest).min(WORDS as u64);
            for step in 1..=ahead {
                self.seen[((newest + step) % WORDS as u64) as usize] = 0;
            }
            self.next = counter + 1;
        }
        self.seen[word(counter)] |= bit(counter);
        true
    }
}

fn word(counter: u64) -> usize {
    (counter / 64 % WORDS as u64) as usize
}

fn bit(counter: u64) -> u64 {
    1 << (counter % 64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    #[test]
    fn too_old_is_refused_and_just_in_window_is_not() {
        let mut window = ReplayWindow::default();
        assert!(window.accept(WINDOW + 10));
        assert!(!window.accept(10));
        assert!(window.accept(11));
        assert!(!window.accept(u64::MAX));
    }

    proptest! {
        /// Against the obvious model: a set of all counters seen.
        #[test]
        fn each_counter_comes_in_once(
            jumps in proptest::collection::vec((-70i64..200, 0u8..40), 1..400)
        ) {
            let (mut window, mut seen, mut at, mut newest) = (
                ReplayWindow::default(), HashSet::new(), 0i64, 0u64
            );
            for (jump, far) in jumps {
                at = (at + if far == 0 { jump * 100 } else { jump }).max(0);
                let counter = at as u64;
                let expected = !seen.contains(&counter) && (
                    seen.is_empty() || counter + WINDOW > newest
                );
                prop_assert_eq!(window.accept(counter), expected, "counter {} \
                    newest {}", counter, newest);
                if expected { seen.insert(counter); newest = newest.max(counter); }
            }
        }
    }
}
