//! Packets for a guest that is being moved away. While its memory is copied, the last packets given
//! to it are remembered; once it is stopped, packets are held instead of given to it; when the new
//! host is known they are passed on there, with the last few given to the guest, which it may never
//! have read. So a connection sees the stop as delay and not as loss, which would cost it a
//! retransmission timeout (RFC 6298) on top.
//!
//! A packet that the guest did see arrives twice; IP allows that, and TCP drops it by its sequence
//! number.

use crate::lock;
use std::{
    collections::VecDeque,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicU8, Ordering},
    },
    time::{Duration, Instant},
};

/// How late a stop is noticed at most: packets given to the guest in that time may be unread.
const OVERLAP: Duration = Duration::from_millis(30);
/// How many packets are kept. Reason: a TCP window of a few connections.
const MAX_PACKETS: usize = 1024;

const OFF: u8 = 0;
const REMEMBERING: u8 = 1;
const HOLDING: u8 = 2;

/// The packets kept for one guest.
#[derive(Default)]
pub(crate) struct Holding {
    mode: AtomicU8,
    kept: Mutex<KeptPackets>,
}

#[derive(Default)]
struct KeptPackets {
    packets: VecDeque<(Instant, Vec<u8>)>,
    since: Option<Instant>,
}

impl Holding {
    fn lock(&self) -> MutexGuard<'_, KeptPackets> {
        lock(&self.kept)
    }

    /// Remembers packets given to the guest for a moment from now on.
    pub fn remember(&self) {
        self.mode.store(REMEMBERING, Ordering::Release);
    }

    /// Holds packets instead of giving them to the guest from now on: it is stopped.
    pub fn hold(&self, now: Instant) {
        self.lock().since = Some(now);
        self.mode.store(HOLDING, Ordering::Release);
    }

    /// Whether a move is under way, so that [`Holding::keeps`] has to be called.
    pub fn active(&self) -> bool {
        self.mode.load(Ordering::Acquire) != OFF
    }

    /// Whether a packet that is about to be given to the guest is held instead.
    pub fn keeps(&self, now: Instant, packet: &[u8]) -> bool {
        let mode = self.mode.load(Ordering::Acquire);
        if mode == OFF {
            return false;
        }
        let mut kept = self.lock();
        if mode == REMEMBERING {
            while kept
                .packets
                .front()
                .is_some_and(|(at, _)| now.saturating_duration_since(*at) > 2 * OVERLAP)
            {
                kept.packets.pop_front();
            }
        }
        if kept.packets.len() >= MAX_PACKETS {
            kept.packets.pop_front();
        }
        kept.packets.push_back((now, packet.to_vec()));
        mode == HOLDING
    }

    /// Ends the holding and returns the held packets in order. `moved`: they are for the new host,
    /// with those that the guest may not have read.
    pub fn release(&self, moved: bool) -> Vec<Vec<u8>> {
        self.mode.store(OFF, Ordering::Release);
        let kept = std::mem::take(&mut *self.lock());
        let Some(since) = kept.since else {
            return Vec::new();
        };
        let overlap = if moved { OVERLAP } else { Duration::ZERO };
        kept.packets
            .into_iter()
            .filter(|(at, _)| *at + overlap >= since)
            .map(|(_, packet)| packet)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_for_a_paused_guest_go_on_with_the_last_unread_ones() {
        let (holding, start) = (Holding::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        assert!(!holding.keeps(at(0), b"before"));
        holding.remember();
        assert!(!holding.keeps(at(100), b"old"));
        assert!(!holding.keeps(at(290), b"last"));
        holding.hold(at(300));
        assert!(holding.keeps(at(310), b"held"));
        assert_eq!(holding.release(true), [b"last".to_vec(), b"held".to_vec()]);
        assert!(!holding.keeps(at(400), b"after"));
        assert!(holding.release(true).is_empty());
    }

    #[test]
    fn a_guest_that_stays_is_given_only_what_was_held() {
        let (holding, start) = (Holding::default(), Instant::now());
        holding.remember();
        assert!(!holding.keeps(start, b"seen"));
        let stop = start + Duration::from_millis(5);
        holding.hold(stop);
        assert!(holding.keeps(stop + Duration::from_millis(1), b"held"));
        assert_eq!(holding.release(false), [b"held".to_vec()]);
    }
}
