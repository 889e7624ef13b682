//! The table of conversations: fixed in size, shared by all packet threads, without a lock. An
//! entry is one word: a keyed hash of the conversation, the decision, and when it ends. A full
//! bucket drops the entry that ends soonest, so a flood of new conversations, whose entries last
//! for seconds, does not push out the answers that this side waits for.
//!
//! Two conversations share an entry with a chance of 2^-47 for each that is live (bucket and tag
//! are bits of one hash whose key nobody knows); races between threads lose at most an update.

use std::{
    hash::{BuildHasher, RandomState},
    net::IpAddr,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// How many entries a bucket has: one cache line.
const WAYS: usize = 8;
/// How many buckets there are: 65 536 conversations in 512 KiB.
const BUCKETS: usize = 8192;
/// How many seconds a write has to add to an entry. Reason: writing costs the other threads their
/// copy of the cache line.
const WORTH_WRITING_SECONDS: u64 = 2;

const TAG_BITS: u32 = 37;
const STATE_BITS: u32 = 2;
/// Seconds since the table was made: enough for four years.
const TIME_BITS: u32 = 64 - TAG_BITS - STATE_BITS;
const TIME_MASK: u64 = (1 << TIME_BITS) - 1;

/// The kinds of packets that are decided apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    TcpOpening,
    Tcp,
    Udp,
    Icmp,
    EchoReply,
    Other,
}

/// One direction of a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub src: IpAddr,
    pub dst: IpAddr,
    pub kind: Kind,
    pub ports: (u16, u16),
}

/// What was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// It answers a packet sent from here.
    Answer = 1,
    /// A rule allows it.
    Allowed = 2,
    /// A rule, or the default, denies it.
    Denied = 3,
}

#[repr(align(64))]
struct Bucket([AtomicU64; WAYS]);

pub(super) struct Flows {
    began: Instant,
    hash: RandomState,
    buckets: Box<[Bucket]>,
}

impl Flows {
    pub fn new(now: Instant) -> Self {
        let buckets = (0..BUCKETS).map(|_| Bucket(Default::default())).collect();
        Self {
            began: now,
            hash: RandomState::new(),
            buckets,
        }
    }

    fn place(&self, key: &Key) -> (&Bucket, u64) {
        let hash = self.hash.hash_one(key);
        // The tag's bits are not the bucket's.
        (
            &self.buckets[hash as usize % BUCKETS],
            hash >> (64 - TAG_BITS),
        )
    }

    fn seconds(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.began).as_secs()
    }

    /// The decision noted for a conversation, unless it has ended.
    pub fn get(&self, key: &Key, now: Instant) -> Option<State> {
        let (bucket, tag) = self.place(key);
        let seconds = self.seconds(now);
        let entry = bucket
            .0
            .iter()
            .map(|slot| slot.load(Ordering::Relaxed))
            .find(|entry| tag_of(*entry) == tag && state_of(*entry).is_some())?;
        state_of(entry).filter(|_| entry & TIME_MASK > seconds)
    }

    /// Notes a decision for the next `lasts`. An expected answer is not replaced by another
    /// decision.
    pub fn note(&self, key: &Key, state: State, lasts: Duration, now: Instant) {
        let (bucket, tag) = self.place(key);
        let seconds = self.seconds(now);
        let ends = (seconds + lasts.as_secs()).min(TIME_MASK);
        let entry = tag << (STATE_BITS + TIME_BITS) | (state as u64) << TIME_BITS | ends;
        let mut victim = (&bucket.0[0], u64::MAX);
        for slot in &bucket.0 {
            let old = slot.load(Ordering::Relaxed);
            let live = state_of(old).is_some() && old & TIME_MASK > seconds;
            if tag_of(old) == tag && state_of(old).is_some() {
                let keeps = live && state_of(old) == Some(State::Answer) && state != State::Answer;
                let fresh = live
                    && state_of(old) == Some(state)
                    && (old & TIME_MASK) + WORTH_WRITING_SECONDS > ends;
                if !keeps && !fresh {
                    slot.store(entry, Ordering::Relaxed);
                }
                return;
            }
            let worth = if live { old & TIME_MASK } else { 0 };
            if worth < victim.1 {
                victim = (slot, worth);
            }
        }
        victim.0.store(entry, Ordering::Relaxed);
    }
}

fn tag_of(entry: u64) -> u64 {
    entry >> (STATE_BITS + TIME_BITS)
}

fn state_of(entry: u64) -> Option<State> {
    match entry >> TIME_BITS & ((1 << STATE_BITS) - 1) {
        1 => Some(State::Answer),
        2 => Some(State::Allowed),
        3 => Some(State::Denied),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u32) -> Key {
        let [a, b, c, d] = n.to_be_bytes();
        Key {
            src: [a, b, c, d].into(),
            dst: [10, 0, 0, 1].into(),
            kind: Kind::Udp,
            ports: (53, 4000),
        }
    }

    #[test]
    fn an_entry_holds_for_its_time_and_only_for_its_conversation() {
        let now = Instant::now();
        let flows = Flows::new(now);
        flows.note(&key(1), State::Answer, Duration::from_secs(60), now);
        assert_eq!(
            flows.get(&key(1), now + Duration::from_secs(59)),
            Some(State::Answer)
        );
        assert_eq!(flows.get(&key(1), now + Duration::from_secs(61)), None);
        assert_eq!(flows.get(&key(2), now), None);
        assert_eq!(
            flows.get(
                &Key {
                    ports: (53, 4001),
                    ..key(1)
                },
                now
            ),
            None
        );
        flows.note(&key(1), State::Denied, Duration::from_secs(2), now);
        assert_eq!(
            flows.get(&key(1), now),
            Some(State::Answer),
            "an answer that is waited for stays"
        );
        flows.note(
            &key(1),
            State::Answer,
            Duration::from_secs(60),
            now + Duration::from_secs(30),
        );
        assert_eq!(
            flows.get(&key(1), now + Duration::from_secs(80)),
            Some(State::Answer),
            "what is sent again lasts on"
        );
    }

    #[test]
    fn a_flood_of_short_decisions_pushes_out_no_answer() {
        let now = Instant::now();
        let flows = Flows::new(now);
        // Few enough that no bucket is full of answers alone.
        (0..2000).for_each(|n| flows.note(&key(n), State::Answer, Duration::from_secs(300), now));
        (1_000_000..1_500_000)
            .for_each(|n| flows.note(&key(n), State::Denied, Duration::from_secs(2), now));
        let kept = (0..2000)
            .filter(|n| flows.get(&key(*n), now) == Some(State::Answer))
            .count();
        assert_eq!(kept, 2000);
    }
}
