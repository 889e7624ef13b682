//! Takes and deletes the snapshots that the schedules of the VMs held here ask for, one VM after
//! the other. What is due is decided by [`crate::backups`].

use crate::{
    Host,
    backups::{Plan, Schedule, Since},
    checkpoint::Content,
    host::{Role, Slot},
};
use p2pvm_overlay::{UnixTime, VmId, chain};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::sync::watch;

/// How often schedules are looked at. Reason: their periods are minutes at least.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// The last attempt for a VM, by this host's clock since its start.
#[derive(Clone, Copy)]
struct Attempt {
    at: Duration,
    has_failed: bool,
    /// Whether it was said that the VM's list is full.
    is_full: bool,
}

type Attempts = BTreeMap<VmId, Attempt>;

impl Host {
    /// Follows the schedules in a task, as long as the host lives.
    pub(super) fn watch_schedules(&self) {
        let (this, clock) = (self.weak(), self.clock.clone());
        self.spawn(async move {
            let mut attempts = Attempts::new();
            loop {
                clock.passed(LOOK_EVERY).await;
                let Some(host) = this.upgrade() else { return };
                let held = host.slots();
                let is_held = |vm: &VmId| held.iter().any(|s| s.entry().definition.vm == *vm);
                attempts.retain(|vm, _| is_held(vm));
                for slot in held {
                    let entry = slot.entry();
                    if let Some(schedule) = entry.backups.schedule
                        && entry.role == Role::Held
                    {
                        host.follow_schedule(&slot, &schedule, &mut attempts).await;
                    }
                }
            }
        });
    }

    async fn follow_schedule(
        &self,
        slot: &Arc<Slot>,
        schedule: &Schedule,
        attempts: &mut Attempts,
    ) {
        let entry = slot.entry();
        let (vm, name) = (entry.definition.vm, entry.definition.name);
        let before = attempts.get(&vm).copied();
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
            None => return,
        };
        let at = self.clock.now();
        let attempt = Attempt {
            at,
            has_failed,
            is_full,
        };
        attempts.insert(vm, attempt);
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
