//! The time by which a guest's right to run is measured: it goes on while the machine sleeps.
//!
//! A laptop that is suspended in the middle of a move must find at its wake-up that its time is
//! over. `CLOCK_MONOTONIC`, which timers of this program follow, stands still in a suspend;
//! `CLOCK_BOOTTIME` does not, and a timer of the kernel by it fires at once after the wake-up.

use async_trait::async_trait;
use nix::{
    sys::{
        time::TimeSpec,
        timerfd::{ClockId as TimerClock, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
    },
    time::{ClockId, clock_gettime},
};
use std::{
    io,
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::Instant,
};

/// The measure of the machine's sleep; tests simulate it.
#[async_trait]
pub trait Sleep: Send + Sync + 'static {
    /// How long the machine has slept since a fixed moment.
    fn slept(&self) -> Duration;

    /// `CLOCK_BOOTTIME`, by which guests' deadlines count.
    fn boottime(&self) -> Duration;

    /// Completes when `time` has passed and the machine has slept meanwhile; it may complete, late,
    /// when it has not.
    async fn passed(&self, time: Duration);
}

/// This machine, by the kernel's clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct ThisMachine;

#[async_trait]
impl Sleep for ThisMachine {
    fn slept(&self) -> Duration {
        let read = |clock| clock_gettime(clock).map_or(Duration::ZERO, Duration::from);
        // In this order, a pause of this thread in between makes the difference smaller, never
        // larger.
        let with_sleep = read(ClockId::CLOCK_BOOTTIME);
        with_sleep.saturating_sub(read(ClockId::CLOCK_MONOTONIC))
    }

    fn boottime(&self) -> Duration {
        clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
    }

    async fn passed(&self, time: Duration) {
        match timer(time) {
            // A descriptor that cannot be waited for leaves it to the program's own timers.
            Err(_) => std::future::pending().await,
            Ok(timer) => drop(timer.readable().await),
        }
    }
}

/// A timer of the kernel that also runs while the machine sleeps.
fn timer(time: Duration) -> io::Result<AsyncFd<OwnedFd>> {
    let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
    let timer = TimerFd::new(TimerClock::CLOCK_BOOTTIME, flags)?;
    // Zero would disarm it.
    let time = TimeSpec::from(time.max(Duration::from_nanos(1)));
    timer.set(Expiration::OneShot(time), TimerSetTimeFlags::empty())?;
    // SAFETY: the descriptor is owned by what is registered, and nothing else holds its number.
    let timer =
        unsafe { AsyncFd::register_with_interest(OwnedFd::from(timer), Interest::READABLE) }?;
    Ok(timer)
}

/// A host's clock.
#[derive(Clone)]
pub(crate) struct Clock {
    origin: Instant,
    slept_before: Duration,
    /// The longest sleep seen, nanoseconds. Reason: time never goes back, and the two clocks are
    /// not read at one instant.
    slept: Arc<AtomicU64>,
    sleep: Arc<dyn Sleep>,
}

impl Clock {
    pub(crate) fn new(sleep: Arc<dyn Sleep>) -> Self {
        Self {
            origin: Instant::now(),
            slept_before: sleep.slept(),
            slept: Arc::default(),
            sleep,
        }
    }

    /// Since the host was opened.
    pub(crate) fn now(&self) -> Duration {
        let slept = self.sleep.slept().saturating_sub(self.slept_before);
        let slept = u64::try_from(slept.as_nanos()).unwrap_or(u64::MAX);
        let before = self.slept.fetch_max(slept, Ordering::Relaxed);
        self.origin.elapsed() + Duration::from_nanos(before.max(slept))
    }

    /// Completes when `time` has passed, a sleep included.
    pub(crate) async fn passed(&self, time: Duration) {
        tokio::select! {
            () = tokio::time::sleep(time) => {}
            () = self.sleep.passed(time) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_timer_of_the_kernel_fires_and_no_time_goes_back() {
        let clock = Clock::new(Arc::new(ThisMachine));
        let begun = clock.now();
        ThisMachine.passed(Duration::ZERO).await;
        ThisMachine.passed(Duration::from_millis(5)).await;
        let mut last = clock.now();
        assert!(last >= begun + Duration::from_millis(5));
        for _ in 0..1000 {
            let now = clock.now();
            assert!(now >= last);
            last = now;
        }
    }
}
