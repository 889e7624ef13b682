//! The deciding halves of a write and a read: they hear the replicas' answers one by one and say
//! when the outcome is certain. One parallel round; no clock and no network in them.
//!
//! Why two creators never both win: a replica holds one owner at a time, and only gives up an
//! unsettled one when its creator withdraws, who from then on never claims that attempt. A create
//! takes [`sure`] of the replicas, four of five: so two claims would have three replicas in common,
//! of which one is honest as long as no more than two lie. To renew or change what one has, a
//! majority is enough.

use crate::{
    cell::{Cell, prefers},
    limits::Refusal,
    record::Record,
};
use p2pvm_overlay::UnixTime;

/// Replicas of a record in a network that has so many members.
const FULL_SET: usize = 5;

/// How many of `asked` replicas must agree that a key was free, or is: a Byzantine quorum for less
/// than a third of liars (Malkhi and Reiter 1998), which for five replicas is safe against two.
pub fn sure(asked: usize) -> usize {
    let liars = asked.saturating_sub(1) / 3;
    (asked + liars) / 2 + 1
}

/// How many of the replicas asked said what.
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
    /// How many must accept, and whether a single replica that knows another owner's settled record
    /// stands against it.
    needed: usize,
    creates: bool,
}

/// What came of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Written {
    /// A majority holds it.
    Won,
    /// Another owner has the key.
    Exists(Record),
    /// A replica has seen the same or this newer version of the owner.
    Stale(u64),
    /// Concurrent attempts share the replicas: withdraw, wait and try again. One of the others is
    /// enclosed.
    Contended(Record),
    /// So many replicas refused that too few are left, most of them for this reason.
    Refused(Refusal),
    /// Too few answered.
    NoQuorum {
        /// How many did.
        answered: usize,
        /// Of how many.
        asked: usize,
    },
}

impl Write {
    /// A write of `record` to `asked` replicas over what its owner has there.
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

    /// A write of `record` to `asked` replicas if nobody has the key.
    pub fn create(record: Record, asked: usize) -> Self {
        Self {
            needed: sure(asked),
            creates: true,
            ..Self::new(record, asked)
        }
    }

    /// A replica will not hold it.
    pub fn refused(&mut self, refusal: Refusal) {
        self.count.answered += 1;
        self.refused.push(refusal);
    }

    /// A replica's answer, or `None` if it will not come.
    pub fn heard(&mut self, answer: Option<(bool, Cell)>) {
        let Some((accepted, cell)) = answer else {
            self.count.failed += 1;
            return;
        };
        self.count.answered += 1;
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
    pub fn outcome(&self) -> Option<Written> {
        let Count {
            asked, answered, ..
        } = self.count;
        if let Some(version) = self.stale {
            return Some(Written::Stale(version));
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
                return Some(Written::Exists(owner.clone()));
            }
            if self.accepted >= self.needed {
                return Some(Written::Won);
            }
            // Another one's majority may still be withdrawn if its creator did not hear of it; then
            // the key is free later.
            if let Some((other, _)) = alive()
                .find(|(r, _)| alive().filter(|(o, _)| o.owner == r.owner).count() >= majority)
            {
                return Some(Written::Exists(other.clone()));
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
            (Some((other, _)), _) if answered >= majority => Written::Contended(other.clone()),
            (_, Some(refusal)) => Written::Refused(*refusal),
            _ => Written::NoQuorum { answered, asked },
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
                self.count.answered += 1;
                self.heard.push(cell);
            }
            None => self.count.failed += 1,
        }
    }

    /// What the replicas that answered hold together: settled records win over attempts, graves
    /// bury.
    pub fn merged(&self) -> Cell {
        // Graves first: a buried record must not drive out a live one before its grave is heard of.
        let mut merged = self.graves();
        for cell in &self.heard {
            merged.merge(cell.clone());
        }
        merged
    }

    /// The outcome, as soon as it is certain: the live record or none, or why neither can be said.
    pub fn outcome(&self, now: UnixTime) -> Option<Result<Option<Record>, Doubt>> {
        let Count {
            asked,
            answered,
            failed,
        } = self.count;
        let (majority, waiting) = (self.count.majority(), self.count.waiting());
        let too_few = Some(Err(Doubt::NoQuorum { answered, asked }));
        if answered + waiting < majority {
            return too_few;
        }
        let graves = self.graves();
        let live = || {
            self.heard
                .iter()
                .filter_map(|c| c.record.as_ref())
                .filter(|r| r.expires > now && !graves.buries(r))
        };
        let holding = |owner: &[u8; 32]| live().filter(|r| r.owner == *owner).count();
        let newest = |owner: &[u8; 32]| {
            live()
                .filter(|r| r.owner == *owner)
                .max_by_key(|r| r.version)
                .cloned()
        };
        if let Some(owner) = live()
            .map(|r| r.owner)
            .find(|owner| holding(owner) >= majority)
        {
            return Some(Ok(newest(&owner)));
        }
        // Nobody has a majority: enough must have been heard that an owner with one cannot have
        // been missed.
        if answered < sure(asked) {
            return if answered + waiting < sure(asked) {
                too_few
            } else {
                None
            };
        }
        // In a network that has yet to grow to a full set of replicas, a record may be with those
        // that were there before alone.
        let Some(first) = live().next() else {
            return (waiting == 0 || asked >= FULL_SET).then_some(Ok(None));
        };
        let could_win = |owner: &[u8; 32]| holding(owner) + waiting + failed >= majority;
        let is_settled = |owner: &[u8; 32]| {
            let said = self
                .heard
                .iter()
                .filter(|c| c.record.as_ref().is_some_and(|r| r.owner == *owner))
                .filter_map(|c| c.settled);
            said.max()
                .is_some_and(|version| !graves.buries_version(owner, version))
        };
        if live()
            .any(|r| r.owner != first.owner && (is_settled(&r.owner) || is_settled(&first.owner)))
        {
            return if waiting > 0 {
                None
            } else {
                Some(Err(Doubt::Disagreement))
            };
        }
        if is_settled(&first.owner) {
            return Some(Ok(newest(&first.owner)));
        }
        // Attempts only: the owner that may have a majority among those that did not answer.
        if waiting > 0 && live().any(|r| could_win(&r.owner)) {
            return None;
        }
        let possible = live()
            .filter(|r| could_win(&r.owner))
            .max_by_key(|r| holding(&r.owner));
        Some(Ok(possible.and_then(|r| newest(&r.owner))))
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

    /// Whether all live records heard of are one owner's.
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

/// Why a read has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// Too few replicas answered.
    NoQuorum {
        /// How many did.
        answered: usize,
        /// Of how many.
        asked: usize,
    },
    /// They hold different owners' records, none of them a majority's.
    Disagreement,
}
