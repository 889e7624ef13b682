//! How much a replica keeps for one owner, for one member and for all, and how fast a member may
//! begin new keys: a flood uses up the share of the member that makes it, not the others'.
//!
//! Every cell is charged to the owner of its record and to the member that first brought it. A cell
//! that does not grow is never refused for a limit; every refusal gives its reason ([`Refusal`]).

use p2pvm_overlay::{MemberId, RingAddr, UnixTime};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// How many seconds an attempt is held before it counts as its creator's record.
/// Reason: a withdrawal would have come by then.
pub(crate) const ATTEMPT_SECONDS: u64 = 120;

/// Why a replica does not hold a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// The signature, the key or the form is wrong.
    #[error("it is not signed by its owner")]
    NotAuthentic,
    /// It has expired by the replica's clock.
    #[error("it has expired by the replica's clock: compare the clocks")]
    Expired,
    /// It lasts longer than replicas keep records, or the writer's clock is far ahead.
    #[error("it expires too far in the future: compare the clocks, or ask for less time")]
    TooLong,
    /// The value is larger than a record may be.
    #[error("its value is too large")]
    TooLarge,
    /// The owner has reached its number of records or bytes.
    #[error("its owner has as many records as one owner may have")]
    OwnerLimit,
    /// The member has brought its number of records or bytes.
    #[error("this member has written as many records as one member may")]
    MemberLimit,
    /// The member begins new records too fast.
    #[error("this member makes new records faster than one member may: try again later")]
    TooFast,
    /// The replica is full.
    #[error("the replica is full")]
    Full,
}

/// The bounds of one replica.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Records of one owner: a member or VM has about four.
    pub owner_records: usize,
    /// Bytes of one owner.
    pub owner_bytes: usize,
    /// Records that one member may have brought: a quarter of all.
    pub member_records: usize,
    /// Bytes that one member may have brought.
    pub member_bytes: usize,
    /// All records.
    pub records: usize,
    /// All bytes.
    pub bytes: usize,
    /// New keys that a member may write at once.
    pub burst: u32,
    /// New keys that a member may write in each second after that.
    pub per_second: u32,
    /// The longest that a record may last, in seconds: the longest invite's slots and VM
    /// definitions fit.
    pub ttl_seconds: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            owner_records: 256,
            owner_bytes: 1 << 20,
            member_records: 16_384,
            member_bytes: 32 << 20,
            records: 65_536,
            bytes: 128 << 20,
            burst: 512,
            per_second: 8,
            ttl_seconds: 2 * 366 * 24 * 3600,
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Usage {
    records: usize,
    bytes: usize,
}

impl Usage {
    fn add(&mut self, bytes: usize) {
        self.records += 1;
        self.bytes += bytes;
    }

    fn remove(&mut self, bytes: usize) {
        assert!(
            self.records > 0 && self.bytes >= bytes,
            "a cell is charged once before it is credited"
        );
        self.records -= 1;
        self.bytes -= bytes;
    }
}

/// The owner and the member that a cell is charged to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Charge {
    pub(crate) owner: Option<[u8; 32]>,
    pub(crate) bringer: MemberId,
    pub(crate) bytes: usize,
}

/// How many writers' paces are remembered.
/// Reason: bounds memory; a writer that has all its tokens back is forgotten without loss.
const MAX_PACES: usize = 4096;

/// What each cell of one replica is charged to.
#[derive(Debug, Default)]
pub(crate) struct Accounts {
    limits: Limits,
    cells: HashMap<RingAddr, Charge>,
    owners: HashMap<[u8; 32], Usage>,
    members: HashMap<MemberId, Usage>,
    all: Usage,
    /// Tokens left and when they were counted.
    paces: HashMap<MemberId, (u32, UnixTime)>,
}

impl Accounts {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            ..Self::default()
        }
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Replaces what a cell is charged; `None` frees it.
    pub(crate) fn set(&mut self, key: RingAddr, charge: Option<Charge>) {
        if let Some(old) = self.cells.remove(&key) {
            self.all.remove(old.bytes);
            if let Some(owner) = old.owner {
                credit(&mut self.owners, owner, old.bytes);
            }
            credit(&mut self.members, old.bringer, old.bytes);
        }
        if let Some(new) = charge {
            self.all.add(new.bytes);
            if let Some(owner) = new.owner {
                self.owners.entry(owner).or_default().add(new.bytes);
            }
            self.members.entry(new.bringer).or_default().add(new.bytes);
            self.cells.insert(key, new);
        }
    }

    /// Whether there is room for this charge. A cell that does not grow is always admitted.
    pub(crate) fn admits(&self, key: &RingAddr, new: &Charge) -> Result<(), Refusal> {
        let old = self.cells.get(key);
        let fits = |usage: Option<&Usage>, was: Option<&Charge>, records: usize, bytes: usize| {
            let usage = usage.copied().unwrap_or_default();
            let before = was.map_or(0, |c| c.bytes);
            let grows = was.is_none() || new.bytes > before;
            !grows
                || (usage.records + usize::from(was.is_none()) <= records
                    && usage.bytes + new.bytes <= bytes + before)
        };
        let limits = &self.limits;
        if let Some(owner) = &new.owner
            && !fits(
                self.owners.get(owner),
                old.filter(|c| c.owner == new.owner),
                limits.owner_records,
                limits.owner_bytes,
            )
        {
            return Err(Refusal::OwnerLimit);
        }
        if !fits(
            self.members.get(&new.bringer),
            old.filter(|c| c.bringer == new.bringer),
            limits.member_records,
            limits.member_bytes,
        ) {
            return Err(Refusal::MemberLimit);
        }
        if fits(Some(&self.all), old, limits.records, limits.bytes) {
            Ok(())
        } else {
            Err(Refusal::Full)
        }
    }

    /// Takes a new key's token from a member (a token bucket in whole seconds).
    pub(crate) fn pace(&mut self, now: UnixTime, by: MemberId) -> Result<(), Refusal> {
        let Limits {
            burst, per_second, ..
        } = self.limits;
        let tokens = |(left, at): (u32, UnixTime)| {
            let gained = now
                .0
                .saturating_sub(at.0)
                .saturating_mul(u64::from(per_second));
            u64::from(left).saturating_add(gained).min(u64::from(burst)) as u32
        };
        if self.paces.len() >= MAX_PACES {
            self.paces.retain(|_, pace| tokens(*pace) < burst);
        }
        let left = self.paces.get(&by).map_or(burst, |pace| tokens(*pace));
        if left == 0 || (self.paces.len() >= MAX_PACES && !self.paces.contains_key(&by)) {
            return Err(Refusal::TooFast);
        }
        self.paces.insert(by, (left - 1, now));
        Ok(())
    }

    pub(crate) fn holds(&self, key: &RingAddr) -> bool {
        self.cells.contains_key(key)
    }
}

fn credit<K: std::hash::Hash + Eq>(usages: &mut HashMap<K, Usage>, account: K, bytes: usize) {
    if let std::collections::hash_map::Entry::Occupied(mut entry) = usages.entry(account) {
        entry.get_mut().remove(bytes);
        if entry.get().records == 0 {
            entry.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        owner_records: 2,
        owner_bytes: 100,
        member_records: 3,
        member_bytes: 1000,
        records: 4,
        bytes: 5000,
        burst: 2,
        per_second: 1,
        ttl_seconds: 60,
    };

    fn charge(owner: u8, by: u8, bytes: usize) -> Charge {
        Charge {
            owner: Some([owner; 32]),
            bringer: MemberId([by; 32]),
            bytes,
        }
    }

    #[test]
    fn each_limit_has_its_reason_and_frees_what_is_given_back() {
        let mut accounts = Accounts::new(LIMITS);
        let key = |n: u8| RingAddr([n; 32]);
        for n in 0..2 {
            assert_eq!(accounts.admits(&key(n), &charge(1, 1, 40)), Ok(()));
            accounts.set(key(n), Some(charge(1, 1, 40)));
        }
        assert_eq!(
            accounts.admits(&key(2), &charge(1, 1, 1)),
            Err(Refusal::OwnerLimit)
        );
        assert_eq!(
            accounts.admits(&key(1), &charge(1, 1, 61)),
            Err(Refusal::OwnerLimit)
        );
        assert_eq!(accounts.admits(&key(1), &charge(1, 1, 60)), Ok(()));
        assert_eq!(
            accounts.admits(&key(1), &charge(1, 1, 40)),
            Ok(()),
            "a renewal"
        );
        accounts.set(key(2), Some(charge(2, 1, 10)));
        assert_eq!(
            accounts.admits(&key(3), &charge(3, 1, 10)),
            Err(Refusal::MemberLimit)
        );
        accounts.set(key(3), Some(charge(3, 2, 10)));
        assert_eq!(
            accounts.admits(&key(4), &charge(4, 3, 10)),
            Err(Refusal::Full)
        );
        accounts.set(key(0), None);
        assert_eq!(accounts.admits(&key(4), &charge(1, 3, 10)), Ok(()));
        (0..5).for_each(|n| accounts.set(key(n), None));
        assert!(
            accounts.owners.is_empty() && accounts.members.is_empty() && accounts.all.bytes == 0
        );
    }

    #[test]
    fn a_member_that_floods_waits_and_the_others_do_not() {
        let mut accounts = Accounts::new(LIMITS);
        let (flood, other) = (MemberId([1; 32]), MemberId([2; 32]));
        assert_eq!(
            [(); 3].map(|()| accounts.pace(UnixTime(100), flood)),
            [Ok(()), Ok(()), Err(Refusal::TooFast)]
        );
        assert_eq!(accounts.pace(UnixTime(100), other), Ok(()));
        assert_eq!(accounts.pace(UnixTime(101), flood), Ok(()));
        assert_eq!(accounts.pace(UnixTime(101), flood), Err(Refusal::TooFast));
        assert_eq!(
            [(); 3].map(|()| accounts.pace(UnixTime(900), flood)),
            [Ok(()), Ok(()), Err(Refusal::TooFast)]
        );
    }
}
