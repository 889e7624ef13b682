//! The leases of this host's VMs in memory, each with its machine.

use super::{Slot, lock};
use p2pvm_dht::{
    VoterSet,
    votes::lease::{Holding, Renewed, Tenure, TenureInput, TenureOutput},
};
use p2pvm_overlay::{Epoch, MemberId, VmId};
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::sync::{Notify, mpsc};

/// The leases of this host's VMs.
#[derive(Default)]
pub(super) struct Leases {
    pub(super) by_vm: Mutex<BTreeMap<VmId, Held>>,
    /// How many leases were begun.
    begun: AtomicU64,
    pub(super) changed: Notify,
}

/// One VM's lease.
pub(super) struct Held {
    /// Which of this host's leases it is: what is late of an earlier one of the VM is not its.
    pub(super) number: u64,
    pub(super) slot: Arc<Slot>,
    pub(super) set: VoterSet,
    pub(super) epoch: Epoch,
    pub(super) tenure: Tenure,
    pub(super) guest: Stand,
    pub(super) acts: mpsc::Sender<Act>,
}

/// What a guest does by its lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stand {
    Runs,
    /// Its hypervisor was told to hold it, before the lease ends.
    Held,
    /// The guardian has frozen its process, which answers nobody.
    Frozen,
}

/// What became of the end of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    Lease,
    /// Another incarnation of the VM here has it.
    Anothers,
    Nothing,
}

/// What a VM's task does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    SoftStop,
    Froze,
    Thaw(Duration),
    Lost { epoch: Epoch, holder: MemberId },
}

/// A renewal that a machine asked for.
pub(super) struct Due {
    pub(super) vm: VmId,
    pub(super) number: u64,
    pub(super) serial: u64,
    pub(super) holding: Holding,
}

/// What is to be done at once after inputs.
#[derive(Default)]
pub(super) struct Work {
    pub(super) renewals: Vec<Due>,
    pub(super) deadlines: Vec<(VmId, Epoch, Duration)>,
}

impl Leases {
    /// A number for a new lease.
    pub(super) fn next(&self) -> u64 {
        self.begun.fetch_add(1, Ordering::Relaxed)
    }

    /// Whether this is the VM's present lease.
    pub(super) fn is_present(&self, vm: VmId, number: u64) -> bool {
        let by_vm = lock(&self.by_vm);
        by_vm.get(&vm).is_some_and(|held| held.number == number)
    }

    /// Has a guest go on that may run by its lease and does not: what it takes has failed before.
    pub(super) fn try_again(&self, vm: VmId, now: Duration) {
        if let Some(held) = lock(&self.by_vm).get(&vm)
            && held.guest != Stand::Runs
            && held.tenure.may_run(now)
            && let Some(deadline) = held.tenure.deadline()
        {
            held.act(Act::Thaw(deadline));
        }
    }

    pub(super) fn begin(&self, held: Held) {
        lock(&self.by_vm).insert(held.set.vm, held);
        self.changed.notify_one();
    }

    /// Ends the lease of this incarnation of the VM; another one's goes on.
    pub(super) fn end(&self, slot: &Slot) -> Ended {
        let vm = slot.entry().definition.vm;
        let mut by_vm = lock(&self.by_vm);
        match by_vm.get(&vm) {
            Some(held) if std::ptr::eq(&*held.slot, slot) => {
                by_vm.remove(&vm);
                Ended::Lease
            }
            Some(_) => Ended::Anothers,
            None => Ended::Nothing,
        }
    }

    /// Whether the VM has a lease here, or had one until its guest was frozen.
    pub(super) fn has(&self, vm: VmId) -> bool {
        lock(&self.by_vm).contains_key(&vm)
    }

    pub(super) fn guest(&self, vm: VmId) -> Stand {
        let by_vm = lock(&self.by_vm);
        by_vm.get(&vm).map_or(Stand::Runs, |held| held.guest)
    }

    pub(super) fn set_guest(&self, vm: VmId, guest: Stand) {
        if let Some(held) = lock(&self.by_vm).get_mut(&vm) {
            held.guest = guest;
        }
    }

    pub(super) fn may_run(&self, vm: VmId, now: Duration) -> bool {
        let by_vm = lock(&self.by_vm);
        by_vm.get(&vm).is_some_and(|held| held.tenure.may_run(now))
    }

    pub(super) fn next_tick(&self) -> Option<Duration> {
        let by_vm = lock(&self.by_vm);
        by_vm
            .values()
            .filter_map(|held| held.tenure.next_tick())
            .min()
    }

    /// Lets time pass for every VM.
    pub(super) fn tick(&self, now: Duration) -> Work {
        let mut work = Work::default();
        for held in lock(&self.by_vm).values_mut() {
            held.handle(now, TenureInput::Tick, &mut work);
        }
        work
    }

    /// As [`Self::input`], for what the voters said to a renewal.
    pub(super) fn answer(&self, due: &Due, now: Duration, said: Renewed) -> Work {
        let mut work = Work::default();
        if let Some(held) = lock(&self.by_vm).get_mut(&due.vm)
            && held.number == due.number
        {
            held.handle(now, TenureInput::Answer(due.serial, said), &mut work);
        }
        work
    }

    pub(super) fn input(&self, vm: VmId, now: Duration, input: TenureInput) -> Work {
        let mut work = Work::default();
        if let Some(held) = lock(&self.by_vm).get_mut(&vm) {
            held.handle(now, input, &mut work);
        }
        work
    }
}

impl Held {
    pub(super) fn handle(&mut self, now: Duration, input: TenureInput, work: &mut Work) {
        for output in self.tenure.handle(now, input) {
            match output {
                TenureOutput::Renew(serial) => {
                    self.tenure.handle(now, TenureInput::RenewalSent(serial));
                    let (set, epoch) = (self.set.clone(), self.epoch);
                    work.renewals.push(Due {
                        vm: set.vm,
                        number: self.number,
                        serial,
                        holding: Holding { set, epoch },
                    });
                }
                TenureOutput::Arm(deadline) => {
                    work.deadlines.push((self.set.vm, self.epoch, deadline));
                }
                TenureOutput::SoftStop => self.act(Act::SoftStop),
                TenureOutput::Froze => self.act(Act::Froze),
                TenureOutput::Thaw(deadline) => self.act(Act::Thaw(deadline)),
                TenureOutput::Lost { epoch, holder } => self.act(Act::Lost { epoch, holder }),
            }
        }
    }

    pub(super) fn act(&self, act: Act) {
        if self.acts.try_send(act).is_err() {
            tracing::error!(vm = %self.set.vm.short(), ?act, "a VM's task is behind: its guest \
                stands still until the next renewal");
        }
    }
}
