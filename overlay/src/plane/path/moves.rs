//! When and why this host has moved, and how it notices that it slept.
//!
//! A change of addresses is noticed by [`crate::plane::interface::watch`]; sleep by comparing two
//! clocks, one of which counts sleep.

use crate::lock;
use nix::time::{ClockId, clock_gettime};
use std::{
    sync::Mutex,
    time::{Duration, Instant},
};
use tokio::sync::{Notify, futures::Notified};

/// How long a sleep or standstill has to be before it counts as a move. Reason: probes find what a
/// shorter one broke.
const LEAST_SLEEP: Duration = Duration::from_secs(3);

/// When and why this host last had to find its links again.
#[derive(Default)]
pub(crate) struct Moves {
    last: Mutex<Option<(Instant, &'static str)>>,
    changed: Notify,
}

impl Moves {
    pub fn note(&self, now: Instant, why: &'static str) {
        *lock(&self.last) = Some((now, why));
        self.changed.notify_one();
    }

    pub fn last(&self) -> Option<(Instant, &'static str)> {
        *lock(&self.last)
    }

    /// Completes at the next move, or at once if one has not been waited for.
    pub fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }
}

/// Tells by two clocks whether time has passed without this process running.
pub(crate) struct SleepWatch {
    seen: Instant,
    ahead: Option<Duration>,
}

impl SleepWatch {
    pub fn new(now: Instant) -> Self {
        Self {
            seen: now,
            ahead: ahead(),
        }
    }

    /// How long the machine slept or the process stood still since the last call, if it did;
    /// `pause` is how long the caller meant to wait in between.
    pub fn slept(&mut self, now: Instant, pause: Duration) -> Option<Duration> {
        let (ahead, late) = (
            ahead(),
            now.saturating_duration_since(self.seen)
                .saturating_sub(pause),
        );
        let asleep = ahead
            .zip(self.ahead)
            .map_or(Duration::ZERO, |(is, was)| is.saturating_sub(was));
        (self.seen, self.ahead) = (now, ahead);
        let lost = asleep.max(late);
        (lost >= LEAST_SLEEP).then_some(lost)
    }
}

/// How far the clock that counts sleep is ahead of the one that does not.
fn ahead() -> Option<Duration> {
    let read = |clock| clock_gettime(clock).ok().map(Duration::from);
    Some(read(ClockId::CLOCK_BOOTTIME)?.saturating_sub(read(ClockId::CLOCK_MONOTONIC)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standstill_is_noticed_and_a_normal_tick_is_not() {
        let start = Instant::now();
        let mut watch = SleepWatch::new(start);
        assert_eq!(
            watch.slept(
                start + Duration::from_millis(300),
                Duration::from_millis(250)
            ),
            None
        );
        let late = watch.slept(
            start + Duration::from_millis(300) + LEAST_SLEEP + Duration::from_secs(1),
            Duration::from_millis(250),
        );
        assert!(late.is_some_and(|d| d >= LEAST_SLEEP));
    }
}
