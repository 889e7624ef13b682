//! How much this node passes on for other members, if anything. A token bucket (as GCRA, ITU-T
//! I.371: one counter that says when the bucket will be full again, so that packet threads need no
//! lock) limits the total; each pair of members has a bucket of its own for its fair share. A pair
//! within its share is always let through; what others leave unused goes to the first pair that
//! asks, but only down to half a bucket, so that a new pair finds room at once. Datagrams beyond
//! that are dropped, as by a router with a full queue, and the pair's TCP slows down.

use crate::link::frame::ShortId;
use arc_swap::ArcSwap;
use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// How much time's worth of the rate a bucket holds. Reason: a TCP window fits.
const BURST: Duration = Duration::from_millis(100);
/// How many bytes a bucket holds at least. Reason: a few full packets fit at a low rate too.
const MIN_BURST_BYTES: u64 = 32 << 10;
/// How recently a pair must have sent to count when the rate is divided.
const ACTIVE: Duration = Duration::from_secs(1);
/// How long a silent pair is remembered.
const FORGET: Duration = Duration::from_secs(60);
/// How many pairs have a bucket of their own; the rest share one.
const MAX_PAIRS: usize = 4096;

/// What a node offers as a relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelayOffer {
    /// Whether it passes on datagrams of other members.
    pub willing: bool,
    /// The most that it passes on, in bits a second; 0: no limit.
    pub bits_per_second: u64,
}

impl Default for RelayOffer {
    fn default() -> Self {
        Self {
            willing: true,
            bits_per_second: 0,
        }
    }
}

#[derive(Default)]
struct Bucket {
    /// When it will be full again, in nanoseconds since the base.
    full_at: AtomicU64,
}

impl Bucket {
    /// Whether less than `depth` nanoseconds' worth is missing.
    fn has_room(&self, now: u64, depth: u64) -> bool {
        self.full_at.load(Ordering::Relaxed) <= now + depth
    }

    /// Takes `cost` out, to a debt of at most `most`.
    fn take(&self, now: u64, cost: u64, most: u64) {
        let after = |at: u64| Some((at.max(now) + cost).min(now + most));
        let _ = self
            .full_at
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, after);
    }
}

#[derive(Default)]
struct Pair {
    bucket: Bucket,
    last: AtomicU64,
}

/// The gate that every datagram passed on for others goes through.
pub(crate) struct Relaying {
    base: Instant,
    willing: AtomicBool,
    bits_per_second: AtomicU64,
    all: Bucket,
    pairs: ArcSwap<HashMap<(ShortId, ShortId), Arc<Pair>>>,
    active: AtomicU64,
    others: Arc<Pair>,
    passed: AtomicU64,
    dropped: AtomicU64,
}

impl Relaying {
    pub fn new(now: Instant) -> Self {
        let offer = RelayOffer::default();
        Self {
            base: now,
            willing: AtomicBool::new(offer.willing),
            bits_per_second: AtomicU64::new(offer.bits_per_second),
            all: Bucket::default(),
            pairs: ArcSwap::default(),
            active: AtomicU64::new(1),
            others: Arc::default(),
            passed: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
        }
    }

    pub fn set(&self, offer: RelayOffer) {
        self.willing.store(offer.willing, Ordering::Relaxed);
        self.bits_per_second
            .store(offer.bits_per_second, Ordering::Relaxed);
    }

    pub fn offer(&self) -> RelayOffer {
        RelayOffer {
            willing: self.willing.load(Ordering::Relaxed),
            bits_per_second: self.bits_per_second.load(Ordering::Relaxed),
        }
    }

    /// Bytes passed on for others, and bytes not passed on.
    pub fn counters(&self) -> (u64, u64) {
        (
            self.passed.load(Ordering::Relaxed),
            self.dropped.load(Ordering::Relaxed),
        )
    }

    fn pair(&self, from: ShortId, to: ShortId) -> Arc<Pair> {
        let pairs = self.pairs.load();
        match pairs.get(&(from, to)) {
            Some(pair) => pair.clone(),
            None if pairs.len() >= MAX_PAIRS => self.others.clone(),
            None => {
                let new = Arc::new(Pair::default());
                self.pairs.rcu(|pairs| {
                    let mut pairs = HashMap::clone(pairs);
                    pairs.entry((from, to)).or_insert_with(|| new.clone());
                    pairs
                });
                self.active.fetch_add(1, Ordering::Relaxed);
                new
            }
        }
    }

    /// Whether a datagram of `bytes` may be passed on; counts it either way.
    pub fn admits(&self, from: ShortId, to: ShortId, bytes: usize, now: Instant) -> bool {
        let admitted =
            self.willing.load(Ordering::Relaxed) && self.fits(from, to, bytes as u64, now);
        let counter = if admitted {
            &self.passed
        } else {
            &self.dropped
        };
        counter.fetch_add(bytes as u64, Ordering::Relaxed);
        admitted
    }

    fn fits(&self, from: ShortId, to: ShortId, bytes: u64, now: Instant) -> bool {
        let rate = self.bits_per_second.load(Ordering::Relaxed) / 8;
        if rate == 0 {
            return true;
        }
        let nanos = |bytes: u64| bytes.saturating_mul(1_000_000_000) / rate;
        let now = now.saturating_duration_since(self.base).as_nanos() as u64;
        let depth = (BURST.as_nanos() as u64).max(nanos(MIN_BURST_BYTES));
        let pair = self.pair(from, to);
        pair.last.store(now, Ordering::Relaxed);
        let is_within_share = pair.bucket.has_room(now, depth) && self.all.has_room(now, depth);
        if !is_within_share && !self.all.has_room(now, depth / 2) {
            return false;
        }
        pair.bucket.take(
            now,
            nanos(bytes).saturating_mul(self.active.load(Ordering::Relaxed).max(1)),
            2 * depth,
        );
        self.all.take(now, nanos(bytes), 2 * depth);
        true
    }

    /// Recounts the active pairs and forgets the silent ones; to be called a few times a second.
    pub fn tick(&self, now: Instant) {
        let now = now.saturating_duration_since(self.base).as_nanos() as u64;
        let silent = |pair: &Pair| now.saturating_sub(pair.last.load(Ordering::Relaxed));
        let pairs = self.pairs.load();
        let active = pairs
            .values()
            .filter(|p| silent(p) < ACTIVE.as_nanos() as u64)
            .count() as u64;
        self.active.store(active.max(1), Ordering::Relaxed);
        if pairs
            .values()
            .any(|p| silent(p) >= FORGET.as_nanos() as u64)
        {
            self.pairs.rcu(|pairs| {
                let mut pairs = HashMap::clone(pairs);
                pairs.retain(|_, p| silent(p) < FORGET.as_nanos() as u64);
                pairs
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: u64 = 8_000_000; // One megabyte a second.

    /// Lets pairs offer `bytes_per_ms` each for `ms` and gives what each got.
    fn offer(relaying: &Relaying, start: Instant, ms: u64, offers: &[usize]) -> Vec<usize> {
        let mut got = vec![0; offers.len()];
        for at in 0..ms {
            let now = start + Duration::from_millis(at);
            for (i, offered) in offers.iter().enumerate() {
                for _ in 0..*offered / 1000 {
                    if relaying.admits([i as u8; 8], [99; 8], 1000, now) {
                        got[i] += 1000;
                    }
                }
            }
            if at % 250 == 0 {
                relaying.tick(now);
            }
        }
        got
    }

    fn limited(now: Instant) -> Relaying {
        let relaying = Relaying::new(now);
        relaying.set(RelayOffer {
            willing: true,
            bits_per_second: RATE,
        });
        relaying
    }

    #[test]
    fn no_more_than_the_rate_is_passed_on() {
        let now = Instant::now();
        let got: usize = offer(&limited(now), now, 10_000, &[5000]).iter().sum();
        assert!(
            (9_500_000..=10_300_000).contains(&got),
            "{got} bytes in 10 s"
        );
    }

    #[test]
    fn a_modest_pair_gets_all_it_asks_for_beside_a_greedy_one() {
        let now = Instant::now();
        let relaying = limited(now);
        // The greedy one asks for five times the rate, the modest one every fourth millisecond for
        // a quarter of it.
        let (mut modest, mut asked) = (0, 0);
        for at in 0..10_000 {
            let now = now + Duration::from_millis(at);
            for _ in 0..5 {
                relaying.admits([1; 8], [9; 8], 1000, now);
            }
            if at % 4 == 0 {
                asked += 1000;
                modest += if relaying.admits([2; 8], [9; 8], 1000, now) {
                    1000
                } else {
                    0
                };
            }
            if at % 250 == 0 {
                relaying.tick(now);
            }
        }
        assert!(modest * 100 >= asked * 97, "{modest} of {asked}");
    }

    #[test]
    fn greedy_pairs_share_evenly() {
        let now = Instant::now();
        let got = offer(&limited(now), now, 10_000, &[5000, 5000, 5000, 5000]);
        let (least, most) = (got.iter().min().unwrap(), got.iter().max().unwrap());
        assert!(least * 2 >= *most, "{got:?}");
        assert!(got.iter().sum::<usize>() <= 10_300_000, "{got:?}");
    }

    #[test]
    fn the_unwilling_pass_nothing_on_and_pairs_are_bounded() {
        let now = Instant::now();
        let relaying = limited(now);
        for i in 0..10_000u64 {
            relaying.admits(i.to_be_bytes(), [0; 8], 1, now);
        }
        assert!(relaying.pairs.load().len() <= MAX_PAIRS);
        relaying.tick(now + FORGET * 2);
        assert!(relaying.pairs.load().is_empty());
        relaying.set(RelayOffer {
            willing: false,
            bits_per_second: 0,
        });
        assert!(!relaying.admits([1; 8], [2; 8], 1, now));
    }
}
