//! The source's side of a migration: leads it from the offer to the end, and takes the guest back
//! when it fails.

use super::{
    CONFIRM_GRACE, MigrationOutcome, Occasion, REARM_EVERY, RunsOn, WINDOW,
    handover::{SourceClaim, longest_run},
    traced::{note_outcome, noting_rounds},
    tunnel::{Channel, Tunnel},
    wire::{self, Answer, Ask, Beside, Burden, LONG, Offer, SHORT, peer},
};
use crate::{
    Error,
    directory::Wanted,
    host::{Busy, Entry, Host, HostEvent, Role, Side, Slot, Underway, VmState, VmStatus, run_here},
    hypervisor::{Halt, Machine, MigrateOptions, MigrationReport, Progress, RunState},
    trace::{Step, Trail},
};
use p2pvm_overlay::{Epoch, MemberId, chain};
use std::{
    future::Future, os::unix::fs::MetadataExt, path::Path, pin::pin, sync::Arc, time::Duration,
};
use tokio::sync::{oneshot, watch};

/// A target that did not answer for so long before the hand-over is given up.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often the preparation is asked for.
const POLL: Duration = Duration::from_millis(250);
/// How soon a target that had no news of the guest's running, or could not be heard, is asked again
/// while the guest stands still.
const POLL_PAUSED: Duration = Duration::from_millis(20);
/// How much later than its monitor's end the end of a guest may be heard of.
const ENDED: Duration = Duration::from_secs(2);
/// How long the process of a guest that powered itself off may take to end.
const ENDING: Duration = Duration::from_secs(5);
/// How long a caller waits for a doubtful hand-over to settle before it is told so.
const VERDICT: Duration = Duration::from_secs(90);

/// One migration as its source sees it.
struct Move {
    id: u64,
    to: MemberId,
    epoch: Epoch,
    claim: SourceClaim,
    /// The voters may have promised the target its epoch.
    promised: bool,
    started: Duration,
    /// When the guest was paused here.
    paused_at: Option<Duration>,
    /// From then to the target's word that it runs there.
    pause: Option<Duration>,
    report: Option<MigrationReport>,
    post_copy: bool,
    trail: Trail,
    /// Since the guest's pause.
    switching: Option<Step>,
}

impl Host {
    /// Moves a running VM to `to` while it runs. It goes on in a task of the host even if the
    /// caller goes away.
    ///
    /// # Errors
    /// Only for what could not begin: [`Error::NotFound`], [`Error::Refused`]. A move that began
    /// and failed is an outcome that says why and which side runs the VM.
    pub async fn migrate(
        &self,
        name: &str,
        to: MemberId,
        options: MigrateOptions,
        progress: watch::Sender<Progress>,
    ) -> Result<MigrationOutcome, Error> {
        self.migrate_because(Occasion::default(), name, to, options, progress)
            .await
    }

    /// The same, and says why.
    ///
    /// # Errors
    /// As [`Host::migrate`].
    pub async fn migrate_because(
        &self,
        why: Occasion,
        name: &str,
        to: MemberId,
        options: MigrateOptions,
        progress: watch::Sender<Progress>,
    ) -> Result<MigrationOutcome, Error> {
        let slot = self.named(name)?;
        if to == self.me {
            return Err(Error::Refused(format!("'{name}' is on this host already")));
        }
        let busy = slot.begin_soon("migrating").await?;
        self.must_be_held(&slot)?;
        // One whose guest stands still, on a full disk say, moves with its memory as well, and goes
        // on there.
        let machine = slot
            .machine()
            .filter(|_| matches!(slot.run_state(), RunState::Running | RunState::Paused));
        let machine = machine.ok_or_else(|| {
            Error::Refused(format!(
                "'{name}' does not run: only a running VM moves; start it first"
            ))
        })?;
        let host = self
            .strong()
            .ok_or_else(|| Error::Refused("this host is shutting down".into()))?;
        let give_up = watch::Sender::new(false);
        let cancel = give_up.subscribe();
        let called = why.called.clone().unwrap_or_else(|| to.short());
        slot.moves(Underway {
            to,
            called,
            progress: progress.subscribe(),
            give_up,
        });
        let id: u64 = rand::random();
        let root = self.begin_trace(&why, &slot, id, to, options);
        let trace = root.trace_id().map(tracing::field::display);
        let span = tracing::info_span!(
            "migrate", id = %format_args!("{id:016x}"), vm = name, to = %to.short(), trace
        );
        let (done, outcome) = oneshot::channel();
        let work = async move {
            let outcome = host
                .lead(
                    slot, busy, machine, id, to, options, &progress, cancel, root,
                )
                .await;
            host.emit(HostEvent::Migrated(outcome.clone()));
            // A caller who went away does not want to know.
            let _ = done.send(outcome);
        };
        self.spawn(tracing::Instrument::instrument(work, span));
        outcome.await.map_err(|_| {
            Error::Refused(
                "this host is shutting down; the move is settled when it is up again".into(),
            )
        })
    }

    /// Moves every running VM to where `choose` says; those it says nothing of stay.
    pub async fn drain(
        &self,
        choose: impl Fn(&VmStatus) -> Option<MemberId>,
    ) -> Vec<(String, Result<MigrationOutcome, Error>)> {
        let mut done = Vec::new();
        for vm in self
            .list()
            .into_iter()
            .filter(|vm| vm.state == VmState::Running)
        {
            if let Some(to) = choose(&vm) {
                let outcome = self
                    .migrate(
                        &vm.name,
                        to,
                        MigrateOptions::default(),
                        watch::Sender::default(),
                    )
                    .await;
                done.push((vm.name, outcome));
            }
        }
        done
    }

    #[allow(
        clippy::too_many_arguments,
        reason = "the one place where a move's parts come together"
    )]
    async fn lead(
        self: &Arc<Self>,
        slot: Arc<Slot>,
        busy: Busy,
        machine: Arc<dyn Machine>,
        id: u64,
        to: MemberId,
        options: MigrateOptions,
        progress: &watch::Sender<Progress>,
        mut cancel: watch::Receiver<bool>,
        mut root: Step,
    ) -> MigrationOutcome {
        let entry = slot.entry();
        let epoch = entry.epoch.next();
        let mut this = Move {
            id,
            to,
            epoch,
            claim: SourceClaim::default(),
            promised: false,
            started: self.now(),
            paused_at: None,
            pause: None,
            report: None,
            post_copy: false,
            trail: root.trail(),
            switching: None,
        };
        tracing::info!(%epoch, "the move begins");
        let prepared = tokio::select! {
            // Who cancels before the hand-over is heeded, also in the moment in which all is ready
            // for it.
            biased;
            Ok(_) = cancel.wait_for(|cancel| *cancel) => Err(Error::Cancelled),
            ended = ended(&*machine) => Err(Error::Refused(ended.to_owned())),
            prepared = self.until_paused(
                &slot, &*machine, &mut this, options, progress
            ) => prepared,
        };
        let cancelled = matches!(prepared, Err(Error::Cancelled));
        let mut ended = false;
        let (runs_on, failure) = match prepared {
            Ok(_tunnels) => {
                progress.send_modify(|p| p.phase = "switch-over".into());
                let handed = self.hand_over(&slot, &*machine, &mut this).await;
                self.after_hand_over(slot.clone(), busy, &mut this, handed, progress)
                    .await
            }
            Err(e) => {
                tracing::info!(error = %chain(&e), "the move ended before the hand-over: the VM \
                    stays here");
                if let Some(switching) = this.switching.take() {
                    switching.failed(&chain(&e));
                }
                let back = this.trail.step("take back");
                // The end of its process may be heard of before the guest's.
                let late = matches!(e, Error::Hypervisor { .. })
                    && tokio::time::timeout(ENDED, self::ended(&*machine))
                        .await
                        .is_ok();
                ended = late || has_ended(&*machine);
                let failure = match ended {
                    true => self.end(&slot, &*machine, &this).await,
                    false => self.stay(&slot, &*machine, &this, &e).await,
                };
                back.done();
                drop(busy);
                if this.promised && !ended {
                    self.newer_epoch_in_background(&slot);
                }
                (RunsOn::Source, Some(failure))
            }
        };
        let outcome = MigrationOutcome {
            id: format!("{id:016x}"),
            trace: root.trace_id(),
            vm: entry.definition.vm,
            name: entry.definition.name.clone(),
            from: self.me,
            to,
            runs_on,
            epoch: if runs_on == RunsOn::Target {
                epoch
            } else {
                slot.entry().epoch
            },
            failure,
            cancelled,
            ended,
            total_ms: (self.now() - this.started).as_millis() as u64,
            pause_ms: this.pause.map(|p| p.as_millis() as u64),
            report: this.report,
        };
        tracing::info!(
            runs_on = ?outcome.runs_on, failure = outcome.failure, total_ms = outcome.total_ms,
            "the move is over"
        );
        note_outcome(&mut root, &outcome, this.post_copy);
        match &outcome.failure {
            None => root.done(),
            Some(failure) => root.failed(failure),
        }
        outcome
    }

    /// Everything that may fail without harm: the guest runs here all the time, or has just been
    /// paused at the end. What the VM's move takes of the target's disk, as far as this host can
    /// tell.
    async fn burden(&self, entry: &Entry) -> Option<Burden> {
        let written = |path: &Path| {
            std::fs::metadata(path)
                .ok()
                .map(|found| found.blocks() * 512)
        };
        let image = self.local_image(entry).await.ok()?;
        Some(Burden {
            disk: written(&self.registry.spec(entry).disk)?,
            image: written(&image)?,
        })
    }

    async fn until_paused(
        &self,
        slot: &Arc<Slot>,
        machine: &dyn Machine,
        this: &mut Move,
        options: MigrateOptions,
        progress: &watch::Sender<Progress>,
    ) -> Result<[Tunnel; 2], Error> {
        let entry = slot.entry();
        progress.send_modify(|p| p.phase = "prepare".into());
        let offer = Offer {
            id: this.id,
            definition: entry.definition.clone(),
            secret: entry.secret.clone(),
            epoch: this.epoch,
            snapshots: entry.snapshots.clone(),
        };
        let (trail, ask) = (this.trail.clone(), Ask::Prepare(Box::new(offer)));
        let beside = Beside {
            within: trail.within().clone(),
            burden: self.burden(&entry).await,
        };
        let offered = wire::ask_beside(&*self.parts.fabric, this.to, &ask, &beside, LONG);
        trail
            .through("offer", offered)
            .await
            .map_err(peer("offering the VM to the target"))?;
        let export = trail
            .through("wait for the target", self.await_ready(this, progress))
            .await?;
        let run_dir = &machine.spec().run_dir;
        let tunnel = |channel| {
            Tunnel::open(
                run_dir,
                channel,
                this.id,
                self.parts.fabric.clone(),
                this.to,
            )
        };
        let (ram, disk) = (tunnel(Channel::Ram)?, tunnel(Channel::Disk)?);

        progress.send_modify(|p| {
            *p = Progress {
                phase: "disk".into(),
                ..Progress::default()
            }
        });
        self.ease();
        self.parts.port.leaving(entry.definition.vm, this.to).await;
        let mut copying = trail.step("copy disk");
        let copied = self
            .while_target_lives(this, machine.mirror(disk.path(), &export, progress))
            .await;
        copying.note_count("p2pvm.bytes", progress.borrow().done_bytes);
        copying.ended(&copied);
        copied?;

        this.promised = true;
        trail.through("grant epoch", self.arm(this, LONG)).await?;
        self.update(slot, |e| {
            e.role = Role::Leaving {
                id: this.id,
                to: this.to,
                epoch: this.epoch,
            }
        })?;
        progress.send_modify(|p| {
            *p = Progress {
                phase: "ram".into(),
                ..Progress::default()
            }
        });
        let mut copying = trail.step("copy memory");
        let sending = machine.migrate_until_paused(ram.path(), options, progress);
        let sent = self
            .while_armed(this, noting_rounds(&mut copying, progress, sending))
            .await;
        {
            let last = progress.borrow();
            copying.note_count("p2pvm.bytes", last.done_bytes);
            copying.note_count("p2pvm.rounds", last.rounds);
            this.post_copy = last.post_copy;
        }
        copying.ended(&sent);
        sent?;
        this.paused_at = Some(self.now());
        this.switching = Some(trail.step("switch over"));
        self.parts.port.held(entry.definition.vm, true).await;
        if !this.claim.may_hand_over(self.now()) {
            self.arm(this, SHORT).await?;
        }
        Ok([ram, disk])
    }

    async fn ask(
        &self,
        to: MemberId,
        ask: &Ask,
        timeout: Duration,
    ) -> Result<Answer, p2pvm_overlay::FabricError> {
        wire::ask(&*self.parts.fabric, to, ask, timeout).await
    }

    async fn await_ready(
        &self,
        this: &Move,
        progress: &watch::Sender<Progress>,
    ) -> Result<String, Error> {
        let mut answered = self.now();
        loop {
            match self
                .ask(this.to, &Ask::Progress { id: this.id }, SHORT)
                .await
            {
                Ok(Answer::Ready { export }) => return Ok(export),
                Ok(Answer::Preparing(theirs)) => {
                    answered = self.now();
                    progress.send_replace(theirs);
                }
                Ok(other) => return Err(refused("preparing the target", &other)),
                Err(e) if self.now() - answered > PATIENCE => {
                    return Err(peer("preparing the target")(e));
                }
                Err(_) => {}
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Runs `work` as long as the target says that it waits.
    async fn while_target_lives<T>(
        &self,
        this: &Move,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let watch = async {
            let mut answered = self.now();
            loop {
                tokio::time::sleep(REARM_EVERY).await;
                match self
                    .ask(this.to, &Ask::Progress { id: this.id }, SHORT)
                    .await
                {
                    Ok(Answer::Ready { .. }) => answered = self.now(),
                    Ok(other) => return refused("mirroring the disk", &other),
                    Err(e) if self.now() - answered > PATIENCE => {
                        return peer("mirroring the disk")(e);
                    }
                    Err(_) => {}
                }
            }
        };
        tokio::select! {
            done = work => done,
            failed = watch => Err(failed),
        }
    }

    async fn arm(&self, this: &mut Move, timeout: Duration) -> Result<(), Error> {
        let serial = this.claim.arm(self.now());
        match self
            .ask(
                this.to,
                &Ask::Arm {
                    id: this.id,
                    serial,
                },
                timeout,
            )
            .await
        {
            Ok(Answer::Armed) => {
                this.claim.armed(self.now());
                Ok(())
            }
            Ok(other) => Err(refused("arming the target", &other)),
            Err(e) => Err(peer("arming the target")(e)),
        }
    }

    /// Runs `work` and keeps the target's window open. An arming that is under way when `work` ends
    /// stays unanswered: the claim counts with it, and the hand-over waits for nobody.
    async fn while_armed<T>(
        &self,
        this: &mut Move,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                () = tokio::time::sleep(REARM_EVERY) => {}
            }
            tokio::select! {
                done = &mut work => return done,
                armed = self.arm(this, SHORT) => match armed {
                    Ok(()) => {}
                    Err(e @ Error::Refused(_)) => return Err(e),
                    Err(e) if this.claim.target_is_frozen_from().is_none_or(|t| self.now() > t) => return Err(e),
                    Err(e) => tracing::info!(error = %chain(&e), "the target could not be armed \
                        anew yet"),
                },
            }
        }
    }

    /// The guest ended by itself while it was being moved: the VM is here and stopped.
    async fn end(&self, slot: &Arc<Slot>, machine: &dyn Machine, this: &Move) -> String {
        let why = ended_how(machine);
        // Its process may still wait for the target's disk: that ends with the move.
        if let Err(e) = machine.stop(ENDING).await {
            tracing::warn!(error = %chain(&e), "the process of the guest that ended is still \
                there");
        }
        slot.take_machine();
        let entry = slot.entry();
        if let Err(e) = self.parts.port.detach(entry.definition.vm).await {
            tracing::warn!(vm = %entry.definition.name, error = %chain(&e), "the guest's port \
                could not be taken away");
        }
        let note = Some(format!("{why} while it was being moved"));
        if let Err(e) = self.update(slot, |e| {
            (e.role, e.wanted, e.note) = (Role::Held, Wanted::Stopped, note)
        }) {
            tracing::error!(vm = %entry.definition.name, error = %chain(&e), "the VM's end could \
                not be written down");
        }
        self.tell_target(slot, this, why.to_owned());
        self.publish(slot).await;
        why.to_owned()
    }

    /// The move failed while the guest was here for certain: it goes on here.
    async fn stay(
        &self,
        slot: &Arc<Slot>,
        machine: &dyn Machine,
        this: &Move,
        why: &Error,
    ) -> String {
        let why = chain(why);
        let mut failure = why.clone();
        if let Err(e) = run_here(machine).await {
            failure = format!("{failure}; giving the move up: {}", chain(&e));
            tracing::warn!(error = %chain(&e), "the hypervisor could not give the move up cleanly");
        }
        if let Err(e) = self.update(slot, |e| e.role = Role::Held) {
            tracing::error!(error = %chain(&e), "that the VM stays could not be written down; the \
                next start finds out");
        }
        self.tell_target(slot, this, why);
        failure
    }

    /// Tells the target that the VM does not come.
    fn tell_target(&self, slot: &Slot, this: &Move, reason: String) {
        let abort = Ask::Abort {
            id: this.id,
            vm: slot.entry().definition.vm,
            reason,
        };
        let (Some(host), to) = (self.strong(), this.to) else {
            return;
        };
        self.spawn(async move {
            if let Err(e) = host.ask(to, &abort, SHORT).await {
                tracing::info!(error = %chain(&e), "the target could not be told; it gives up by \
                    itself");
            }
        });
    }

    fn newer_epoch_in_background(&self, slot: &Arc<Slot>) {
        let (Some(host), slot) = (self.strong(), slot.clone()) else {
            return;
        };
        self.spawn(async move {
            if let Err(e) = host.check(&slot).await {
                tracing::info!(error = %chain(&e), "a newer epoch will be asked for later");
            }
        });
    }

    /// Hands the guest over. By post-copy it runs there while most of its memory is still here:
    /// since when, the target says meanwhile.
    async fn hand_over(
        &self,
        slot: &Slot,
        machine: &dyn Machine,
        this: &mut Move,
    ) -> Result<MigrationReport, Error> {
        let mut handing = pin!(machine.switch_over());
        if !this.post_copy {
            return handing.await;
        }
        let ask = Ask::Settle {
            id: this.id,
            vm: slot.entry().definition.vm,
            running: false,
        };
        let running = async {
            while !matches!(
                self.ask(this.to, &ask, SHORT).await,
                Ok(Answer::Running | Answer::Confirmed { .. })
            ) {
                tokio::time::sleep(POLL_PAUSED).await;
            }
        };
        tokio::select! {
            handed = &mut handing => return handed,
            () = running => {}
        }
        this.pause = this.paused_at.map(|at| self.now() - at);
        if let Some(switching) = this.switching.take() {
            switching.done();
        }
        this.trail.through("send the rest of memory", handing).await
    }

    /// The guest is paused here and may be whole there.
    async fn after_hand_over(
        self: &Arc<Self>,
        slot: Arc<Slot>,
        busy: Busy,
        this: &mut Move,
        handed: Result<MigrationReport, Error>,
        progress: &watch::Sender<Progress>,
    ) -> (RunsOn, Option<String>) {
        let paused_at = this.paused_at.unwrap_or(self.now());
        let entry = slot.entry();
        let failure = match handed {
            Ok(report) => {
                this.report = Some(report);
                if let Err(e) = self
                    .parts
                    .port
                    .forward(&entry.definition.address, this.to, this.epoch)
                    .await
                {
                    tracing::warn!(error = %chain(&e), "packets that still arrive are not \
                        passed on");
                }
                progress.send_modify(|p| p.phase = "confirm".into());
                let mut running = this.pause.is_some();
                let mut confirming = running.then(|| this.trail.step("confirm"));
                loop {
                    let ask = Ask::Settle {
                        id: this.id,
                        vm: entry.definition.vm,
                        running,
                    };
                    match self.ask(this.to, &ask, SHORT).await {
                        Ok(Answer::Waiting) if self.now() - paused_at <= WINDOW + CONFIRM_GRACE => {
                        }
                        Ok(Answer::Running) => {
                            this.pause.get_or_insert(self.now() - paused_at);
                            running = true;
                            if let Some(switching) = this.switching.take() {
                                switching.done();
                                confirming = Some(this.trail.step("confirm"));
                            }
                        }
                        Ok(Answer::Confirmed { epoch }) => {
                            this.pause.get_or_insert(self.now() - paused_at);
                            // Confirmed at once where nobody heard before that it runs.
                            for step in [this.switching.take(), confirming.take()]
                                .into_iter()
                                .flatten()
                            {
                                step.done();
                            }
                            let cleaning = this.trail.step("clean up");
                            self.gone_to(&slot, this.to, epoch).await;
                            cleaning.done();
                            return (RunsOn::Target, None);
                        }
                        Ok(other) => {
                            break chain(&refused("handing the guest over", &other));
                        }
                        Err(e) => {
                            break chain(&peer("hearing from the target after the hand-over")(e));
                        }
                    }
                }
            }
            Err(e) => {
                // QEMU lets a guest run on by itself when its last bytes could not be written,
                // though the other side may have had all that matters: it has to stand still until
                // it is known who runs it.
                if let Some(machine) = slot.machine()
                    && let Err(error) = machine.pause().await
                {
                    tracing::debug!(error = %chain(&error), "the guest was not held");
                }
                format!("handing the guest over: {}", chain(&e))
            }
        };
        // From here on the other side's word or the voters decide; the same way as after a restart
        // of this daemon.
        tracing::warn!(failure, "the hand-over is in doubt");
        if let Some(switching) = this.switching.take() {
            switching.failed(&failure);
        }
        let settling = this.trail.step("settle the doubt");
        let role = Role::Doubtful {
            id: this.id,
            side: Side::Source,
            other: this.to,
        };
        if let Err(e) = self.update(&slot, |e| e.role = role) {
            tracing::error!(error = %chain(&e), "the doubt could not be written down; the next \
                start finds it out");
        }
        let wait = this
            .claim
            .target_is_frozen_from()
            .map_or(longest_run(1), |t| t.saturating_sub(self.now()));
        drop(busy);
        self.settle_in_background(&slot, wait);
        let runs_on = self.verdict(&slot).await;
        match runs_on {
            RunsOn::Undecided => {
                settling.failed(&"no majority of the VM's voters has answered yet")
            }
            _ => settling.done(),
        }
        (runs_on, (runs_on != RunsOn::Target).then_some(failure))
    }

    /// Waits for a doubtful VM to be settled, for a while.
    async fn verdict(&self, slot: &Arc<Slot>) -> RunsOn {
        let until = self.now() + VERDICT;
        let vm = slot.entry().definition.vm;
        while self.now() < until {
            match slot.entry().role {
                Role::Held => return RunsOn::Source,
                Role::Branch { .. } => return RunsOn::Target,
                _ if !self.slot_of(vm).is_some_and(|s| Arc::ptr_eq(&s, slot)) => {
                    return RunsOn::Target;
                }
                _ => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
        RunsOn::Undecided
    }
}

/// Waits until the guest has ended by itself; gives how.
async fn ended(machine: &dyn Machine) -> &'static str {
    while !has_ended(machine) {
        tokio::time::sleep(POLL).await;
    }
    ended_how(machine)
}

/// Whether the guest has ended by itself; one that powers itself off has before its process is
/// gone, which may wait for the target's disk.
fn has_ended(machine: &dyn Machine) -> bool {
    machine.halted() == Some(Halt::PoweredOff) || *machine.watch().borrow() == RunState::Stopped
}

fn ended_how(machine: &dyn Machine) -> &'static str {
    match machine.halted() {
        Some(Halt::PoweredOff) => "its guest powered itself off",
        _ => "its guest's process ended",
    }
}

fn refused(step: &'static str, answer: &Answer) -> Error {
    Error::Refused(match answer {
        Answer::Gone { reason } => format!("{step}: the target gave up: {reason}"),
        Answer::Unknown => format!("{step}: the target has forgotten the move, as after a restart"),
        other => format!("{step}: the target answered {other:?}"),
    })
}
