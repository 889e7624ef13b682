//! The last line of defence against tunnels in tunnels: a datagram of a tunnel of this machine that
//! the kernel sends into the TUN would be sealed and sent again, without end. The TUN's thread
//! drops it, counts it, and logs its destination once a minute.

use crate::lock;
use std::{
    net::SocketAddr,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// How often a loop is logged at most.
const LOG_EVERY: Duration = Duration::from_secs(60);

/// How many datagrams came round, and which was the last.
pub(crate) struct Loops {
    count: AtomicU64,
    last: Mutex<LastLoop>,
}

#[derive(Default)]
struct LastLoop {
    seen: Option<(Instant, SocketAddr)>,
    logged: Option<Instant>,
}

impl Loops {
    pub fn new() -> Self {
        Self {
            count: AtomicU64::new(0),
            last: Mutex::default(),
        }
    }

    /// How many there were, and the last one's time and destination.
    pub fn seen(&self) -> (u64, Option<(Instant, SocketAddr)>) {
        let last = lock(&self.last);
        (self.count.load(Ordering::Relaxed), last.seen)
    }

    /// Counts `packets` to `to`; true if they are to be logged.
    pub fn note(&self, to: SocketAddr, packets: usize, now: Instant) -> bool {
        self.count.fetch_add(packets as u64, Ordering::Relaxed);
        let mut last = lock(&self.last);
        last.seen = Some((now, to));
        let due = last
            .logged
            .is_none_or(|at| now.saturating_duration_since(at) >= LOG_EVERY);
        if due {
            last.logged = Some(now);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_counted_and_one_a_minute_is_logged() {
        let (loops, now, to) = (
            Loops::new(),
            Instant::now(),
            SocketAddr::from(([10, 0, 0, 1], 7)),
        );
        assert!(loops.note(to, 3, now));
        assert!(!loops.note(to, 1, now + LOG_EVERY / 2));
        let at = now + LOG_EVERY;
        assert!(loops.note(to, 1, at));
        assert_eq!(loops.seen(), (5, Some((at, to))));
    }
}
