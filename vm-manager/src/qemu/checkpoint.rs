//! RAM and disk of one instant, while the guest runs on.
//!
//! QEMU's *background snapshot*: RAM is write-protected and saved page by page, a page that the
//! guest is about to write before the others. The guest stands still only for the devices' state
//! and the protecting: 11 ms for 128 MiB when the host is quiet, 15–30 ms when it is loaded.
//! Pre-copy into a file, by comparison, stops the guest 40–220 ms: the qcow2 is flushed in that
//! time, and on a journaling file system that flush waits for the RAM file's data too.
//!
//! For disk and RAM to be of the same instant, the guest is stopped *here*, a copy-before-write
//! backup of its disk begun, the snapshot begun, and the guest let go when the first page is out.
//! Traps:
//! - Status `active` comes *before* RAM is protected. Only a page counted as saved proves that it
//!   is.
//! - `mapped-ram` with background snapshots is accepted and writes a file that does not load (QEMU
//!   10.0).
//! - It needs userfaultfd with write protection. Where that is missing, pre-copy into the file
//!   takes its place; both kinds of file load alike.

use super::{
    command::DISK_NODE,
    image,
    machine::{QemuMachine, run_state},
    migration::{capabilities, ram_progress},
    qmp::{Qmp, refused, wait_for},
};
use crate::{
    Error,
    error::io_at,
    hypervisor::{CheckpointFiles, Progress, RunState},
};
use p2pvm_overlay::chain;
use serde_json::{Value, json};
use std::{
    fs::{self, File, OpenOptions},
    os::fd::OwnedFd,
    path::Path,
    time::{Duration, Instant},
};
use tokio::sync::watch;

/// The files' names.
const RAM: &str = "ram";
const DISK: &str = "disk.qcow2";
/// The backup's job, and its target within QEMU.
const BACKUP: &str = "checkpoint";
const COPY: &str = "checkpoint-disk";
/// How long between two looks at progress.
const LOOK: Duration = Duration::from_millis(100);
/// How long between two looks while the guest stands still.
const LOOK_PAUSED: Duration = Duration::from_millis(1);
/// How long a stop pre-copy may plan for, milliseconds.
const PRECOPY_DOWNTIME_MS: u64 = 50;

/// Takes a checkpoint of `machine` into `dir`.
pub(super) async fn take(
    machine: &QemuMachine,
    dir: &Path,
    progress: &watch::Sender<Progress>,
) -> Result<CheckpointFiles, Error> {
    fs::create_dir_all(dir).map_err(io_at("make the checkpoint's directory", dir))?;
    let files = CheckpointFiles {
        ram: dir.join(RAM),
        disk: dir.join(DISK),
        pause: Duration::ZERO,
    };
    let own = image::info(&machine.spec.disk).await?;
    for stale in [&files.ram, &files.disk] {
        let _ = fs::remove_file(stale);
    }
    match &own.backing {
        Some(below) => image::create_over(below, &files.disk, Some(own.virtual_size)).await?,
        None => {
            return Err(Error::Refused(format!(
                "{} is not based on an image",
                machine.spec.disk.display()
            )));
        }
    }
    let (ram, reading, writing) = open(&files)?;
    // In a task of its own: a caller that goes away must not leave the guest standing.
    let (qmp, progress) = (machine.qmp.clone(), progress.clone());
    let work = tokio::spawn(async move {
        let sets = (qmp.add_fd(&ram).await?, qmp.add_fd(&writing).await?);
        qmp.extend_fd_set(sets.1, &reading).await?;
        let result = copy(&qmp, sets.0, sets.1, &progress).await;
        for set in [sets.0, sets.1] {
            let _ = qmp.run("remove-fd", json!({ "fdset-id": set })).await;
        }
        result
    });
    let pause = work.await.map_err(|source| Error::Task {
        step: "take a checkpoint",
        source,
    })?;
    match pause {
        Ok(pause) => {
            let flushed = files.clone();
            let flush =
                move || image::flush(&flushed.ram).and_then(|()| image::flush(&flushed.disk));
            tokio::task::spawn_blocking(flush)
                .await
                .map_err(|source| Error::Task {
                    step: "flush the checkpoint",
                    source,
                })??;
            Ok(CheckpointFiles { pause, ..files })
        }
        Err(error) => {
            let _ = fs::remove_file(&files.ram);
            let _ = fs::remove_file(&files.disk);
            Err(error)
        }
    }
}

/// The file of RAM to write, and that of the disk for reading and for writing.
fn open(files: &CheckpointFiles) -> Result<(OwnedFd, OwnedFd, OwnedFd), Error> {
    let step = "make the checkpoint";
    let ram = File::create(&files.ram).map_err(io_at(step, &files.ram))?;
    let reading = File::open(&files.disk).map_err(io_at(step, &files.disk))?;
    let writing = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&files.disk)
        .map_err(io_at(step, &files.disk))?;
    Ok((ram.into(), reading.into(), writing.into()))
}

async fn copy(
    qmp: &Qmp,
    ram: u64,
    disk: u64,
    progress: &watch::Sender<Progress>,
) -> Result<Duration, Error> {
    let file = json!({ "driver": "file", "filename": format!("/dev/fdset/{disk}") });
    qmp.run(
        "blockdev-add",
        json!({ "node-name": COPY, "driver": "qcow2", "file": file, "backing": null }),
    )
    .await?;
    let background = qmp
        .run(
            "migrate-set-capabilities",
            capabilities(&["background-snapshot"]),
        )
        .await;
    let uri = format!("file:/dev/fdset/{ram}");
    let ran = run_state(qmp).await? == RunState::Running;
    let begun = match background {
        Ok(_) => begin_in_background(qmp, &uri, ran).await,
        Err(error) => {
            tracing::info!(error = %chain(&error), "no background snapshots here: the guest stops \
                longer");
            by_precopy(qmp, &uri, ran, progress).await
        }
    };
    let result = match begun {
        Ok(pause) => finish(qmp, progress).await.map(|()| pause),
        Err(error) => Err(error),
    };
    if result.is_err() {
        let _ = qmp.run("migrate_cancel", json!({})).await;
        let _ = qmp
            .run(
                "block-job-cancel",
                json!({ "device": BACKUP, "force": true }),
            )
            .await;
        if ran && run_state(qmp).await.is_ok_and(|s| s == RunState::Paused) {
            let _ = qmp.run("cont", json!({})).await;
        }
    }
    let dismissed = dismiss(qmp).await;
    let _ = qmp.run("blockdev-del", json!({ "node-name": COPY })).await;
    result.and_then(|pause| dismissed.map(|()| pause))
}

/// Begins both copies while the guest stands still; returns how long it stood.
async fn begin_in_background(qmp: &Qmp, uri: &str, ran: bool) -> Result<Duration, Error> {
    let start = Instant::now();
    if ran {
        qmp.run("stop", json!({})).await?;
    }
    backup(qmp).await?;
    qmp.run("migrate", json!({ "uri": uri })).await?;
    loop {
        let status = qmp.run("query-migrate", json!({})).await?;
        let pages = ["normal", "duplicate"]
            .iter()
            .filter_map(|f| status["ram"][f].as_u64())
            .sum::<u64>();
        match status["status"].as_str() {
            Some("completed") => break,
            Some("active") if pages > 0 => break,
            Some("failed" | "cancelled") => return Err(failed(&status)),
            _ => tokio::time::sleep(LOOK_PAUSED).await,
        }
    }
    if ran {
        qmp.run("cont", json!({})).await?;
    }
    Ok(start.elapsed())
}

/// Copies RAM into the file until little is left, stops the guest for the rest, begins the disk's
/// copy at that instant.
async fn by_precopy(
    qmp: &Qmp,
    uri: &str,
    ran: bool,
    progress: &watch::Sender<Progress>,
) -> Result<Duration, Error> {
    qmp.run("migrate-set-capabilities", capabilities(&["auto-converge"]))
        .await?;
    qmp.run(
        "migrate-set-parameters",
        json!({ "downtime-limit": PRECOPY_DOWNTIME_MS, "max-bandwidth": 0 }),
    )
    .await?;
    let mut events = qmp.subscribe();
    qmp.run("migrate", json!({ "uri": uri })).await?;
    let mut stopped = None;
    loop {
        let status = qmp.run("query-migrate", json!({})).await?;
        progress.send_replace(ram_progress(&status));
        match status["status"].as_str() {
            Some("completed") => break,
            Some("failed" | "cancelled") => return Err(failed(&status)),
            _ => {}
        }
        let stop = wait_for(&mut events, LOOK, |e| match &*e.name {
            "STOP" => Some(true),
            "MIGRATION" => Some(false),
            _ => None,
        });
        if stop.await == Some(true) {
            stopped = Some(Instant::now());
        }
    }
    // Completion deactivated the disk, which is still this host's.
    qmp.run("blockdev-set-active", json!({ "active": true }))
        .await?;
    backup(qmp).await?;
    if ran {
        qmp.run("cont", json!({})).await?;
    }
    Ok(stopped.map_or(Duration::ZERO, |at| at.elapsed()))
}

/// Copies what the VM has written to its disk up to now.
async fn backup(qmp: &Qmp) -> Result<(), Error> {
    let job = json!(
        {
            "job-id": BACKUP, "device": DISK_NODE, "target": COPY, "sync": "top",
            "auto-dismiss": false
        }
    );
    qmp.run("blockdev-backup", job).await.map(drop)
}

/// Waits until both copies are complete.
async fn finish(qmp: &Qmp, progress: &watch::Sender<Progress>) -> Result<(), Error> {
    let mut events = qmp.subscribe();
    loop {
        let status = qmp.run("query-migrate", json!({})).await?;
        progress.send_replace(ram_progress(&status));
        let job = job(qmp).await?;
        let copied = job.is_none_or(|j| j["status"] == "concluded");
        match status["status"].as_str() {
            Some("completed") if copied => return Ok(()),
            Some("failed" | "cancelled") => return Err(failed(&status)),
            _ => {}
        }
        let _ = wait_for(&mut events, LOOK, |e| {
            matches!(&*e.name, "MIGRATION" | "JOB_STATUS_CHANGE").then_some(())
        })
        .await;
    }
}

async fn job(qmp: &Qmp) -> Result<Option<Value>, Error> {
    let jobs = qmp.run("query-jobs", json!({})).await?;
    Ok(jobs
        .as_array()
        .and_then(|jobs| jobs.iter().find(|j| j["id"] == BACKUP))
        .cloned())
}

/// Takes the ended backup off QEMU's list; returns its error.
async fn dismiss(qmp: &Qmp) -> Result<(), Error> {
    while let Some(job) = job(qmp).await? {
        if job["status"] != "concluded" {
            tokio::time::sleep(LOOK).await;
            continue;
        }
        qmp.run("job-dismiss", json!({ "id": BACKUP })).await?;
        if let Some(error) = job["error"].as_str() {
            return Err(refused("copy the disk", error));
        }
    }
    Ok(())
}

/// Clears away a checkpoint whose daemon was killed: its files are useless, and what it left in
/// QEMU would hinder the next one. A guest that it stopped stays stopped; the caller decides.
pub(super) async fn abandon(qmp: &Qmp) -> Result<(), Error> {
    let nodes = qmp
        .run("query-named-block-nodes", json!({ "flat": true }))
        .await?;
    if !nodes
        .as_array()
        .is_some_and(|nodes| nodes.iter().any(|node| node["node-name"] == COPY))
    {
        return Ok(());
    }
    let mut events = qmp.subscribe();
    qmp.run("migrate_cancel", json!({})).await?;
    loop {
        let status = qmp.run("query-migrate", json!({})).await?;
        if matches!(
            status["status"].as_str(),
            None | Some("none" | "completed" | "failed" | "cancelled")
        ) {
            break;
        }
        let _ = wait_for(&mut events, LOOK, |e| (e.name == "MIGRATION").then_some(())).await;
    }
    // Fails when it had not begun, or has ended by itself.
    let _ = qmp
        .run(
            "block-job-cancel",
            json!({ "device": BACKUP, "force": true }),
        )
        .await;
    let ended = dismiss(qmp).await;
    qmp.run("blockdev-del", json!({ "node-name": COPY }))
        .await?;
    if let Err(error) = ended {
        tracing::debug!(error = %chain(&error), "the interrupted copy of the disk ended");
    }
    tracing::info!("cleared away an interrupted checkpoint");
    Ok(())
}

fn failed(status: &Value) -> Error {
    refused(
        "save the guest's memory",
        status["error-desc"]
            .as_str()
            .unwrap_or("QEMU does not say why"),
    )
}

/// Loads a checkpoint's RAM into a guest that was started to wait for it. It stays paused.
pub(super) async fn load(
    machine: &QemuMachine,
    ram: &Path,
    patience: Duration,
) -> Result<(), Error> {
    let file: OwnedFd = File::open(ram)
        .map_err(io_at("open the checkpoint", ram))?
        .into();
    let set = machine.qmp.add_fd(&file).await?;
    let mut state = machine.state.clone();
    machine
        .qmp
        .run(
            "migrate-incoming",
            json!({ "uri": format!("file:/dev/fdset/{set}") }),
        )
        .await?;
    let loaded = tokio::time::timeout(patience, state.wait_for(|s| *s != RunState::Incoming)).await;
    match loaded.map(|state| state.map(|s| *s)) {
        Ok(Ok(RunState::Paused)) => {}
        Ok(_) => {
            return Err(refused(
                "load the checkpoint",
                "QEMU ended; the file is broken or of another machine",
            ));
        }
        Err(_) => {
            return Err(Error::TimedOut {
                step: "load the checkpoint",
                seconds: patience.as_secs(),
            });
        }
    }
    let _ = machine
        .qmp
        .run("remove-fd", json!({ "fdset-id": set }))
        .await;
    Ok(())
}
