//! The leases that a voter has granted, beside its log and in memory only. There is at most one for
//! each protected VM of the log, so that the bounds of the log are also theirs.

use super::{
    super::{decide::KeptPromise, wire::Proposal},
    BootClock, Terms,
    rule::{self, Judged, Lease},
    wire::{RenewAnswer, VoterView},
};
use p2pvm_overlay::{Epoch, MemberId, VmId, lock};
use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard},
    time::Duration,
};

/// The leases of a voter, with its clock.
pub(crate) struct Leases {
    clock: BootClock,
    started: Duration,
    granted: Mutex<HashMap<VmId, Lease>>,
}

impl Leases {
    /// Every VM may have a lease from before.
    pub(crate) fn start() -> Self {
        let clock = BootClock::start();
        Self {
            started: clock.now(),
            clock,
            granted: Mutex::default(),
        }
    }

    /// Decides over a proposal; changes nothing.
    pub(crate) fn judge(
        &self,
        vm: VmId,
        known: Option<KeptPromise>,
        from: MemberId,
        proposal: &Proposal,
    ) -> Judged {
        let lease = self.of(vm);
        let asked = (from, proposal);
        rule::judge(&Terms::REAL, (known, lease), asked, self.clock.now())
    }

    /// Keeps the lease of a protected VM, or drops the one of another.
    pub(crate) fn set(&self, vm: VmId, lease: Option<Lease>) {
        match lease {
            Some(lease) => self.granted().insert(vm, lease),
            None => self.granted().remove(&vm),
        };
    }

    /// Decides over a renewal, and keeps the lease.
    pub(crate) fn renew(
        &self,
        vm: VmId,
        known: Option<KeptPromise>,
        from: MemberId,
        epoch: Epoch,
    ) -> RenewAnswer {
        let lease = self.of(vm);
        let (answer, lease) = rule::renew(
            &Terms::REAL,
            (known, lease),
            (from, epoch),
            self.clock.now(),
        );
        if answer == RenewAnswer::Ours {
            self.set(vm, Some(lease));
        }
        answer
    }

    pub(crate) fn view(&self, vm: VmId, known: Option<KeptPromise>) -> VoterView {
        let is_protected = known.is_some_and(|k| k.is_protected);
        let free_in = self.of(vm).free_at.saturating_sub(self.clock.now());
        VoterView {
            promise: known.map(|k| k.promise),
            is_protected,
            free_in_ms: if is_protected { millis(free_in) } else { 0 },
        }
    }

    pub(crate) fn clock_ms(&self) -> u64 {
        u64::try_from(self.clock.now().as_millis()).unwrap_or(u64::MAX)
    }

    fn of(&self, vm: VmId) -> Lease {
        let known = self.granted().get(&vm).copied();
        known.unwrap_or_else(|| Lease::after_start(&Terms::REAL, self.started))
    }

    fn granted(&self) -> MutexGuard<'_, HashMap<VmId, Lease>> {
        lock(&self.granted)
    }
}

/// Whole milliseconds, rounded up.
pub(crate) fn millis(time: Duration) -> u32 {
    u32::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(u32::MAX)
}
