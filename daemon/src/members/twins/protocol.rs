//! Two nodes with one identity: how they notice, and which of them takes a new one.
//!
//! A state directory that was copied (a cloned disk, a template of a VM, a backup restored beside
//! the original) makes two daemons that prove the same key. They cannot call each other, as each
//! would call itself; but both are connected to the same third members, those nearest to their one
//! place on the ring. There each leaves a [`Statement`] and picks up the other's: the [`Board`].
//!
//! Each start of a daemon draws a random [`InstanceId`]. A statement says which instances its
//! signer has heard of. **Another instance that has heard of this one lives now**: the number is
//! new since this start, so whoever names it signed after it. No clock and no stored counter is
//! needed, and what a crashed daemon or an old backup left behind names nobody that lives.
//!
//! An instance gives way to one that is proved to live, that outranks it, and that has heard its
//! rank as it is now ([`Watch`]). Words older than the newest heard of an instance do not count.
//! Then never do all give way: were there a circle of instances each giving way to the next, each
//! would have signed its last word after having heard the next one's last, which is a circle in
//! time. With a daemon that crashes and starts anew meanwhile this takes that all use one board and
//! wait for each answer: who has seen the new instance there has seen the last word of the old one
//! too. So an instance uses the nearest member's board only.
//!
//! Protocol only: the module above sends, decides what giving way means, and does it.

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
/// Instances of one member that are kept apart; a template started more often settles in turns.
pub const MAX_INSTANCES: usize = 8;
/// Members whose statements a board keeps: a few hundred bytes each. It serves those near it on the
/// ring, a handful.
const MAX_MEMBERS: usize = 1024;
/// How often an instance tells its own.
pub const TELL_EVERY: Duration = Duration::from_secs(30);
/// A statement that was not told again within this is forgotten.
const KEPT_FOR: Duration = Duration::from_secs(100);

/// One start of a daemon: random.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct InstanceId(pub [u8; 16]);

impl InstanceId {
    /// A new one.
    pub fn random() -> Self {
        Self(rand::random())
    }
}

impl std::fmt::Display for InstanceId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0[..4]))
    }
}

/// What decides who keeps the identity: guests that run are not given up for a machine without any,
/// then the elder start counts. A wrong clock can make the wrong one keep it, and nothing worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rank {
    /// Guests run here.
    pub guests: bool,
    /// When the daemon started, by its own clock.
    pub started: UnixTime,
}

/// An instance's signed word.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statement {
    instance: InstanceId,
    /// Grows with every change.
    seq: u64,
    rank: Rank,
    /// Grows with every change of the rank.
    version: u64,
    /// The other instances of the member that this one has heard of, and the newest version of
    /// each.
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

    /// Whose word it is.
    pub fn instance(&self) -> InstanceId {
        self.instance
    }
}

/// Greater keeps the identity. No two instances are equal.
fn order(rank: Rank, instance: InstanceId) -> (bool, Reverse<UnixTime>, Reverse<InstanceId>) {
    (rank.guests, Reverse(rank.started), Reverse(instance))
}

/// What an instance has found out about another that lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// This instance has to give the identity up to that one.
    GiveWay(InstanceId),
    /// That one has to.
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
    /// The instance that starts now, of `member`.
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

    /// Whether guests run here now.
    pub fn set_guests(&mut self, guests: bool) {
        if self.rank.guests != guests {
            self.rank.guests = guests;
            self.version += 1;
            self.seq += 1;
        }
    }

    /// What this instance has to say. `keys` are the member's.
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

    /// Takes a statement that was found. `None` for one that changes nothing: its own, an old one,
    /// one that is not the member's, or one whose signer has not heard of this instance, of which
    /// nobody can say whether it lives.
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
            // It must have heard the rank that counts now, or it may be giving way to this one by
            // the rank of before.
            Some(version) if outranks => {
                (version == self.version).then_some(Verdict::GiveWay(other))
            }
            Some(_) => Some(Verdict::Keep(other)),
            None => None,
        }
    }

    /// How many other instances were heard of, living or not.
    pub fn heard_of(&self) -> usize {
        self.others.len()
    }
}

/// What instances of other members left here for each other.
#[derive(Default)]
pub struct Board {
    members: HashMap<MemberId, Vec<(Duration, Statement)>>,
}

impl Board {
    /// Takes a statement of `from`, which has proved that it is that member, and gives those of its
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
