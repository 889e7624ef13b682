//! Packets for a guest that is being moved away. While its memory is copied, what it was given last
//! is remembered; from the moment it stands still, packets are held instead of given to it; when
//! the new host is known they are passed on there, the last few of before included: those the guest
//! may never have looked at. So a connection sees the stop as delay and not as loss, which would
//! cost it a retransmission timeout (RFC 6298) on top.
//!
//! A packet that the guest did see arrives twice; IP allows that, and TCP drops it by its sequence
//! number.

use std::{
    collections::VecDeque,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
    time::{Duration, Instant},
};

/// A stop is noticed this late at most; packets given to the guest in that time may lie unread.
const OVERLAP: Duration = Duration::from_millis(30);
/// Packets kept at most: a TCP window of a few connections.
const MAX_PACKETS: usize = 1024;

const OFF: u8 = 0;
const REMEMBERING: u8 = 1;
const HOLDING: u8 = 2;

/// What is kept for one guest.
#[derive(Default)]
pub(crate) struct Holding {
    mode: AtomicU8,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    packets: VecDeque<(Instant, Vec<u8>)>,
    since: Option<Instant>,
}

impl Holding {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on what the guest is given is remembered for a moment.
    pub fn remember(&self) {
        self.mode.store(REMEMBERING, Ordering::Release);
    }

    /// The guest stands still: from now on nothing is given to it.
    pub fn hold(&self, now: Instant) {
        self.lock().since = Some(now);
        self.mode.store(HOLDING, Ordering::Release);
    }

    /// Whether a move is under way, so that [`Holding::keeps`] is to be asked.
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

    /// Ends the holding. What was held comes out in order; `moved`: for the new host, with what the
    /// guest may not have read.
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
    fn what_arrives_while_the_guest_stands_still_goes_on_with_the_last_it_may_not_have_read() {
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
