//! What the control API asks about virtual machines, in terms of the host that runs them.

use super::Daemon;
use crate::{
    api::{
        server::Reporter,
        types::{
            CreateVm, Decided, Explained, MigrateVm, MoveCancelled, RestoreVm, SnapshotTaken,
            SnapshotView, Step, StillView, VmDeleted, VmMoved, VmView,
        },
    },
    failure::{Failure, Kind, Outcome},
};
use opentelemetry::trace::SpanContext;
use p2pvm_console::LEFTOVER;
use p2pvm_overlay::MemberId;
use p2pvm_vm_manager::{
    Error, ImageSource, NewVm,
    checkpoint::RestoreOptions,
    directory::{Snapshot, Wanted},
    host::{VmState, VmStatus},
    hypervisor::{MigrateOptions, Progress},
    migrate::{MigrationOutcome, Occasion, RunsOn},
    vault::Durability,
};
use std::{
    future::Future,
    path::PathBuf,
    time::{Duration, Instant},
};
use tokio::sync::watch;

/// A snapshot that is not durable by then is reported as it is; copying goes on.
const DURABLE_LIMIT: Duration = Duration::from_secs(300);

/// What the name of a copy that lost its VM has in it (`Entry::listed_name`).
const BRANCH_MARK: &str = "-branch-e";

/// Decisions of all VMs that are shown at most.
const DECISIONS: usize = 32;

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::NotFound(_) => Kind::NotFound,
            Error::Refused(_) => Kind::Refused,
            Error::TimedOut { .. } => Kind::TimedOut,
            Error::Peer {
                source: p2pvm_overlay::FabricError::TimedOut(..),
                ..
            } => Kind::TimedOut,
            _ => Kind::Failed,
        };
        Failure::new(kind, p2pvm_host::chain(&error))
    }
}

/// Runs `work` and reports its progress.
async fn watched<T>(
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

pub(super) fn step_of(progress: &Progress) -> Step {
    let mut note = String::new();
    if progress.dirty_rate > 0 {
        note = format!("dirty {}/s", indicatif::HumanBytes(progress.dirty_rate));
    }
    if progress.expected_downtime_ms > 0 {
        note = format!(
            "{note} expected downtime {} ms",
            progress.expected_downtime_ms
        )
        .trim_start()
        .to_owned();
    }
    Step {
        phase: progress.phase.clone(),
        done_bytes: progress.done_bytes,
        total_bytes: progress.total_bytes,
        note,
    }
}

fn durability_text(durability: &Durability) -> String {
    match durability {
        Durability::Local => "local".to_owned(),
        Durability::Replicating { done, wanted } => format!("replicating {done} of {wanted}"),
        Durability::Durable => "durable".to_owned(),
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

impl Daemon {
    /// The VMs on this host.
    pub(super) fn vms_here(&self) -> Vec<VmView> {
        self.host.list().iter().map(|vm| self.view(vm)).collect()
    }

    pub(super) fn view(&self, vm: &VmStatus) -> VmView {
        let state = match vm.state {
            // It did not run when its VM went on elsewhere: there is nothing to choose between.
            VmState::Branch if vm.wanted == Wanted::Stopped => LEFTOVER.to_owned(),
            state => serde_json::to_value(state)
                .ok()
                .and_then(|v| v.as_str().map(str::to_owned))
                .unwrap_or_default(),
        };
        let definition = &vm.definition;
        let reach = self
            .guests
            .view(definition.vm)
            .filter(|_| vm.holder == self.me());
        let blocked = reach
            .as_ref()
            .filter(|reach| reach.state == "blocked")
            .and_then(|reach| reach.why.as_ref());
        let cut_off = blocked.map(|why| format!("packets do not reach it: {why}"));
        VmView {
            name: vm.name.clone(),
            id: definition.vm.to_string(),
            state,
            host: self.name_of(vm.holder),
            host_id: vm.holder.to_string(),
            address: definition.address.v4.to_string(),
            address_v6: definition.address.v6.to_string(),
            mac: definition.address.mac.map(|b| format!("{b:02x}")).join(":"),
            cpus: definition.cpus,
            memory_mib: definition.memory_mib,
            image: definition.image.to_string(),
            epoch: vm.epoch.0,
            voters: definition.voters.iter().map(|m| self.name_of(*m)).collect(),
            activity: vm.activity.as_ref().map(ToString::to_string),
            note: vm
                .still
                .as_ref()
                .map(ToString::to_string)
                .or_else(|| vm.note.clone())
                .or(cut_off),
            still: vm.still.as_ref().map(|still| StillView {
                why: still.why.to_string(),
                path: still.path.clone(),
                free_bytes: still.free_bytes,
                needed_bytes: still.needed_bytes,
            }),
            reach,
            last_seen: None,
            advice: None,
            cpu: self.manager.cpu_of(definition.vm),
            moving: self.manager.moves.of(&vm.name),
            snapshots: vm.snapshots.iter().map(|s| self.snapshot_view(s)).collect(),
        }
    }

    fn snapshot_view(&self, snapshot: &Snapshot) -> SnapshotView {
        let taken = std::time::UNIX_EPOCH + Duration::from_secs(snapshot.taken.0);
        SnapshotView {
            name: snapshot.name.clone(),
            taken: humantime::format_rfc3339_seconds(taken).to_string(),
            state: durability_text(&snapshot.durability),
            holders: snapshot
                .providers
                .iter()
                .map(|m| self.name_of(*m))
                .collect(),
        }
    }

    /// Whether a VM of that name is on this host.
    pub fn has_vm(&self, name: &str) -> bool {
        self.host.list().iter().any(|vm| vm.name == name)
    }

    /// Which member has the VM.
    pub async fn holder_of(&self, name: &str) -> Outcome<MemberId> {
        match self.host.holder(name).await {
            Err(Error::NotFound(_)) if name.contains(BRANCH_MARK) => self.has_branch(name).await,
            Err(Error::NotFound(_)) => Err(Failure::not_found(format!(
                "there is no VM '{name}': see 'p2pvm vm list'"
            ))),
            other => Ok(other?),
        }
    }

    /// On which member a branch lies: no record names it, so all are asked.
    async fn has_branch(&self, name: &str) -> Outcome<MemberId> {
        let all = self.cluster_vms().await?.vms;
        let found = all
            .iter()
            .find(|vm| vm.name == name)
            .and_then(|vm| vm.host_id.parse().ok());
        found.ok_or_else(|| {
            Failure::not_found(format!(
                "there is no branch '{name}' on a member that answers: see 'p2pvm vm list'"
            ))
        })
    }

    /// All VMs of the network.
    pub async fn list_vms(&self) -> Outcome<Vec<VmView>> {
        let found = self.cluster_vms().await?;
        if !found.silent.is_empty() {
            tracing::info!(
                members = found.silent.len(),
                "members that did not say which VMs they have"
            );
        }
        Ok(found.vms)
    }

    /// One VM.
    pub async fn show_vm(&self, name: &str) -> Outcome<VmView> {
        Ok(self.view(&self.host.status(name).await?))
    }

    /// Defines a VM here.
    pub async fn create_vm(&self, r: CreateVm, reporter: &Reporter) -> Outcome<VmView> {
        if r.start {
            crate::preflight::for_guests()?;
        }
        let image = if r.image.starts_with('/') {
            ImageSource::File(PathBuf::from(&r.image))
        } else {
            ImageSource::Stored(r.image.parse().map_err(|e| {
                Failure::usage(format!(
                    "{e}: give the path of an image file, or an image's id"
                ))
            })?)
        };
        let new = NewVm {
            name: r.name.clone(),
            image,
            cpus: r.cpus,
            memory_mib: r.memory_mib,
            disk_bytes: r.disk_bytes,
        };
        // The VM's voters are chosen now for its whole life: right after a start not all members
        // are connected yet.
        self.reach.gather().await;
        let mut vm = watched(reporter, async |progress| {
            self.host.create(new, &progress).await
        })
        .await?;
        if vm.definition.voters.len() < 3 {
            tracing::warn!(vm = %r.name, voters = vm.definition.voters.len(), "made with few \
                members present: it cannot be restored elsewhere if its voters are gone");
        }
        if r.start {
            reporter.phase("starting");
            vm = self.host.start(&r.name).await?;
        }
        Ok(self.view(&vm))
    }

    /// Starts a VM here.
    pub async fn start_vm(&self, name: &str, reporter: &Reporter) -> Outcome<VmView> {
        reporter.phase("starting");
        Ok(self.view(&self.host.start(name).await?))
    }

    /// Stops a VM here: its guest is asked to power down, or with `force` ended at once.
    pub async fn stop_vm(&self, name: &str, force: bool, reporter: &Reporter) -> Outcome<VmView> {
        if force {
            reporter.phase("ending the guest");
            return Ok(self.view(&self.host.stop_within(name, Duration::ZERO).await?));
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
                stopped = &mut stopping => return Ok(self.view(&stopped?)),
                _ = ticks.tick() => reporter.phase(
                    &powering_down(patience.saturating_sub(began.elapsed()))
                ),
            }
        }
    }

    /// Deletes a VM here; with `force` also one that runs. Its guest is not asked: nothing of it is
    /// kept.
    pub async fn delete_vm(&self, name: &str, force: bool) -> Outcome<VmDeleted> {
        let state = self.host.status(name).await?.state;
        if force && matches!(state, VmState::Running | VmState::Paused | VmState::Leaving) {
            self.host.stop_within(name, Duration::ZERO).await?;
        }
        self.host.delete(name).await?;
        Ok(VmDeleted {
            deleted: name.to_owned(),
        })
    }

    /// A VM's console.
    pub async fn console(&self, name: &str) -> Outcome<p2pvm_overlay::BoxStream> {
        Ok(self.host.console(name).await?)
    }

    /// Moves a VM from here; `within` is the span of whoever asked.
    pub async fn migrate_vm(
        &self,
        name: &str,
        r: &MigrateVm,
        within: SpanContext,
        reporter: &Reporter,
    ) -> Outcome<VmMoved> {
        let to = match &r.to {
            Some(text) => self.resolve_member(text).await?,
            None => self.least_loaded().ok_or_else(|| {
                Failure::not_found("no other member with room is known yet; name one with --to")
            })?,
        };
        let options = MigrateOptions {
            post_copy: r.post_copy,
            ..MigrateOptions::default()
        };
        let outcome = watched(reporter, async |progress| {
            self.manager.moves.follow(name, self.name_of(to), &progress);
            let why = Occasion {
                called: Some(self.name_of(to)),
                within,
                ..Occasion::default()
            };
            self.host
                .migrate_because(why, name, to, options, progress)
                .await
        })
        .await?;
        self.moved(&outcome)
    }

    pub(super) fn moved(&self, outcome: &MigrationOutcome) -> Outcome<VmMoved> {
        let report = outcome.report.unwrap_or_default();
        let traced = outcome
            .trace
            .as_ref()
            .map_or_else(String::new, |trace| format!(" (trace {trace})"));
        match outcome.runs_on {
            RunsOn::Target => Ok(VmMoved {
                downtime_ms: report.downtime_ms,
                epoch: outcome.epoch.0,
                from: self.name_of(outcome.from),
                host: self.name_of(outcome.to),
                migration: outcome.id.clone(),
                name: outcome.name.clone(),
                pause_ms: outcome.pause_ms,
                ram_bytes: report.ram_bytes,
                total_ms: outcome.total_ms,
                trace: outcome.trace.clone(),
            }),
            RunsOn::Source if outcome.cancelled => Err(Failure::cancelled(format!(
                "cancelled: {} did not move and stays on {}{traced}",
                outcome.name,
                self.name_of(outcome.from)
            ))),
            RunsOn::Source if outcome.ended => Err(Failure::new(
                Kind::Failed,
                format!(
                    "{} did not move: {} during the move, and it is stopped on {}; 'p2pvm vm \
                        start {0}' starts it{traced}",
                    outcome.name,
                    outcome.failure.as_deref().unwrap_or("its guest ended"),
                    self.name_of(outcome.from)
                ),
            )),
            RunsOn::Source => Err(Failure::new(
                Kind::Failed,
                format!(
                    "{} did not move and still runs on {}: {}{traced}",
                    outcome.name,
                    self.name_of(outcome.from),
                    outcome.failure.as_deref().unwrap_or("unknown cause")
                ),
            )),
            RunsOn::Undecided => Err(Failure::new(
                Kind::Failed,
                format!(
                    "{} is held on both hosts until a majority of its voters answers, then goes \
                        on by itself on one: {}{traced}",
                    outcome.name,
                    outcome.failure.as_deref().unwrap_or("unknown cause")
                ),
            )),
        }
    }

    /// Gives a move up that has not switched over yet.
    pub async fn cancel_migration(&self, name: &str) -> Outcome<MoveCancelled> {
        self.host.cancel_migration(name).await?;
        Ok(MoveCancelled {
            cancelled: name.to_owned(),
            host: self.name_of(self.me()),
        })
    }

    /// Takes a snapshot and waits until it is durable.
    pub async fn snapshot_vm(
        &self,
        name: &str,
        snapshot: Option<String>,
        reporter: &Reporter,
    ) -> Outcome<SnapshotTaken> {
        let snapshot = snapshot.unwrap_or_else(|| {
            let now = humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string();
            now.to_ascii_lowercase()
                .replace([':', 't', 'z'], "-")
                .trim_end_matches('-')
                .to_owned()
        });
        let taken = watched(reporter, async |progress| {
            self.host.snapshot(name, &snapshot, &progress).await
        })
        .await?;
        let mut copies = taken.copies;
        let last = async {
            loop {
                let now = copies.borrow_and_update().clone();
                reporter.phase(&durability_text(&now.durability));
                if now.durability == Durability::Durable || copies.changed().await.is_err() {
                    return now;
                }
            }
        };
        let state = self.in_time(DURABLE_LIMIT, last).await;
        let shown = self.snapshot_view(&taken.snapshot);
        Ok(SnapshotTaken {
            checkpoint: taken.snapshot.checkpoint.to_string(),
            holders: state
                .as_ref()
                .map(|c| c.providers.iter().map(|m| self.name_of(*m)).collect()),
            name: snapshot,
            pause_ms: taken.pause.as_secs_f64() * 1e3,
            state: state.map_or(shown.state, |c| durability_text(&c.durability)),
            taken: shown.taken,
        })
    }

    async fn in_time<T>(&self, limit: Duration, work: impl Future<Output = T>) -> Option<T> {
        tokio::time::timeout(limit, work).await.ok()
    }

    /// Brings a VM back here.
    pub async fn restore_vm(
        &self,
        name: &str,
        r: &RestoreVm,
        reporter: &Reporter,
    ) -> Outcome<VmView> {
        let snapshot = match &r.snapshot {
            Some(snapshot) => snapshot.clone(),
            None => {
                let known = self.host.status(name).await?;
                let newest = known
                    .snapshots
                    .last()
                    .ok_or_else(|| Failure::not_found(format!("'{name}' has no snapshot")))?;
                newest.name.clone()
            }
        };
        let options = RestoreOptions { force: r.force };
        let vm = watched(reporter, async |progress| {
            self.host.restore(name, &snapshot, options, &progress).await
        })
        .await?;
        Ok(self.view(&vm))
    }

    /// What the autonomic manager decided here lately.
    pub fn decisions(&self) -> Vec<Decided> {
        self.manager.decisions(DECISIONS)
    }

    /// Why a VM was moved, or was not.
    pub async fn explain_vm(&self, name: &str) -> Outcome<Vec<Explained>> {
        let vm = self.host.status(name).await?.definition.vm;
        let mut told = self.manager.explain(vm);
        // The decision was taken where the VM was: the members that it may have been on are asked
        // as well.
        for (member, theirs) in self
            .manager
            .ask_explanations(self.fabric().as_ref(), vm)
            .await
        {
            told.extend(theirs.into_iter().map(|mut e| {
                e.host = self.name_of(member);
                e
            }));
        }
        for explained in told.iter_mut().filter(|e| e.host.is_empty()) {
            explained.host = self.name_of(self.me());
        }
        told.sort_by(|a, b| a.at.cmp(&b.at));
        Ok(told)
    }

    /// The member with the least load that this host knows of, itself excluded.
    fn least_loaded(&self) -> Option<MemberId> {
        self.manager
            .least_loaded()
            .or_else(|| self.fabric().connected().into_iter().next())
    }
}
