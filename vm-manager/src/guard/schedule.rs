//! Takes and deletes the snapshots that the schedules of the VMs held here ask for, of a few VMs at
//! a time: a snapshot that hangs holds up its own VM. What is due is decided by [`crate::backups`].

use crate::{
    Host,
    backups::{Plan, Schedule, Since},
    checkpoint::Content,
    host::{Role, Slot},
};
use p2pvm_overlay::{UnixTime, VmId, chain, lock};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::sync::{Semaphore, watch};

/// How often schedules are looked at. Reason: their periods are minutes at least.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Of how many VMs scheduled snapshots are taken and deleted at a time. Reason: a host's guests
/// share its disk.
const AT_A_TIME: usize = 4;

/// The last attempt for a VM, by this host's clock since its start.
#[derive(Clone, Copy)]
struct Attempt {
    at: Duration,
    has_failed: bool,
    /// Whether it was said that the VM's list is full.
    is_full: bool,
}

/// The VMs whose schedules are followed.
#[derive(Default)]
struct Followed {
    attempts: BTreeMap<VmId, Attempt>,
    /// Those that have a task now.
    under_way: BTreeSet<VmId>,
}

impl Host {
    /// Follows the schedules in tasks, as long as the host lives.
    pub(super) fn watch_schedules(&self) {
        let (this, clock) = (self.weak(), self.clock.clone());
        let followed = Arc::new(Mutex::new(Followed::default()));
        let seats = Arc::new(Semaphore::new(AT_A_TIME));
        self.spawn(async move {
            loop {
                clock.passed(LOOK_EVERY).await;
                let Some(host) = this.upgrade() else { return };
                let held = host.slots();
                let is_held = |vm: &VmId| held.iter().any(|s| s.entry().definition.vm == *vm);
                lock(&followed).attempts.retain(|vm, _| is_held(vm));
                for slot in &held {
                    host.look_at_schedule(slot, &followed, &seats);
                }
            }
        });
    }

    /// Begins to follow a VM's schedule, unless its task goes on since an earlier look.
    fn look_at_schedule(
        &self,
        slot: &Arc<Slot>,
        followed: &Arc<Mutex<Followed>>,
        seats: &Arc<Semaphore>,
    ) {
        let entry = slot.entry();
        let (vm, has_schedule) = (entry.definition.vm, entry.backups.schedule.is_some());
        let Some(host) = self.strong().filter(|_| has_schedule) else {
            return;
        };
        if entry.role != Role::Held || !lock(followed).under_way.insert(vm) {
            return;
        }
        let (slot, followed, seats) = (slot.clone(), followed.clone(), seats.clone());
        self.spawn(async move {
            let _seat = seats.acquire_owned().await;
            let entry = slot.entry();
            if let Some(schedule) = entry.backups.schedule
                && entry.role == Role::Held
            {
                let before = lock(&followed).attempts.get(&vm).copied();
                if let Some(attempt) = host.follow_schedule(&slot, &schedule, before).await {
                    lock(&followed).attempts.insert(vm, attempt);
                }
            }
            lock(&followed).under_way.remove(&vm);
        });
    }

    /// The attempt to take a snapshot, if one was due.
    async fn follow_schedule(
        &self,
        slot: &Arc<Slot>,
        schedule: &Schedule,
        before: Option<Attempt>,
    ) -> Option<Attempt> {
        let entry = slot.entry();
        let name = entry.definition.name;
        let since = before.filter(|last| !last.is_full).map(|last| Since {
            passed: self.clock.now().saturating_sub(last.at),
            has_failed: last.has_failed,
        });
        let plan = schedule.plan(UnixTime::now(), &entry.snapshots, since);
        let Plan {
            take,
            delete,
            is_full,
        } = plan;
        for gone in delete {
            match self.delete_snapshot(&name, &gone).await {
                Ok(()) => tracing::info!(
                    vm = name,
                    snapshot = gone,
                    "the schedule keeps it no \
                    longer: deleted"
                ),
                // The VM is busy: at the next look.
                Err(error) => {
                    tracing::debug!(vm = name, snapshot = gone, error = %chain(&error), "cannot \
                        delete a snapshot that the schedule keeps no longer");
                    break;
                }
            }
        }
        if is_full && !before.is_some_and(|last| last.is_full) {
            tracing::warn!(
                vm = name,
                "no room in the VM's list of snapshots for a scheduled one: \
                delete some that were made by hand"
            );
        }
        let has_failed = match take {
            Some(take) => !self.take_scheduled(&name, &take, schedule).await,
            None if is_full => false,
            None => return None,
        };
        Some(Attempt {
            at: self.clock.now(),
            has_failed,
            is_full,
        })
    }

    /// Whether the snapshot was taken.
    async fn take_scheduled(&self, name: &str, snapshot: &str, schedule: &Schedule) -> bool {
        let content = match schedule.disk_only {
            true => Content::Disk,
            false => Content::All,
        };
        let quiet = watch::Sender::default();
        match self.take(name, snapshot, content, &quiet).await {
            Ok(taken) => {
                let pause_ms = taken.pause.as_millis() as u64;
                tracing::info!(vm = name, snapshot, pause_ms, "took a scheduled snapshot");
                true
            }
            Err(error) => {
                tracing::warn!(vm = name, snapshot, error = %chain(&error), "a scheduled snapshot \
                    was not taken: it is tried again");
                false
            }
        }
    }
}
