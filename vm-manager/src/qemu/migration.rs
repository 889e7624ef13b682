//! Live migration: the disk by an NBD mirror, RAM by QEMU's own migration, both over unix sockets
//! that the daemon carries to the other host.
//!
//! The guest stands still from QEMU's STOP (the end of [`QemuMachine::send_ram`]) to the target's
//! `cont`. What is left to do in that time is arranged to need no answer from the far side:
//! - The mirror copies in the background first, then writes every guest write to both sides before
//!   the guest hears of its completion (`write-blocking`). Once `actively-synced`, nothing is dirty
//!   when the guest stops; QEMU waits at most one round trip for a write that was under way at that
//!   moment.
//! - Such a mirror is ended by force. A graceful end sends a flush and waits for it: a round trip
//!   that buys nothing, since the target's QEMU holds all writes already, and it is this process
//!   that the guest goes on in. For the same reason the remote node ignores flushes: QEMU flushes
//!   every node when it stops a guest.
//! - The rest of RAM and the devices go out in one piece, without an acknowledgement (no
//!   `return-path` for pre-copy).
//!
//! So **half a round trip** remains (one way for the last bytes), **plus at most one** for a write
//! under way; the carrier of the sockets adds its own queueing: it should buffer little more than a
//! round trip's worth.
//!
//! The target's disk is opened by [`super::relay`], so that its negotiation does not stop the
//! guest's devices.
//!
//! Traps: sockets are connected by the daemon and handed to QEMU as descriptors, because its uid
//! may not walk to them. A block job fails silently unless asked (`query-jobs` has the error, until
//! dismissed). A hung NBD connection blocks everything that drains the disk, `yank` is the way out.
//! The NBD export on the target must be gone before `cont`, or the disk's owner cannot take its
//! lock. Post-copy must be allowed on the target before it listens.

use super::{
    command::DISK_NODE,
    machine::{QemuMachine, run_state},
    moving::PAUSES,
    qmp::{Qmp, connect_unix, refused, wait_for},
    relay::Relay,
};
use crate::{
    Error,
    cgroup::Limits,
    error::io_at,
    hypervisor::{IncomingSockets, MigrateOptions, MigrationReport, Progress, RunState},
    run_dir::RunDir,
};
use p2pvm_overlay::chain;
use serde_json::{Value, json};
use std::{io, os::fd::AsFd, path::Path, time::Duration};
use tokio::{net::UnixListener, sync::watch, task::JoinHandle};

/// Where a target is reached, within its run directory.
const RAM_SOCKET: &str = "ram.sock";
const DISK_SOCKET: &str = "disk.sock";

/// The mirror's job, and its target within QEMU.
pub(super) const MIRROR: &str = "mirror";
pub(super) const REMOTE: &str = "remote-disk";
/// The NBD export of a target's disk.
const EXPORT: &str = "disk";
/// How long between two looks at progress. Events tell what matters.
const LOOK: Duration = Duration::from_millis(100);
/// How long before the state is asked for while the guest stands still. Reason: an event may have
/// been missed.
const LOOK_PAUSED: Duration = Duration::from_millis(10);
/// How many full passes over RAM before pre-copy counts as not converging, where post-copy is
/// allowed.
const PASSES: u64 = 3;
/// How long a cancelled job may take before its connection is cut. Reason: on a dead one it never
/// ends.
const CANCEL_PATIENCE: Duration = Duration::from_secs(2);

/// Sets the capabilities named and clears the others that this driver ever sets.
pub(super) fn capabilities(wanted: &[&str]) -> Value {
    const ALL: [&str; 5] = [
        "events",
        PAUSES,
        "auto-converge",
        "postcopy-ram",
        "background-snapshot",
    ];
    let states: Vec<Value> = ALL
        .iter()
        .map(|c| json!({ "capability": c, "state": *c == "events" || wanted.contains(c) }))
        .collect();
    json!({ "capabilities": states })
}

/// The task that hands the stream of memory to QEMU, which can listen at a path of its own only;
/// ended with its owner.
pub(super) struct Incoming(JoinHandle<()>);

impl Incoming {
    fn listen(qmp: Qmp, listener: std::os::unix::net::UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let listener = UnixListener::from_std(listener)?;
        Ok(Self(tokio::spawn(async move {
            let taken = async {
                let (stream, _) = listener
                    .accept()
                    .await
                    .map_err(io_at("take the stream of memory", RAM_SOCKET))?;
                qmp.give_fd("ram", stream.as_fd()).await?;
                qmp.run("migrate-incoming", json!({ "uri": "fd:ram" }))
                    .await
            };
            if let Err(error) = taken.await {
                tracing::warn!(error = %chain(&error), "the guest's memory cannot be received");
            }
        })))
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl QemuMachine {
    pub(super) async fn open_incoming(&self) -> Result<IncomingSockets, Error> {
        let mut moving = self.moving.lock().await;
        let at = |name| self.spec.run_dir.join(name);
        let sockets = IncomingSockets {
            ram: at(RAM_SOCKET),
            disk: at(DISK_SOCKET),
            export: EXPORT.to_owned(),
        };
        if moving.listening
            || self
                .qmp
                .run("query-block-exports", json!({}))
                .await?
                .as_array()
                .is_some_and(|a| !a.is_empty())
        {
            return Ok(sockets);
        }
        // Harmless when the source does not use it; refused where the host has no userfaultfd, and
        // then so is post-copy.
        if let Err(error) = self
            .qmp
            .run("migrate-set-capabilities", capabilities(&["postcopy-ram"]))
            .await
        {
            tracing::debug!(error = %chain(&error), "this host cannot take a guest by post-copy");
            self.qmp
                .run("migrate-set-capabilities", capabilities(&[]))
                .await?;
        }
        let listen = |name| {
            RunDir::open(&self.spec.run_dir)
                .and_then(|dir| dir.listen(name))
                .map_err(io_at("listen for the source", at(name)))
        };
        self.qmp
            .give_fd(EXPORT, listen(DISK_SOCKET)?.as_fd())
            .await?;
        let address = json!({ "type": "fd", "data": { "str": EXPORT } });
        self.qmp
            .run("nbd-server-start", json!({ "addr": address }))
            .await?;
        let export = json!(
            {
                "type": "nbd", "id": EXPORT, "name": EXPORT, "node-name": DISK_NODE,
                "writable": true
            }
        );
        self.qmp.run("block-export-add", export).await?;
        let incoming = Incoming::listen(self.qmp.clone(), listen(RAM_SOCKET)?)
            .map_err(io_at("listen for the source", at(RAM_SOCKET)))?;
        *self.incoming.lock().await = Some(incoming);
        moving.listening = true;
        Ok(sockets)
    }

    pub(super) async fn close_incoming(&self) -> Result<(), Error> {
        let mut events = self.qmp.subscribe();
        // `inmigrate` ends when all of RAM has come, or with post-copy the devices' state.
        loop {
            if run_state(&self.qmp).await? != RunState::Incoming {
                break;
            }
            let failed = wait_for(&mut events, LOOK_PAUSED, |e| {
                (e.name == "MIGRATION").then(|| e.data["status"] == "failed")
            })
            .await;
            if failed == Some(true) {
                let status = self.qmp.run("query-migrate", json!({})).await?;
                return Err(refused("receive the guest", error_of(&status)));
            }
        }
        let mut moving = self.moving.lock().await;
        // All writes of the source were answered, so nothing is under way that a hard end could
        // lose.
        self.qmp.run("nbd-server-stop", json!({})).await?;
        moving.listening = false;
        self.incoming.lock().await.take();
        Ok(())
    }

    pub(super) async fn start_mirror(
        &self,
        disk: &Path,
        export: &str,
        progress: &watch::Sender<Progress>,
    ) -> Result<(), Error> {
        self.begin_mirror(disk, export).await?;
        let mut events = self.qmp.subscribe();
        let mut blocking = false;
        loop {
            let job = self.mirror_job().await?;
            let number = |field: &str| job[field].as_u64().unwrap_or(0);
            progress.send_replace(Progress {
                phase: "disk".to_owned(),
                done_bytes: number("offset"),
                total_bytes: number("len"),
                ..Progress::default()
            });
            if job["ready"] == true {
                if !blocking {
                    let change =
                        json!({ "id": MIRROR, "type": "mirror", "copy-mode": "write-blocking" });
                    self.qmp.run("block-job-change", change).await?;
                    blocking = true;
                }
                if in_step(&job) {
                    return Ok(());
                }
            }
            let patience = if job["ready"] == true {
                LOOK_PAUSED
            } else {
                LOOK
            };
            let _ = wait_for(&mut events, patience, |e| {
                e.name.starts_with("BLOCK_JOB").then_some(())
            })
            .await;
        }
    }

    /// Opens the target's disk and begins to copy to it.
    async fn begin_mirror(&self, disk: &Path, export: &str) -> Result<(), Error> {
        let _no_round = self.rounds.pause().await;
        let mut moving = self.moving.lock().await;
        if moving.is_under_way() {
            return Err(Error::Refused(format!(
                "{} is being migrated already",
                self.spec.name
            )));
        }
        let limits = Limits {
            cpus: self.spec.cpus,
            memory_mib: self.spec.memory_mib,
        };
        let relay = Relay::start(&self.spec.run_dir, &self.jail, &limits, disk, export).await?;
        let stream = relay.connect().await?;
        *self.relay.lock().await = Some(relay);
        self.qmp.give_fd(REMOTE, stream.as_fd()).await?;
        let server = json!({ "type": "fd", "str": REMOTE });
        let node = json!({
            "node-name": REMOTE, "driver": "nbd", "server": server, "export": export,
            "discard": "unmap", "cache": { "no-flush": true },
        });
        self.qmp.run("blockdev-add", node).await?;
        moving.mirror = true;
        // Only what the VM itself has written: the target has the image below.
        let job = json!({
            "job-id": MIRROR, "device": DISK_NODE, "target": REMOTE, "sync": "top",
            "copy-mode": "background", "auto-dismiss": false,
        });
        self.qmp.run("blockdev-mirror", job).await.map(drop)
    }

    /// The mirror as it is, or why it has failed.
    async fn mirror_job(&self) -> Result<Value, Error> {
        let jobs = self.qmp.run("query-block-jobs", json!({})).await?;
        let job = jobs
            .as_array()
            .and_then(|jobs| jobs.iter().find(|j| j["device"] == MIRROR))
            .cloned();
        let job = job.ok_or_else(|| refused("mirror the disk", "the mirror has ended"))?;
        match (job["error"].as_str(), job["status"].as_str()) {
            (Some(error), _) if error.contains("No space left") => Err(refused(
                "mirror the disk",
                "the target's disk is full: make room there, or move the VM to another member",
            )),
            (Some(error), _) => Err(refused("mirror the disk", error)),
            (None, Some("concluded" | "aborting")) => Err(refused(
                "mirror the disk",
                "the connection to the target was lost",
            )),
            _ => Ok(job),
        }
    }

    /// Ends the mirror, by force or after a last flush, and forgets its target.
    async fn end_mirror(&self, force: bool) -> Result<(), Error> {
        let mut events = self.qmp.subscribe();
        // Fails when the job has ended by itself, which is as good.
        let _ = self
            .qmp
            .run(
                "block-job-cancel",
                json!({ "device": MIRROR, "force": force }),
            )
            .await;
        loop {
            let jobs = self.qmp.run("query-jobs", json!({})).await?;
            let Some(job) = jobs
                .as_array()
                .and_then(|jobs| jobs.iter().find(|j| j["id"] == MIRROR))
            else {
                return Ok(());
            };
            if job["status"] == "concluded" {
                self.qmp.run("job-dismiss", json!({ "id": MIRROR })).await?;
                return Ok(());
            }
            let concluded = |e: &super::qmp::Event| {
                (e.name == "JOB_STATUS_CHANGE" && e.data["status"] == "concluded").then_some(())
            };
            let _ = wait_for(&mut events, LOOK_PAUSED, concluded).await;
        }
    }

    pub(super) async fn send_ram(
        &self,
        ram: &Path,
        options: MigrateOptions,
        progress: &watch::Sender<Progress>,
    ) -> Result<(), Error> {
        let mut events = {
            let mut moving = self.moving.lock().await;
            if moving.ram || moving.listening {
                return Err(Error::Refused(format!(
                    "{} is being migrated already",
                    self.spec.name
                )));
            }
            moving.ran = Some(run_state(&self.qmp).await? == RunState::Running);
            let mut wanted = vec![PAUSES, "auto-converge"];
            if options.post_copy {
                wanted.push("postcopy-ram");
            }
            self.qmp
                .run("migrate-set-capabilities", capabilities(&wanted))
                .await?;
            let downtime = u64::try_from(options.max_downtime.as_millis())
                .unwrap_or(u64::MAX)
                .clamp(1, 2_000_000);
            let parameters =
                json!({ "downtime-limit": downtime, "max-bandwidth": options.bandwidth });
            self.qmp.run("migrate-set-parameters", parameters).await?;
            let stream = connect_unix(ram)
                .await
                .map_err(io_at("connect to the target's memory", ram))?;
            self.qmp.give_fd("ram", stream.as_fd()).await?;
            let events = self.qmp.subscribe();
            self.qmp.run("migrate", json!({ "uri": "fd:ram" })).await?;
            moving.ram = true;
            events
        };
        let mut post_copy = false;
        loop {
            let status = self.qmp.run("query-migrate", json!({})).await?;
            progress.send_replace(Progress {
                post_copy,
                ..ram_progress(&status)
            });
            match status["status"].as_str() {
                Some("pre-switchover") => return Ok(()),
                Some("failed" | "cancelled" | "cancelling" | "completed") => {
                    return Err(refused("send the guest's memory", error_of(&status)));
                }
                _ => {}
            }
            if options.post_copy && !post_copy && progress.borrow().rounds > PASSES {
                self.qmp.run("migrate-start-postcopy", json!({})).await?;
                post_copy = true;
            }
            let _ = wait_for(&mut events, LOOK, |e| (e.name == "MIGRATION").then_some(())).await;
        }
    }

    pub(super) async fn hand_over(&self) -> Result<MigrationReport, Error> {
        let mut moving = self.moving.lock().await;
        if !moving.ram {
            return Err(Error::Refused(format!(
                "{} is not at the point of switching over",
                self.spec.name
            )));
        }
        let mut events = self.qmp.subscribe();
        if moving.mirror {
            let clean = in_step(&self.mirror_job().await?);
            if !clean {
                tracing::warn!("the mirror was behind when the guest stopped; waiting for it");
            }
            self.end_mirror(clean).await?;
        }
        self.qmp
            .run("migrate-continue", json!({ "state": "pre-switchover" }))
            .await?;
        let status = loop {
            let status = self.qmp.run("query-migrate", json!({})).await?;
            match status["status"].as_str() {
                Some("completed") => break status,
                Some("failed" | "cancelled" | "postcopy-paused") => {
                    return Err(refused("switch over", error_of(&status)));
                }
                _ => {}
            }
            let _ = wait_for(&mut events, LOOK_PAUSED, |e| {
                (e.name == "MIGRATION").then_some(())
            })
            .await;
        };
        if moving.mirror {
            let _ = self
                .qmp
                .run("blockdev-del", json!({ "node-name": REMOTE }))
                .await;
            moving.mirror = false;
        }
        self.relay.lock().await.take();
        let number = |value: &Value| value.as_u64().unwrap_or(0);
        Ok(MigrationReport {
            total_ms: number(&status["total-time"]),
            downtime_ms: number(&status["downtime"]),
            ram_bytes: number(&status["ram"]["transferred"]),
            rounds: number(&status["ram"]["dirty-sync-count"]),
        })
    }

    pub(super) async fn give_up(&self) -> Result<(), Error> {
        // Not held from the start: a step that hangs on the dead connection holds it, and is freed
        // by the yank below.
        if tokio::time::timeout(CANCEL_PATIENCE, self.moving.lock())
            .await
            .is_err()
        {
            self.yank().await;
        }
        let mut moving = self.moving.lock().await;
        let mut events = self.qmp.subscribe();
        if moving.ram {
            let _ = self.qmp.run("migrate_cancel", json!({})).await;
            loop {
                let status = self.qmp.run("query-migrate", json!({})).await?;
                match status["status"].as_str() {
                    Some("postcopy-active" | "postcopy-paused" | "postcopy-recover") => {
                        return Err(Error::Refused(
                            "the guest runs on the target already \
                            (post-copy); it cannot be taken back"
                                .to_owned(),
                        ));
                    }
                    Some("cancelled" | "failed" | "completed" | "none") | None => break,
                    _ => {}
                }
                let _ = wait_for(&mut events, LOOK_PAUSED, |e| {
                    (e.name == "MIGRATION").then_some(())
                })
                .await;
            }
            moving.ram = false;
        }
        if moving.mirror {
            if tokio::time::timeout(CANCEL_PATIENCE, self.end_mirror(true))
                .await
                .is_err()
            {
                self.yank().await;
                let late = Error::TimedOut {
                    step: "end the disk's mirror",
                    seconds: CANCEL_PATIENCE.as_secs(),
                };
                tokio::time::timeout(CANCEL_PATIENCE, self.end_mirror(true))
                    .await
                    .map_err(|_| late)??;
            }
            self.qmp
                .run("blockdev-del", json!({ "node-name": REMOTE }))
                .await?;
            moving.mirror = false;
        }
        self.relay.lock().await.take();
        if moving.ran.take() == Some(true) && run_state(&self.qmp).await? != RunState::Running {
            self.qmp.run("cont", json!({})).await?;
        }
        Ok(())
    }

    /// Cuts the connection to the target's disk from this side, so that what waits for it fails.
    async fn yank(&self) {
        let instances = json!({ "instances": [{ "type": "block-node", "node-name": REMOTE }] });
        if let Err(error) = self.qmp.run("yank", instances).await {
            tracing::debug!(error = %chain(&error), "nothing to cut");
        }
    }
}

fn in_step(job: &Value) -> bool {
    job["ready"] == true && job["actively-synced"] == true && job["offset"] == job["len"]
}

fn error_of(status: &Value) -> String {
    match status["error-desc"].as_str() {
        Some(text) => text.to_owned(),
        None => format!(
            "the migration is '{}'",
            status["status"].as_str().unwrap_or("unknown")
        ),
    }
}

pub(super) fn ram_progress(status: &Value) -> Progress {
    let ram = &status["ram"];
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    let done = number(&ram["transferred"]);
    Progress {
        phase: if status["status"] == "pre-switchover" {
            "switch-over"
        } else {
            "ram"
        }
        .to_owned(),
        done_bytes: done,
        total_bytes: done + number(&ram["remaining"]),
        dirty_rate: number(&ram["dirty-pages-rate"]) * number(&ram["page-size"]),
        expected_downtime_ms: number(&status["expected-downtime"]),
        rounds: number(&ram["dirty-sync-count"]),
        post_copy: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mirror_is_in_step_only_when_nothing_is_left_to_copy() {
        let job = |synced: bool, offset: u64| {
            json!(
                { "ready": true, "actively-synced": synced, "offset": offset, "len": 9 }
            )
        };
        assert!(in_step(&job(true, 9)));
        assert!(!in_step(&job(false, 9)));
        assert!(!in_step(&job(true, 8)));
        assert!(!in_step(&json!({})));
    }
}
