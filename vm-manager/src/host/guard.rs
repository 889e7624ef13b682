//! What a host does unasked: takes its VMs up again when the daemon starts, decides what a kill
//! interrupted, asks the voters of every running VM now and then whether it is still ours, and
//! fences the one that is not.

use super::{CHECKING, Claimed, Entry, Host, HostEvent, Role, Side, Slot, names::Looks};
use crate::{
    Error,
    directory::Wanted,
    hypervisor::{Machine, RunState},
    migrate::{
        handover::longest_run,
        wire::{self, Answer, Ask},
    },
};
use p2pvm_overlay::{Epoch, MemberId, VmId, chain, network_time::NetworkTime};
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

/// Between two attempts to settle what the voters could not say yet.
const RETRY: Duration = Duration::from_secs(5);

/// How long a source that could ask the voters still leaves the VM to a target that answers and is
/// in doubt as well: the target's copy is the newer one.
const DEFER: Duration = Duration::from_secs(30);

/// An operation on a VM that is given up may take this long to end.
const GIVE_UP_LIMIT: Duration = Duration::from_secs(10);

/// Gives a migration up, if one is under way, and sees to it that the guest runs here, also if it
/// was held still meanwhile.
pub(crate) async fn run_here(machine: &dyn Machine) -> Result<(), Error> {
    let cancelled = machine.cancel_migration().await;
    if *machine.watch().borrow() == RunState::Running {
        cancelled
    } else {
        machine.resume().await.and(cancelled)
    }
}

impl Host {
    /// Takes up every defined VM; false if there is one that cannot be read. What needs other
    /// members goes to tasks, so that a host starts without a network.
    pub(super) async fn adopt_all(&self) -> Result<bool, Error> {
        let (entries, broken) = self.registry.load()?;
        let all_known = broken.is_empty();
        for (path, reason) in broken {
            tracing::error!(path = %path.display(), reason, "a VM's directory cannot be read; it \
                is left as it is");
        }
        for entry in entries {
            let slot = Slot::new(entry.clone());
            super::lock(&self.slots).insert(entry.incarnation(), slot.clone());
            if let Err(e) = self.adopt(&slot, entry.clone()).await {
                tracing::error!(vm = %entry.listed_name(), error = %chain(&e), "the VM could not \
                    be taken up again");
            }
        }
        Ok(all_known)
    }

    async fn adopt(&self, slot: &Arc<Slot>, entry: Entry) -> Result<(), Error> {
        let machine = self
            .parts
            .hypervisor
            .adopt(&self.registry.spec(&entry))
            .await?;
        let state = machine
            .as_ref()
            .map_or(RunState::Stopped, |m| *m.watch().borrow());
        tracing::info!(vm = %entry.listed_name(), role = ?entry.role, ?state, "taken up again");
        if let Some(machine) = machine.filter(|_| state != RunState::Stopped) {
            self.install(slot, machine);
        }
        let Some(host) = self.strong() else {
            // During `open` the host is not shared yet by anyone but its own weak reference; this
            // cannot be.
            return Ok(());
        };
        match entry.role {
            Role::Unmade => {
                self.kill_guest(slot).await?;
                self.unmake_in_background(slot);
            }
            Role::Branch { .. } => self.hold_still(slot).await,
            Role::Held => {
                // The daemon may have been killed while it mirrored the disk, before the move was
                // written down.
                if let Some(machine) = slot.machine().filter(|_| state == RunState::Running)
                    && let Err(e) = run_here(&*machine).await
                {
                    tracing::warn!(vm = %entry.listed_name(), error = %chain(&e), "an interrupted \
                        move is in the way of the next one");
                }
                self.resume_life(slot).await?;
            }
            Role::Leaving { id, to, .. } => match state {
                RunState::Running => {
                    // It was never paused for the hand-over, so nothing was handed over.
                    if let Some(machine) = slot.machine() {
                        run_here(&*machine).await?;
                    }
                    self.update(slot, |e| e.role = Role::Held)?;
                    self.resume_life(slot).await?;
                }
                _ => {
                    self.update(slot, |e| {
                        e.role = Role::Doubtful {
                            id,
                            side: Side::Source,
                            other: to,
                        }
                    })?;
                    self.settle_in_background(slot, longest_run(1));
                }
            },
            Role::Arriving { id, from } => match state {
                RunState::Running => {
                    // It became whole and ran, and no confirmation was written down.
                    self.hold_still(slot).await;
                    self.update(slot, |e| {
                        e.role = Role::Doubtful {
                            id,
                            side: Side::Target,
                            other: from,
                        }
                    })?;
                    self.settle_in_background(slot, Duration::ZERO);
                }
                _ => {
                    // It never ran here, or the power failed in the instant after: only the voters'
                    // word makes it ours.
                    self.kill_guest(slot).await?;
                    let slot = slot.clone();
                    self.spawn(async move { host.ours_or_nothing(&slot).await });
                }
            },
            Role::Doubtful { side, .. } => {
                self.hold_still(slot).await;
                self.settle_in_background(
                    slot,
                    if side == Side::Source {
                        longest_run(1)
                    } else {
                        Duration::ZERO
                    },
                );
            }
        }
        Ok(())
    }

    /// A held VM after a restart: its guest goes on, or is booted if it should run; then the voters
    /// are asked.
    async fn resume_life(&self, slot: &Arc<Slot>) -> Result<(), Error> {
        let entry = slot.entry();
        if let Some(machine) = slot.machine() {
            self.parts
                .port
                .attach(
                    &self.registry.spec(&entry),
                    &entry.definition.address,
                    entry.epoch,
                )
                .await?;
            if slot.run_state() == RunState::Paused && entry.wanted == Wanted::Running {
                machine.resume().await?;
            }
        }
        let (Some(host), slot) = (self.strong(), slot.clone()) else {
            return Ok(());
        };
        self.spawn(async move {
            loop {
                let settled = if slot.machine().is_some() || slot.entry().wanted == Wanted::Stopped
                {
                    host.check(&slot).await
                } else {
                    let _busy = slot
                        .begin_next("starting after a restart of the host")
                        .await;
                    host.boot(&slot).await
                };
                match settled {
                    Ok(()) | Err(Error::Refused(_)) => break,
                    Err(e) => tracing::info!(
                        vm = %slot.entry().listed_name(), error = %chain(&e), "not settled yet"
                    ),
                }
                tokio::time::sleep(RETRY).await;
            }
            if slot.machine().is_some() {
                let entry = slot.entry();
                if let Err(e) = host
                    .parts
                    .port
                    .announce(
                        &entry.secret.keys(),
                        &entry.definition,
                        host.me,
                        entry.epoch,
                    )
                    .await
                {
                    tracing::warn!(vm = %entry.definition.name, error = %chain(&e), "the VM's \
                        place could not be announced");
                }
            }
            host.publish(&slot).await;
        });
        Ok(())
    }

    /// Asks the voters of a held VM; takes the newer epoch, or fences the copy here. Between
    /// operations only.
    pub(crate) async fn check(&self, slot: &Arc<Slot>) -> Result<(), Error> {
        let Ok(_busy) = slot.begin(CHECKING) else {
            return Ok(());
        };
        let entry = slot.entry();
        if entry.role != Role::Held {
            return Ok(());
        }
        match self
            .claim(&entry)
            .await
            .map_err(super::life::undecided("asking the VM's voters"))?
        {
            Claimed::Ours(epoch) if epoch == entry.epoch => Ok(()),
            Claimed::Ours(epoch) => self.take_epoch(slot, epoch).await,
            Claimed::Theirs { holder, epoch } => {
                self.lose(slot, holder, epoch).await;
                Ok(())
            }
        }
    }

    /// A held VM is another member's by its voters' word. Where that was agreed on, the copy here
    /// goes; else it is fenced and kept.
    pub(super) async fn lose(&self, slot: &Arc<Slot>, holder: MemberId, newer: Epoch) {
        let entry = slot.entry();
        let agreed = entry.gives_way == Some(holder) && slot.machine().is_none();
        // Only if it came to life there: a restore that failed half-way leaves this copy as what
        // there is.
        if agreed && self.runs_at(holder, entry.definition.vm).await {
            match self.remove(slot) {
                Ok(()) => {
                    tracing::info!(
                        vm = %entry.definition.name, holder = %holder.short(), %newer,
                        "restored elsewhere: the copy here goes"
                    );
                    return;
                }
                Err(e) => {
                    tracing::error!(vm = %entry.definition.name, error = %chain(&e), "the copy \
                        here cannot be removed")
                }
            }
        }
        self.fence(slot, holder, newer).await;
    }

    /// Goes on with a held VM in a newer epoch.
    pub(crate) async fn take_epoch(&self, slot: &Arc<Slot>, epoch: Epoch) -> Result<(), Error> {
        let entry = self.update(slot, |e| (e.epoch, e.seq) = (epoch, 0))?;
        if slot.machine().is_some() {
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
        self.hold_still(slot).await;
        let note = format!("epoch {newer} went to {}", holder.short());
        let fenced = self.update(slot, |e| {
            (e.role, e.note, e.gives_way) = (Role::Branch { holder, newer }, Some(note), None)
        });
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
                self.emit(HostEvent::Fenced {
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
            // What is going on with it may never end now, its port being shut.
            let _busy = tokio::time::timeout(GIVE_UP_LIMIT, slot.begin_next("giving it up")).await;
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
        if let Err(e) = machine.pause().await {
            tracing::error!(vm = %entry.definition.name, error = %chain(&e), "the guest could not \
                be paused: it is killed");
            if let Err(e) = machine.kill().await {
                tracing::error!(vm = %entry.definition.name, error = %chain(&e), "nor killed; its \
                    epoch is void in the network all the same");
            }
        }
    }

    pub(crate) async fn kill_guest(&self, slot: &Slot) -> Result<(), Error> {
        match slot.take_machine() {
            Some(machine) => machine.kill().await,
            None => Ok(()),
        }
    }

    async fn ours_or_nothing(&self, slot: &Arc<Slot>) {
        let _busy = slot.begin_next(CHECKING).await;
        loop {
            let entry = slot.entry();
            let done = match self.is_confirmed_here(&entry).await {
                Ok(Some(epoch)) => self
                    .update(slot, |e| (e.role, e.epoch) = (Role::Held, epoch))
                    .map(|_| true),
                Ok(None) => self.remove(slot).map(|()| false),
                Err(e) => {
                    tracing::info!(vm = %entry.listed_name(), error = %chain(&e), "an interrupted \
                        arrival is not settled yet");
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
            };
            match done {
                Ok(true) => break,
                Ok(false) => return self.drop_unused(entry.definition.image).await,
                Err(e) => {
                    tracing::error!(
                        vm = %entry.listed_name(), error = %chain(&e),
                        "an interrupted arrival could not be settled"
                    );
                    return;
                }
            }
        }
        drop(_busy);
        if let Err(e) = self.resume_life(slot).await {
            tracing::error!(vm = %slot.entry().listed_name(), error = %chain(&e), "the VM could \
                not be taken up again");
        }
    }

    /// Settles a doubtful VM in a task; `wait` is how long the other side might still run it
    /// unconfirmed.
    pub(crate) fn settle_in_background(&self, slot: &Arc<Slot>, wait: Duration) {
        let (Some(host), slot) = (self.strong(), slot.clone()) else {
            return;
        };
        self.spawn(async move {
            let _busy = slot.begin_next("waiting for its voters").await;
            host.settle(&slot, wait).await;
        });
    }

    /// Settles a doubtful VM: the other side's word if it answers, the voters' if it does not.
    pub(crate) async fn settle(&self, slot: &Arc<Slot>, wait: Duration) {
        let claim_from = self.now() + wait;
        let mut deferred = Duration::ZERO;
        loop {
            let entry = slot.entry();
            let Role::Doubtful { id, side, other } = entry.role else {
                return;
            };
            let vm = entry.definition.vm;
            let ask = Ask::Abort {
                id,
                vm,
                reason: "the hand-over is in doubt".into(),
            };
            // Only a source asks: the target's copy is the newer one, and its word decides when it
            // has decided.
            let pause = match side {
                Side::Target => None,
                Side::Source => {
                    match wire::ask(&*self.parts.fabric, other, &ask, wire::SHORT).await {
                        Ok(Answer::Confirmed { epoch }) => {
                            return self.gone_to(slot, other, epoch).await;
                        }
                        Ok(Answer::Gone { reason }) => return self.take_back(slot, &reason).await,
                        Ok(Answer::Running | Answer::Waiting) => Some(Duration::from_millis(300)),
                        Ok(Answer::Doubtful) if deferred < DEFER => {
                            deferred += RETRY;
                            Some(RETRY)
                        }
                        _ => None,
                    }
                }
            };
            if let Some(pause) = pause {
                tokio::time::sleep(pause).await;
                continue;
            }
            if self.now() < claim_from {
                tokio::time::sleep(Duration::from_millis(500).min(claim_from - self.now())).await;
                continue;
            }
            match self.claim(&entry).await {
                Ok(Claimed::Ours(epoch)) => return self.thaw(slot, side, epoch).await,
                Ok(Claimed::Theirs { holder, epoch }) => {
                    return self.fence(slot, holder, epoch).await;
                }
                Err(e) => {
                    tracing::info!(
                        vm = %entry.definition.name, error = %chain(&e), "still doubtful"
                    )
                }
            }
            tokio::time::sleep(RETRY + Duration::from_millis(rand::random_range(0..1000))).await;
        }
    }

    /// Source: the target never ran it and never will.
    pub(crate) async fn take_back(&self, slot: &Arc<Slot>, reason: &str) {
        tracing::info!(reason, "the target gave the VM up; it goes on here");
        let epoch = slot.entry().epoch;
        self.thaw(slot, Side::Source, epoch).await;
        // The target's epoch was promised: ours has to be newer for peers that heard of it.
        if let (Some(host), slot) = (self.strong(), slot.clone()) {
            self.spawn(async move {
                // The operation that called this one ends first.
                drop(slot.begin_next("waiting").await);
                if let Err(e) = host.check(&slot).await {
                    tracing::info!(error = %chain(&e), "a newer epoch will be asked for later");
                }
            });
        }
    }

    /// Lets a doubtful VM run here.
    async fn thaw(&self, slot: &Arc<Slot>, side: Side, epoch: Epoch) {
        let thawed = async {
            let entry = self.update(slot, |e| {
                (e.role, e.epoch, e.note) = (Role::Held, epoch, None)
            })?;
            let address = &entry.definition.address;
            let Some(machine) = slot
                .machine()
                .filter(|_| slot.run_state() != RunState::Stopped)
            else {
                self.kill_guest(slot).await?;
                return if entry.wanted == Wanted::Running {
                    self.boot(slot).await
                } else {
                    Ok(())
                };
            };
            self.parts
                .port
                .attach(&self.registry.spec(&entry), address, epoch)
                .await?;
            match side {
                Side::Source => {
                    run_here(&*machine).await?;
                    self.parts.port.recall(address, epoch).await?;
                }
                Side::Target => machine.resume().await?,
            }
            self.parts.port.frozen(entry.definition.vm, false).await?;
            self.parts
                .port
                .announce(&entry.secret.keys(), &entry.definition, self.me, epoch)
                .await
        };
        if let Err(e) = thawed.await {
            tracing::error!(vm = %slot.entry().definition.name, error = %chain(&e), "the VM is \
                ours, but its guest could not go on");
            let note = Some(format!(
                "it could not go on after a migration: {}",
                chain(&e)
            ));
            if let Err(e) = self.update(slot, |e| e.note = note) {
                tracing::error!(error = %chain(&e), "nor could that be written down");
            }
        }
        self.publish(slot).await;
    }

    /// Source: the target has it for good; the copy here goes.
    pub(crate) async fn gone_to(&self, slot: &Arc<Slot>, to: MemberId, epoch: Epoch) {
        let entry = slot.entry();
        let gone = async {
            self.parts
                .port
                .forward(&entry.definition.address, to, epoch)
                .await?;
            self.kill_guest(slot).await?;
            self.parts.port.detach(entry.definition.vm).await?;
            self.remove(slot)
        };
        if let Err(e) = gone.await {
            tracing::error!(vm = %entry.definition.name, error = %chain(&e), "the copy left \
                behind could not be removed");
        }
    }

    /// A peer refused what a VM here sent, for a newer epoch: asks its voters now.
    pub fn stale_epoch(&self, vm: VmId, known: Epoch) {
        if let Some(slot) = self.slot_of(vm).filter(|slot| known > slot.entry().epoch) {
            self.check_soon(slot);
        }
    }

    /// Asks a VM's voters in a task: another member knows a newer epoch.
    pub(super) fn check_soon(&self, slot: Arc<Slot>) {
        let Some(host) = self.strong() else { return };
        self.spawn(async move {
            if let Err(e) = host.check(&slot).await {
                tracing::info!(error = %chain(&e), "a peer knows a newer epoch, and the voters \
                    could not be asked");
            }
        });
    }

    /// The host's rounds.
    pub(super) fn guard(&self) {
        let (this, every, renew_every) = (
            self.this.clone(),
            self.options.guard_every,
            self.options.renew_every,
        );
        self.spawn(async move {
            let mut renewed = tokio::time::Instant::now();
            let mut times_set = NetworkTime::of_process().times_set();
            let mut looks = Looks::default();
            loop {
                tokio::time::sleep(every).await;
                let Some(host) = this.upgrade() else { return };
                // What was signed before the network's time was set anew ends by the time of
                // before.
                let set = NetworkTime::of_process().times_set();
                let renew = renewed.elapsed() >= renew_every
                    || std::mem::replace(&mut times_set, set) != set;
                if renew {
                    renewed = tokio::time::Instant::now();
                }
                let names = looks.due(host.parts.fabric.connected());
                for slot in host.slots() {
                    host.round(&slot, renew).await;
                    if (names || renew) && host.lists(&slot) {
                        host.keep_name(&slot, renew).await;
                    }
                }
            }
        });
    }

    /// Removes what is left of a half-made or half-deleted VM, unless it is being made or removed
    /// just now.
    fn unmake_in_background(&self, slot: &Arc<Slot>) {
        let (Some(host), Ok(busy), slot) = (
            self.strong(),
            slot.begin("removing what is left"),
            slot.clone(),
        ) else {
            return;
        };
        self.spawn(async move {
            host.unmake(&slot).await;
            drop(busy);
        });
    }

    async fn round(&self, slot: &Arc<Slot>, renew: bool) {
        let entry = slot.entry();
        if entry.role == Role::Unmade {
            self.unmake_in_background(slot);
        }
        if entry.role != Role::Held {
            return;
        }
        // One that does not run may have been restored elsewhere meanwhile: it is a branch then,
        // and not in the way of the VM's return.
        if let Err(e) = self.check(slot).await {
            tracing::info!(vm = %entry.definition.name, error = %chain(&e), "the VM goes on \
                unchecked");
        }
        if !self.lists(slot) {
            return;
        }
        if renew
            && let Err(e) = self
                .parts
                .port
                .renew(&entry.secret.keys(), &entry.definition, entry.epoch)
                .await
        {
            tracing::warn!(vm = %entry.definition.name, error = %chain(&e), "the VM's address \
                could not be renewed");
        }
        self.resume_copies(slot).await;
        if renew || slot.unpublished.load(Ordering::Relaxed) {
            self.publish(slot).await;
        }
    }
}
