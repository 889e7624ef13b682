//! What the control API asks about virtual machines, in terms of the host that runs them.

use super::{absent::AbsentHosts, guests::Guests, history, rights::Asker};
use crate::{
    access::policy::Policies,
    addresses::reach::Reach,
    cluster::ask::Questions,
    failure::OrFailure,
    http::report::Reporter,
    parts::Parts,
    placement::{
        manager::Manager,
        moves::{moved, step_of},
    },
    tokens::service::Tokens,
};
use opentelemetry::trace::SpanContext;
use p2pvm_api::{
    CreateVm, Explained, Failure, MigrateVm, MoveCancelled, Outcome, ReplicateVm, RestoreVm,
    VmDeleted, VmMoved, VmView,
};
use p2pvm_authority::Principal;
use p2pvm_overlay::MemberId;
use p2pvm_vm_manager::{
    Error, ImageSource, NewVm, Traces,
    checkpoint::RestoreOptions,
    host::{Host, VmState},
    hypervisor::{MigrateOptions, Progress},
    migrate::Occasion,
};
use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::watch;

/// The mark in the name of a copy that lost its VM (`Entry::listed_name`).
const BRANCH_MARK: &str = "-branch-e";

/// Runs `work` and reports its progress.
pub(super) async fn watched<T>(
    reporter: &Reporter,
    work: impl AsyncFnOnce(watch::Sender<Progress>) -> T,
) -> T {
    let (sender, mut receiver) = watch::channel(Progress::default());
    let running = work(sender);
    tokio::pin!(running);
    loop {
        tokio::select! {
            done = &mut running => return done,
            Ok(()) = receiver.changed() => {
                let progress = receiver.borrow_and_update().clone();
                reporter.step(step_of(&progress));
            }
        }
    }
}

/// What is said while a guest is waited for.
fn powering_down(left: Duration) -> String {
    let seconds = left.as_secs_f64().ceil();
    if seconds < 1.0 {
        "ending the guest".to_owned()
    } else {
        format!("waiting for the guest to power down, for {seconds} s at most")
    }
}

pub(crate) struct Vms {
    pub(crate) parts: Arc<Parts>,
    pub(crate) host: Arc<Host>,
    pub(crate) absent: Arc<AbsentHosts>,
    pub(crate) guests: Arc<Guests>,
    pub(crate) manager: Arc<Manager>,
    pub(crate) policies: Arc<Policies>,
    pub(crate) questions: Arc<Questions>,
    pub(crate) reach: Arc<Reach>,
    pub(crate) tokens: Arc<Tokens>,
    /// What makes spans.
    pub(crate) traces: Traces,
    /// The directories whose files other members may name as images.
    pub(crate) image_dirs: Vec<PathBuf>,
}

impl Vms {
    /// Whether a VM of that name is on this host.
    pub fn has(&self, name: &str) -> bool {
        self.host.list().iter().any(|vm| vm.name == name)
    }

    /// Which member has the VM.
    pub async fn holder_of(&self, name: &str) -> Outcome<MemberId> {
        match self.host.holder(name).await {
            Err(Error::NotFound(_)) if name.contains(BRANCH_MARK) => self.has_branch(name).await,
            Err(Error::NotFound(_)) => Err(Failure::not_found(format!(
                "there is no VM '{name}': see 'p2pvm vm list'"
            ))),
            other => Ok(other.or_failure()?),
        }
    }

    /// One VM.
    pub async fn show(&self, name: &str) -> Outcome<VmView> {
        Ok(self.view(&self.host.status(name).await.or_failure()?))
    }

    /// Defines a VM here, for the member that asks. `rate` is what its token lets the VM send, and
    /// receive, bits a second.
    pub async fn create(
        &self,
        (asker, rate): (Asker, Option<u64>),
        r: CreateVm,
        reporter: &Reporter,
    ) -> Outcome<VmView> {
        if r.start {
            crate::preflight::for_guests()?;
        }
        let owner = self.owner_for(asker);
        let size = (r.cpus, r.memory_mib, r.disk_bytes.unwrap_or(0));
        self.host.has_room(owner, size, r.start).or_failure()?;
        let image = self.image_for(asker, &r.image)?;
        let restart = r.restart.as_ref().map(history::restart).transpose()?;
        let new = NewVm {
            name: r.name.clone(),
            image,
            cpus: r.cpus,
            memory_mib: r.memory_mib,
            disk_bytes: r.disk_bytes,
            bits_per_second: rate,
            user: self.user_named(r.user.as_deref())?,
        };
        // The VM's voters are chosen now for its whole life: right after a start not all members
        // are connected yet.
        self.reach.gather().await;
        let mut vm = watched(reporter, async |progress| {
            self.host.create_for(owner, new, &progress).await
        })
        .await
        .or_failure()?;
        if let Some(restart) = restart {
            vm = self.host.set_restart(&r.name, restart).await.or_failure()?;
        }
        if vm.definition.voters.len() < 3 {
            tracing::warn!(vm = %r.name, voters = vm.definition.voters.len(), "made with few \
                members present: it cannot be restored elsewhere if its voters are gone");
        }
        if r.start {
            reporter.phase("starting");
            vm = self.host.start(&r.name).await.or_failure()?;
        }
        Ok(self.view(&vm))
    }

    /// The key of the user that a new VM is for.
    fn user_named(&self, text: Option<&str>) -> Outcome<Option<Principal>> {
        let Some(text) = text else { return Ok(None) };
        let named = self.tokens.users.audience(text).ok_or_else(|| {
            Failure::usage(format!("'{text}' is no user: write user:NAME or user:KEY"))
        })?;
        named.map(Some)
    }

    /// Whether a VM is for the user whose account of this machine has that number.
    pub(crate) async fn is_of(&self, uid: u32, vm: &str) -> bool {
        let Some(user) = self.tokens.users.of_uid(uid) else {
            return false;
        };
        let found = self.host.status(vm).await;
        found.is_ok_and(|found| found.user == Some(user))
    }

    fn owner_for(&self, asker: Asker) -> MemberId {
        match asker {
            Asker::Root => self.parts.me(),
            Asker::Member(member) => member,
        }
    }

    /// The image that the asker names: this host's root any file, another member only those that
    /// this host's owner offers.
    fn image_for(&self, asker: Asker, image: &str) -> Outcome<ImageSource> {
        let path = PathBuf::from(image);
        match asker {
            Asker::Root if path.is_absolute() => Ok(ImageSource::File(path)),
            Asker::Member(_) if path.is_absolute() => Ok(ImageSource::Below {
                dirs: self.image_dirs.clone(),
                path,
            }),
            _ => image.parse().map(ImageSource::Stored).map_err(|e| {
                Failure::usage(format!(
                    "{}: give the path of an image file, or an image's id",
                    p2pvm_host::chain(&e)
                ))
            }),
        }
    }

    /// Starts a VM here.
    pub async fn start(&self, name: &str, reporter: &Reporter) -> Outcome<VmView> {
        reporter.phase("starting");
        Ok(self.view(&self.host.start(name).await.or_failure()?))
    }

    /// Stops a VM here: its guest is asked to power down, or with `force` ended at once.
    pub async fn stop(&self, name: &str, force: bool, reporter: &Reporter) -> Outcome<VmView> {
        if force {
            reporter.phase("ending the guest");
            return Ok(self.view(
                &self
                    .host
                    .stop_within(name, Duration::ZERO)
                    .await
                    .or_failure()?,
            ));
        }
        let patience = self.host.stop_patience();
        let stopping = self.host.stop(name);
        tokio::pin!(stopping);
        let (began, mut ticks) = (
            Instant::now(),
            tokio::time::interval(Duration::from_secs(1)),
        );
        loop {
            tokio::select! {
                stopped = &mut stopping => return Ok(self.view(&stopped.or_failure()?)),
                _ = ticks.tick() => reporter.phase(
                    &powering_down(patience.saturating_sub(began.elapsed()))
                ),
            }
        }
    }

    /// Deletes a VM here; with `force` also one that runs. Its guest is not asked: nothing of it is
    /// kept.
    pub async fn delete(&self, name: &str, force: bool) -> Outcome<VmDeleted> {
        let state = self.host.status(name).await.or_failure()?.state;
        if force && matches!(state, VmState::Running | VmState::Paused | VmState::Leaving) {
            self.host
                .stop_within(name, Duration::ZERO)
                .await
                .or_failure()?;
        }
        self.host.delete(name).await.or_failure()?;
        Ok(VmDeleted {
            deleted: name.to_owned(),
        })
    }

    /// A VM's console.
    pub async fn console(&self, name: &str) -> Outcome<p2pvm_overlay::BoxStream> {
        self.host.console(name).await.or_failure()
    }

    /// Moves a VM from here; `within` is the caller's span.
    pub async fn migrate(
        &self,
        name: &str,
        r: &MigrateVm,
        within: SpanContext,
        reporter: &Reporter,
    ) -> Outcome<VmMoved> {
        let to = match &r.to {
            Some(text) => self.parts.resolve_member(text).await?,
            None => self.least_loaded().ok_or_else(|| {
                Failure::not_found("no other member with room is known yet; name one with --to")
            })?,
        };
        let options = MigrateOptions {
            post_copy: r.post_copy,
            ..MigrateOptions::default()
        };
        let outcome = watched(reporter, async |progress| {
            self.manager
                .moves
                .follow(name, self.parts.name_of(to), &progress);
            let why = Occasion {
                called: Some(self.parts.name_of(to)),
                within,
                ..Occasion::default()
            };
            self.host
                .migrate_because(why, name, to, options, progress)
                .await
        })
        .await
        .or_failure()?;
        moved(&self.parts, &outcome)
    }

    /// Cancels a move that has not switched over yet.
    pub async fn cancel_migration(&self, name: &str) -> Outcome<MoveCancelled> {
        self.host.cancel_migration(name).await.or_failure()?;
        Ok(MoveCancelled {
            cancelled: name.to_owned(),
            host: self.parts.name_of(self.parts.me()),
        })
    }

    /// Sets how often a VM's disk is replicated.
    pub async fn replicate(&self, name: &str, r: &ReplicateVm) -> Outcome<VmView> {
        let mut protection = self.host.protection(name).or_failure()?;
        protection.replicate_every = r.every_s.map(Duration::from_secs);
        if let Some(copies) = r.copies {
            protection.replicas = usize::try_from(copies).unwrap_or(usize::MAX);
        }
        let set = self.host.set_protection(name, protection);
        set.await.or_failure()?;
        self.show(name).await
    }

    /// Brings a VM back here. `proofs` came with the request: tokens for this host.
    pub async fn restore(
        &self,
        name: &str,
        r: &RestoreVm,
        mut proofs: Vec<Vec<u8>>,
        reporter: &Reporter,
    ) -> Outcome<VmView> {
        let own = self.tokens.for_vm(name).await;
        proofs.extend(own.iter().map(|token| token.to_bytes()));
        let how = (RestoreOptions { force: r.force }, &proofs[..]);
        let restored = watched(reporter, async |progress| match &r.snapshot {
            Some(from) => {
                let vm = self.host.restore_with(name, from, how, &progress).await;
                vm.map(|vm| Some((vm, from.clone())))
            }
            None => self.host.restore_newest(name, how, &progress).await,
        })
        .await
        .or_failure()?;
        let (vm, from) = restored.ok_or_else(|| {
            Failure::not_found(format!(
                "'{name}' has no snapshot or replica of its present state"
            ))
        })?;
        Ok(VmView {
            restored_from: Some(from),
            ..self.view(&vm)
        })
    }

    /// Why a VM was moved, or was not.
    pub async fn explain(&self, name: &str) -> Outcome<Vec<Explained>> {
        let vm = self.host.status(name).await.or_failure()?.definition.vm;
        let mut told = self.manager.explain(vm);
        told.extend(self.healed(name));
        told.extend(self.happened(vm).await?);
        // The decision was taken where the VM was: the members that it may have been on are asked
        // as well.
        for (member, theirs) in self
            .manager
            .ask_explanations(self.parts.fabric().as_ref(), vm)
            .await
        {
            told.extend(theirs.into_iter().map(|mut e| {
                e.host = self.parts.name_of(member);
                e
            }));
        }
        for explained in told.iter_mut().filter(|e| e.host.is_empty()) {
            explained.host = self.parts.name_of(self.parts.me());
        }
        told.sort_by(|a, b| a.at.cmp(&b.at));
        Ok(told)
    }

    /// The member with the least load that this host knows of, itself excluded.
    fn least_loaded(&self) -> Option<MemberId> {
        self.manager
            .least_loaded()
            .or_else(|| self.parts.fabric().connected().into_iter().next())
    }
}
