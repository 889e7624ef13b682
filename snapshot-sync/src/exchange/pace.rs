//! Chunks that are sent at a limited rate: those of replicas, so that copies made unasked leave the
//! line to the others. All receivers of a paced chunk share the rate; other chunks do not wait.

use crate::ChunkId;
use p2pvm_overlay::lock;
use std::{
    collections::{HashSet, VecDeque},
    sync::Mutex,
    time::Duration,
};
use tokio::time::Instant;

/// How many chunks are paced at most, the latest ones. Reason: bounds memory; what is sent of older
/// ones is sent at once.
const MAX_PACED: usize = 1 << 18;
/// The least rate, bytes a second. Reason: a receiver gives a silent sender up, and one chunk takes
/// seconds below it.
pub const MIN_RATE: u64 = 256 << 10;

/// Which chunks are paced, and when the next of them may be sent.
#[derive(Default)]
pub(super) struct Pace(Mutex<Paced>);

#[derive(Default)]
struct Paced {
    /// Bytes a second.
    rate: u64,
    chunks: HashSet<ChunkId>,
    /// In the order in which they came.
    order: VecDeque<ChunkId>,
    next: Option<Instant>,
}

impl Pace {
    /// Paces these chunks from now on; `rate` is that of all.
    pub(super) fn add(&self, chunks: impl IntoIterator<Item = ChunkId>, rate: u64) {
        let mut paced = lock(&self.0);
        paced.rate = rate.max(MIN_RATE);
        for chunk in chunks {
            if paced.chunks.insert(chunk) {
                paced.order.push_back(chunk);
            }
            if paced.order.len() > MAX_PACED
                && let Some(oldest) = paced.order.pop_front()
            {
                paced.chunks.remove(&oldest);
            }
        }
    }

    /// How long `bytes` of a chunk wait before they are sent; the caller sends them after that.
    pub(super) fn wait(&self, chunk: ChunkId, bytes: usize, now: Instant) -> Duration {
        let mut paced = lock(&self.0);
        if !paced.chunks.contains(&chunk) {
            return Duration::ZERO;
        }
        let begin = paced.next.map_or(now, |next| next.max(now));
        let takes = Duration::from_secs_f64(bytes as f64 / paced.rate as f64);
        paced.next = Some(begin + takes);
        begin - now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(n: u32) -> ChunkId {
        let mut id = [0; 32];
        id[..4].copy_from_slice(&n.to_be_bytes());
        ChunkId(id)
    }

    #[test]
    fn paced_chunks_share_a_rate_and_others_do_not_wait() {
        let (pace, now) = (Pace::default(), Instant::now());
        pace.add([chunk(1), chunk(2)], 1 << 20);
        let waits = [1, 9, 2, 1].map(|n| pace.wait(chunk(n), 1 << 19, now));
        let half = Duration::from_millis(500);
        assert_eq!(waits, [Duration::ZERO, Duration::ZERO, half, half * 2]);
        let later = now + Duration::from_secs(60);
        assert_eq!(pace.wait(chunk(1), 1 << 19, later), Duration::ZERO);
    }

    #[test]
    fn of_too_many_chunks_the_oldest_are_paced_no_longer() {
        let (pace, now) = (Pace::default(), Instant::now());
        pace.add((0..=MAX_PACED as u32).map(chunk), 1);
        assert_eq!(lock(&pace.0).rate, MIN_RATE);
        for n in [0, 1, 0] {
            let waits = pace.wait(chunk(n), MIN_RATE as usize, now);
            assert_eq!(waits, Duration::ZERO, "chunk {n}");
        }
        assert_eq!(pace.wait(chunk(2), 1, now), Duration::from_secs(1));
        assert_eq!(lock(&pace.0).order.len(), MAX_PACED);
    }
}
