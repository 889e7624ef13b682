//! The decisions of a write and a read: each takes the replicas' answers to one parallel round, one
//! by one, and gives the outcome as soon as it is certain. There is no clock and no network here.
//!
//! Why two creators never both win: a replica holds one owner at a time, and only gives up an
//! unsettled one when its creator withdraws; the creator then never claims that attempt again. A
//! create takes [`sure`] of the replicas, four of five: two claims would have three replicas in
//! common, of which one is honest as long as no more than two lie. An owner renews or changes its
//! record with a majority.

use crate::{
    cell::{Cell, prefers},
    limits::Refusal,
    record::{Record, RecordError},
};
use p2pvm_overlay::UnixTime;

/// How many replicas a record has in a network with enough members.
const FULL_SET: usize = 5;

/// How many of `asked` replicas must agree that a key is, or was, free: a Byzantine quorum against
/// fewer liars than a third (Malkhi and Reiter 1998). For five replicas it is safe against two.
pub fn sure(asked: usize) -> usize {
    let liars = asked.saturating_sub(1) / 3;
    (asked + liars) / 2 + 1
}

/// How many of the replicas answered and failed so far.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    asked: usize,
    answered: usize,
    failed: usize,
}

impl Count {
    fn majority(&self) -> usize {
        self.asked / 2 + 1
    }

    fn add_answer(&mut self) {
        assert!(self.waiting() > 0, "a replica answers once");
        self.answered += 1;
    }

    fn add_failure(&mut self) {
        assert!(self.waiting() > 0, "a replica fails once");
        self.failed += 1;
    }

    fn waiting(&self) -> usize {
        self.asked - self.answered - self.failed
    }
}

/// A write in progress.
#[derive(Debug)]
pub struct Write {
    record: Record,
    count: Count,
    accepted: usize,
    held: Vec<(Record, Option<u64>)>,
    graves: Cell,
    stale: Option<u64>,
    refused: Vec<Refusal>,
    /// How many replicas must accept.
    needed: usize,
    /// A create also fails if one replica holds another owner's settled record.
    creates: bool,
}

/// How a write ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriteOutcome {
    /// Enough replicas hold it.
    Won,
    /// Another owner has the key.
    Exists(Record),
    /// A replica has seen the same or this newer version of the owner.
    Stale(u64),
    /// Concurrent attempts share the replicas: the caller withdraws, waits and tries again. One of
    /// the other records is enclosed.
    Contended(Record),
    /// Too many replicas refused, most of them for this reason.
    Refused(Refusal),
    /// Too few answered.
    NoQuorum {
        /// How many did.
        answered: usize,
        /// Of how many.
        asked: usize,
    },
}

impl WriteOutcome {
    /// The record of another owner, if the write may be tried again.
    ///
    /// # Errors
    /// The final failure of a write that was not won.
    pub(crate) fn into_contender(self) -> Result<Record, RecordError> {
        match self {
            Self::Contended(other) => Ok(other),
            Self::Exists(other) => Err(RecordError::Exists(Box::new(other))),
            Self::Stale(newest) => Err(RecordError::Stale(newest)),
            Self::Refused(refusal) => Err(RecordError::Refused(refusal)),
            Self::NoQuorum { answered, asked } => Err(RecordError::NoQuorum { answered, asked }),
            Self::Won => unreachable!("a write that was won has not failed"),
        }
    }
}

impl Write {
    /// A write of `record` to `asked` replicas that may hold an older version of it.
    pub fn new(record: Record, asked: usize) -> Self {
        let count = Count {
            asked,
            ..Count::default()
        };
        let (held, refused) = (Vec::new(), Vec::new());
        Self {
            record,
            count,
            accepted: 0,
            held,
            graves: Cell::default(),
            stale: None,
            refused,
            needed: count.majority(),
            creates: false,
        }
    }

    /// A write of `record` to `asked` replicas, if the key is free.
    pub fn create(record: Record, asked: usize) -> Self {
        Self {
            needed: sure(asked),
            creates: true,
            ..Self::new(record, asked)
        }
    }

    /// A replica refused the record.
    pub fn refused(&mut self, refusal: Refusal) {
        self.count.add_answer();
        self.refused.push(refusal);
    }

    /// A replica's answer, or `None` if it will not come.
    pub fn heard(&mut self, answer: Option<(bool, Cell)>) {
        let Some((accepted, cell)) = answer else {
            self.count.add_failure();
            return;
        };
        self.count.add_answer();
        self.accepted += usize::from(accepted);
        if !accepted {
            self.stale = self.stale.max(
                cell.version_of(&self.record.owner)
                    .filter(|v| *v >= self.record.version),
            );
            self.held.extend(
                cell.record
                    .clone()
                    .filter(|r| r.owner != self.record.owner)
                    .map(|r| (r, cell.settled)),
            );
        }
        self.graves.merge(Cell {
            graves: cell.graves,
            ..Cell::default()
        });
    }

    /// The outcome, as soon as it is certain.
    pub fn outcome(&self) -> Option<WriteOutcome> {
        let Count {
            asked, answered, ..
        } = self.count;
        if let Some(version) = self.stale {
            return Some(WriteOutcome::Stale(version));
        }
        let majority = self.count.majority();
        let hopeless = self.accepted + self.count.waiting() < self.needed;
        let alive = || {
            self.held
                .iter()
                .filter(|(record, _)| !self.graves.buries(record))
        };
        if answered >= majority {
            let is_settled = |(r, s): &&(Record, Option<u64>)| {
                s.is_some_and(|version| !self.graves.buries_version(&r.owner, version))
            };
            let settled = alive().filter(is_settled).map(|(record, _)| record);
            let settled = settled.reduce(|a, b| {
                if prefers(&a.key, &a.owner, &b.owner) {
                    a
                } else {
                    b
                }
            });
            if let Some(owner) = settled.filter(|_| self.creates || hopeless) {
                return Some(WriteOutcome::Exists(owner.clone()));
            }
            if self.accepted >= self.needed {
                return Some(WriteOutcome::Won);
            }
            // Another owner's majority may still be withdrawn, if its creator did not get the
            // answers; then the key becomes free later.
            if let Some((other, _)) = alive()
                .find(|(r, _)| alive().filter(|(o, _)| o.owner == r.owner).count() >= majority)
            {
                return Some(WriteOutcome::Exists(other.clone()));
            }
        }
        let may_tell_why = answered < majority && answered + self.count.waiting() >= majority;
        if !hopeless || may_tell_why {
            return None;
        }
        let most = self
            .refused
            .iter()
            .max_by_key(|r| self.refused.iter().filter(|o| o == r).count());
        Some(match (self.held.first(), most) {
            (Some((other, _)), _) if answered >= majority => WriteOutcome::Contended(other.clone()),
            (_, Some(refusal)) => WriteOutcome::Refused(*refusal),
            _ => WriteOutcome::NoQuorum { answered, asked },
        })
    }
}

/// A read in progress.
#[derive(Debug)]
pub struct Read {
    count: Count,
    heard: Vec<Cell>,
}

impl Read {
    /// A read from `asked` replicas.
    pub fn new(asked: usize) -> Self {
        Self {
            count: Count {
                asked,
                ..Count::default()
            },
            heard: Vec::new(),
        }
    }

    /// A replica's answer, or `None` if it will not come.
    pub fn heard(&mut self, answer: Option<Cell>) {
        match answer {
            Some(cell) => {
                self.count.add_answer();
                self.heard.push(cell);
            }
            None => self.count.add_failure(),
        }
    }

    /// What the replicas that answered hold together: settled records win over attempts, graves
    /// bury.
    pub fn merged(&self) -> Cell {
        // Graves first: a buried record must not displace a live one before its grave is merged.
        let mut merged = self.graves();
        for cell in &self.heard {
            merged.merge(cell.clone());
        }
        merged
    }

    /// The outcome, as soon as it is certain: the live record, none, or why neither is certain.
    pub fn outcome(&self, now: UnixTime) -> Option<Result<Option<Record>, ReadFailure>> {
        let Count {
            asked, answered, ..
        } = self.count;
        let (majority, waiting) = (self.count.majority(), self.count.waiting());
        let too_few = Some(Err(ReadFailure::NoQuorum { answered, asked }));
        if answered + waiting < majority {
            return too_few;
        }
        let live = self.live(now);
        let winner = |r: &&Record| live.holding(&r.owner) >= majority;
        if let Some(record) = live.records.iter().copied().find(winner) {
            return Some(Ok(live.newest(&record.owner)));
        }
        // No owner has a majority: enough replicas must have answered that an owner with one cannot
        // have been missed.
        if answered < sure(asked) {
            return if answered + waiting < sure(asked) {
                too_few
            } else {
                None
            };
        }
        self.without_majority(&live)
    }

    /// The outcome once it is certain that no owner has a majority among the answers.
    fn without_majority(
        &self,
        live: &LiveRecords<'_>,
    ) -> Option<Result<Option<Record>, ReadFailure>> {
        let Count { asked, failed, .. } = self.count;
        let (majority, waiting) = (self.count.majority(), self.count.waiting());
        // In a network that has yet to grow to a full set of replicas, only the members that were
        // there before may hold a record.
        let Some(first) = live.records.first() else {
            return (waiting == 0 || asked >= FULL_SET).then_some(Ok(None));
        };
        let is_first_settled = self.is_settled(live, &first.owner);
        let is_contested = live.records.iter().any(|r| {
            r.owner != first.owner && (is_first_settled || self.is_settled(live, &r.owner))
        });
        if is_contested {
            return if waiting > 0 {
                None
            } else {
                Some(Err(ReadFailure::Disagreement))
            };
        }
        if is_first_settled {
            return Some(Ok(live.newest(&first.owner)));
        }
        // Attempts only: the owner that may have a majority among the replicas that did not answer.
        let could_win = |r: &&&Record| live.holding(&r.owner) + waiting + failed >= majority;
        let possible = live.records.iter().filter(could_win);
        let possible = possible.max_by_key(|r| live.holding(&r.owner));
        if waiting > 0 && possible.is_some() {
            return None;
        }
        Some(Ok(possible.and_then(|r| live.newest(&r.owner))))
    }

    /// The records among the answers that are neither buried nor expired.
    fn live(&self, now: UnixTime) -> LiveRecords<'_> {
        let graves = self.graves();
        let records = self
            .heard
            .iter()
            .filter_map(|c| c.record.as_ref())
            .filter(|r| r.expires > now && !graves.buries(r))
            .collect();
        LiveRecords { records, graves }
    }

    /// Whether a replica answered that a version of `owner`, one that is not buried, has won the
    /// key.
    fn is_settled(&self, live: &LiveRecords<'_>, owner: &[u8; 32]) -> bool {
        let versions = self
            .heard
            .iter()
            .filter(|c| c.record.as_ref().is_some_and(|r| r.owner == *owner))
            .filter_map(|c| c.settled);
        versions
            .max()
            .is_some_and(|version| !live.graves.buries_version(owner, version))
    }

    fn graves(&self) -> Cell {
        let mut graves = Cell::default();
        self.heard.iter().for_each(|cell| {
            graves.merge(Cell {
                graves: cell.graves.clone(),
                ..Cell::default()
            })
        });
        graves
    }

    /// Whether all records among the answers that are not buried belong to one owner.
    pub fn is_of_one_owner(&self) -> bool {
        let graves = self.graves();
        let mut owners = self
            .heard
            .iter()
            .filter_map(|c| c.record.as_ref())
            .filter(|r| !graves.buries(r))
            .map(|r| r.owner);
        owners
            .next()
            .is_none_or(|first| owners.all(|owner| owner == first))
    }
}

/// The live records among the answers to a read, one a replica.
struct LiveRecords<'a> {
    records: Vec<&'a Record>,
    graves: Cell,
}

impl LiveRecords<'_> {
    /// How many replicas hold a record of `owner`.
    fn holding(&self, owner: &[u8; 32]) -> usize {
        self.records.iter().filter(|r| r.owner == *owner).count()
    }

    fn newest(&self, owner: &[u8; 32]) -> Option<Record> {
        let of_owner = self.records.iter().filter(|r| r.owner == *owner);
        of_owner.max_by_key(|r| r.version).map(|r| (*r).clone())
    }
}

/// Why a read has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadFailure {
    /// Too few replicas answered.
    NoQuorum {
        /// How many did.
        answered: usize,
        /// Of how many.
        asked: usize,
    },
    /// The replicas hold records of different owners, and none has a majority.
    Disagreement,
}
