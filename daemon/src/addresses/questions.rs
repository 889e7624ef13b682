//! How many of one guest's questions are being answered: a guest that asks for more names than it
//! gets answers for costs this host neither memory nor other members' time. What is beyond is
//! dropped, as a network would, and counted; resolvers ask again.

use super::allowance::Allowance;
use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::Semaphore;

/// How many of a guest's questions are answered at a time. Reason: most answers take a
/// millisecond; a name that is not known takes two seconds.
const AT_ONCE: usize = 16;
/// How many questions a guest may ask at once, and how long until one more.
const BURST: u32 = 256;
const EACH: Duration = Duration::from_millis(5);

/// The questions of one guest.
pub(super) struct Questions {
    open: Arc<Semaphore>,
    allowance: Allowance,
    dropped: u64,
}

impl Questions {
    /// A guest that has asked nothing.
    pub fn new(now: Instant) -> Self {
        Self {
            open: Arc::new(Semaphore::new(AT_ONCE)),
            allowance: Allowance::new(now, BURST, EACH),
            dropped: 0,
        }
    }

    /// Has a question answered beside the caller, if the guest may ask one.
    pub fn begin(&mut self, now: Instant, answer: impl Future<Output = ()> + Send + 'static) {
        let permit = self.open.clone().try_acquire_owned();
        let Some(permit) = permit.ok().filter(|_| self.allowance.take(now)) else {
            self.dropped += 1;
            if self.dropped.is_power_of_two() {
                tracing::debug!(dropped = self.dropped, "a guest asks too much at a time");
            }
            return;
        };
        tokio::spawn(async move {
            answer.await;
            drop(permit);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        future::pending,
        sync::atomic::{AtomicUsize, Ordering},
    };
    use tokio::task::yield_now;

    #[tokio::test]
    async fn a_guest_that_asks_without_end_costs_a_bounded_number_of_tasks() {
        let (now, begun) = (Instant::now(), Arc::new(AtomicUsize::new(0)));
        let (mut flood, mut other) = (Questions::new(now), Questions::new(now));
        let count = |never: bool| {
            let begun = begun.clone();
            async move {
                begun.fetch_add(1, Ordering::Relaxed);
                if never {
                    pending::<()>().await;
                }
            }
        };
        for _ in 0..5000 {
            flood.begin(now, count(true));
        }
        yield_now().await;
        assert_eq!(begun.load(Ordering::Relaxed), AT_ONCE);
        assert_eq!(flood.dropped, 5000 - AT_ONCE as u64);
        // Another guest's are answered, and more than a few one after the other.
        for n in 1..=BURST as usize {
            other.begin(now, count(false));
            yield_now().await;
            assert_eq!(begun.load(Ordering::Relaxed), AT_ONCE + n);
        }
        other.begin(now, count(false));
        yield_now().await;
        assert_eq!(other.dropped, 1, "a guest may not ask without pause either");
        other.begin(now + EACH, count(false));
        yield_now().await;
        assert_eq!(other.dropped, 1);
    }
}
