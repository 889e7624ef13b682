//! The leases of the protected VMs that run here: one task renews all of them, and a guest whose
//! lease cannot be renewed stands still before it ends.
//!
//! The state machine of each VM is [`Tenure`], which decides by time and by the voters' answers;
//! the guardian, a process of its own, has the same deadline and freezes the guest when this daemon
//! hangs. What a machine puts out and takes long, such as a hypervisor's answer, is done in the
//! VM's own task, one after the other, so that one guest that hangs delays no other's renewal.

use super::{
    Activity, FROZEN, Host, HostEvent, Ownership, Slot,
    lease_table::{Act, Due, Ended, Held, Stand, Work},
    lock,
    shield::Shield,
};
use crate::{
    Error,
    error::undecided,
    guardian::{GuardianError, Renewal, Ward},
    hypervisor::{Machine, RunState},
    protection::OnPartition,
};
use p2pvm_dht::{
    VoterSet,
    votes::lease::{Holding, MAX_RENEWED, Renewed, Tenure, TenureInput, Terms, lease_end},
};
use p2pvm_overlay::{Epoch, VmId, chain};
use std::{sync::Arc, time::Duration};
use tokio::sync::{broadcast, mpsc};

/// How many outputs of one VM's machine wait for its task.
/// Reason: a hypervisor that hangs answers within half a minute; there are a few outputs in that
/// time.
const WAITING: usize = 32;
/// How long the renewal task sleeps at most.
/// Reason: VMs that became protected meanwhile.
const LOOK: Duration = Duration::from_secs(5);

impl Host {
    /// The time of leases.
    pub(crate) fn boottime(&self) -> Duration {
        self.parts.sleep.boottime()
    }

    /// Renews the leases in a task, as long as the host lives.
    pub(crate) fn watch_leases(&self) {
        let (this, clock) = (self.weak(), self.clock.clone());
        let mut frozen = self.parts.guardian.frozen();
        self.spawn(async move {
            loop {
                let wait = {
                    let Some(host) = this.upgrade() else { return };
                    let next = host.leases.next_tick();
                    let left = next.map(|at| at.saturating_sub(host.boottime()));
                    left.map_or(LOOK, |left| left.min(LOOK))
                };
                let Some(host) = this.upgrade() else { return };
                tokio::select! {
                    () = clock.passed(wait) => {}
                    () = host.leases.changed.notified() => {}
                    said = frozen.recv() => match said {
                        Ok(one) => host.guardian_froze(one.vm).await,
                        Err(broadcast::error::RecvError::Lagged(_)) => {}
                        // A host without a guardian: nothing is protected.
                        Err(broadcast::error::RecvError::Closed) => clock.passed(wait).await,
                    },
                }
                let work = host.leases.tick(host.boottime());
                host.perform(work);
            }
        });
    }

    /// Does what the machines ask for, in tasks.
    fn perform(&self, work: Work) {
        for (vm, epoch, deadline) in work.deadlines {
            if let Some(host) = self.strong() {
                self.spawn(async move { host.set_deadline(vm, epoch, deadline).await });
            }
        }
        let mut renewals = work.renewals;
        while !renewals.is_empty() {
            let rest = renewals.split_off(renewals.len().min(MAX_RENEWED));
            let batch = std::mem::replace(&mut renewals, rest);
            if let Some(host) = self.strong() {
                self.spawn(async move { host.renew(batch).await });
            }
        }
    }

    /// Asks the voters of some VMs, one message to each voter.
    async fn renew(&self, due: Vec<Due>) {
        let holdings: Vec<_> = due.iter().map(|one| one.holding.clone()).collect();
        let answers = self.parts.ballot.renew(&holdings).await;
        let now = self.boottime();
        for (one, said) in due.into_iter().zip(answers) {
            if let Renewed::Undecided { answered, asked } = said {
                tracing::info!(vm = %one.vm.short(), answered, asked, "the lease is not renewed \
                    yet");
                if answered * 2 > asked {
                    self.tell_missed(one.vm);
                }
            }
            self.perform(self.leases.answer(&one, now, said));
        }
    }

    /// A majority answered and did not renew: some voters have missed the VM's epoch, or that it is
    /// protected.
    fn tell_missed(&self, vm: VmId) {
        let slot = lock(&self.leases.by_vm)
            .get(&vm)
            .map(|held| held.slot.clone());
        let (Some(host), Some(slot)) = (self.strong(), slot) else {
            return;
        };
        self.spawn(async move {
            if let Err(e) = host.tell_voters(&slot.entry(), true).await {
                tracing::info!(vm = %vm.short(), error = %chain(&e), "the voters do not keep the \
                    VM as protected yet");
            }
        });
    }

    async fn set_deadline(&self, vm: VmId, epoch: Epoch, deadline: Duration) {
        match self.parts.guardian.renew(vm, epoch, deadline).await {
            Ok(Renewal::Armed) => {}
            // This daemon was late. A majority has said that the guest may run until then.
            Ok(Renewal::Frozen) => {
                if let Some(held) = lock(&self.leases.by_vm).get(&vm) {
                    held.act(Act::Thaw(deadline));
                }
            }
            Err(e) => tracing::error!(vm = %vm.short(), error = %chain(&e), "the guardian does \
                not take the renewal: it freezes the guest when the last one ends"),
        }
    }

    async fn guardian_froze(&self, vm: VmId) {
        self.leases.set_guest(vm, Stand::Frozen);
        if let Err(e) = self.parts.port.frozen(vm, true).await {
            tracing::warn!(vm = %vm.short(), error = %chain(&e), "the port could not be frozen");
        }
    }

    /// Does what a VM's machine says, in order, until its lease ends.
    fn follow_lease(&self, slot: Arc<Slot>, number: u64, mut acts: mpsc::Receiver<Act>) {
        let (this, vm) = (self.weak(), slot.entry().definition.vm);
        self.spawn(async move {
            while let Some(act) = acts.recv().await {
                let Some(host) = this.upgrade() else { return };
                // What a lease that has ended still asked for would stop the guest of the next one.
                if host.leases.is_present(vm, number) {
                    host.obey(&slot, number, act).await;
                }
            }
        });
    }

    async fn obey(&self, slot: &Arc<Slot>, number: u64, act: Act) {
        let entry = slot.entry();
        let (vm, name) = (entry.definition.vm, &entry.definition.name);
        match act {
            Act::SoftStop => {
                if entry.protection.on_partition == OnPartition::RunUntilLeaseEnds {
                    return;
                }
                tracing::warn!(vm = %name, "its lease ends and no majority of its voters renews \
                    it: the guest stands still");
                self.stand_still(slot, entry.protection.on_partition).await;
            }
            Act::Froze => {
                tracing::warn!(vm = %name, "its lease has ended: the guest is frozen");
                self.guardian_froze(vm).await;
                slot.set_unproven(true);
                let name = name.clone();
                self.emit(HostEvent::Frozen { vm, name });
            }
            Act::Thaw(deadline) => {
                if let Err(e) = self.let_go_on(slot, deadline).await {
                    tracing::error!(vm = %name, error = %chain(&e), "the guest could not go on");
                }
            }
            Act::Lost { epoch, holder } => {
                tracing::warn!(vm = %name, holder = %holder.short(), %epoch, "its voters have \
                    given it to another member");
                let _operation = slot.begin_next(Activity::Checking).await;
                if !self.leases.is_present(vm, number) {
                    return;
                }
                // A newer epoch of its own that it did not hear of is taken, not lost.
                if holder != self.me {
                    return self.lose(slot, holder, epoch).await;
                }
                if let Err(e) = self.check_now(slot).await {
                    tracing::warn!(vm = %name, error = %chain(&e), "its newer epoch is not taken");
                }
            }
        }
    }

    /// Holds a guest before its lease ends: it then sees no jump of its clocks.
    async fn stand_still(&self, slot: &Arc<Slot>, how: OnPartition) {
        let vm = slot.entry().definition.vm;
        slot.set_unproven(true);
        self.leases.set_guest(vm, Stand::Held);
        if let Err(e) = self.parts.port.frozen(vm, true).await {
            tracing::warn!(vm = %vm.short(), error = %chain(&e), "the port could not be frozen");
        }
        if how == OnPartition::Stop {
            return self.end_for_now(slot).await;
        }
        let Some(machine) = slot.machine() else {
            return;
        };
        if let Err(e) = machine.pause().await {
            tracing::warn!(vm = %vm.short(), error = %chain(&e), "the hypervisor does not hold the \
                guest: the guardian freezes it");
        }
    }

    /// Ends a guest whose lease ends. It boots again when its voters say that it is still this
    /// host's.
    async fn end_for_now(&self, slot: &Arc<Slot>) {
        let name = slot.entry().listed_name();
        if let Err(e) = self.kill_guest(slot).await {
            tracing::error!(vm = %name, error = %chain(&e), "the guest could not be ended: the \
                guardian freezes it");
            return;
        }
        if let Err(e) = self.parts.port.detach(slot.entry().definition.vm).await {
            tracing::warn!(vm = %name, error = %chain(&e), "its port could not be taken away");
        }
        if let (Some(host), slot) = (self.strong(), slot.clone()) {
            self.spawn(async move { host.settle_in(&slot).await });
        }
    }

    /// Lets a guest go on that stood still for want of a lease.
    pub(super) async fn let_go_on(
        &self,
        slot: &Arc<Slot>,
        deadline: Duration,
    ) -> Result<(), Error> {
        let entry = slot.entry();
        let (vm, epoch) = (entry.definition.vm, entry.epoch);
        self.parts.guardian.thaw(vm, epoch, deadline).await?;
        self.leases.set_guest(vm, Stand::Held);
        slot.set_unproven(false);
        self.perform(
            self.leases
                .input(vm, self.boottime(), TenureInput::ThawedOrStarted),
        );
        // A guest that its user or a full disk stopped stays so.
        if let Some(machine) = slot.machine()
            && machine.halted().is_none()
            && slot.run_state() == RunState::Paused
        {
            machine.resume().await?;
        }
        self.parts.port.frozen(vm, false).await?;
        self.leases.set_guest(vm, Stand::Runs);
        tracing::info!(vm = %entry.definition.name, "a majority of its voters renewed the lease: \
            the guest goes on");
        self.emit(HostEvent::Thawed {
            vm,
            name: entry.definition.name,
        });
        Ok(())
    }

    /// Asks the voters of a leased VM for one more lease, at once; when they were asked.
    ///
    /// # Errors
    /// [`Error::Agreement`] if no majority renews it.
    pub(crate) async fn renew_once(&self, slot: &Slot) -> Result<Duration, Error> {
        let entry = slot.entry();
        let set = VoterSet::sign(&entry.secret.keys(), &entry.definition.voters);
        let (sent, epoch) = (self.boottime(), entry.epoch);
        let said = self.parts.ballot.renew(&[Holding { set, epoch }]).await;
        match said.first() {
            Some(Renewed::Ours) => Ok(sent),
            Some(Renewed::Newer { epoch, holder }) => Err(Self::running_elsewhere(
                &entry.definition.name,
                *holder,
                *epoch,
            )),
            other => {
                let why = match other {
                    Some(Renewed::Undecided { answered, asked }) => {
                        format!("{answered} of {asked} voters answered, and no majority renewed")
                    }
                    _ => "the voters did not answer".to_owned(),
                };
                Err(undecided("renewing the VM's lease")(why))
            }
        }
    }

    /// Begins to renew the lease of a VM, which its voters granted when they were asked at `sent`.
    pub(crate) fn begin_lease(&self, slot: &Arc<Slot>, sent: Duration) {
        let entry = slot.entry();
        let set = VoterSet::sign(&entry.secret.keys(), &entry.definition.voters);
        let (acts, to_do) = mpsc::channel(WAITING);
        let (vm, number) = (set.vm, self.leases.next());
        self.leases.begin(Held {
            number,
            slot: slot.clone(),
            set,
            epoch: entry.epoch,
            tenure: Tenure::new(Terms::REAL),
            guest: Stand::Runs,
            acts,
        });
        self.follow_lease(slot.clone(), number, to_do);
        let granted = TenureInput::Granted(sent);
        self.perform(self.leases.input(vm, self.boottime(), granted));
        slot.set_shield(Shield::Leased);
    }

    /// The VM's guest has ended, or is cut off for good: nothing renews its lease, and the guardian
    /// forgets it.
    pub(crate) async fn end_lease(&self, slot: &Slot) {
        let entry = slot.entry();
        let vm = entry.definition.vm;
        match self.leases.end(slot) {
            Ended::Lease => {}
            Ended::Nothing if entry.leased => {}
            Ended::Anothers | Ended::Nothing => return,
        }
        if let Err(e) = self.parts.guardian.drop_vm(vm).await {
            tracing::warn!(vm = %vm.short(), error = %chain(&e), "the guardian still has a guest \
                that has ended");
        }
    }

    /// Has a guest under a lease again that a hand-over held, before it goes on.
    ///
    /// # Errors
    /// As [`Host::secure`]; [`Error::Refused`] if another member has the VM.
    pub(crate) async fn lease_again(
        &self,
        slot: &Arc<Slot>,
        machine: &dyn Machine,
    ) -> Result<(), Error> {
        let entry = slot.entry();
        let vm = entry.definition.vm;
        // What is left of the lease carries the guest until a newer epoch is granted.
        if !entry.leased || self.leases.may_run(vm, self.boottime()) {
            return Ok(());
        }
        if let Ownership::Theirs { holder, epoch } = self.regain(slot).await? {
            let name = &entry.definition.name;
            return Err(Self::running_elsewhere(name, holder, epoch));
        }
        self.leases.end(slot);
        self.secure(slot, machine).await
    }

    /// The voters say that the VM is this host's: a lease whose renewals ended for a hand-over is
    /// renewed again.
    pub(super) fn renew_on(&self, vm: VmId) {
        self.perform(self.leases.input(vm, self.boottime(), TenureInput::Start));
    }

    /// Goes on with the VM's lease in its newer epoch.
    ///
    /// # Errors
    /// As [`Host::secure`].
    pub(super) async fn lease_in(
        &self,
        slot: &Arc<Slot>,
        machine: &dyn Machine,
    ) -> Result<(), Error> {
        // Its deadline stands at the guardian meanwhile.
        match self.leases.end(slot) {
            Ended::Lease => self.secure(slot, machine).await,
            Ended::Anothers | Ended::Nothing => Ok(()),
        }
    }

    /// Whether the VM has a lease here.
    pub(crate) fn is_leased(&self, vm: VmId) -> bool {
        self.leases.has(vm)
    }

    /// Whether the VM's guest stands still for want of a lease.
    pub(crate) fn lacks_lease(&self, vm: VmId) -> bool {
        self.leases.guest(vm) != Stand::Runs
    }

    /// Refuses a guest that stands still for want of a lease.
    pub(crate) fn must_have_lease(&self, slot: &Slot) -> Result<(), Error> {
        let entry = slot.entry();
        if !self.lacks_lease(entry.definition.vm) {
            return Ok(());
        }
        let name = &entry.definition.name;
        Err(Error::Refused(format!("'{name}' is {FROZEN}")))
    }

    /// Whether the VM's guest stands still for want of a lease.
    pub(super) fn stands_still(&self, vm: VmId) -> bool {
        self.leases.guest(vm) != Stand::Runs
    }

    /// Whether the guardian has frozen the VM's guest.
    pub(crate) fn is_frozen(&self, vm: VmId) -> bool {
        self.leases.guest(vm) == Stand::Frozen
    }

    /// The VM is another member's: nothing renews its lease. The guardian's deadline stands, for a
    /// hypervisor that does not hold the guest.
    pub(super) fn stop_renewing(&self, slot: &Slot) {
        self.leases.end(slot);
    }

    /// Whether the VM may be handed over to a target that runs unconfirmed for at most `longest`:
    /// all of that lies within this host's lease. A VM without a lease may.
    pub(crate) fn may_hand_over(&self, vm: VmId, longest: Duration) -> bool {
        let by_vm = lock(&self.leases.by_vm);
        let now = self.boottime();
        by_vm
            .get(&vm)
            .is_none_or(|held| held.tenure.may_hand_over(now, longest))
    }

    /// Renews the VM's lease at once.
    ///
    /// # Errors
    /// As [`Host::renew_once`].
    pub(crate) async fn renew_lease(&self, slot: &Slot) -> Result<(), Error> {
        let sent = self.renew_once(slot).await?;
        let vm = slot.entry().definition.vm;
        self.perform(
            self.leases
                .input(vm, self.boottime(), TenureInput::Granted(sent)),
        );
        Ok(())
    }

    /// The voters are asked to promise the VM's next epoch to a target: they renew this one no
    /// more.
    pub(crate) fn hand_over_lease(&self, vm: VmId) {
        let work = self
            .leases
            .input(vm, self.boottime(), TenureInput::HandingOver);
        self.perform(work);
    }

    /// Makes sure that a protected VM's guest, which may be frozen, can be worked with again: asks
    /// the voters which member has it, and has the guardian let it go on.
    ///
    /// # Errors
    /// [`Error::Agreement`] if too few voters answer, or the guardian's.
    pub(crate) async fn regain(&self, slot: &Arc<Slot>) -> Result<Ownership, Error> {
        let entry = slot.entry();
        let asking = undecided("asking the VM's voters whether its guest may go on here");
        let owned = self.claim(&entry).await.map_err(asking)?;
        let Ownership::Ours(epoch) = owned else {
            return Ok(owned);
        };
        if epoch != entry.epoch {
            self.update(slot, |e| (e.epoch, e.seq) = (epoch, 0))?;
        }
        let ends = lease_end(self.renew_once(slot).await?);
        let (vm, guardian) = (entry.definition.vm, &self.parts.guardian);
        let spec = self.registry.spec(&entry);
        // After the guardian's own end another one is told of the guest, which stands.
        if guardian.ward(vm).await? == Ward::Unknown {
            // It ended while it stood: there is nothing to thaw.
            let Some(process) = self.parts.hypervisor.guarded(&spec) else {
                return Ok(owned);
            };
            match guardian.arm(vm, epoch, ends, &process).await {
                Ok(()) => return Ok(owned),
                Err(GuardianError::Frozen) => {}
                Err(e) => return Err(e.into()),
            }
        }
        guardian.thaw(vm, epoch, ends).await?;
        Ok(owned)
    }
}
