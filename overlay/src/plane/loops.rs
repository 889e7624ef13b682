//! The last line against tunnels in tunnels: a datagram of a tunnel of this machine that its own
//! kernel sends into the TUN would be sealed and sent again, for ever. It is dropped, counted, and
//! said once a minute with where it was to go.

use super::Inner;
use std::{
    net::SocketAddr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// Said at most this often.
const SAY_EVERY: Duration = Duration::from_secs(60);

/// What came round.
pub(crate) struct Loops {
    count: AtomicU64,
    last: Mutex<Last>,
}

#[derive(Default)]
struct Last {
    seen: Option<(Instant, SocketAddr)>,
    said: Option<Instant>,
}

impl Loops {
    pub fn new() -> Self {
        Self {
            count: AtomicU64::new(0),
            last: Mutex::default(),
        }
    }

    /// How many, and the last: when, and where it was to go.
    pub fn seen(&self) -> (u64, Option<(Instant, SocketAddr)>) {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        (self.count.load(Ordering::Relaxed), last.seen)
    }

    /// Counts `packets` that were to go to `to`; whether it is to be said.
    fn note(&self, to: SocketAddr, packets: usize, now: Instant) -> bool {
        self.count.fetch_add(packets as u64, Ordering::Relaxed);
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.seen = Some((now, to));
        let due = last
            .said
            .is_none_or(|at| now.saturating_duration_since(at) >= SAY_EVERY);
        if due {
            last.said = Some(now);
        }
        due
    }
}

impl Inner {
    /// Whether a packet that was read from the TUN, the first of `packets` of one flow, is one of a
    /// tunnel's own: it goes nowhere.
    #[inline]
    pub fn comes_round(&self, packet: &[u8], packets: usize, now: Instant) -> bool {
        let Some(to) = self.underlay.view().loops(packet, self.port_aside()) else {
            return false;
        };
        self.drop_loop(to, packets, now);
        true
    }

    #[cold]
    fn drop_loop(&self, to: SocketAddr, packets: usize, now: Instant) {
        if self.loops.note(to, packets, now) {
            let count = self.loops.seen().0;
            tracing::warn!(%to, count, "a route leads datagrams of a p2pvm tunnel into the tunnel \
                itself: they are dropped");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_counted_and_one_a_minute_is_said() {
        let (loops, now, to) = (
            Loops::new(),
            Instant::now(),
            SocketAddr::from(([10, 0, 0, 1], 7)),
        );
        assert!(loops.note(to, 3, now));
        assert!(!loops.note(to, 1, now + SAY_EVERY / 2));
        let at = now + SAY_EVERY;
        assert!(loops.note(to, 1, at));
        assert_eq!(loops.seen(), (5, Some((at, to))));
    }
}
