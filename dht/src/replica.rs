//! One member's share of the records: it decides what it holds, and stores that before it answers.
//! There is no clock and no network here: `handle(now, from, request)`.
//!
//! The first writer of a free key gets the replica, and keeps it until it withdraws or deletes its
//! record or lets it expire; the owner with a majority of the replicas has the key. Two creators
//! can therefore never both have one. A record that is forged, expired, too large or beyond the
//! share of its owner or of the member that brings it ([`crate::limits`]) is refused with the
//! reason.
//!
//! The caller handles requests in the order of arrival and gives `now` of one clock; nothing is due
//! between two calls, except that [`Replica::page`], called now and then, drops expired cells. What
//! [`Replica::handle`] answers is on the disk, so the answer may be sent at once. When
//! [`Replica::has_claims`], the caller asks the other replicas of each [`Replica::next_claim`] and
//! gives what most of them hold to [`Replica::adopt`].
//!
//! ```
//! use p2pvm_dht::{Limits, MemoryStore, Record, replica::Replica, wire::{Reply, Request}};
//! use p2pvm_overlay::{MemberId, RingAddr, UnixTime, identity::KeyPair};
//! use std::sync::Arc;
//!
//! let (now, key) = (UnixTime(1_800_000_000), RingAddr::of("example", b"a name"));
//! let member = |n| MemberId([n; 32]);
//! let start = |n| Replica::new(member(n), Arc::new(MemoryStore::default()), Limits::default());
//! let (mut first, mut second) = (start(1), start(2));
//!
//! let owner = KeyPair::from_seed(&[7; 32]);
//! let record = Record::sign(&owner, key, 1, now.plus(60), Some(b"value".to_vec()));
//! let request = Request::Write { record, attempt: 1 };
//! let answer = first.handle(now, member(9), request).unwrap();
//! assert!(matches!(answer, Reply::Written { accepted: true, .. }));
//!
//! // The first replica tells the second what it holds.
//! let Reply::Holds(cell) = first.handle(now, member(2), Request::Read(key)).unwrap() else {
//!     unreachable!()
//! };
//! let answer = second.handle(now, member(1), Request::Merge(key, cell.clone())).unwrap();
//! assert_eq!(answer, Reply::Holds(cell));
//! ```

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

/// How many withdrawn attempts are remembered.
/// Reason: a write that arrives after its own withdrawal is not held.
const REMEMBERED_WITHDRAWALS: usize = 4096;

/// How many attempts of one owner at one key are remembered.
/// Reason: bounds memory; with more of them the record stays until it expires.
const MAX_ATTEMPTS: usize = 4;

/// How many claims of other owners wait to be looked into.
/// Reason: bounds memory; dropped ones are made again when records are next compared.
const MAX_CLAIMS: usize = 256;

/// How many cells are read from the store at a time.
const PAGE: usize = 1024;

/// Why a replica does not answer.
#[derive(Debug, thiserror::Error)]
pub enum ReplicaError {
    /// The bytes are not a [`Request`].
    #[error("not a record request")]
    Malformed,
    /// More than [`MAX_COMPARED`] keys.
    #[error("too many keys in one request")]
    TooMany,
    /// The disk failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A cell as the store holds it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct StoredCell {
    cell: Cell,
    /// The attempts that hold the record here, since it was last settled.
    attempts: Vec<u64>,
    /// When this owner's record came.
    since: UnixTime,
    /// The member that brought it first.
    bringer: Option<MemberId>,
}

/// A cell as it was stored before members were charged for theirs.
type UnchargedCell = (Cell, Vec<u64>, UnixTime);

/// A replica over its store.
pub struct Replica {
    me: MemberId,
    store: Arc<dyn Store>,
    accounts: Accounts,
    withdrawn: HashSet<u64>,
    withdrawn_order: VecDeque<u64>,
    claims: VecDeque<RingAddr>,
}

impl StoredCell {
    /// Merges a cell that another member sent and that was checked.
    fn take_in(&mut self, key: &RingAddr, cell: Cell) {
        // Not `assert!`: checking the signatures once more costs 50 µs each.
        debug_assert!(
            cell.is_authentic(key),
            "what is taken in has passed `judge` or `is_authentic`"
        );
        self.cell.merge(cell);
    }
}

impl Replica {
    /// The replica of member `me` over `store`. Cells without a known bringer, and unreadable ones,
    /// are charged to `me`.
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
                let stored = decode(&RingAddr(*key), bytes);
                replica
                    .accounts
                    .set(RingAddr(*key), Some(charge(&stored, me, bytes.len())));
            }
            after = page.last().map(|(key, _)| *key);
            if page.len() < PAGE {
                break;
            }
        }
        replica
    }

    /// Answers one request of member `from`.
    ///
    /// # Errors
    /// [`ReplicaError`]; then nothing has changed, unless the disk failed.
    pub fn handle(
        &mut self,
        now: UnixTime,
        from: MemberId,
        request: Request,
    ) -> Result<Reply, ReplicaError> {
        match request {
            Request::Write { record, attempt } => self.accept(now, from, record, attempt),
            Request::Withdraw { key, attempt } => self.withdraw(now, key, attempt),
            Request::Merge(key, other) => self.merge(now, from, key, other),
            Request::Read(key) => Ok(Reply::Holds(self.load(now, &key)?.cell)),
            Request::Compare(places) => self.compare(now, &places),
        }
    }

    /// Checks the form, the signature and the time of a record.
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

    /// Holds a record for its owner if the key is free or already the owner's.
    fn accept(
        &mut self,
        now: UnixTime,
        from: MemberId,
        record: Record,
        attempt: u64,
    ) -> Result<Reply, ReplicaError> {
        if let Err(refusal) = self.judge(now, &record) {
            return Ok(Reply::Refused(refusal));
        }
        let mut stored = self.load(now, &record.key)?;
        let taken = record.value.is_some()
            && stored
                .cell
                .record
                .as_ref()
                .is_some_and(|held| held.owner != record.owner);
        let repeated =
            stored.cell.record.as_ref() == Some(&record) || stored.cell.graves.contains(&record);
        let stale = !repeated
            && stored
                .cell
                .version_of(&record.owner)
                .is_some_and(|version| version >= record.version);
        let accepted = !taken && !stale && !self.withdrawn.contains(&attempt);
        if accepted {
            let key = record.key;
            if record.value.is_some() {
                if stored
                    .cell
                    .record
                    .as_ref()
                    .is_none_or(|held| held.owner != record.owner)
                {
                    (stored.since, stored.attempts) = (now, Vec::new());
                }
                // Up to one beyond the bound: with that one, a withdrawal sees that others may be
                // missing.
                if !stored.attempts.contains(&attempt) && stored.attempts.len() <= MAX_ATTEMPTS {
                    stored.attempts.push(attempt);
                }
            }
            stored.take_in(&key, Cell::of(record, false));
            stored.bringer.get_or_insert(from);
            if let Err(refusal) = self.admit(now, from, &key, &stored, true) {
                return Ok(Reply::Refused(refusal));
            }
            self.save(&key, &stored)?;
            stored.cell.record = None;
        }
        Ok(Reply::Written {
            accepted,
            cell: stored.cell,
        })
    }

    /// Checks that a cell may be charged, and if `paced`, that its member may begin a new key now.
    fn admit(
        &mut self,
        now: UnixTime,
        from: MemberId,
        key: &RingAddr,
        stored: &StoredCell,
        paced: bool,
    ) -> Result<(), Refusal> {
        let bytes = postcard::experimental::serialized_size(stored).unwrap_or(usize::MAX);
        self.accounts.admits(key, &charge(stored, self.me, bytes))?;
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
        let mut stored = self.load(now, &key)?;
        if stored.cell.settled.is_none()
            && stored.attempts.contains(&attempt)
            && stored.attempts.len() <= MAX_ATTEMPTS
        {
            stored.attempts.retain(|a| *a != attempt);
            if stored.attempts.is_empty() {
                stored.cell.record = None;
            }
            self.save(&key, &stored)?;
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
        let mut stored = before.clone();
        let (claim, settled) = (other.record.take(), other.settled.take());
        stored.take_in(&key, other);
        let contested = stored
            .cell
            .record
            .as_ref()
            .zip(claim.as_ref())
            .is_some_and(|(held, claim)| held.owner != claim.owner);
        if !contested {
            let claim = Cell {
                record: claim,
                settled,
                graves: Vec::new(),
            };
            stored.take_in(&key, claim);
        } else if settled.is_some() {
            // One member's claim is not enough: the other replicas are asked.
            self.claim(key);
        }
        let owner = |cell: &Cell| cell.record.as_ref().map(|r| r.owner);
        if owner(&stored.cell) != owner(&before.cell) {
            (stored.since, stored.attempts) = (now, Vec::new());
        }
        if stored.cell.settled > before.cell.settled {
            stored.attempts.clear();
        }
        if stored != before {
            stored.bringer.get_or_insert(from);
            if let Err(refusal) = self.admit(now, from, &key, &stored, false) {
                return Ok(Reply::Refused(refusal));
            }
            self.save(&key, &stored)?;
        }
        Ok(Reply::Holds(stored.cell))
    }

    /// The live records held here that `wanted` picks.
    ///
    /// # Errors
    /// [`StoreError`] if the disk failed.
    pub fn live(
        &self,
        now: UnixTime,
        wanted: impl Fn(&Record) -> bool,
    ) -> Result<Vec<Record>, StoreError> {
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let page = self.store.scan(after.as_ref(), PAGE)?;
            for (_, bytes) in &page {
                // `page`, which reads the same cells, logs the unreadable ones.
                let Ok(StoredCell { mut cell, .. }) = read(bytes) else {
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

    /// A key held here that another member claims for another owner.
    pub fn next_claim(&mut self) -> Option<RingAddr> {
        self.claims.pop_front()
    }

    /// Replaces another owner's record by what most replicas hold.
    ///
    /// # Errors
    /// [`StoreError`] if the disk failed.
    pub fn adopt(&mut self, now: UnixTime, key: RingAddr, cell: Cell) -> Result<(), StoreError> {
        let mut stored = self.load(now, &key)?;
        let owner = |cell: &Cell| cell.record.as_ref().map(|r| r.owner);
        if !cell.is_authentic(&key) || owner(&cell) == owner(&stored.cell) || cell.record.is_none()
        {
            return Ok(());
        }
        (stored.cell.record, stored.cell.settled) = (None, None);
        stored.take_in(&key, cell);
        (stored.since, stored.attempts) = (now, Vec::new());
        self.save(&key, &stored)
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

    fn load(&self, now: UnixTime, key: &RingAddr) -> Result<StoredCell, StoreError> {
        let mut stored = self
            .store
            .get(&key.0)?
            .map_or_else(StoredCell::default, |bytes| decode(key, &bytes));
        stored.cell.expire(now);
        Ok(stored)
    }

    fn save(&mut self, key: &RingAddr, stored: &StoredCell) -> Result<(), StoreError> {
        if stored.cell.is_empty() {
            self.drop_cell(key)?;
        } else {
            let bytes = postcard::to_allocvec(stored).expect("plain fields always serialize");
            self.accounts
                .set(*key, Some(charge(stored, self.me, bytes.len())));
            self.store.put(&key.0, bytes)?;
        }
        self.store.flush()
    }

    fn drop_cell(&mut self, key: &RingAddr) -> Result<(), StoreError> {
        self.accounts.set(*key, None);
        self.store.remove(&key.0)
    }

    /// Of up to `limit` stored cells after `after`, those that other replicas should hold as well:
    /// settled ones, graves, and attempts older than `attempt_seconds`, which their creator no
    /// longer withdraws. Expired cells are dropped from the store.
    ///
    /// # Errors
    /// [`StoreError`] if the disk failed.
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
            let mut stored = decode(&key, &bytes);
            stored.cell.expire(now);
            if stored.cell.is_empty() {
                self.drop_cell(&key)?;
            } else if stored.cell.settled.is_some()
                || stored.cell.record.is_none()
                || stored.since.plus(attempt_seconds) <= now
            {
                cells.push((key, stored.cell));
            }
        }
        Ok(Page { cells, last })
    }

    /// Drops the cell at `key` if it is still `cell`: other members hold it now.
    ///
    /// # Errors
    /// [`StoreError`] if the disk failed.
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

/// Some of a replica's cells, in the order of their keys.
pub struct Page {
    /// The cells with their keys.
    pub cells: Vec<(RingAddr, Cell)>,
    /// The key after which the next page begins, if there is one.
    pub last: Option<RingAddr>,
}

/// A stored cell. An unreadable one (a damaged store) counts as absent: the peers hold it.
fn decode(key: &RingAddr, bytes: &[u8]) -> StoredCell {
    read(bytes).unwrap_or_else(|e| {
        tracing::warn!(
            key = %key.short(),
            error = %p2pvm_overlay::chain(&e),
            "an unreadable record counts as absent"
        );
        StoredCell::default()
    })
}

fn read(bytes: &[u8]) -> Result<StoredCell, postcard::Error> {
    postcard::from_bytes(bytes).or_else(|e| match postcard::from_bytes::<UnchargedCell>(bytes) {
        Ok((cell, attempts, since)) => Ok(StoredCell {
            cell,
            attempts,
            since,
            bringer: None,
        }),
        Err(_) => Err(e),
    })
}

/// What a cell is charged to; one whose bringer is unknown, to this member.
fn charge(stored: &StoredCell, me: MemberId, bytes: usize) -> Charge {
    Charge {
        owner: stored.cell.record.as_ref().map(|r| r.owner),
        bringer: stored.bringer.unwrap_or(me),
        bytes,
    }
}
