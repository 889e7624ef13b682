//! The clock of leases: it goes on while the machine sleeps.

use nix::time::{ClockId, clock_gettime};
use p2pvm_overlay::lock;
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::time::Instant;

/// A clock that never goes back and counts the machine's sleep.
#[derive(Clone)]
pub struct BootClock {
    origin: Instant,
    slept_before: Duration,
    /// The latest time given.
    latest: Arc<Mutex<Duration>>,
}

impl BootClock {
    /// Begins at zero. It follows the program's timers, so that simulated time works, and adds how
    /// long the machine has slept since.
    pub fn start() -> Self {
        Self {
            origin: Instant::now(),
            slept_before: slept(),
            latest: Arc::default(),
        }
    }

    /// The time since the clock was started.
    pub fn now(&self) -> Duration {
        let mut latest = lock(&self.latest);
        let slept = slept().saturating_sub(self.slept_before);
        *latest = (*latest).max(self.origin.elapsed() + slept);
        *latest
    }
}

/// How far the clock that counts sleep is ahead of the one that does not.
fn slept() -> Duration {
    let read = |clock| clock_gettime(clock).map_or(Duration::ZERO, Duration::from);
    // In this order, a pause of this thread in between makes the difference smaller, never larger.
    let with_sleep = read(ClockId::CLOCK_BOOTTIME);
    with_sleep.saturating_sub(read(ClockId::CLOCK_MONOTONIC))
}
