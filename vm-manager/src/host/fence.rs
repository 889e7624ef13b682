//! Fencing: a VM runs in one epoch of one holder, and a copy that lost it stands still.
//!
//! The voters of a held VM are asked ([`Host::check`]) whether it is still this host's. If another
//! member has it, the guest here is held, its port shut, and the copy kept as a *branch*, which
//! never runs as that VM again.

use super::{Activity, Entry, Host, HostEvent, Operation, Ownership, Role, Slot};
use crate::{
    Error,
    error::undecided,
    hypervisor::{Machine, RunState},
};
use p2pvm_api::EventKind;
use p2pvm_overlay::{Epoch, MemberId, UnixTime, VmId, chain};
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

/// How long an operation on a VM may take to end before the VM is given up all the same. Reason:
/// with the port shut, it may never end.
const GIVE_UP_LIMIT: Duration = Duration::from_secs(10);

/// Gives up a migration that may be under way, and has the guest run here, also if it was held
/// still meanwhile.
pub(crate) async fn run_here(machine: &dyn Machine) -> Result<(), Error> {
    let cancelled = machine.cancel_migration().await;
    if *machine.watch().borrow() == RunState::Running {
        cancelled
    } else {
        machine.resume().await.and(cancelled)
    }
}

impl Host {
    /// Asks the voters of a held VM; takes the newer epoch, or fences the copy here. Does nothing
    /// while an operation works on the VM.
    pub(crate) async fn check(&self, slot: &Arc<Slot>) -> Result<(), Error> {
        let Ok(_operation) = slot.begin(Activity::Checking) else {
            return Ok(());
        };
        self.check_now(slot).await
    }

    /// As [`Self::check`], within an operation of the caller's.
    pub(crate) async fn check_now(&self, slot: &Arc<Slot>) -> Result<(), Error> {
        let entry = slot.entry();
        if entry.role != Role::Held {
            return Ok(());
        }
        match self
            .claim(&entry)
            .await
            .map_err(undecided("asking the VM's voters"))?
        {
            Ownership::Ours(epoch) => {
                if epoch > entry.epoch {
                    self.take_epoch(slot, epoch).await?;
                }
                self.renew_on(entry.definition.vm);
                slot.set_unproven(self.lacks_lease(entry.definition.vm));
            }
            Ownership::Theirs { holder, epoch } => self.lose(slot, holder, epoch).await,
        }
        Ok(())
    }

    /// The voters gave a held VM to another member. If this host had agreed to that, the copy here
    /// is removed; otherwise it is fenced and kept.
    pub(super) async fn lose(&self, slot: &Arc<Slot>, holder: MemberId, newer: Epoch) {
        let entry = slot.entry();
        let agreed = entry.gives_way == Some(holder) && slot.machine().is_none();
        // Only if it came to life there: after a restore that failed half-way this copy is the only
        // one.
        if agreed && self.runs_at(holder, entry.definition.vm).await {
            match self.remove(slot) {
                Ok(()) => {
                    tracing::info!(
                        vm = %entry.definition.name, holder = %holder.short(), %newer,
                        "restored on another member: the copy here is removed"
                    );
                    return;
                }
                Err(e) => {
                    tracing::error!(vm = %entry.definition.name, error = %chain(&e), "the copy \
                        here cannot be removed");
                }
            }
        }
        if entry.leased {
            let fields = [
                ("holder", holder.to_string()),
                ("epoch", newer.0.to_string()),
            ];
            let name = entry.listed_name();
            let text = format!("{name} was started on another member: this host lost its lease.");
            self.note(&entry, EventKind::VmLost, &fields, text);
        }
        self.fence(slot, holder, newer).await;
    }

    /// Asks a held VM's voters before its guest goes on, if this host has no record of why it
    /// stands still.
    pub(super) async fn prove(&self, slot: &Arc<Slot>) -> Result<(), Error> {
        if !slot.is_unproven() {
            return Ok(());
        }
        let entry = slot.entry();
        let name = &entry.definition.name;
        let asking = undecided("asking the VM's voters whether its guest may go on here");
        match self.claim(&entry).await.map_err(asking)? {
            Ownership::Ours(epoch) if epoch > entry.epoch => self.take_epoch(slot, epoch).await?,
            Ownership::Ours(_) => {}
            Ownership::Theirs { holder, epoch } => {
                self.lose(slot, holder, epoch).await;
                return Err(Self::running_elsewhere(name, holder, epoch));
            }
        }
        slot.set_unproven(false);
        Ok(())
    }

    /// Goes on with a held VM in a newer epoch.
    pub(crate) async fn take_epoch(&self, slot: &Arc<Slot>, epoch: Epoch) -> Result<(), Error> {
        assert!(
            epoch > slot.entry().epoch,
            "a claim never ends in an older epoch"
        );
        let entry = self.update(slot, |e| (e.epoch, e.seq) = (epoch, 0))?;
        if let Some(machine) = slot.machine() {
            self.lease_in(slot, &*machine).await?;
            self.parts
                .port
                .attach(
                    &self.registry.spec(&entry),
                    &entry.definition.address,
                    epoch,
                )
                .await?;
            self.parts
                .port
                .announce(&entry.secret.keys(), &entry.definition, self.me, epoch)
                .await?;
        }
        self.publish(slot).await;
        Ok(())
    }

    /// The VM went on elsewhere: its guest here stands still, cut off, and is listed as a branch.
    pub(crate) async fn fence(&self, slot: &Arc<Slot>, holder: MemberId, newer: Epoch) {
        // Unproven before the branch is written down: a full disk may prevent that, and the guest
        // must not go on when there is room again.
        slot.set_unproven(true);
        self.hold_still(slot).await;
        let entry = slot.entry();
        // The lease knows it.
        let was_frozen = self.is_frozen(entry.definition.vm);
        self.stop_renewing(slot);
        let note = format!(
            "epoch {newer} went to {}{}",
            holder.short(),
            self.left_over(&entry)
        );
        let fenced = self.update(slot, |e| e.make_branch(holder, newer, note));
        match fenced {
            Ok(entry) => {
                tracing::warn!(
                    branch = %entry.listed_name(), holder = %holder.short(), %newer, "fenced"
                );
                if let Err(e) = self.parts.port.detach(entry.definition.vm).await {
                    tracing::warn!(
                        branch = %entry.listed_name(), error = %chain(&e),
                        "the branch's port stays, frozen"
                    );
                }
                // Nothing thaws it: what is in its memory would never be read.
                if was_frozen && let Err(e) = self.kill_guest(slot).await {
                    tracing::error!(
                        branch = %entry.listed_name(), error = %chain(&e),
                        "the frozen guest of a branch could not be ended: it keeps its memory"
                    );
                }
                self.emit(HostEvent::Fenced {
                    vm: entry.definition.vm,
                    branch: entry.listed_name(),
                    holder,
                    epoch: newer,
                });
            }
            Err(e) => {
                tracing::error!(error = %chain(&e), "a fenced VM could not be written down; it \
                    stays frozen")
            }
        }
    }

    /// What a copy that lost its VM has and the VM has not, as far as this host can tell.
    fn left_over(&self, entry: &Entry) -> String {
        let disk = self.registry.spec(entry).disk;
        let written = std::fs::metadata(disk).and_then(|found| found.modified());
        let since = |at: SystemTime| at.duration_since(SystemTime::UNIX_EPOCH).ok();
        let written = written
            .ok()
            .and_then(since)
            .map(|at| UnixTime(at.as_secs()));
        match (written, &entry.replica) {
            (Some(written), Some(replica)) if written > replica.taken => format!(
                "; this copy was last written {} s after the newest replica that this host made \
                    of it",
                written.0 - replica.taken.0
            ),
            _ => String::new(),
        }
    }

    /// Another machine has this member's identity and with it the VMs: the guests here are copies.
    /// All stand still at once; then each is written down as a branch, which nothing starts again.
    pub async fn give_up_all(&self) {
        for slot in self.slots() {
            self.hold_still(&slot).await;
        }
        for slot in self
            .slots()
            .into_iter()
            .filter(|slot| !slot.entry().is_branch())
        {
            let _operation: Result<Operation, _> =
                tokio::time::timeout(GIVE_UP_LIMIT, slot.begin_next(Activity::GivingUp)).await;
            self.fence(&slot, self.me, slot.entry().epoch).await;
        }
    }

    /// The guest's processors stop and its port passes nothing.
    pub(crate) async fn hold_still(&self, slot: &Slot) {
        let entry = slot.entry();
        if let Err(e) = self.parts.port.frozen(entry.definition.vm, true).await {
            tracing::warn!(vm = %entry.definition.name, error = %chain(&e), "the port could not \
                be frozen");
        }
        let Some(machine) = slot.machine() else {
            return;
        };
        // A frozen process does not answer, and runs nothing.
        if self.is_frozen(entry.definition.vm) {
            return;
        }
        if let Err(e) = machine.pause().await {
            tracing::error!(vm = %entry.definition.name, error = %chain(&e), "the guest could not \
                be paused: it is killed");
            if let Err(e) = machine.kill().await {
                tracing::error!(vm = %entry.definition.name, error = %chain(&e), "nor could it be \
                    killed: the network refuses its epoch all the same");
            }
        }
    }

    pub(crate) async fn kill_guest(&self, slot: &Slot) -> Result<(), Error> {
        if let Some(guest) = slot.take_guest() {
            guest.machine.kill().await?;
            self.end_lease(slot).await;
        }
        Ok(())
    }

    /// A peer refused packets of a VM here because of a newer epoch: asks the VM's voters now.
    pub fn stale_epoch(&self, vm: VmId, known: Epoch) {
        if let Some(slot) = self.slot_of(vm).filter(|slot| known > slot.entry().epoch) {
            self.check_soon(slot);
        }
    }

    /// Asks a VM's voters in a task: another member has reported a newer epoch. Reports without end
    /// cause a check now and then.
    pub(super) fn check_soon(&self, slot: Arc<Slot>) {
        let Some(at) = slot.heed(tokio::time::Instant::now()) else {
            return;
        };
        let host = self.this.clone();
        self.spawn(async move {
            tokio::time::sleep_until(at).await;
            let Some(host) = host.upgrade() else { return };
            if let Err(e) = host.check(&slot).await {
                tracing::info!(error = %chain(&e), "cannot ask the voters about the newer epoch \
                    that a member reported");
            }
        });
    }

    /// Leaves a VM to its newest incarnation here: every other one becomes a branch. Reason: the
    /// daemon may have ended after a restore had its epoch and before the copy that it replaces was
    /// removed.
    ///
    /// # Errors
    /// [`Error::Refused`] if one of the others could not be written down.
    pub(crate) async fn supersede(&self, newest: &Arc<Slot>, epoch: Epoch) -> Result<(), Error> {
        for older in self.others(newest) {
            let _operation = older.begin_next(Activity::Replaced).await;
            self.fence(&older, self.me, epoch).await;
            let entry = older.entry();
            if !entry.is_branch() {
                return Err(Error::Refused(format!(
                    "an older copy of '{}' is in the way: it could not be made a branch",
                    entry.definition.name
                )));
            }
        }
        Ok(())
    }
}
