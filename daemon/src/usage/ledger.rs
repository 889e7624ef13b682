//! What members used of this host: the sums, and the accounts that become receipts. One file has
//! both, so that nothing is in a receipt and not in the sums, or twice in either after a kill.

use super::{
    account::Accounts,
    meter::Amount,
    sums::{Key, Sums},
};
use p2pvm_overlay::{MemberId, UnixTime, VmId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How many rows the sums have at most, about 100 bytes each.
const MAX_ROWS: usize = 16_384;
/// How many VMs' names are kept.
const MAX_NAMES: usize = 1024;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    /// The member of each row is the owner.
    pub sums: Sums,
    /// The accounts of the other owners.
    pub accounts: Accounts,
    names: BTreeMap<VmId, String>,
}

impl Ledger {
    /// Notes what was used in the `elapsed` seconds until `now`. This member's own VMs have no
    /// receipts.
    pub fn note(&mut self, me: MemberId, when: (UnixTime, u64), amounts: &[Amount]) {
        for Amount { owner, vm, used } in amounts {
            let key = Key {
                member: Some(*owner),
                vm: vm.map(|(vm, _)| vm),
            };
            self.sums.add(when.0, key, *used);
            if *owner != me {
                self.accounts.note(when, *owner, *vm, *used);
            }
        }
    }

    /// Notes the VMs here: their owners and names.
    pub fn note_here(&mut self, here: &BTreeMap<VmId, (MemberId, String)>) {
        let owners = here.iter().map(|(vm, (owner, _))| (*vm, *owner)).collect();
        self.accounts.note_here(&owners);
        for (vm, (_, name)) in here {
            if self.names.get(vm) != Some(name) {
                self.names.insert(*vm, name.clone());
            }
        }
    }

    /// Folds and forgets what is old.
    pub fn tidy(&mut self, now: UnixTime) {
        self.sums.tidy(now, MAX_ROWS);
        if self.names.len() > MAX_NAMES {
            let named = self.sums.vms();
            self.names.retain(|vm, _| named.contains(vm));
        }
        while self.names.len() > MAX_NAMES {
            self.names.pop_first();
        }
    }

    /// A VM's name, if it was here.
    pub fn name(&self, vm: VmId) -> Option<&str> {
        self.names.get(&vm).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2pvm_authority::{Size, Usage};
    use p2pvm_overlay::identity::KeyPair;

    #[test]
    fn a_kept_ledger_goes_on_and_counts_nothing_twice() {
        let now = UnixTime(1_800_000_000);
        let (me, other) = (MemberId([1; 32]), MemberId([2; 32]));
        let used = |owner, vm| Amount {
            owner,
            vm: Some((VmId([vm; 32]), Size::default())),
            used: Usage {
                disk_mib_s: 10,
                ..Usage::default()
            },
        };
        let mut ledger = Ledger::default();
        let amounts = [used(me, 1), used(other, 2)];
        ledger.note(me, (now, 10), &amounts);
        let here = [(VmId([2; 32]), (other, "web".to_owned()))];
        ledger.note_here(&here.into());
        ledger.tidy(now);
        let bytes = postcard::to_stdvec(&ledger).unwrap();
        let mut again: Ledger = postcard::from_bytes(&bytes).unwrap();
        assert_eq!(again, ledger);
        again.note(me, (now.plus(10), 10), &amounts);
        let sums = again.sums.since(now);
        assert_eq!(sums.len(), 2);
        assert!(sums.values().all(|used| used.disk_mib_s == 20));
        assert_eq!(again.name(VmId([2; 32])), Some("web"));
        again
            .accounts
            .close_due(&KeyPair::from_seed(&[1; 32]), now.plus(60));
        let waiting = again.accounts.waiting();
        assert_eq!(waiting.len(), 1, "none for this member's own VM");
        assert_eq!(waiting[0].0, other);
    }
}
