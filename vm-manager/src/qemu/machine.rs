//! One guest: its life, and the task that follows what it does.

use super::{
    checkpoint, console,
    migration::Incoming,
    moving::{self, MoveState, capabilities_set},
    process::{PID_FILE, Process},
    qmp::{Event, Qmp, refused},
    relay::Relay,
    replica,
};
use crate::{
    Error,
    guardian::GuardedProcess,
    hypervisor::{
        ChangedDisk, CheckpointFiles, Halt, IncomingSockets, Machine, MachineSpec, MachineStats,
        MigrateOptions, MigrationReport, Progress, RunState,
    },
    jail::Jail,
    run_dir::RunDir,
};
use async_trait::async_trait;
use p2pvm_overlay::BoxStream;
use serde_json::json;
use std::{path::Path, sync::Arc, time::Duration};
use tokio::sync::{Semaphore, broadcast, watch};

/// How long a killed process may take to vanish.
pub(super) const KILL_PATIENCE: Duration = Duration::from_secs(10);
/// How long QEMU may take to answer that it ends, and to end.
const QUIT_PATIENCE: Duration = Duration::from_secs(5);
/// How long before the power button is pressed again. Reason: a guest that is still booting misses
/// the first press.
const PRESS_AGAIN: Duration = Duration::from_secs(3);
/// How long between two looks at the lengths of the guest's logs.
const LOG_CHECK: Duration = Duration::from_secs(30);

/// A guest in a QEMU process. Dropping it lets go of the monitor, which serves one client, so that
/// the guest can be taken up again; the guest lives on.
pub(crate) struct QemuMachine {
    pub(super) spec: MachineSpec,
    pub(super) qmp: Qmp,
    pub(super) state: watch::Receiver<RunState>,
    halt: watch::Receiver<Option<Halt>>,
    /// How far a move of this guest has come. Held through a step, so that steps do not overlap.
    pub(super) moving: tokio::sync::Mutex<MoveState>,
    /// What holds the target's disk open during a move.
    pub(super) relay: tokio::sync::Mutex<Option<Relay>>,
    /// What takes the stream of memory of a move towards this host.
    pub(super) incoming: tokio::sync::Mutex<Option<Incoming>>,
    /// The copies of what it changed on its disk.
    pub(super) rounds: replica::Rounds,
    pub(super) jail: Arc<Jail>,
    process: Process,
    console: Arc<Semaphore>,
    _follower: Follower,
}

/// The task that follows the guest, ended with its owner.
struct Follower(tokio::task::JoinHandle<()>);

impl Drop for Follower {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl QemuMachine {
    pub(super) async fn new(
        spec: MachineSpec,
        qmp: Qmp,
        process: Process,
        jail: Arc<Jail>,
    ) -> Result<Self, Error> {
        let events = qmp.subscribe();
        let capabilities = capabilities_set(&qmp).await?;
        // Off by default, and without it every step of a migration would have to be polled for. A
        // guest that is taken up has it on already, and QEMU would refuse it during a migration.
        if !capabilities.iter().any(|c| c == "events") {
            qmp.run(
                "migrate-set-capabilities",
                json!({ "capabilities": [{ "capability": "events", "state": true }] }),
            )
            .await?;
        }
        let moving = MoveState::left_in(&qmp, &capabilities).await?;
        if moving.is_under_way() {
            tracing::info!(vm = %spec.vm.short(), ?moving, "an earlier daemon left a move \
                under way");
        }
        let (tx, state) = watch::channel(run_state(&qmp).await?);
        let (halting, halt) = watch::channel(disk_halt(&qmp).await?);
        let follower = tokio::spawn(follow(
            qmp.clone(),
            events,
            (tx, halting),
            process,
            jail.clone(),
            spec.clone(),
        ));
        Ok(Self {
            spec,
            qmp,
            state,
            halt,
            moving: tokio::sync::Mutex::new(moving),
            relay: tokio::sync::Mutex::new(None),
            incoming: tokio::sync::Mutex::new(None),
            rounds: replica::Rounds::default(),
            jail,
            process,
            console: Arc::new(Semaphore::new(1)),
            _follower: Follower(follower),
        })
    }

    async fn gone(&self, patience: Duration) -> bool {
        self.process.ended(patience).await && {
            // The caller may start the guest again at once, so the follower must be done too.
            let mut state = self.state.clone();
            tokio::time::timeout(KILL_PATIENCE, state.wait_for(|s| *s == RunState::Stopped))
                .await
                .is_ok()
        }
    }
}

#[async_trait]
impl Machine for QemuMachine {
    fn spec(&self) -> &MachineSpec {
        &self.spec
    }

    fn guarded(&self) -> Option<GuardedProcess> {
        let lives = self.process.is_alive();
        lives.then(|| super::guarded(self.process, &self.jail))
    }

    fn watch(&self) -> watch::Receiver<RunState> {
        self.state.clone()
    }

    fn halted(&self) -> Option<Halt> {
        *self.halt.borrow()
    }

    async fn stop(&self, patience: Duration) -> Result<(), Error> {
        let ends = matches!(self.halted(), Some(Halt::PoweredOff | Halt::Panicked));
        if ends || *self.state.borrow() == RunState::Stopped {
            // It has shut itself down. Its process flushes its disk and may wait for the other side
            // of a move, which goes now.
            self.relay.lock().await.take();
            return if self.gone(patience).await {
                Ok(())
            } else {
                self.kill().await
            };
        }
        let press = async {
            // A paused guest does not react to the button.
            if *self.state.borrow() == RunState::Running {
                while self.qmp.run("system_powerdown", json!({})).await.is_ok()
                    && !self.gone(PRESS_AGAIN).await
                {}
            }
        };
        if tokio::time::timeout(patience, press).await.is_ok()
            && self.gone(Duration::from_millis(100)).await
        {
            return Ok(());
        }
        tracing::info!(vm = %self.spec.vm.short(), "the guest did not power down; ending it");
        // A QEMU that ends by itself first writes back what it holds of the disk.
        let quit = self.qmp.run("quit", json!({}));
        let _ = tokio::time::timeout(QUIT_PATIENCE, quit).await;
        if self.gone(QUIT_PATIENCE).await {
            return Ok(());
        }
        self.kill().await
    }

    async fn kill(&self) -> Result<(), Error> {
        self.process.kill();
        match self.gone(KILL_PATIENCE).await {
            true => Ok(()),
            false => Err(Error::TimedOut {
                step: "end the guest's process",
                seconds: KILL_PATIENCE.as_secs(),
            }),
        }
    }

    async fn pause(&self) -> Result<(), Error> {
        self.qmp.run("stop", json!({})).await.map(drop)
    }

    async fn resume(&self) -> Result<(), Error> {
        self.qmp.run("cont", json!({})).await.map(drop)
    }

    async fn stats(&self) -> Result<MachineStats, Error> {
        self.process.stats()
    }

    async fn console(&self) -> Result<BoxStream, Error> {
        console::open(&self.spec.run_dir, &self.console).await
    }

    async fn incoming(&self) -> Result<IncomingSockets, Error> {
        self.open_incoming().await
    }

    async fn finish_incoming(&self) -> Result<(), Error> {
        self.close_incoming().await
    }

    async fn mirror(
        &self,
        disk: &Path,
        export: &str,
        progress: &watch::Sender<Progress>,
    ) -> Result<(), Error> {
        self.start_mirror(disk, export, progress).await
    }

    async fn migrate_until_paused(
        &self,
        ram: &Path,
        options: MigrateOptions,
        progress: &watch::Sender<Progress>,
    ) -> Result<(), Error> {
        self.send_ram(ram, options, progress).await
    }

    async fn switch_over(&self) -> Result<MigrationReport, Error> {
        self.hand_over().await
    }

    async fn may_be_handed_over(&self) -> Result<bool, Error> {
        moving::may_be_handed_over(&self.qmp).await
    }

    async fn cancel_migration(&self) -> Result<(), Error> {
        self.give_up().await
    }

    async fn checkpoint(
        &self,
        dir: &Path,
        progress: &watch::Sender<Progress>,
    ) -> Result<CheckpointFiles, Error> {
        let _no_round = self.rounds.pause().await;
        let moving = self.moving.lock().await;
        if moving.is_under_way() {
            return Err(Error::Refused(format!(
                "{} is being migrated; take the snapshot afterwards",
                self.spec.name
            )));
        }
        checkpoint::take(self, dir, progress).await
    }

    async fn changed_bytes(&self) -> Result<Option<u64>, Error> {
        replica::changed_bytes(self).await
    }

    async fn changed_blocks(&self, dir: &Path, whole: bool) -> Result<ChangedDisk, Error> {
        replica::round(self, dir, whole).await
    }
}

/// The guest's state, as QEMU reports it.
pub(super) async fn run_state(qmp: &Qmp) -> Result<RunState, Error> {
    let answer = qmp.run("query-status", json!({})).await?;
    match answer["status"].as_str() {
        Some("running" | "suspended") => Ok(RunState::Running),
        Some("inmigrate") => Ok(RunState::Incoming),
        Some("shutdown") => Ok(RunState::Stopped),
        Some(_) => Ok(RunState::Paused),
        None => Err(refused("query-status", "no status in the answer")),
    }
}

/// Why QEMU stopped a guest that stands still, by the state of its disk.
async fn disk_halt(qmp: &Qmp) -> Result<Option<Halt>, Error> {
    if qmp.run("query-status", json!({})).await?["status"] != "io-error" {
        return Ok(None);
    }
    let devices = qmp.run("query-block", json!({})).await?;
    let full = devices
        .as_array()
        .is_some_and(|all| all.iter().any(|device| device["io-status"] == "nospace"));
    Ok(Some(if full {
        Halt::DiskFull
    } else {
        Halt::DiskError
    }))
}

/// Keeps `state` and `halt` up to date until the process has ended, then clears up behind it.
async fn follow(
    qmp: Qmp,
    mut events: broadcast::Receiver<Event>,
    (state, halt): (watch::Sender<RunState>, watch::Sender<Option<Halt>>),
    process: Process,
    jail: Arc<Jail>,
    spec: MachineSpec,
) {
    let mut closed = qmp.closed();
    let mut check = tokio::time::interval(LOG_CHECK);
    loop {
        let changed = tokio::select! {
            _ = closed.wait_for(|closed| *closed) => break,
            _ = check.tick() => {
                console::cut_logs(&spec.run_dir);
                continue;
            }
            event = events.recv() => match event {
                Ok(event) => {
                    if let Some(why) = end_of(&event) {
                        halt.send_replace(Some(why));
                    }
                    concerns_state(&event, &spec)
                }
                Err(broadcast::error::RecvError::Lagged(_)) => true,
                Err(broadcast::error::RecvError::Closed) => break,
            },
        };
        if changed && let Ok(now) = run_state(&qmp).await {
            // The reason first: subscribers ask for it when they see the change.
            if now != RunState::Stopped
                && let Ok(why) = disk_halt(&qmp).await
            {
                halt.send_if_modified(|old| std::mem::replace(old, why) != why);
            }
            state.send_if_modified(|old| std::mem::replace(old, now) != now);
        }
    }
    // The monitor is gone, so the process is or nearly is.
    if !process.ended(KILL_PATIENCE).await {
        process.kill();
        process.ended(KILL_PATIENCE).await;
    }
    if let Err(error) = RunDir::open(&spec.run_dir).and_then(|dir| dir.remove(PID_FILE)) {
        tracing::debug!(
            vm = %spec.vm.short(),
            error = %p2pvm_overlay::chain(&error),
            "the pid file of the ended process stays"
        );
    }
    jail.remove().await;
    state.send_replace(RunState::Stopped);
    tracing::info!(vm = %spec.vm.short(), "guest ended");
}

/// Why a guest ends by itself, if the event says that it does (QEMU's `run-state.json`).
fn end_of(event: &Event) -> Option<Halt> {
    if event.name != "SHUTDOWN" || event.data["guest"] != true {
        return None;
    }
    match event.data["reason"] == "guest-panic" {
        true => Some(Halt::Panicked),
        false => Some(Halt::PoweredOff),
    }
}

fn concerns_state(event: &Event, spec: &MachineSpec) -> bool {
    if event.name == "BLOCK_IO_ERROR" || event.name == "GUEST_PANICKED" {
        tracing::warn!(vm = %spec.vm.short(), event = event.name, data = %event.data, "trouble in \
            the guest");
    }
    matches!(
        &*event.name,
        "STOP"
            | "RESUME"
            | "SHUTDOWN"
            | "RESET"
            | "MIGRATION"
            | "GUEST_PANICKED"
            | "SUSPEND"
            | "WAKEUP"
    )
}
