//! How much of this host a member with a token for it takes: all its VMs here, and those that are
//! being made for it at this moment, so that concurrent requests take no more than requests one
//! after another.

use p2pvm_authority::Amounts;
use p2pvm_host::lock;
use p2pvm_overlay::MemberId;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
};

/// The VMs that are being made.
#[derive(Default)]
pub(crate) struct Shares(Mutex<Making>);

#[derive(Default)]
struct Making {
    next: u64,
    all: BTreeMap<u64, NewVm>,
}

struct NewVm {
    owner: MemberId,
    name: String,
    amounts: Amounts,
}

/// The room for a VM that is being made, until this is dropped.
pub(crate) struct Share {
    shares: Arc<Shares>,
    number: u64,
}

impl Shares {
    /// Takes room for a new VM, if its owner may have that much together with what `list` lists:
    /// its VMs here by their names.
    pub(crate) fn take<E>(
        self: &Arc<Self>,
        owner: MemberId,
        (name, amounts): (&str, Amounts),
        list: impl FnOnce() -> Vec<(String, Amounts)>,
        may: impl FnOnce(Amounts) -> Result<(), E>,
    ) -> Result<Arc<Share>, E> {
        let mut making = self.lock();
        // Under the lock: a VM is listed before its room is free, so one that is made at this
        // moment is in one of both.
        let has = list();
        let mut sum = has.iter().fold(amounts, |sum, (_, own)| sum.plus(*own));
        // One that is listed already while it is being made counts once, as what is listed: a
        // request for a name that is taken makes the VM of that name no smaller.
        let is_listed = |new: &&NewVm| has.iter().any(|(name, _)| *name == new.name);
        let of_owner = making.all.values().filter(|new| new.owner == owner);
        for new in of_owner.filter(|new| !is_listed(new)) {
            sum = sum.plus(new.amounts);
        }
        may(sum)?;
        let number = making.next;
        making.next += 1;
        let name = name.to_owned();
        making.all.insert(
            number,
            NewVm {
                owner,
                name,
                amounts,
            },
        );
        Ok(Arc::new(Share {
            shares: self.clone(),
            number,
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Making> {
        lock(&self.0)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.shares.lock().all.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mib(memory_mib: u64) -> Amounts {
        Amounts {
            cpus: Some(1),
            memory_mib: Some(memory_mib),
            ..Amounts::default()
        }
    }

    #[test]
    fn a_members_vms_share_its_token_also_while_they_are_made() {
        let (shares, owner) = (Arc::new(Shares::default()), MemberId([3; 32]));
        let take = |name: &str, has: &[&str]| {
            let has = has.iter().map(|name| ((*name).to_owned(), mib(400)));
            let has = || has.collect();
            let may = |sum: Amounts| (sum.memory_mib <= Some(1000)).then_some(()).ok_or(sum);
            shares.take(owner, (name, mib(400)), has, may)
        };
        let first = take("a", &[]).map_err(drop).unwrap();
        let second = take("b", &["a"]).map_err(drop).unwrap();
        assert_eq!(
            take("c", &["a"]).err(),
            Some(mib(1200).plus(mib(0)).plus(mib(0)))
        );
        drop(second);
        assert!(take("c", &["a"]).is_ok(), "what was not made leaves room");
        drop(first);
        assert!(take("c", &["a", "b"]).is_err());
        let other = MemberId([4; 32]);
        let free = shares.take(other, ("d", mib(900)), Vec::new, |_| Ok::<_, ()>(()));
        assert!(free.is_ok(), "each member by itself");
    }

    #[test]
    fn a_second_request_for_a_taken_name_makes_no_room() {
        let (shares, owner) = (Arc::new(Shares::default()), MemberId([3; 32]));
        let has = || {
            assert!(
                shares.0.try_lock().is_err(),
                "what is made meanwhile is counted"
            );
            vec![("a".to_owned(), mib(900))]
        };
        let take = |name: &str, size: u64| {
            let may = |sum: Amounts| (sum.memory_mib <= Some(1000)).then_some(()).ok_or(sum);
            shares.take(owner, (name, mib(size)), has, may)
        };
        let again = take("a", 10).map_err(drop).unwrap();
        assert!(take("b", 900).is_err());
        drop(again);
        assert!(take("b", 100).is_ok());
    }
}
