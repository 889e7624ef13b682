//! How many VMs may be on their way here: each has a QEMU that waits before the VM's voters are
//! asked.

use crate::{Error, host::lock};
use p2pvm_overlay::MemberId;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

/// How many VMs one member may be bringing at a time. Reason: a drain brings two.
const OF_ONE: usize = 8;
/// How many all members together may be bringing. Reason: three members at their limit.
const OF_ALL: usize = 24;

/// How many VMs each member is bringing.
#[derive(Clone, Default)]
pub(super) struct Places(Arc<Mutex<BTreeMap<MemberId, usize>>>);

/// The place of one VM that is on its way; free when dropped.
pub(super) struct Place {
    places: Places,
    from: MemberId,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = lock(&self.places.0);
        if let Some(count) = taken.get_mut(&self.from) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.from);
            }
        }
    }
}

impl Places {
    /// A place for a VM that `from` brings.
    ///
    /// # Errors
    /// [`Error::Refused`] if there is none.
    pub(super) fn take(&self, from: MemberId) -> Result<Place, Error> {
        let mut taken = lock(&self.0);
        let (of_one, of_all) = (
            taken.get(&from).copied().unwrap_or_default(),
            taken.values().sum::<usize>(),
        );
        if of_one >= OF_ONE || of_all >= OF_ALL {
            return Err(Error::Refused(format!(
                "{of_all} VMs are on their way to this host, {of_one} of them from the same \
                    member; it takes {OF_ALL} at a time, {OF_ONE} of one member: try again when \
                    some have arrived"
            )));
        }
        *taken.entry(from).or_default() += 1;
        Ok(Place {
            places: self.clone(),
            from,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_member_cannot_take_all_places_and_gets_its_own_back() {
        let places = Places::default();
        let [a, b, c, d] = [1, 2, 3, 4].map(|n| MemberId([n; 32]));
        let take = |from, n| {
            (0..n)
                .map(|_| places.take(from))
                .collect::<Result<Vec<_>, _>>()
        };
        let of_a = take(a, OF_ONE).unwrap();
        assert!(places.take(a).is_err());
        let of_others = [take(b, OF_ONE).unwrap(), take(c, OF_ONE).unwrap()];
        assert!(places.take(d).is_err(), "all are taken");
        drop(of_a);
        assert!(places.take(d).is_ok() && places.take(a).is_ok());
        drop(of_others);
        assert!(lock(&places.0).is_empty());
    }
}
