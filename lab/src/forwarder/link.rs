//! One direction of a link, without IO: given a packet's time and size, whether and when it
//! arrives.
//!
//! Every decision is drawn from a generator of the link's own, two draws per packet whatever else
//! happens, so that the n-th packet of a link has the same fate in every run with the same seed,
//! however the clocks run. Packets keep their order: jitter that would let one overtake makes it
//! wait instead, as in a router's queue.

use crate::sites::Shape;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How long a joined packet may keep a link busy before it is cut.
/// Reason: the rate stays smooth. Shorter bursts would be smoother still, but each costs the
/// machine about as much as a whole joined packet.
pub(super) const LONGEST_BURST: Duration = Duration::from_millis(3);
/// How many bytes may be in flight on a link before it drops packets.
const MOST_IN_FLIGHT_BYTES: usize = 64 << 20;

/// Counts of a link, in packets as they would be on a wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Packets that the link took, those that were cut on their way included.
    pub packets: u64,
    /// Their bytes, IP header included.
    pub bytes: u64,
    /// Packets lost by the link's probability.
    pub lost: u64,
    /// Packets dropped because the queue was full.
    pub full: u64,
    /// Packets dropped because the link was cut.
    pub cut: u64,
    /// Packets dropped because they were larger than the link carries.
    #[serde(default)]
    pub too_large: u64,
    /// Packets that the far router did not take.
    pub refused: u64,
}

/// The fate of a packet.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All of it arrives at this time.
    Whole(Duration),
    /// Its pieces have to be told apart: when each arrives, or that it does not.
    Pieces(Vec<Option<Duration>>),
    /// Nothing arrives.
    Nothing,
}

/// How the kernel joined several packets into one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pieces {
    /// How many packets on the wire.
    pub count: usize,
    /// Bytes of headers that each of them repeats.
    pub header: usize,
    /// Bytes of payload in each but the last.
    pub payload: usize,
}

/// One direction of a link.
pub struct Wire {
    /// How it treats packets.
    pub shape: Shape,
    /// Whether it drops everything.
    pub cut: bool,
    /// The counts so far.
    pub counters: Counters,
    random: ChaCha8Rng,
    free_at: Duration,
    last_due: Duration,
    in_flight: usize,
}

impl Wire {
    /// The link from site `from` to site `to` of a testbed with this seed.
    pub fn new(shape: Shape, seed: u64, from: u64, to: u64) -> Wire {
        let mut key = [0; 32];
        for (part, value) in key.chunks_exact_mut(8).zip([seed, from, to, 0]) {
            part.copy_from_slice(&value.to_le_bytes());
        }
        Wire {
            shape,
            cut: false,
            counters: Counters::default(),
            random: ChaCha8Rng::from_seed(key),
            free_at: Duration::ZERO,
            last_due: Duration::ZERO,
            in_flight: 0,
        }
    }

    /// Decides on a packet of `bytes` that stands for `pieces` packets on the wire and comes at
    /// `now`.
    pub fn offer(&mut self, now: Duration, bytes: usize, pieces: Pieces) -> Verdict {
        if self.cut {
            self.counters.cut += pieces.count as u64;
            return Verdict::Nothing;
        }
        if pieces.count <= 1 {
            return self
                .one(now, bytes)
                .map_or(Verdict::Nothing, Verdict::Whole);
        }
        let on_wire = bytes + (pieces.count - 1) * pieces.header;
        let smooth = self.sending(on_wire) <= LONGEST_BURST;
        let mut left = bytes - pieces.header.min(bytes);
        let dues: Vec<Option<Duration>> = (0..pieces.count)
            .map(|_| {
                let payload = left.min(pieces.payload);
                left -= payload;
                self.one(now, pieces.header + payload)
            })
            .collect();
        match dues.last() {
            Some(Some(last)) if smooth && dues.iter().all(Option::is_some) => Verdict::Whole(*last),
            _ if dues.iter().all(Option::is_none) => Verdict::Nothing,
            _ => Verdict::Pieces(dues),
        }
    }

    /// Decides on one packet of the wire.
    fn one(&mut self, now: Duration, bytes: usize) -> Option<Duration> {
        let (loss, jitter): (f64, f64) = (self.random.random(), self.random.random());
        if loss < self.shape.loss {
            self.counters.lost += 1;
            return None;
        }
        let start = self.free_at.max(now);
        let limited = self.shape.bits_per_second > 0;
        if (limited && start - now > self.shape.queue) || self.in_flight > MOST_IN_FLIGHT_BYTES {
            self.counters.full += 1;
            return None;
        }
        self.free_at = start + self.sending(bytes);
        let jittered = (self.shape.delay + self.shape.jitter.mul_f64(2.0 * jitter))
            .saturating_sub(self.shape.jitter);
        self.last_due = self.last_due.max(self.free_at + jittered);
        self.counters.packets += 1;
        self.counters.bytes += bytes as u64;
        Some(self.last_due)
    }

    /// How long the link is busy with so many bytes.
    fn sending(&self, bytes: usize) -> Duration {
        (bytes as u64 * 8_000_000_000)
            .checked_div(self.shape.bits_per_second)
            .map_or(Duration::ZERO, Duration::from_nanos)
    }

    /// Counts the bytes of a packet that is on its way from now on.
    pub fn launched(&mut self, bytes: usize) {
        self.in_flight += bytes;
    }

    /// Counts off the bytes of a packet that is no longer on its way: delivered or cut.
    pub fn landed(&mut self, bytes: usize) {
        self.in_flight = self.in_flight.saturating_sub(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SINGLE: Pieces = Pieces {
        count: 1,
        header: 0,
        payload: 0,
    };

    fn ms(value: u64) -> Duration {
        Duration::from_millis(value)
    }

    fn shape() -> Shape {
        Shape {
            delay: ms(10),
            jitter: ms(2),
            loss: 0.1,
            bits_per_second: 8_000_000,
            queue: ms(50),
            ..Shape::default()
        }
    }

    #[test]
    fn the_nth_packet_has_the_same_fate_whatever_the_clock() {
        let lost = |seed: u64, gap: u64| -> Vec<bool> {
            let mut wire = Wire::new(shape(), seed, 0, 1);
            (0..500)
                .map(|i| wire.offer(ms(i * gap), 100, SINGLE) == Verdict::Nothing)
                .collect()
        };
        assert_eq!(lost(1, 1), lost(1, 7));
        assert_ne!(lost(1, 1), lost(2, 1));
        let count = lost(3, 1).iter().filter(|lost| **lost).count();
        assert!((25..=80).contains(&count), "{count} of 500 lost at 10 %");
    }

    #[test]
    fn a_limited_link_keeps_its_rate_and_drops_what_waits_too_long() {
        let mut wire = Wire::new(
            Shape {
                loss: 0.0,
                jitter: ms(0),
                ..shape()
            },
            1,
            0,
            1,
        );
        // 1000 bytes take 1 ms at 8 Mbit/s.
        let dues: Vec<Verdict> = (0..100).map(|_| wire.offer(ms(0), 1000, SINGLE)).collect();
        for (i, due) in dues.iter().enumerate() {
            let expected = if i <= 50 {
                Verdict::Whole(ms(11 + i as u64))
            } else {
                Verdict::Nothing
            };
            assert_eq!(*due, expected, "packet {i}");
        }
        assert_eq!((wire.counters.packets, wire.counters.full), (51, 49));
    }

    #[test]
    fn a_slow_link_takes_a_joined_packet_in_pieces() {
        let pieces = Pieces {
            count: 4,
            header: 40,
            payload: 1000,
        };
        let fast = Shape {
            loss: 0.0,
            jitter: ms(0),
            bits_per_second: 1_000_000_000,
            ..shape()
        };
        let mut wire = Wire::new(fast, 1, 0, 1);
        assert_eq!(
            wire.offer(ms(0), 3540, pieces),
            Verdict::Whole(ms(10) + Duration::from_nanos(3660 * 8))
        );
        assert_eq!((wire.counters.packets, wire.counters.bytes), (4, 3660));
        let mut wire = Wire::new(
            Shape {
                bits_per_second: 8_000_000,
                ..fast
            },
            1,
            0,
            1,
        );
        let at = |micros: u64| Some(ms(10) + Duration::from_micros(micros));
        assert_eq!(
            wire.offer(ms(0), 3540, pieces),
            Verdict::Pieces(vec![at(1040), at(2080), at(3120), at(3660)])
        );
    }

    #[test]
    fn a_cut_link_lets_nothing_through() {
        let mut wire = Wire::new(shape(), 1, 0, 1);
        wire.cut = true;
        assert_eq!(wire.offer(ms(0), 100, SINGLE), Verdict::Nothing);
        assert_eq!(wire.counters.cut, 1);
    }

    proptest! {
        #[test]
        fn packets_keep_their_order_and_are_never_early(
            gaps in prop::collection::vec(0u64..5_000, 1..200), seed: u64
        ) {
            let mut wire = Wire::new(shape(), seed, 0, 1);
            let (mut now, mut last) = (Duration::ZERO, Duration::ZERO);
            for gap in gaps {
                now += Duration::from_micros(gap);
                if let Verdict::Whole(due) = wire.offer(now, 100, SINGLE) {
                    prop_assert!(due >= last && due >= now + ms(8));
                    last = due;
                }
            }
        }
    }
}
