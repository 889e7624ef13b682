//! How long a host that was drained takes no VMs from other members' autonomic managers: until
//! somebody uses it again, and for a day at most.

use p2pvm_overlay::VmId;
use p2pvm_vm_manager::host::VmState;
use std::{collections::BTreeSet, time::Duration};

/// Reason: a machine that is not switched off within this time was drained in vain.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// A host after a drain.
pub(super) struct Drained {
    /// Until when it rests at most, by a clock that does not jump.
    until: Duration,
    /// The VMs that stayed, or were on their way here.
    left: BTreeSet<VmId>,
}

impl Drained {
    /// After a drain that ended `now` with these VMs here.
    pub fn new(now: Duration, vms: impl IntoIterator<Item = (VmId, VmState)>) -> Self {
        let has_guest = |state: VmState| !matches!(state, VmState::Stopped | VmState::Branch);
        let left = vms.into_iter().filter(|(_, state)| has_guest(*state));
        Self {
            until: now.saturating_add(LONGEST),
            left: left.map(|(vm, _)| vm).collect(),
        }
    }

    /// Whether the host is in use again: a VM runs that was started here or moved here since.
    pub fn is_over(&self, now: Duration, vms: impl IntoIterator<Item = (VmId, VmState)>) -> bool {
        let is_new =
            |(vm, state): (VmId, VmState)| state == VmState::Running && !self.left.contains(&vm);
        now >= self.until || vms.into_iter().any(is_new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drained_host_rests_until_it_is_used_or_a_day_passed() {
        let [stays, stopped, new] = [1, 2, 3].map(|n| VmId([n; 32]));
        let here = [(stays, VmState::Running), (stopped, VmState::Stopped)];
        let (began, hour) = (Duration::from_secs(1000), Duration::from_secs(3600));
        let drained = Drained::new(began, here);
        assert!(!drained.is_over(began, here));
        assert!(!drained.is_over(began + hour * 23, here));
        assert!(drained.is_over(began + hour * 24, here));
        for (vm, state, is_over) in [
            (stopped, VmState::Running, true),
            (new, VmState::Running, true),
            (new, VmState::Arriving, false),
            (new, VmState::Stopped, false),
        ] {
            assert_eq!(drained.is_over(began + hour, [(vm, state)]), is_over);
        }
    }

    #[test]
    fn a_vm_on_its_way_here_does_not_end_the_rest() {
        let vm = VmId([1; 32]);
        let drained = Drained::new(Duration::ZERO, [(vm, VmState::Arriving)]);
        assert!(!drained.is_over(Duration::ZERO, [(vm, VmState::Running)]));
    }
}
