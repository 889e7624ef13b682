//! One member's share of the records: decides what it holds, durably, before it answers. No clock and no
//! network in it: `handle(now, from, request)`.
//!
//! The first writer of a free key gets the replica, and keeps it until he withdraws, deletes or lets it
//! expire; who has a majority of the replicas has the key. Two creators can therefore never both have one.

use crate::{
    cell::Cell,
    record::Record,
    store::{Store, StoreError},
    wire::{MAX_COMPARED, Reply, Request},
};
use p2pvm_overlay::{RingAddr, UnixTime};
use serde::{Deserialize, Serialize};
use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
};

/// Withdrawn attempts remembered, so that a write that arrives after its own withdrawal is not held.
const REMEMBERED_WITHDRAWALS: usize = 4096;

/// Attempts of one owner at one key remembered; a further one makes the record stay until it expires.
const MAX_ATTEMPTS: usize = 4;

/// Why a replica does not answer.
#[derive(Debug, thiserror::Error)]
pub enum ReplicaError {
    /// A signature, a key or a bound is wrong.
    #[error("not an authentic record")]
    NotAuthentic,
    /// The record's time has passed already.
    #[error("the record has expired")]
    Expired,
    /// The request is larger than it may be.
    #[error("too many keys in one request")]
    TooMany,
    /// The disk.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A cell as it is stored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    cell: Cell,
    /// The attempts that hold the record here, since it was settled last.
    attempts: Vec<u64>,
    /// Since when this owner holds it.
    since: UnixTime,
}

/// A replica over its store.
pub struct Replica {
    store: Arc<dyn Store>,
    withdrawn: HashSet<u64>,
    withdrawn_order: VecDeque<u64>,
}

impl Replica {
    /// A replica of what `store` holds.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store, withdrawn: HashSet::new(), withdrawn_order: VecDeque::new() }
    }

    /// Answers one request. What the answer says is on the disk.
    ///
    /// # Errors
    /// [`ReplicaError`]; nothing has been changed then, unless the disk failed.
    pub fn handle(&mut self, now: UnixTime, request: Request) -> Result<Reply, ReplicaError> {
        match request {
            Request::Write { record, attempt } => self.write(now, record, attempt),
            Request::Withdraw { key, attempt } => self.withdraw(now, key, attempt),
            Request::Merge(key, other) => self.merge(now, key, other),
            Request::Read(key) => Ok(Reply::Holds(self.load(now, &key)?.cell)),
            Request::Compare(places) => self.compare(now, &places),
        }
    }

    fn write(&mut self, now: UnixTime, record: Record, attempt: u64) -> Result<Reply, ReplicaError> {
        if record.expires <= now {
            return Err(ReplicaError::Expired);
        }
        if !record.is_authentic() {
            return Err(ReplicaError::NotAuthentic);
        }
        let mut kept = self.load(now, &record.key)?;
        let taken = record.value.is_some() && kept.cell.record.as_ref().is_some_and(|held| held.owner != record.owner);
        let repeated = kept.cell.record.as_ref() == Some(&record) || kept.cell.graves.contains(&record);
        let stale = !repeated && kept.cell.version_of(&record.owner).is_some_and(|version| version >= record.version);
        let accepted = !taken && !stale && !self.withdrawn.contains(&attempt);
        if accepted {
            let key = record.key;
            if record.value.is_some() {
                if kept.cell.record.as_ref().is_none_or(|held| held.owner != record.owner) {
                    (kept.since, kept.attempts) = (now, Vec::new());
                }
                if !kept.attempts.contains(&attempt) && kept.attempts.len() <= MAX_ATTEMPTS {
                    kept.attempts.push(attempt);
                }
            }
            kept.cell.merge(Cell::of(record, false));
            self.save(&key, &kept)?;
            kept.cell.record = None;
        }
        Ok(Reply::Written { accepted, cell: kept.cell })
    }

    fn withdraw(&mut self, now: UnixTime, key: RingAddr, attempt: u64) -> Result<Reply, ReplicaError> {
        if self.withdrawn.insert(attempt) {
            self.withdrawn_order.push_back(attempt);
            if self.withdrawn_order.len() > REMEMBERED_WITHDRAWALS {
                let oldest = self.withdrawn_order.pop_front().expect("longer than its bound");
                self.withdrawn.remove(&oldest);
            }
        }
        let mut kept = self.load(now, &key)?;
        if kept.cell.settled.is_none() && kept.attempts.contains(&attempt) && kept.attempts.len() <= MAX_ATTEMPTS {
            kept.attempts.retain(|a| *a != attempt);
            if kept.attempts.is_empty() {
                kept.cell.record = None;
            }
            self.save(&key, &kept)?;
        }
        Ok(Reply::Done)
    }

    fn merge(&mut self, now: UnixTime, key: RingAddr, mut other: Cell) -> Result<Reply, ReplicaError> {
        if !other.is_authentic(&key) {
            return Err(ReplicaError::NotAuthentic);
        }
        other.expire(now);
        let before = self.load(now, &key)?;
        let mut kept = before.clone();
        kept.cell.merge(other);
        let owner = |cell: &Cell| cell.record.as_ref().map(|r| r.owner);
        if owner(&kept.cell) != owner(&before.cell) {
            (kept.since, kept.attempts) = (now, Vec::new());
        }
        if kept.cell.settled > before.cell.settled {
            kept.attempts.clear();
        }
        if kept != before {
            self.save(&key, &kept)?;
        }
        Ok(Reply::Holds(kept.cell))
    }

    fn compare(&self, now: UnixTime, places: &[(RingAddr, u64)]) -> Result<Reply, ReplicaError> {
        if places.len() > MAX_COMPARED {
            return Err(ReplicaError::TooMany);
        }
        let mut differs = Vec::new();
        for (index, (key, digest)) in (0..).zip(places) {
            if self.load(now, key)?.cell.digest() != *digest {
                differs.push(index);
            }
        }
        Ok(Reply::Differs(differs))
    }

    fn load(&self, now: UnixTime, key: &RingAddr) -> Result<Kept, StoreError> {
        let mut kept = self.store.get(&key.0)?.map_or_else(Kept::default, |bytes| decode(key, &bytes));
        kept.cell.expire(now);
        Ok(kept)
    }

    fn save(&self, key: &RingAddr, kept: &Kept) -> Result<(), StoreError> {
        if kept.cell.is_empty() {
            self.store.remove(&key.0)?;
        } else {
            self.store.put(&key.0, postcard::to_allocvec(kept).expect("plain fields always serialize"))?;
        }
        self.store.flush()
    }

    /// Up to `limit` cells after `after` that other replicas should hold as well, dropping those that have expired:
    /// settled ones, and attempts older than `attempt_seconds`, whose creator is not about to withdraw them any more.
    ///
    /// # Errors
    /// The disk's.
    pub fn page(&self, now: UnixTime, after: Option<RingAddr>, limit: usize, attempt_seconds: u64) -> Result<Page, StoreError> {
        let entries = self.store.scan(after.map(|a| a.0).as_ref(), limit)?;
        let last = if entries.len() < limit { None } else { entries.last().map(|(key, _)| RingAddr(*key)) };
        let mut cells = Vec::new();
        for (key, bytes) in entries {
            let key = RingAddr(key);
            let mut kept = decode(&key, &bytes);
            kept.cell.expire(now);
            if kept.cell.is_empty() {
                self.store.remove(&key.0)?;
            } else if kept.cell.settled.is_some() || kept.cell.record.is_none() || kept.since.plus(attempt_seconds) <= now {
                cells.push((key, kept.cell));
            }
        }
        Ok(Page { cells, last })
    }

    /// Drops the cell at `key` if it is still `cell`: other members hold it now.
    ///
    /// # Errors
    /// The disk's.
    pub fn hand_over(&mut self, now: UnixTime, key: &RingAddr, cell: &Cell) -> Result<(), StoreError> {
        if self.load(now, key)?.cell == *cell {
            self.store.remove(&key.0)?;
        }
        Ok(())
    }
}

/// Some of a replica's cells.
pub struct Page {
    /// The cells, by key.
    pub cells: Vec<(RingAddr, Cell)>,
    /// Where to go on, if there is more.
    pub last: Option<RingAddr>,
}

/// A stored cell; what cannot be read (an older layout, a damaged store) counts as absent: the peers hold it.
fn decode(key: &RingAddr, bytes: &[u8]) -> Kept {
    postcard::from_bytes(bytes).unwrap_or_else(|e| {
        tracing::warn!(key = %key.short(), error = %e, "an unreadable record is dropped");
        Kept::default()
    })
}
