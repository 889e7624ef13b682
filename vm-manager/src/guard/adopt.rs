//! After a restart of the daemon: takes up the guests that still run, boots those that should, and
//! settles what a kill interrupted. The entry says how far an operation had come, since it is
//! written before each step that another member could see.

use crate::{
    Error, Host,
    directory::RunGoal,
    guardian::{GuardianError, Ward},
    handover::longest_run,
    host::{Activity, Entry, Guest, Ownership, Role, Side, Slot, registry::superseded, run_here},
    hypervisor::RunState,
};
use futures::future::BoxFuture;
use p2pvm_overlay::{Epoch, MemberId, chain};
use std::{sync::Arc, time::Duration};

/// How long before voters that could not settle a VM are asked again.
const RETRY: Duration = Duration::from_secs(5);
/// How long a guest runs without a renewal that this daemon found without a deadline.
/// Reason: its lease may have begun shortly before.
const UNRENEWED: Duration = Duration::from_secs(10);

impl Host {
    /// Takes up every defined VM; false if one cannot be read. Work that needs other members runs
    /// in tasks, so that a host starts without a network.
    pub(super) async fn adopt_all(self: &Arc<Self>) -> Result<bool, Error> {
        let (mut entries, unreadable) = self.registry.load()?;
        for (path, reason) in &unreadable {
            tracing::error!(path = %path.display(), reason, "a VM's directory cannot be read; it \
                is left as it is");
        }
        for (at, newer) in superseded(&entries) {
            self.replace_older(&mut entries[at], newer);
        }
        // All are listed first: an interrupted restore looks for the copy that it replaces.
        let slots: Vec<_> = entries.into_iter().map(|e| self.list_entry(e)).collect();
        for slot in &slots {
            if let Err(e) = self.adopt(slot).await {
                tracing::error!(vm = %slot.entry().listed_name(), error = %chain(&e), "the VM \
                    could not be taken up again");
            }
        }
        Ok(unreadable.is_empty())
    }

    /// A newer incarnation here holds the VM as well.
    fn replace_older(&self, entry: &mut Entry, newer: Epoch) {
        tracing::warn!(vm = %entry.listed_name(), epoch = %entry.epoch, "a newer copy here holds \
            the VM as well: the older one becomes a branch");
        entry.make_replaced(self.me, newer);
        if let Err(e) = self.registry.save(entry) {
            tracing::error!(error = %chain(&e), "the branch could not be written down");
        }
    }

    async fn adopt(self: &Arc<Self>, slot: &Arc<Slot>) -> Result<(), Error> {
        let entry = slot.entry();
        if entry.leased && self.stands_frozen(&entry).await {
            if entry.is_branch() {
                // Its memory is of no use: a branch never runs.
                return self.parts.hypervisor.end(&self.registry.spec(&entry)).await;
            }
            self.adopt_frozen(slot);
            return Ok(());
        }
        let spec = self.registry.spec(&entry);
        let machine = self.parts.hypervisor.adopt(&spec).await?;
        let state = machine
            .as_ref()
            .map_or(RunState::Stopped, |m| *m.watch().borrow());
        tracing::info!(vm = %entry.listed_name(), role = ?entry.role, ?state, "taken up again");
        if let Some(machine) = machine.filter(|_| state != RunState::Stopped) {
            let memory = self.envelope.note_run(&self.envelope.need_of(&entry));
            self.install(slot, Guest::new(machine, memory));
        }
        match entry.role {
            Role::Unmade => {
                self.kill_guest(slot).await?;
                self.unmake_in_background(slot);
                Ok(())
            }
            Role::Branch { .. } => {
                self.hold_still(slot).await;
                Ok(())
            }
            Role::Held => self.adopt_held(slot, state).await,
            Role::Leaving { id, to, .. } => self.adopt_leaving(slot, state, id, to).await,
            Role::Arriving { id, from } => self.adopt_arriving(slot, state, id, from).await,
            Role::Doubtful { side, .. } => {
                self.hold_still(slot).await;
                let wait = match side {
                    Side::Source => longest_run(1),
                    Side::Target => Duration::ZERO,
                };
                self.settle_in_background(slot, wait);
                Ok(())
            }
        }
    }

    /// Whether the guest of a protected VM stands frozen. One that runs without a deadline, since
    /// the guardian ended, gets a short one.
    async fn stands_frozen(&self, entry: &Entry) -> bool {
        let (vm, guardian) = (entry.definition.vm, &self.parts.guardian);
        let frozen = async {
            match guardian.ward(vm).await? {
                Ward::Frozen => return Ok(true),
                Ward::Armed => return Ok(false),
                Ward::Unknown => {}
            }
            let spec = self.registry.spec(entry);
            let Some(process) = self.parts.hypervisor.guarded(&spec) else {
                return Ok(false);
            };
            let soon = self.boottime() + UNRENEWED;
            match guardian.arm(vm, entry.epoch, soon, &process).await {
                Err(GuardianError::Frozen) => Ok(true),
                armed => armed.map(|()| false),
            }
        };
        frozen.await.unwrap_or_else(|e| {
            tracing::warn!(vm = %vm.short(), error = %chain(&e), "cannot tell whether a guest is \
                frozen");
            false
        })
    }

    /// A frozen guest stays frozen until its voters have said that the VM is this host's. Its
    /// hypervisor does not answer before.
    fn adopt_frozen(self: &Arc<Self>, slot: &Arc<Slot>) {
        let (host, slot) = (self.clone(), slot.clone());
        self.spawn(async move {
            let operation = slot.begin_next(Activity::Settling).await;
            let name = slot.entry().listed_name();
            let owned = loop {
                match host.regain(&slot).await {
                    Ok(owned) => break owned,
                    Err(e) => {
                        tracing::info!(vm = %name, error = %chain(&e), "its guest stays frozen")
                    }
                }
                tokio::time::sleep(RETRY).await;
            };
            if let Ownership::Theirs { holder, epoch } = owned {
                let spec = host.registry.spec(&slot.entry());
                if let Err(e) = host.parts.hypervisor.end(&spec).await {
                    tracing::error!(vm = %name, error = %chain(&e), "the frozen guest of a VM \
                        that was lost could not be ended");
                }
                return host.fence(&slot, holder, epoch).await;
            }
            drop(operation);
            let adopting: BoxFuture<'_, Result<(), Error>> = Box::pin(host.adopt(&slot));
            if let Err(e) = adopting.await {
                tracing::error!(vm = %name, error = %chain(&e), "the VM could not be taken up \
                    again");
            }
        });
    }

    async fn adopt_held(self: &Arc<Self>, slot: &Arc<Slot>, state: RunState) -> Result<(), Error> {
        // The daemon may have been killed while it mirrored the disk, before the move was written
        // down.
        if let Some(machine) = slot.machine().filter(|_| state == RunState::Running)
            && let Err(e) = run_here(&*machine).await
        {
            tracing::warn!(vm = %slot.entry().listed_name(), error = %chain(&e), "an interrupted \
                move could not be given up and will hinder the next one");
        }
        self.resume_life(slot).await
    }

    /// The daemon was killed while it moved the VM away.
    async fn adopt_leaving(
        self: &Arc<Self>,
        slot: &Arc<Slot>,
        state: RunState,
        id: u64,
        to: MemberId,
    ) -> Result<(), Error> {
        if state != RunState::Running || self.may_be_handed_over(slot).await {
            // Only after its processors and its port are still does it wait for an answer.
            self.hold_still(slot).await;
            let role = Role::Doubtful {
                id,
                side: Side::Source,
                other: to,
            };
            return self.adopt_in_doubt(slot, role, longest_run(1));
        }
        // Nothing of its guest was handed over.
        if let Some(machine) = slot.machine() {
            run_here(&*machine).await?;
        }
        self.update(slot, |e| e.role = Role::Held)?;
        self.resume_life(slot).await
    }

    /// Whether a guest that runs here may run at the target of its move as well.
    async fn may_be_handed_over(&self, slot: &Slot) -> bool {
        let Some(machine) = slot.machine() else {
            return false;
        };
        machine.may_be_handed_over().await.unwrap_or_else(|e| {
            tracing::warn!(vm = %slot.entry().listed_name(), error = %chain(&e), "cannot tell \
                how far an interrupted move had come: the guest stands still");
            true
        })
    }

    /// The daemon was killed while a move or a restore brought the VM here.
    async fn adopt_arriving(
        self: &Arc<Self>,
        slot: &Arc<Slot>,
        state: RunState,
        id: u64,
        from: MemberId,
    ) -> Result<(), Error> {
        if state == RunState::Running {
            // It became whole and ran, and no confirmation was written down.
            self.hold_still(slot).await;
            let role = Role::Doubtful {
                id,
                side: Side::Target,
                other: from,
            };
            return self.adopt_in_doubt(slot, role, Duration::ZERO);
        }
        // It never ran here, or the power failed in the instant after: the VM is this host's only
        // if the voters say so.
        self.kill_guest(slot).await?;
        let (host, slot) = (self.clone(), slot.clone());
        self.spawn(async move { host.keep_if_confirmed(&slot).await });
        Ok(())
    }

    fn adopt_in_doubt(&self, slot: &Arc<Slot>, role: Role, wait: Duration) -> Result<(), Error> {
        self.update(slot, |e| e.role = role)?;
        self.settle_in_background(slot, wait);
        Ok(())
    }

    /// A held VM after a restart: a guest that runs goes on, and the voters are asked; one that
    /// stands still goes on, or one that should run is booted, once they have answered.
    async fn resume_life(self: &Arc<Self>, slot: &Arc<Slot>) -> Result<(), Error> {
        let entry = slot.entry();
        // This host may have lost the VM without having written it down.
        slot.set_unproven(slot.run_state() == RunState::Paused);
        if slot.machine().is_some() && !slot.is_unproven() {
            let spec = self.registry.spec(&entry);
            self.parts
                .port
                .attach(&spec, &entry.definition.address, entry.epoch)
                .await?;
        }
        let (host, slot) = (self.clone(), slot.clone());
        self.spawn(async move {
            host.settle_in(&slot).await;
            host.publish(&slot).await;
        });
        Ok(())
    }

    /// Asks a held VM's voters, lets it go on, or boots it, until there is an answer; tells the
    /// network where the VM is.
    pub(crate) async fn settle_in(&self, slot: &Arc<Slot>) {
        loop {
            match self.settle_once(slot).await {
                Ok(()) | Err(Error::Refused(_)) => break,
                Err(e) => tracing::info!(
                    vm = %slot.entry().listed_name(), error = %chain(&e), "not settled yet"
                ),
            }
            tokio::time::sleep(RETRY).await;
        }
        if slot.machine().is_none() {
            return;
        }
        let entry = slot.entry();
        let keys = entry.secret.keys();
        let announced = self
            .parts
            .port
            .announce(&keys, &entry.definition, self.me, entry.epoch)
            .await;
        if let Err(e) = announced {
            tracing::warn!(vm = %entry.definition.name, error = %chain(&e), "the VM's place could \
                not be announced");
        }
    }

    async fn settle_once(&self, slot: &Arc<Slot>) -> Result<(), Error> {
        if slot.entry().wanted == RunGoal::Stopped {
            return self.check(slot).await;
        }
        match (slot.machine(), slot.run_state()) {
            (Some(machine), RunState::Paused) => {
                self.check(slot).await?;
                let _operation = slot.begin_next(Activity::Resuming).await;
                self.must_be_held(slot)?;
                self.secure(slot, &*machine).await?;
                self.go_on(slot, &*machine).await
            }
            (Some(machine), _) => {
                self.check(slot).await?;
                let _operation = slot.begin_next(Activity::Checking).await;
                self.must_be_held(slot)?;
                self.secure(slot, &*machine).await
            }
            (None, _) => {
                let _operation = slot.begin_next(Activity::Restarting).await;
                self.boot(slot).await
            }
        }
    }

    /// Keeps an interrupted arrival if the voters hold it confirmed for this host, and removes it
    /// if they do not.
    async fn keep_if_confirmed(self: &Arc<Self>, slot: &Arc<Slot>) {
        let operation = slot.begin_next(Activity::Checking).await;
        let entry = slot.entry();
        let confirmed = loop {
            match self.is_confirmed_here(&entry).await {
                Ok(confirmed) => break confirmed,
                Err(e) => {
                    tracing::info!(vm = %entry.listed_name(), error = %chain(&e), "an interrupted \
                        arrival is not settled yet");
                    tokio::time::sleep(RETRY).await;
                }
            }
        };
        let settled = match confirmed {
            true => self.keep(slot).await,
            false => self.remove(slot),
        };
        if let Err(e) = settled {
            tracing::error!(vm = %entry.listed_name(), error = %chain(&e), "an interrupted \
                arrival could not be settled");
            return;
        }
        if !confirmed {
            return self.drop_unused(entry.definition.image).await;
        }
        drop(operation);
        if let Err(e) = self.resume_life(slot).await {
            tracing::error!(vm = %slot.entry().listed_name(), error = %chain(&e), "the VM could \
                not be taken up again");
        }
    }

    async fn keep(&self, slot: &Arc<Slot>) -> Result<(), Error> {
        self.supersede(slot, slot.entry().epoch).await?;
        self.update(slot, |e| e.role = Role::Held).map(drop)
    }
}
