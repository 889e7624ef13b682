//! One member's share of the records: decides what it holds, durably, before it answers. No clock
//! and no network in it: `handle(now, from, request)`.
//!
//! The first writer of a free key gets the replica, and keeps it until he withdraws, deletes or
//! lets it expire; who has a majority of the replicas has the key. Two creators can therefore never
//! both have one. What is forged, expired, too large or beyond its owner's or bringer's share
//! ([`crate::limits`]) is refused with the reason.

use crate::{
    cell::Cell,
    limits::{Accounts, Charge, Limits, Refusal},
    record::{MAX_VALUE_BYTES, Record},
    store::{Store, StoreError},
    wire::{MAX_COMPARED, Reply, Request},
};
use p2pvm_overlay::{MemberId, RingAddr, UnixTime};
use serde::{Deserialize, Serialize};
use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
};

/// Withdrawn attempts remembered, so that a write that arrives after its own withdrawal is not
/// held.
const REMEMBERED_WITHDRAWALS: usize = 4096;

/// Attempts of one owner at one key remembered; a further one makes the record stay until it
/// expires.
const MAX_ATTEMPTS: usize = 4;

/// Other owners' claims waiting to be looked into; more are dropped, and made again when the
/// records are next compared.
const MAX_CLAIMS: usize = 256;

/// Cells read at a time when the books are made at the start.
const PAGE: usize = 1024;

/// Why a replica does not answer.
#[derive(Debug, thiserror::Error)]
pub enum ReplicaError {
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
    /// Which member brought it first.
    by: Option<MemberId>,
}

/// What a cell was stored as before members were charged for theirs.
type Uncharged = (Cell, Vec<u64>, UnixTime);

/// A replica over its store.
pub struct Replica {
    me: MemberId,
    store: Arc<dyn Store>,
    accounts: Accounts,
    withdrawn: HashSet<u64>,
    withdrawn_order: VecDeque<u64>,
    claims: VecDeque<RingAddr>,
}

impl Replica {
    /// The replica of member `me`, of what `store` holds. What cannot be read is charged to nobody.
    pub fn new(me: MemberId, store: Arc<dyn Store>, limits: Limits) -> Self {
        let accounts = Accounts::new(limits);
        let (withdrawn, withdrawn_order, claims) =
            (HashSet::new(), VecDeque::new(), VecDeque::new());
        let mut replica = Self {
            me,
            store,
            accounts,
            withdrawn,
            withdrawn_order,
            claims,
        };
        let mut after = None;
        while let Ok(page) = replica.store.scan(after.as_ref(), PAGE) {
            for (key, bytes) in &page {
                let kept = decode(&RingAddr(*key), bytes);
                replica
                    .accounts
                    .set(RingAddr(*key), Some(charge(&kept, me, bytes.len())));
            }
            after = page.last().map(|(key, _)| *key);
            if page.len() < PAGE {
                break;
            }
        }
        replica
    }

    /// Answers one request of member `from`. What the answer says is on the disk.
    ///
    /// # Errors
    /// [`ReplicaError`]; nothing has been changed then, unless the disk failed.
    pub fn handle(
        &mut self,
        now: UnixTime,
        from: MemberId,
        request: Request,
    ) -> Result<Reply, ReplicaError> {
        match request {
            Request::Write { record, attempt } => self.write(now, from, record, attempt),
            Request::Withdraw { key, attempt } => self.withdraw(now, key, attempt),
            Request::Merge(key, other) => self.merge(now, from, key, other),
            Request::Read(key) => Ok(Reply::Holds(self.load(now, &key)?.cell)),
            Request::Compare(places) => self.compare(now, &places),
        }
    }

    /// Whether a record may be held at all: its form, its signature, its time.
    fn judge(&self, now: UnixTime, record: &Record) -> Result<(), Refusal> {
        if record.expires <= now {
            return Err(Refusal::Expired);
        }
        if record.expires > now.plus(self.accounts.limits().ttl_seconds) {
            return Err(Refusal::TooLong);
        }
        if record
            .value
            .as_ref()
            .is_some_and(|v| v.len() > MAX_VALUE_BYTES)
        {
            return Err(Refusal::TooLarge);
        }
        if record.is_authentic() {
            Ok(())
        } else {
            Err(Refusal::NotAuthentic)
        }
    }

    fn write(
        &mut self,
        now: UnixTime,
        from: MemberId,
        record: Record,
        attempt: u64,
    ) -> Result<Reply, ReplicaError> {
        if let Err(refusal) = self.judge(now, &record) {
            return Ok(Reply::Refused(refusal));
        }
        let mut kept = self.load(now, &record.key)?;
        let taken = record.value.is_some()
            && kept
                .cell
                .record
                .as_ref()
                .is_some_and(|held| held.owner != record.owner);
        let repeated =
            kept.cell.record.as_ref() == Some(&record) || kept.cell.graves.contains(&record);
        let stale = !repeated
            && kept
                .cell
                .version_of(&record.owner)
                .is_some_and(|version| version >= record.version);
        let accepted = !taken && !stale && !self.withdrawn.contains(&attempt);
        if accepted {
            let key = record.key;
            if record.value.is_some() {
                if kept
                    .cell
                    .record
                    .as_ref()
                    .is_none_or(|held| held.owner != record.owner)
                {
                    (kept.since, kept.attempts) = (now, Vec::new());
                }
                if !kept.attempts.contains(&attempt) && kept.attempts.len() <= MAX_ATTEMPTS {
                    kept.attempts.push(attempt);
                }
            }
            kept.cell.merge(Cell::of(record, false));
            kept.by.get_or_insert(from);
            if let Err(refusal) = self.admit(now, from, &key, &kept, true) {
                return Ok(Reply::Refused(refusal));
            }
            self.save(&key, &kept)?;
            kept.cell.record = None;
        }
        Ok(Reply::Written {
            accepted,
            cell: kept.cell,
        })
    }

    /// Whether the books have room for a cell, and the member that begins it a turn left.
    fn admit(
        &mut self,
        now: UnixTime,
        from: MemberId,
        key: &RingAddr,
        kept: &Kept,
        paced: bool,
    ) -> Result<(), Refusal> {
        let bytes = postcard::experimental::serialized_size(kept).unwrap_or(usize::MAX);
        self.accounts.admits(key, &charge(kept, self.me, bytes))?;
        if paced && !self.accounts.holds(key) {
            self.accounts.pace(now, from)
        } else {
            Ok(())
        }
    }

    fn withdraw(
        &mut self,
        now: UnixTime,
        key: RingAddr,
        attempt: u64,
    ) -> Result<Reply, ReplicaError> {
        if self.withdrawn.insert(attempt) {
            self.withdrawn_order.push_back(attempt);
            if self.withdrawn_order.len() > REMEMBERED_WITHDRAWALS {
                let oldest = self
                    .withdrawn_order
                    .pop_front()
                    .expect("longer than its bound");
                self.withdrawn.remove(&oldest);
            }
        }
        let mut kept = self.load(now, &key)?;
        if kept.cell.settled.is_none()
            && kept.attempts.contains(&attempt)
            && kept.attempts.len() <= MAX_ATTEMPTS
        {
            kept.attempts.retain(|a| *a != attempt);
            if kept.attempts.is_empty() {
                kept.cell.record = None;
            }
            self.save(&key, &kept)?;
        }
        Ok(Reply::Done)
    }

    fn merge(
        &mut self,
        now: UnixTime,
        from: MemberId,
        key: RingAddr,
        mut other: Cell,
    ) -> Result<Reply, ReplicaError> {
        if !other.is_authentic(&key) {
            return Ok(Reply::Refused(Refusal::NotAuthentic));
        }
        other.expire(now);
        let last = now.plus(self.accounts.limits().ttl_seconds);
        if other
            .record
            .iter()
            .chain(&other.graves)
            .any(|r| r.expires > last)
        {
            return Ok(Reply::Refused(Refusal::TooLong));
        }
        let before = self.load(now, &key)?;
        let mut kept = before.clone();
        let (claim, settled) = (other.record.take(), other.settled.take());
        kept.cell.merge(other);
        let contested = kept
            .cell
            .record
            .as_ref()
            .zip(claim.as_ref())
            .is_some_and(|(held, claim)| held.owner != claim.owner);
        if !contested {
            kept.cell.merge(Cell {
                record: claim,
                settled,
                graves: Vec::new(),
            });
        } else if settled.is_some() {
            // Somebody else's word is not enough: the other replicas are asked.
            self.claim(key);
        }
        let owner = |cell: &Cell| cell.record.as_ref().map(|r| r.owner);
        if owner(&kept.cell) != owner(&before.cell) {
            (kept.since, kept.attempts) = (now, Vec::new());
        }
        if kept.cell.settled > before.cell.settled {
            kept.attempts.clear();
        }
        if kept != before {
            kept.by.get_or_insert(from);
            if let Err(refusal) = self.admit(now, from, &key, &kept, false) {
                return Ok(Reply::Refused(refusal));
            }
            self.save(&key, &kept)?;
        }
        Ok(Reply::Holds(kept.cell))
    }

    /// The live records held here that `wanted` picks.
    ///
    /// # Errors
    /// The disk's.
    pub fn live(
        &self,
        now: UnixTime,
        wanted: impl Fn(&Record) -> bool,
    ) -> Result<Vec<Record>, StoreError> {
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let page = self.store.scan(after.as_ref(), PAGE)?;
            for (_, bytes) in &page {
                // What cannot be read is said where the cells are brought to the other replicas.
                let Ok(Kept { mut cell, .. }) = read(bytes) else {
                    continue;
                };
                cell.expire(now);
                found.extend(cell.record.filter(&wanted));
            }
            if page.len() < PAGE {
                return Ok(found);
            }
            after = page.last().map(|(key, _)| *key);
        }
    }

    fn claim(&mut self, key: RingAddr) {
        if self.claims.len() < MAX_CLAIMS && !self.claims.contains(&key) {
            self.claims.push_back(key);
        }
    }

    /// Whether there are claims to look into.
    pub fn has_claims(&self) -> bool {
        !self.claims.is_empty()
    }

    /// A key held here that another member says is another owner's.
    pub fn next_claim(&mut self) -> Option<RingAddr> {
        self.claims.pop_front()
    }

    /// Takes over what most replicas hold, in place of another owner's record.
    ///
    /// # Errors
    /// The disk's.
    pub fn adopt(&mut self, now: UnixTime, key: RingAddr, cell: Cell) -> Result<(), StoreError> {
        let mut kept = self.load(now, &key)?;
        let owner = |cell: &Cell| cell.record.as_ref().map(|r| r.owner);
        if !cell.is_authentic(&key) || owner(&cell) == owner(&kept.cell) || cell.record.is_none() {
            return Ok(());
        }
        (kept.cell.record, kept.cell.settled) = (None, None);
        kept.cell.merge(cell);
        (kept.since, kept.attempts) = (now, Vec::new());
        self.save(&key, &kept)
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
        let mut kept = self
            .store
            .get(&key.0)?
            .map_or_else(Kept::default, |bytes| decode(key, &bytes));
        kept.cell.expire(now);
        Ok(kept)
    }

    fn save(&mut self, key: &RingAddr, kept: &Kept) -> Result<(), StoreError> {
        if kept.cell.is_empty() {
            self.drop_cell(key)?;
        } else {
            let bytes = postcard::to_allocvec(kept).expect("plain fields always serialize");
            self.accounts
                .set(*key, Some(charge(kept, self.me, bytes.len())));
            self.store.put(&key.0, bytes)?;
        }
        self.store.flush()
    }

    fn drop_cell(&mut self, key: &RingAddr) -> Result<(), StoreError> {
        self.accounts.set(*key, None);
        self.store.remove(&key.0)
    }

    /// Up to `limit` cells after `after` that other replicas should hold as well, dropping those
    /// that have expired: settled ones, and attempts older than `attempt_seconds`, whose creator is
    /// not about to withdraw them any more.
    ///
    /// # Errors
    /// The disk's.
    pub fn page(
        &mut self,
        now: UnixTime,
        after: Option<RingAddr>,
        limit: usize,
        attempt_seconds: u64,
    ) -> Result<Page, StoreError> {
        let entries = self.store.scan(after.map(|a| a.0).as_ref(), limit)?;
        let last = if entries.len() < limit {
            None
        } else {
            entries.last().map(|(key, _)| RingAddr(*key))
        };
        let mut cells = Vec::new();
        for (key, bytes) in entries {
            let key = RingAddr(key);
            let mut kept = decode(&key, &bytes);
            kept.cell.expire(now);
            if kept.cell.is_empty() {
                self.drop_cell(&key)?;
            } else if kept.cell.settled.is_some()
                || kept.cell.record.is_none()
                || kept.since.plus(attempt_seconds) <= now
            {
                cells.push((key, kept.cell));
            }
        }
        Ok(Page { cells, last })
    }

    /// Drops the cell at `key` if it is still `cell`: other members hold it now.
    ///
    /// # Errors
    /// The disk's.
    pub fn hand_over(
        &mut self,
        now: UnixTime,
        key: &RingAddr,
        cell: &Cell,
    ) -> Result<(), StoreError> {
        if self.load(now, key)?.cell == *cell {
            self.drop_cell(key)?;
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

/// A stored cell; what cannot be read (a damaged store) counts as absent: the peers hold it.
fn decode(key: &RingAddr, bytes: &[u8]) -> Kept {
    read(bytes).unwrap_or_else(|e| {
        tracing::warn!(key = %key.short(), error = %e, "an unreadable record is dropped");
        Kept::default()
    })
}

fn read(bytes: &[u8]) -> Result<Kept, postcard::Error> {
    postcard::from_bytes(bytes).or_else(|e| match postcard::from_bytes::<Uncharged>(bytes) {
        Ok((cell, attempts, since)) => Ok(Kept {
            cell,
            attempts,
            since,
            by: None,
        }),
        Err(_) => Err(e),
    })
}

/// To whom a cell is charged: what nobody is known to have brought, to this member.
fn charge(kept: &Kept, me: MemberId, bytes: usize) -> Charge {
    Charge {
        owner: kept.cell.record.as_ref().map(|r| r.owner),
        by: kept.by.unwrap_or(me),
        bytes,
    }
}
