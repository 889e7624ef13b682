//! The phases of a move until its guest is paused: everything that may fail without harm, since the
//! guest runs here all the time, or was paused only just now.
//!
//! A phase holds what its steps need. A step that fails, or that an interruption cuts short, drops
//! it: what it had opened is closed, and its span ends with the reason.

use super::{
    Interruption, Move, POLL,
    handed_over::{HandedOver, News},
    refused,
};
use crate::{
    Error,
    ballot::{Ground, VmVoters},
    error::{peer, undecided},
    handover::{SourceClaim, longest_run},
    host::{
        Entry, Host, Role,
        remote::{VmAnswer, VmRequest},
    },
    migrate::{
        traced::noting_rounds,
        tunnel::{Channel, Tunnel},
        wire::{self, Answer, DiskNeed, Extras, LONG, Offer, Request, SHORT},
    },
    trace::Step,
};
use p2pvm_overlay::chain;
use std::{future::Future, os::unix::fs::MetadataExt, path::Path, pin::pin, time::Duration};

/// How long a target may stay silent before the hand-over until the move is given up.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long before the target is armed again while RAM is sent, or asked again while the disk is
/// copied. Reason: its window is fresh at the hand-over.
const REARM_EVERY: Duration = Duration::from_secs(3);
/// How long before a target that has no news of its guest, or did not answer, is asked again while
/// the guest here stands still.
const POLL_PAUSED: Duration = Duration::from_millis(20);

/// Why a move did not come to its hand-over.
pub(super) struct Setback {
    pub(super) error: Error,
    /// Whether the voters may have promised the target its epoch.
    pub(super) promised: bool,
}

impl Setback {
    fn before_promise(error: Error) -> Self {
        Self {
            error,
            promised: false,
        }
    }

    fn after_promise(error: Error) -> Self {
        Self {
            error,
            promised: true,
        }
    }
}

/// The target has the offer and prepares.
struct Offered<'m>(&'m Move);

/// The target waits for disk and RAM, and the tunnels to it are open.
struct Ready<'m> {
    this: &'m Move,
    tunnels: Tunnels,
    export: String,
}

/// The disk is in step, and stays so.
struct Mirrored<'m> {
    this: &'m Move,
    tunnels: Tunnels,
}

/// The voters granted the target its epoch, and its window is open.
struct Armed<'m> {
    this: &'m Move,
    tunnels: Tunnels,
    claim: SourceClaim,
}

/// The guest is paused, and what is left of it is small.
struct Paused<'m> {
    this: &'m Move,
    tunnels: Tunnels,
    claim: SourceClaim,
    at: Duration,
    switching: Step,
}

/// The guest is paused, and enough of the target's window is left to hand it over.
pub(super) struct Cleared<'m>(Paused<'m>);

/// The ways of QEMU's streams to the target.
pub(super) struct Tunnels {
    ram: Tunnel,
    disk: Tunnel,
}

impl Move {
    /// Takes every step up to the hand-over, in order.
    pub(super) async fn reach_hand_over(
        &self,
        stop: &mut Interruption,
    ) -> Result<Cleared<'_>, Setback> {
        let before = async {
            let offered = stop.during(self.offer()).await?;
            let ready = stop.during(offered.connect()).await?;
            stop.during(ready.copy_disk()).await
        };
        let mirrored = before.await.map_err(Setback::before_promise)?;
        let after = async {
            let armed = stop.during(mirrored.arm()).await?;
            let paused = stop.during(armed.copy_memory()).await?;
            paused.clear(stop).await
        };
        after.await.map_err(Setback::after_promise)
    }

    async fn offer(&self) -> Result<Offered<'_>, Error> {
        self.rename_phase("prepare");
        let entry = &self.entry;
        if entry.leased {
            self.target_must_guard().await?;
        }
        let offer = Offer {
            id: self.id,
            definition: entry.definition.clone(),
            secret: entry.secret.clone(),
            epoch: self.epoch,
            snapshots: entry.snapshots.clone(),
        };
        let extras = Extras {
            within: self.trail.within().clone(),
            need: self.host.disk_need(entry).await,
            owner: entry.owner,
            user: entry.user,
            revoked: entry.revoked.clone(),
            protection: entry.protection.clone(),
            replica: entry.replica.clone(),
            leased: entry.leased,
            backups: entry.backups.clone(),
            sealing: entry.sealing.clone(),
            restored: entry.restored,
        };
        let request = Request::Prepare(Box::new(offer));
        let fabric = &*self.host.parts.fabric;
        let offered = wire::ask_with(fabric, self.to, &request, &extras, LONG);
        self.trail
            .through("offer", offered)
            .await
            .map_err(peer("offering the VM to the target"))?;
        Ok(Offered(self))
    }

    /// A protected VM moves to hosts only that freeze its guest when its lease ends.
    async fn target_must_guard(&self) -> Result<(), Error> {
        let why = match self
            .host
            .ask_member(self.to, &VmRequest::Guards(self.vm()))
            .await?
        {
            VmAnswer::Guards(None) => return Ok(()),
            VmAnswer::Guards(Some(why)) => why,
            _ => "it is of a previous release".to_owned(),
        };
        let name = &self.entry.definition.name;
        Err(Error::Refused(format!(
            "'{name}' is protected, and the target cannot guard it: {why}; choose another target, \
                or end its protection with 'p2pvm vm protect {name} --off'"
        )))
    }

    /// Arms the target, or keeps it armed.
    async fn arm(&self, claim: &mut SourceClaim, timeout: Duration) -> Result<(), Error> {
        let serial = claim.arm(self.host.now());
        let request = Request::Arm {
            id: self.id,
            serial,
        };
        match self.ask(&request, timeout).await {
            Ok(Answer::Armed) => {
                claim.armed(self.host.now());
                Ok(())
            }
            Ok(other) => Err(refused("arming the target", &other)),
            Err(e) => Err(peer("arming the target")(e)),
        }
    }

    /// Does `work`; fails if the target gives the move up or stays silent for too long.
    async fn while_target_lives<T>(
        &self,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let watch = async {
            let mut answered = self.host.now();
            loop {
                tokio::time::sleep(REARM_EVERY).await;
                let request = Request::Progress { id: self.id };
                match self.ask(&request, SHORT).await {
                    Ok(Answer::Ready { .. }) => answered = self.host.now(),
                    Ok(other) => return refused("mirroring the disk", &other),
                    Err(e) if self.host.now() - answered > PATIENCE => {
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
}

impl<'m> Offered<'m> {
    /// Waits until the target is ready, and opens the tunnels to it.
    async fn connect(self) -> Result<Ready<'m>, Error> {
        let this = self.0;
        let export = this
            .trail
            .through("wait for the target", self.await_ready())
            .await?;
        let run_dir = &this.machine.spec().run_dir;
        let open = |channel| {
            let fabric = this.host.parts.fabric.clone();
            Tunnel::open(run_dir, channel, this.id, fabric, this.to)
        };
        let tunnels = Tunnels {
            ram: open(Channel::Ram)?,
            disk: open(Channel::Disk)?,
        };
        Ok(Ready {
            this,
            tunnels,
            export,
        })
    }

    /// The name of the disk's export, once the target is ready.
    async fn await_ready(&self) -> Result<String, Error> {
        let (this, step) = (self.0, "preparing the target");
        let mut answered = this.host.now();
        loop {
            match this.ask(&Request::Progress { id: this.id }, SHORT).await {
                Ok(Answer::Ready { export }) => return Ok(export),
                Ok(Answer::Preparing(theirs)) => {
                    answered = this.host.now();
                    this.progress.send_replace(theirs);
                }
                Ok(other) => return Err(refused(step, &other)),
                Err(e) if this.host.now() - answered > PATIENCE => return Err(peer(step)(e)),
                Err(_) => {}
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

impl<'m> Ready<'m> {
    async fn copy_disk(self) -> Result<Mirrored<'m>, Error> {
        let Self {
            this,
            tunnels,
            export,
        } = self;
        this.enter("disk");
        this.host.ease();
        this.host.parts.port.leaving(this.vm(), this.to).await;
        let mut copying = this.trail.step("copy disk");
        let mirror = this
            .machine
            .mirror(tunnels.disk.path(), &export, &this.progress);
        let copied = this.while_target_lives(mirror).await;
        copying.note_count("p2pvm.bytes", this.progress.borrow().done_bytes);
        copying.ended(&copied);
        copied?;
        Ok(Mirrored { this, tunnels })
    }
}

impl<'m> Mirrored<'m> {
    /// Has the target ask the voters for its epoch, and writes down that the VM is leaving.
    ///
    /// Under a lease the epoch is asked for when the guest is paused: from then on the voters renew
    /// this host's lease no more, and the memory may take longer than what is left of it.
    async fn arm(self) -> Result<Armed<'m>, Error> {
        let Self { this, tunnels } = self;
        let mut claim = SourceClaim::default();
        if !this.host.is_leased(this.vm()) {
            this.trail
                .through("grant epoch", this.arm(&mut claim, LONG))
                .await?;
        }
        this.host.update(&this.slot, |e| {
            e.role = Role::Leaving {
                id: this.id,
                to: this.to,
                epoch: this.epoch,
            }
        })?;
        Ok(Armed {
            this,
            tunnels,
            claim,
        })
    }
}

impl<'m> Armed<'m> {
    /// Sends RAM until little is left and the guest is paused for it.
    async fn copy_memory(mut self) -> Result<Paused<'m>, Error> {
        let this = self.this;
        this.enter("ram");
        let mut copying = this.trail.step("copy memory");
        let ram = self.tunnels.ram.path().to_owned();
        let sending = this
            .machine
            .migrate_until_paused(&ram, this.options, &this.progress);
        let sent = self
            .while_armed(noting_rounds(&mut copying, &this.progress, sending))
            .await;
        {
            let last = this.progress.borrow();
            copying.note_count("p2pvm.bytes", last.done_bytes);
            copying.note_count("p2pvm.rounds", last.rounds);
        }
        copying.ended(&sent);
        sent?;
        let paused = Paused {
            this,
            tunnels: self.tunnels,
            claim: self.claim,
            at: this.host.now(),
            switching: this.trail.step("switch over"),
        };
        this.host.parts.port.held(this.vm(), true).await;
        Ok(paused)
    }

    /// Does `work` and keeps the target's window open. An arming that is under way when `work` ends
    /// stays unanswered: the claim counts it, and the hand-over does not wait for it.
    async fn while_armed<T>(
        &mut self,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let this = self.this;
        if this.host.is_leased(this.vm()) {
            return this.while_target_lives(work).await;
        }
        let mut work = pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                () = tokio::time::sleep(REARM_EVERY) => {}
            }
            let armed = tokio::select! {
                done = &mut work => return done,
                armed = this.arm(&mut self.claim, SHORT) => armed,
            };
            match armed {
                Ok(()) => {}
                Err(e @ Error::Refused(_)) => return Err(e),
                Err(e) if self.window_is_over() => return Err(e),
                Err(e) => {
                    tracing::info!(error = %chain(&e), "the target could not be armed again yet")
                }
            }
        }
    }

    fn window_is_over(&self) -> bool {
        let frozen_from = self.claim.target_is_frozen_from();
        frozen_from.is_none_or(|from| self.this.host.now() > from)
    }
}

impl<'m> Paused<'m> {
    /// Arms the target once more if too little of its window is left; under a lease for the first
    /// time.
    async fn clear(mut self, stop: &mut Interruption) -> Result<Cleared<'m>, Error> {
        let this = self.this;
        let fresh = stop.during(async {
            let leased = this.host.is_leased(this.vm());
            if leased {
                this.promise_under_lease().await?;
            }
            if !self.claim.may_hand_over(this.host.now()) {
                this.arm(&mut self.claim, SHORT).await?;
            }
            // Read last: the target may run from here on, and all of its unconfirmed run has to lie
            // within this host's lease.
            let frozen_from = self.claim.target_is_frozen_from();
            let longest =
                frozen_from.map_or(longest_run(0), |at| at.saturating_sub(this.host.now()));
            match !leased || this.host.may_hand_over(this.vm(), longest) {
                true => Ok(()),
                false => Err(lease_too_short()),
            }
        });
        match fresh.await {
            Ok(()) => Ok(Cleared(self)),
            Err(e) => {
                self.switching.failed(&chain(&e));
                Err(e)
            }
        }
    }
}

impl<'m> Cleared<'m> {
    /// Hands the guest over. By post-copy it runs at the target while most of its memory is still
    /// here; the target is asked meanwhile when it began.
    pub(super) async fn hand_over(self) -> HandedOver<'m> {
        let Paused {
            this,
            tunnels,
            claim,
            at,
            switching,
        } = self.0;
        this.rename_phase("switch-over");
        let mut handing = pin!(this.machine.switch_over());
        let (sent, news) = if this.progress.borrow().post_copy {
            tokio::select! {
                sent = &mut handing => (sent, News::Nothing { switching }),
                () = this.target_runs() => {
                    let pause = this.host.now() - at;
                    switching.done();
                    let rest = this.trail.through("send the rest of memory", handing);
                    (rest.await, News::Running { pause })
                }
            }
        } else {
            (handing.await, News::Nothing { switching })
        };
        HandedOver {
            this,
            tunnels,
            claim,
            paused_at: at,
            sent,
            news,
        }
    }
}

fn lease_too_short() -> Error {
    Error::Refused(
        "too little of this host's lease was left when the guest was paused: try again".into(),
    )
}

impl Move {
    /// Asks the voters of a protected VM to promise its next epoch to the target, with enough of
    /// this host's lease left.
    async fn promise_under_lease(&self) -> Result<(), Error> {
        let (host, vm) = (&self.host, self.vm());
        // A renewal would let a guest go on here that stands still for want of a lease, in the
        // middle of its hand-over.
        if !host.may_hand_over(vm, Duration::ZERO) {
            return Err(lease_too_short());
        }
        if !host.may_hand_over(vm, longest_run(0) + LONG) {
            let renewed = host.renew_lease(&self.slot);
            self.trail.through("renew the lease", renewed).await?;
        }
        host.hand_over_lease(vm);
        let keys = self.entry.secret.keys();
        let voters = VmVoters {
            keys: &keys,
            voters: &self.entry.definition.voters,
        };
        let ballot = &host.parts.ballot;
        let granting = ballot.grant(voters, self.epoch, self.to, Ground::Mandate);
        let granted = self.trail.through("grant epoch", granting).await;
        let step = "asking the VM's voters for the target's epoch";
        granted.map(drop).map_err(undecided(step))
    }

    /// Waits until the target says that the guest runs there.
    async fn target_runs(&self) {
        let request = Request::Settle {
            id: self.id,
            vm: self.vm(),
            running: false,
        };
        while !matches!(
            self.ask(&request, SHORT).await,
            Ok(Answer::Running | Answer::Confirmed { .. })
        ) {
            tokio::time::sleep(POLL_PAUSED).await;
        }
    }
}

impl Host {
    /// How much of the target's disk the VM's move takes, as far as this host can tell.
    async fn disk_need(&self, entry: &Entry) -> Option<DiskNeed> {
        let written = |path: &Path| {
            std::fs::metadata(path)
                .ok()
                .map(|found| found.blocks() * 512)
        };
        let image = self.local_image(entry).await.ok()?;
        Some(DiskNeed {
            disk: written(&self.registry.spec(entry).disk)?,
            image: written(&image)?,
        })
    }
}
