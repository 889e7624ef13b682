//! Two nodes with one identity: how they detect each other, and which of them takes a new identity.
//!
//! A copied state directory (a cloned disk, a VM template, a backup restored beside the original)
//! makes two daemons that prove the same key. They cannot call each other, because each would call
//! itself. But both are connected to the same third members, those nearest to their common place on
//! the ring. There each leaves a [`Statement`] and collects the other's: the [`Board`].
//!
//! Each start of a daemon draws a random [`InstanceId`]. A statement lists the instances that its
//! signer has heard of. **An instance whose statement lists this one lives now**: the id is new
//! since this start, so the statement was signed after it. This needs no clock and no stored
//! counter; the statements of a crashed daemon or of an old backup list no living instance.
//!
//! An instance gives way to another that is proved to live, that outranks it, and whose statement
//! lists its present rank ([`Watch`]). A statement older than the newest one known of the same
//! instance does not count. **The rank of an instance that has heard of another one only rises**: a
//! statement that lists nobody makes nobody give way, so only the ranks after that count. So never
//! do all instances give way: in a circle of instances that each give way to the next, each would
//! have a greater rank at last than the one before it, round to the first. If a daemon crashes and
//! restarts meanwhile, this holds only if all instances use one board and wait for each answer: an
//! instance that has read the new start's statement there has also read the last one of the old
//! start. So an instance uses the nearest member's board only.
//!
//! Protocol only: the parent module sends, and carries a verdict out.

use p2pvm_overlay::{
    MemberId, UnixTime,
    identity::{KeyPair, Signature, verify},
};
use serde::{Deserialize, Serialize};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    time::Duration,
};

const DOMAIN: &str = "p2pvm instance of a member 1";
/// How many instances of one member are told apart. Reason: a template started more often is
/// settled in several rounds.
pub const MAX_INSTANCES: usize = 8;
/// How many members' statements a board keeps, a few hundred bytes each. Reason: it serves the
/// handful of members near it on the ring.
const MAX_MEMBERS: usize = 1024;
/// How often an instance sends its statement.
pub const TELL_EVERY: Duration = Duration::from_secs(30);
/// How long a board keeps a statement that is not sent again.
const KEPT_FOR: Duration = Duration::from_secs(100);

/// A random number that identifies one start of a daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct InstanceId(pub [u8; 16]);

impl InstanceId {
    pub fn random() -> Self {
        Self(rand::random())
    }
}

impl std::fmt::Display for InstanceId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0[..4]))
    }
}

/// Decides which instance keeps the identity: one with guests that run, or have run since it heard
/// of another instance, before one without; then the one that started earlier. Reason: running
/// guests are not given up for a machine without any. A wrong clock can only make the wrong one
/// keep it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rank {
    /// Whether the instance runs guests, or has run some since it heard of another.
    pub guests: bool,
    /// When the daemon started, by its own clock.
    pub started: UnixTime,
}

/// What an instance says of itself, signed with the member's key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statement {
    instance: InstanceId,
    /// Incremented with every change.
    seq: u64,
    rank: Rank,
    /// Incremented with every change of the rank.
    version: u64,
    /// The other instances of the member that this one has heard of, each with the newest version
    /// known.
    heard: Vec<(InstanceId, u64)>,
    signature: Signature,
}

impl Statement {
    fn bytes(
        instance: InstanceId,
        seq: u64,
        rank: Rank,
        version: u64,
        heard: &[(InstanceId, u64)],
    ) -> Vec<u8> {
        postcard::to_stdvec(&(instance, seq, rank, version, heard))
            .expect("plain data in memory always encodes")
    }

    /// Whether `member` signed it.
    pub fn is_of(&self, member: MemberId) -> bool {
        let signed = Self::bytes(
            self.instance,
            self.seq,
            self.rank,
            self.version,
            &self.heard,
        );
        self.heard.len() <= MAX_INSTANCES && verify(&member.0, DOMAIN, &signed, &self.signature)
    }

    /// The instance that made the statement.
    pub fn instance(&self) -> InstanceId {
        self.instance
    }
}

/// The sort key of an instance: the greatest keeps the identity. No two instances are equal.
fn order(rank: Rank, instance: InstanceId) -> (bool, Reverse<UnixTime>, Reverse<InstanceId>) {
    (rank.guests, Reverse(rank.started), Reverse(instance))
}

/// What an instance decides about another that lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// This instance gives the identity up to that one.
    GiveWay(InstanceId),
    /// That one gives it up.
    Keep(InstanceId),
}

/// One instance's view of the others.
pub struct Watch {
    member: MemberId,
    instance: InstanceId,
    rank: Rank,
    version: u64,
    seq: u64,
    others: BTreeMap<InstanceId, Statement>,
}

impl Watch {
    /// The view of the instance of `member` that starts now.
    pub fn new(member: MemberId, instance: InstanceId, rank: Rank) -> Self {
        Self {
            member,
            instance,
            rank,
            version: 1,
            seq: 1,
            others: BTreeMap::new(),
        }
    }

    /// Sets whether guests run here. Beside other instances guests that have run count as running:
    /// the rank may not fall, or a circle of instances could give way to each other.
    pub fn set_guests(&mut self, guests: bool) {
        let may = guests || self.others.is_empty();
        if self.rank.guests != guests && may {
            self.rank.guests = guests;
            self.version += 1;
            self.seq += 1;
        }
    }

    /// The statement to leave on the board now. `keys` are the member's.
    pub fn statement(&self, keys: &KeyPair) -> Statement {
        let heard: Vec<_> = self
            .others
            .values()
            .map(|other| (other.instance, other.version))
            .collect();
        let signed = Statement::bytes(self.instance, self.seq, self.rank, self.version, &heard);
        let signature = keys.sign(DOMAIN, &signed);
        Statement {
            instance: self.instance,
            seq: self.seq,
            rank: self.rank,
            version: self.version,
            heard,
            signature,
        }
    }

    /// Takes a statement from the board. `None` if nothing follows from it: it is this instance's
    /// own, an old one or another member's, or it does not list this instance, so that its signer
    /// may no longer live.
    pub fn handle(&mut self, statement: Statement) -> Option<Verdict> {
        let other = statement.instance;
        if other == self.instance || !statement.is_of(self.member) {
            return None;
        }
        match self.others.get(&other) {
            Some(known) if known.seq >= statement.seq => return None,
            Some(known) if known.version == statement.version => {}
            None if self.others.len() >= MAX_INSTANCES => return None,
            _ => self.seq += 1,
        }
        let heard = statement
            .heard
            .iter()
            .find(|(instance, _)| *instance == self.instance)
            .map(|(_, version)| *version);
        let outranks = order(statement.rank, other) > order(self.rank, self.instance);
        self.others.insert(other, statement);
        match heard {
            // It must list the present rank, or its signer may be giving way to this instance
            // because of the previous rank.
            Some(version) if outranks => {
                (version == self.version).then_some(Verdict::GiveWay(other))
            }
            Some(_) => Some(Verdict::Keep(other)),
            None => None,
        }
    }

    /// How many other instances are known, living or not.
    pub fn heard_of(&self) -> usize {
        self.others.len()
    }
}

/// The statements that instances of other members left here for each other.
#[derive(Default)]
pub struct Board {
    members: HashMap<MemberId, Vec<(Duration, Statement)>>,
}

impl Board {
    /// Takes a statement of `from`, which has proved to be that member, and returns those of its
    /// other instances.
    pub fn exchange(
        &mut self,
        now: Duration,
        from: MemberId,
        statement: Statement,
    ) -> Vec<Statement> {
        if !statement.is_of(from) {
            return Vec::new();
        }
        let fresh = |at: Duration| now.saturating_sub(at) < KEPT_FOR;
        if !self.members.contains_key(&from) && self.members.len() >= MAX_MEMBERS {
            self.members
                .retain(|_, known| known.iter().any(|(at, _)| fresh(*at)));
            if self.members.len() >= MAX_MEMBERS {
                return Vec::new();
            }
        }
        let known = self.members.entry(from).or_default();
        known.retain(|(at, _)| fresh(*at));
        match known
            .iter_mut()
            .find(|(_, old)| old.instance == statement.instance)
        {
            Some(place) if place.1.seq <= statement.seq => *place = (now, statement.clone()),
            Some(_) => {}
            None => {
                if known.len() >= MAX_INSTANCES {
                    known.remove(0);
                }
                known.push((now, statement.clone()));
            }
        }
        known
            .iter()
            .map(|(_, other)| other)
            .filter(|other| other.instance != statement.instance)
            .cloned()
            .collect()
    }
}

#[cfg(test)]
#[path = "protocol_tests.rs"]
mod tests;
