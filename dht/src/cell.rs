//! What one replica holds at one key, and how two views of it merge.
//!
//! A cell holds at most one live record. It is *settled* once its creator is known to have a
//! majority; until then it is an attempt that its creator may withdraw. Deleted records leave
//! graves (tombstones), which bury older versions of the same owner wherever a replica missed the
//! deletion. Two settled records of different owners can only come from a partition or a moved
//! replica set: [`prefers`] picks the same winner everywhere without a message. Merging settled
//! cells is commutative and idempotent, so that two replicas that exchanged cells agree.

use crate::record::Record;
use p2pvm_overlay::{RingAddr, UnixTime};
use serde::{Deserialize, Serialize};

/// How many seconds a replica still refuses other owners after a record has expired.
/// Reason: an owner whose clock is behind keeps a key that it still renews.
pub const CLOCK_GUARD_SECONDS: u64 = 10;

/// How many graves a cell keeps.
/// Reason: bounds memory; more graves need more owners that delete one key within its lifetime.
const MAX_GRAVES: usize = 8;

/// A replica's view of a key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cell {
    /// The live record or attempt; never a tombstone.
    pub record: Option<Record>,
    /// The newest version with which its owner is known to have won the key. A deletion that
    /// arrives later and is not older voids it: what the owner wrote since is then a new attempt.
    pub settled: Option<u64>,
    /// Tombstones, at most one for each owner.
    pub graves: Vec<Record>,
}

/// Whether owner `a` keeps `key` against owner `b` if both hold it after a partition: a coin that
/// falls the same way on every member and differently for each key.
pub fn prefers(key: &RingAddr, a: &[u8; 32], b: &[u8; 32]) -> bool {
    let coin = |owner: &[u8; 32]| {
        blake3::derive_key("p2pvm 2026 conflict of owners", &[key.0, *owner].concat())
    };
    coin(a) < coin(b)
}

/// Whether `a` replaces `b` of the same owner: the newer version wins; of two records with one
/// version, every replica chooses the same.
fn is_newer(a: &Record, b: &Record) -> bool {
    let order = |r: &Record| {
        (
            r.version,
            r.expires,
            blake3::hash(&postcard::to_allocvec(r).expect("plain fields always serialize")).into(),
        )
    };
    order(a) > (order(b) as (u64, UnixTime, [u8; 32]))
}

impl Cell {
    /// The cell that holds just this record (or tombstone).
    pub fn of(record: Record, settled: bool) -> Self {
        let mut cell = Self::default();
        cell.merge(Self {
            settled: settled.then_some(record.version),
            record: Some(record),
            graves: Vec::new(),
        });
        cell
    }

    /// Drops records and graves that have expired by `now`.
    pub fn expire(&mut self, now: UnixTime) {
        self.graves
            .retain(|g| g.expires.plus(CLOCK_GUARD_SECONDS) > now);
        if self
            .record
            .as_ref()
            .is_some_and(|r| r.expires.plus(CLOCK_GUARD_SECONDS) <= now)
        {
            (self.record, self.settled) = (None, None);
        }
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.record.is_none() && self.graves.is_empty()
    }

    /// Whether a grave here buries the record.
    pub fn buries(&self, record: &Record) -> bool {
        self.buries_version(&record.owner, record.version)
    }

    /// Whether a grave here buries this version of the owner.
    pub fn buries_version(&self, owner: &[u8; 32], version: u64) -> bool {
        self.graves
            .iter()
            .any(|g| g.owner == *owner && g.version >= version)
    }

    /// The newest version of `owner` here, dead or alive.
    pub fn version_of(&self, owner: &[u8; 32]) -> Option<u64> {
        self.graves
            .iter()
            .chain(&self.record)
            .filter(|r| r.owner == *owner)
            .map(|r| r.version)
            .max()
    }

    /// Whether every record in it is at `key` and signed by its owner, and there are not too many
    /// graves.
    pub fn is_authentic(&self, key: &RingAddr) -> bool {
        self.graves.len() <= MAX_GRAVES
            && self.graves.iter().all(|g| g.value.is_none())
            && self.record.as_ref().is_none_or(|r| r.value.is_some())
            && self
                .graves
                .iter()
                .chain(&self.record)
                .all(|r| r.key == *key && r.is_authentic())
    }

    /// Adds what another replica holds. The caller has checked it with [`Self::is_authentic`].
    pub fn merge(&mut self, other: Self) {
        let mut live = other.record;
        if let Some(dead) = live.take_if(|r| r.value.is_none()) {
            self.bury(dead);
        }
        for grave in other.graves {
            self.bury(grave);
        }
        if let Some(record) = live.filter(|r| !self.buries(r)) {
            self.contest(record, other.settled);
        }
    }

    fn bury(&mut self, grave: Record) {
        match self.graves.iter_mut().find(|g| g.owner == grave.owner) {
            Some(old) if is_newer(&grave, old) => *old = grave,
            Some(_) => {}
            None => self.graves.push(grave),
        }
        self.graves
            .sort_by_key(|g| (std::cmp::Reverse(g.expires), g.owner));
        self.graves.truncate(MAX_GRAVES);
        let Some(record) = &self.record else { return };
        if self.buries(record) {
            (self.record, self.settled) = (None, None);
        } else {
            self.settled = self
                .settled
                .filter(|version| !self.buries_version(&record.owner, *version));
        }
    }

    fn contest(&mut self, record: Record, settled: Option<u64>) {
        let settled = settled.filter(|version| !self.buries_version(&record.owner, *version));
        let Some(held) = &self.record else {
            (self.record, self.settled) = (Some(record), settled);
            return;
        };
        if held.owner == record.owner {
            self.settled = self.settled.max(settled);
            if is_newer(&record, held) {
                self.record = Some(record);
            }
        } else if settled.is_some()
            && (self.settled.is_none() || prefers(&record.key, &record.owner, &held.owner))
        {
            (self.record, self.settled) = (Some(record), settled);
        }
    }

    /// A short hash to compare two replicas by.
    pub fn digest(&self) -> u64 {
        let mut graves: Vec<_> = self.graves.iter().map(|g| (g.owner, g.version)).collect();
        graves.sort();
        let bytes = postcard::to_allocvec(&(&self.record, self.settled, graves))
            .expect("plain fields always serialize");
        let hash = blake3::hash(&bytes);
        u64::from_le_bytes(hash.as_bytes()[..8].try_into().expect("8 bytes of 32"))
    }
}
