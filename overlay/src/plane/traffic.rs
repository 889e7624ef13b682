//! The traffic matrix: how many bytes each pair of addresses exchanges through this node. Placement
//! and the ring's shortcuts follow it (VTTIF, "VM Traffic and Topology Inference Framework", in
//! Sundararaj, Gupta and Dinda 2005: the plane sees every packet anyway, so that guests need not be
//! asked). A row is a pair of addresses, one of them here.
//!
//! Each packet thread counts into a small table of its own ([`Tally`]), without lock or allocation,
//! and hands it over some four times a second and before it waits. The matrix keeps [`MAX_ROWS`]
//! pairs: when it is full, the pair with the least traffic in 16 s is replaced. What is small
//! beside the largest row is noise: readers ask for rows above a share of it
//! ([`TrafficMatrix::significant`]), as VTTIF's normalized threshold does.

use crate::id::MemberId;
use crate::lock;
use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// How many pairs are kept, some 300 bytes each.
const MAX_ROWS: usize = 1024;
/// How many pairs a thread counts before it hands over early.
const TALLY: usize = 32;
/// Seconds over which rates are averaged.
const WINDOWS: [usize; 3] = [1, 4, 16];
/// How many buckets of one second a row has: the longest window, and the current second.
const BUCKETS: usize = 17;
/// The share of the largest row below which a row is noise (VTTIF's threshold, there adjustable
/// from 1 % up).
pub const NOISE: f64 = 0.01;
/// How long a silent pair is remembered.
const FORGET: Duration = Duration::from_secs(300);

/// One row of the matrix.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Flow {
    /// The address here: the host's or a guest's.
    pub local: IpAddr,
    /// The address that it exchanges packets with.
    pub remote: IpAddr,
    /// The member behind `remote`; this one for two guests of the same host.
    pub member: MemberId,
    /// Bytes of IP packets from `local` to `remote` since the pair is in the matrix.
    pub sent: u64,
    /// Bytes from `remote` to `local`.
    pub received: u64,
    /// Bytes a second, both ways together, over the last 1, 4 and 16 s.
    pub rates: [f64; 3],
}

/// A snapshot of the traffic matrix.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TrafficMatrix {
    /// The pairs, the most traffic in 16 s first.
    pub flows: Vec<Flow>,
}

impl TrafficMatrix {
    /// The rows whose rate over 16 s is at least `share` of the largest one's.
    pub fn significant(&self, share: f64) -> impl Iterator<Item = &Flow> {
        let least = self
            .flows
            .first()
            .map_or(0.0, |largest| largest.rates[2] * share);
        self.flows
            .iter()
            .filter(move |flow| flow.rates[2] > 0.0 && flow.rates[2] >= least)
    }

    /// Bytes a second over 4 s with each member, largest first, without noise: what the ring's
    /// shortcuts follow.
    pub fn by_member(&self) -> Vec<(MemberId, u64)> {
        let mut members: HashMap<MemberId, f64> = HashMap::new();
        for flow in self.significant(NOISE) {
            *members.entry(flow.member).or_default() += flow.rates[1];
        }
        let mut members: Vec<_> = members
            .into_iter()
            .map(|(member, rate)| (member, rate as u64))
            .collect();
        members.sort_by_key(|(member, rate)| (std::cmp::Reverse(*rate), *member));
        members
    }

    /// The addresses that one address exchanges packets with, and their bytes a second over 16 s,
    /// without noise: what placement follows.
    pub fn peers_of(&self, local: IpAddr) -> Vec<(MemberId, IpAddr, f64)> {
        self.significant(NOISE)
            .filter(|f| f.local == local)
            .map(|f| (f.member, f.remote, f.rates[2]))
            .collect()
    }
}

type Pair = (IpAddr, IpAddr);

struct Row {
    member: MemberId,
    sent: u64,
    received: u64,
    buckets: [u64; BUCKETS],
    /// The second of the newest bucket.
    second: u64,
}

impl Row {
    fn advance(&mut self, second: u64) {
        let passed = second.saturating_sub(self.second).min(BUCKETS as u64);
        for step in 1..=passed {
            self.buckets[((second - passed + step) % BUCKETS as u64) as usize] = 0;
        }
        self.second = self.second.max(second);
    }

    /// Bytes in the last `window` whole seconds before `second`.
    fn bytes(&self, second: u64, window: usize) -> u64 {
        let first = second.saturating_sub(window as u64);
        let kept = |s: &u64| *s <= self.second && self.second - *s < BUCKETS as u64;
        (first..second)
            .filter(kept)
            .map(|s| self.buckets[(s % BUCKETS as u64) as usize])
            .sum()
    }
}

#[derive(Default)]
struct Rows(HashMap<Pair, Row>);

impl Rows {
    fn add(&mut self, second: u64, entry: &Entry) {
        if self.0.len() >= MAX_ROWS && !self.0.contains_key(&entry.pair) {
            // The row with the least traffic in 16 s is replaced, among equals the longest silent:
            // at most TALLY searches a hand-over.
            let least = self
                .0
                .iter()
                .min_by_key(|(_, row)| (row.bytes(second + 1, BUCKETS), row.second))
                .map(|(pair, _)| *pair);
            least.and_then(|pair| self.0.remove(&pair));
        }
        let fresh = || Row {
            member: entry.member,
            sent: 0,
            received: 0,
            buckets: [0; BUCKETS],
            second,
        };
        let row = self.0.entry(entry.pair).or_insert_with(fresh);
        row.advance(second);
        row.member = entry.member;
        row.sent += entry.sent;
        row.received += entry.received;
        row.buckets[(row.second % BUCKETS as u64) as usize] += entry.sent + entry.received;
    }
}

/// The matrix that all threads of a plane hand their counts to.
pub(crate) struct Traffic {
    on: AtomicBool,
    base: Instant,
    /// Incremented some four times a second; a thread that sees a new value hands over.
    round: AtomicU64,
    rows: Mutex<Rows>,
}

impl Traffic {
    pub fn new(now: Instant, on: bool) -> Self {
        Self {
            on: AtomicBool::new(on),
            base: now,
            round: AtomicU64::new(0),
            rows: Mutex::default(),
        }
    }

    /// Starts or stops counting. What a thread has counted by then it still hands over.
    pub fn set(&self, on: bool) {
        self.on.store(on, Ordering::Relaxed);
    }

    fn second(&self, now: Instant) -> u64 {
        // The offset keeps the windows of the first seconds from reaching before zero.
        now.saturating_duration_since(self.base).as_secs() + BUCKETS as u64
    }

    /// To be called a few times a second.
    pub fn tick(&self, now: Instant) {
        let round = self.round.fetch_add(1, Ordering::Relaxed);
        if round.is_multiple_of(256) {
            let second = self.second(now);
            lock(&self.rows)
                .0
                .retain(|_, row| second.saturating_sub(row.second) < FORGET.as_secs());
        }
    }

    /// A snapshot of the rows.
    pub fn matrix(&self, now: Instant) -> TrafficMatrix {
        let second = self.second(now);
        let rows = lock(&self.rows);
        let flow = |(pair, row): (&Pair, &Row)| Flow {
            local: pair.0,
            remote: pair.1,
            member: row.member,
            sent: row.sent,
            received: row.received,
            rates: WINDOWS.map(|window| row.bytes(second, window) as f64 / window as f64),
        };
        let mut flows: Vec<Flow> = rows.0.iter().map(flow).collect();
        drop(rows);
        flows.sort_by(|a, b| {
            b.rates[2]
                .total_cmp(&a.rates[2])
                .then_with(|| (a.local, a.remote).cmp(&(b.local, b.remote)))
        });
        TrafficMatrix { flows }
    }
}

#[derive(Clone, Copy)]
struct Entry {
    pair: Pair,
    member: MemberId,
    sent: u64,
    received: u64,
}

/// What one packet thread has counted and not yet handed over.
pub(crate) struct Tally {
    entries: Vec<Entry>,
    /// The previous packet's entry: the next packet is mostly of the same pair.
    last: usize,
    round: u64,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            entries: Vec::with_capacity(TALLY),
            last: 0,
            round: 0,
        }
    }
}

impl Tally {
    /// Counts bytes of a pair: (address here, the other) and (sent from here, received).
    #[inline]
    pub fn note(
        &mut self,
        traffic: &Traffic,
        pair: Pair,
        member: MemberId,
        (sent, received): (usize, usize),
    ) {
        if let Some(entry) = self.entries.get_mut(self.last)
            && entry.pair == pair
        {
            entry.sent += sent as u64;
            entry.received += received as u64;
        } else if traffic.on.load(Ordering::Relaxed) {
            self.note_other(
                traffic,
                Entry {
                    pair,
                    member,
                    sent: sent as u64,
                    received: received as u64,
                },
            );
        }
    }

    fn note_other(&mut self, traffic: &Traffic, new: Entry) {
        if let Some(at) = self.entries.iter().position(|e| e.pair == new.pair) {
            self.entries[at].sent += new.sent;
            self.entries[at].received += new.received;
            self.last = at;
            return;
        }
        if self.entries.len() == TALLY {
            self.settle_now(traffic);
        }
        self.last = self.entries.len();
        self.entries.push(new);
    }

    /// Hands over if it is time; to be called after a batch.
    #[inline]
    pub fn settle(&mut self, traffic: &Traffic) {
        let round = traffic.round.load(Ordering::Relaxed);
        if round != self.round && !self.entries.is_empty() {
            self.round = round;
            self.settle_now(traffic);
        }
    }

    /// Hands over what was counted.
    pub fn settle_now(&mut self, traffic: &Traffic) {
        if self.entries.is_empty() {
            return;
        }
        let second = traffic.second(Instant::now());
        let mut rows = lock(&traffic.rows);
        self.entries
            .drain(..)
            .for_each(|entry| rows.add(second, &entry));
        self.last = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(n: u32) -> Pair {
        (
            IpAddr::from([10, 0, 0, 1]),
            IpAddr::from((0x0a00_0000 + n).to_be_bytes()),
        )
    }

    fn member(n: u8) -> MemberId {
        MemberId([n; 32])
    }

    #[test]
    fn rates_are_those_of_the_last_whole_seconds() {
        let base = Instant::now();
        let traffic = Traffic::new(base, true);
        for second in 0..20u64 {
            let sent = if second < 10 { 1000 } else { 3000 };
            let entry = Entry {
                pair: pair(2),
                member: member(2),
                sent,
                received: 0,
            };
            lock(&traffic.rows).add(second + BUCKETS as u64, &entry);
        }
        let flow = traffic.matrix(base + Duration::from_secs(20)).flows[0];
        assert_eq!(
            (flow.rates[0], flow.rates[1], flow.sent),
            (3000.0, 3000.0, 40_000)
        );
        assert_eq!(flow.rates[2], (6 * 1000 + 10 * 3000) as f64 / 16.0);
        assert_eq!(
            traffic.matrix(base + Duration::from_secs(40)).flows[0].rates,
            [0.0; 3]
        );
    }

    #[test]
    fn a_thread_counts_each_direction_and_hands_over_when_asked() {
        let (base, mut tally) = (Instant::now(), Tally::default());
        let traffic = Traffic::new(base, true);
        for _ in 0..10 {
            tally.note(&traffic, pair(2), member(2), (100, 0));
            tally.note(&traffic, pair(3), member(3), (0, 50));
        }
        assert!(traffic.matrix(base).flows.is_empty());
        traffic.tick(base);
        tally.settle(&traffic);
        let flows = traffic.matrix(base + Duration::from_secs(1)).flows;
        assert_eq!(
            flows
                .iter()
                .map(|f| (f.member, f.sent, f.received))
                .collect::<Vec<_>>(),
            [(member(2), 1000, 0), (member(3), 0, 500)]
        );
    }

    #[test]
    fn a_scan_keeps_the_matrix_bounded_and_the_large_rows_in_it() {
        let (base, mut tally) = (Instant::now(), Tally::default());
        let traffic = Traffic::new(base, true);
        tally.note(&traffic, pair(1), member(1), (1_000_000, 0));
        for n in 2..20_000 {
            tally.note(&traffic, pair(n), member(2), (60, 0));
        }
        tally.settle_now(&traffic);
        let matrix = traffic.matrix(base + Duration::from_secs(1));
        assert_eq!(matrix.flows.len(), MAX_ROWS);
        assert_eq!(matrix.flows[0].member, member(1));
        assert_eq!(matrix.significant(NOISE).count(), 1, "the scan is noise");
        assert_eq!(matrix.by_member(), [(member(1), 250_000)]);
    }

    #[test]
    fn switched_off_nothing_is_counted() {
        let (base, mut tally) = (Instant::now(), Tally::default());
        let traffic = Traffic::new(base, false);
        tally.note(&traffic, pair(1), member(1), (1, 1));
        tally.settle_now(&traffic);
        assert!(traffic.matrix(base).flows.is_empty());
    }
}
