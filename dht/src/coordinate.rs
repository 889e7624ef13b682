//! The deciding halves of a write and a read: they hear the replicas' answers one by one and say when the
//! outcome is certain. One parallel round, decided by a majority; no clock and no network in them.
//!
//! Why two creators never both win: a replica holds one owner at a time, and only gives up an unsettled
//! one when its creator withdraws, who from then on never claims that attempt. So two claims would need
//! two majorities without a common replica.

use crate::{
    cell::{Cell, prefers},
    record::Record,
};
use p2pvm_overlay::UnixTime;

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
    /// Concurrent attempts share the replicas: withdraw, wait and try again. One of the others is enclosed.
    Contended(Record),
    /// Too few answered.
    NoQuorum {
        /// How many did.
        answered: usize,
        /// Of how many.
        asked: usize,
    },
}

impl Write {
    /// A write of `record` to `asked` replicas.
    pub fn new(record: Record, asked: usize) -> Self {
        let count = Count { asked, ..Count::default() };
        Self { record, count, accepted: 0, held: Vec::new(), graves: Cell::default(), stale: None }
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
            self.stale = self.stale.max(cell.version_of(&self.record.owner).filter(|v| *v >= self.record.version));
            self.held.extend(cell.record.clone().filter(|r| r.owner != self.record.owner).map(|r| (r, cell.settled)));
        }
        self.graves.merge(Cell { graves: cell.graves, ..Cell::default() });
    }

    /// The outcome, as soon as it is certain.
    pub fn outcome(&self) -> Option<Written> {
        let Count { asked, answered, .. } = self.count;
        if let Some(version) = self.stale {
            return Some(Written::Stale(version));
        }
        let majority = self.count.majority();
        if answered >= majority {
            let alive = || self.held.iter().filter(|(record, _)| !self.graves.buries(record));
            let is_settled = |(r, s): &&(Record, Option<u64>)| s.is_some_and(|version| !self.graves.buries_version(&r.owner, version));
            let settled = alive().filter(is_settled).map(|(record, _)| record);
            if let Some(owner) = settled.reduce(|a, b| if prefers(&a.key, &a.owner, &b.owner) { a } else { b }) {
                return Some(Written::Exists(owner.clone()));
            }
            if self.accepted >= majority {
                return Some(Written::Won);
            }
            // Another one's majority may still be withdrawn if its creator did not hear of it; then the key is free later.
            if let Some((other, _)) = alive().find(|(r, _)| alive().filter(|(o, _)| o.owner == r.owner).count() >= majority) {
                return Some(Written::Exists(other.clone()));
            }
        }
        let hopeless = self.accepted + self.count.waiting() < majority;
        let may_tell_why = answered < majority && answered + self.count.waiting() >= majority;
        if !hopeless || may_tell_why {
            return None;
        }
        Some(match self.held.first() {
            Some((other, _)) if answered >= majority => Written::Contended(other.clone()),
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
        Self { count: Count { asked, ..Count::default() }, heard: Vec::new() }
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

    /// What the replicas that answered hold together: settled records win over attempts, graves bury.
    pub fn merged(&self) -> Cell {
        let mut merged = Cell::default();
        // Graves first: a buried record must not drive out a live one before its grave is heard of.
        for cell in &self.heard {
            merged.merge(Cell { graves: cell.graves.clone(), ..Cell::default() });
        }
        for cell in &self.heard {
            merged.merge(cell.clone());
        }
        merged
    }

    /// The outcome, as soon as it is certain: the live record, none, or (answered, asked) without a quorum.
    pub fn outcome(&self, now: UnixTime) -> Option<Result<Option<Record>, (usize, usize)>> {
        let Count { asked, answered, failed } = self.count;
        let majority = self.count.majority();
        if answered + self.count.waiting() < majority {
            return Some(Err((answered, asked)));
        }
        if answered < majority {
            return None;
        }
        let merged = self.merged();
        let live = |record: &&Record| record.expires > now && !merged.buries(record);
        if merged.settled.is_some() {
            return Some(Ok(merged.record.as_ref().filter(live).cloned()));
        }
        // Attempts only: the owner that has a majority, or may have one among those that did not answer.
        let attempts = || self.heard.iter().filter_map(|c| c.record.as_ref()).filter(live);
        let holding = |owner: &[u8; 32]| attempts().filter(|r| r.owner == *owner).count();
        let newest = |owner: &[u8; 32]| attempts().filter(|r| r.owner == *owner).max_by_key(|r| r.version).cloned();
        if let Some(winner) = attempts().find(|r| holding(&r.owner) >= majority) {
            return Some(Ok(newest(&winner.owner)));
        }
        if self.count.waiting() > 0 && attempts().any(|r| holding(&r.owner) + self.count.waiting() + failed >= majority) {
            return None;
        }
        let possible = attempts().filter(|r| holding(&r.owner) + failed >= majority).max_by_key(|r| holding(&r.owner));
        Some(Ok(possible.and_then(|r| newest(&r.owner))))
    }
}
