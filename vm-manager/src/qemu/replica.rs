//! What a running guest's disk holds at one instant, as the change since the round before.
//!
//! QEMU notes in a *dirty bitmap* which clusters the guest writes. A round is a backup job that
//! copies those of its own beginning into a new qcow2 on this host, old content first where the
//! guest writes meanwhile; the guest is not paused. A round that fails leaves the bitmap as it was.
//! The bitmap is gone with the process, and after a restart of the daemon nobody knows which round
//! it follows: then a round copies all that the VM's own disk has.
//!
//! The target is a file on this host, never another member: a guest's write waits while the old
//! content is copied out of its way.
//!
//! Moves and checkpoints go first: they end a round that is under way ([`Rounds::pause`]).

use super::{
    command::DISK_NODE,
    image,
    machine::QemuMachine,
    qcow2::{self, CLUSTER, LinearDisk},
    qmp::{Qmp, refused, wait_for},
};
use crate::{Error, error::io_at, hypervisor::ChangedDisk};
use p2pvm_overlay::{UnixTime, chain};
use serde_json::{Value, json};
use std::{
    fs::{self, File, OpenOptions},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::sync::{Mutex, OwnedMutexGuard, watch};

/// The bitmap, the job and its target within QEMU.
const BITMAP: &str = "replica";
const JOB: &str = "replica";
const COPY: &str = "replica-disk";
/// The target's name.
const FILE: &str = "increment.qcow2";
/// How long between two looks at the job.
const LOOK: Duration = Duration::from_millis(200);
/// What a round is called in errors.
const STEP: &str = "copy what the guest changed";
/// What the caller is told about a round that gave way.
const GAVE_WAY: &str = "it gave way to another operation on the VM";

/// The rounds of one guest: at most one at a time.
#[derive(Default)]
pub(super) struct Rounds {
    /// Held through QEMU's part of a round.
    turn: Arc<Mutex<()>>,
    /// What the rounds so far have copied; `None` if the next one must copy all.
    disk: Arc<Mutex<Option<LinearDisk>>>,
    /// Counts the requests to end a round.
    ended: watch::Sender<u64>,
}

impl Rounds {
    /// Ends a round that is under way; none begins until the guard is dropped.
    pub(super) async fn pause(&self) -> OwnedMutexGuard<()> {
        self.ended.send_modify(|count| *count += 1);
        self.turn.clone().lock_owned().await
    }
}

/// How many bytes of the disk changed since the last round; `None` if the next must copy all.
pub(super) async fn changed_bytes(machine: &QemuMachine) -> Result<Option<u64>, Error> {
    if machine.rounds.disk.lock().await.is_none() {
        return Ok(None);
    }
    let nodes = machine
        .qmp
        .run("query-named-block-nodes", json!({ "flat": true }));
    Ok(bitmap_of(&nodes.await?).and_then(|bitmap| bitmap["count"].as_u64()))
}

fn bitmap_of(nodes: &Value) -> Option<&Value> {
    let disk = nodes
        .as_array()?
        .iter()
        .find(|node| node["node-name"] == DISK_NODE)?;
    let bitmaps = disk["dirty-bitmaps"].as_array()?;
    bitmaps.iter().find(|bitmap| bitmap["name"] == BITMAP)
}

/// Makes a round, with its file in `dir`; all of the disk if `whole`, or if nothing else is
/// possible.
pub(super) async fn round(
    machine: &QemuMachine,
    dir: &Path,
    whole: bool,
) -> Result<ChangedDisk, Error> {
    let Ok(turn) = machine.rounds.turn.clone().try_lock_owned() else {
        return Err(Error::GaveWay(format!("no replica now: {GAVE_WAY}")));
    };
    if machine.moving.lock().await.is_under_way() {
        return Err(Error::GaveWay(format!(
            "{} is being migrated: its disk is replicated afterwards",
            machine.spec.name
        )));
    }
    fs::create_dir_all(dir).map_err(io_at("make the replica's directory", dir))?;
    let (qmp, disk) = (machine.qmp.clone(), machine.rounds.disk.clone());
    let (ended, own) = (machine.rounds.ended.subscribe(), machine.spec.disk.clone());
    let file = dir.join(FILE);
    // In a task of its own: a caller that goes away must not leave the job to the next round.
    let work = tokio::spawn(async move {
        let mut disk = disk.lock().await;
        let known = disk.take().filter(|_| !whole);
        let copied = copy(&qmp, &own, &file, known, ended).await;
        drop(turn);
        let (copied, next) = match copied {
            Ok(done) => done,
            Err(failed) => {
                *disk = failed.known;
                let _ = fs::remove_file(&file);
                return Err(failed.error);
            }
        };
        let (changed, next) = read(copied, next, file).await?;
        *disk = Some(next);
        Ok(changed)
    });
    work.await
        .map_err(|source| Error::Task { step: STEP, source })?
}

/// A round that failed, with what is still known for the next one: the bitmap has lost nothing.
struct Failed {
    known: Option<LinearDisk>,
    error: Error,
}

/// QEMU's part of a round, done.
struct Copied {
    /// When it began.
    begun: UnixTime,
    /// Whether all of the disk was copied.
    whole: bool,
}

/// How a job ended. An error beside this leaves open whether the bitmap still has all.
type Ended = Result<UnixTime, Error>;

/// Has QEMU copy what changed to `file`.
async fn copy(
    qmp: &Qmp,
    own: &Path,
    file: &Path,
    known: Option<LinearDisk>,
    mut ended: watch::Receiver<u64>,
) -> Result<(Copied, LinearDisk), Failed> {
    let lost = |error| Failed { known: None, error };
    // What a round left that could not be followed to its end may have emptied the bitmap.
    let is_known = !clear(qmp).await.map_err(lost)?;
    let (disk, whole) = match known.filter(|_| is_known) {
        Some(disk) => (disk, false),
        None => (begin(qmp, own).await.map_err(lost)?, true),
    };
    let done = async {
        image::create_empty(file, disk.disk_size()).await?;
        let opened = open(file)?;
        let set = qmp.add_fd(&opened.1).await?;
        let done = backup(qmp, set, &opened.0, whole, &mut ended).await;
        let _ = qmp.run("remove-fd", json!({ "fdset-id": set })).await;
        done
    };
    match done.await.map_err(lost)? {
        Ok(begun) => Ok((Copied { begun, whole }, disk)),
        // After a first round that failed, the next one is a first one again.
        Err(error) => Err(Failed {
            known: Some(disk).filter(|_| !whole),
            error,
        }),
    }
}

/// Makes the bitmap anew, for a round that copies all.
async fn begin(qmp: &Qmp, own: &Path) -> Result<LinearDisk, Error> {
    let size = image::info(own).await?.virtual_size;
    if !LinearDisk::is_possible(size) {
        return Err(Error::Refused(format!(
            "{} has {size} bytes, which cannot be replicated: only disks of whole clusters of \
                {CLUSTER} bytes can",
            own.display()
        )));
    }
    let bitmap = json!({ "node": DISK_NODE, "name": BITMAP });
    // There is one after a round that failed.
    let _ = qmp.run("block-dirty-bitmap-remove", bitmap).await;
    let bitmap = json!({
        "node": DISK_NODE, "name": BITMAP, "granularity": CLUSTER, "persistent": false,
    });
    qmp.run("block-dirty-bitmap-add", bitmap).await?;
    Ok(LinearDisk::new(size))
}

/// The target, for reading and for writing.
fn open(file: &Path) -> Result<(OwnedFd, OwnedFd), Error> {
    let reading = File::open(file).map_err(io_at(STEP, file))?;
    let mut options = OpenOptions::new();
    let writing = options.read(true).write(true).open(file);
    Ok((reading.into(), writing.map_err(io_at(STEP, file))?.into()))
}

/// Runs the job; gives when it began, or why it failed.
async fn backup(
    qmp: &Qmp,
    set: u64,
    reading: &OwnedFd,
    whole: bool,
    ended: &mut watch::Receiver<u64>,
) -> Result<Ended, Error> {
    qmp.extend_fd_set(set, reading).await?;
    let file = json!({ "driver": "file", "filename": format!("/dev/fdset/{set}") });
    let node = json!({ "node-name": COPY, "driver": "qcow2", "file": file, "backing": null });
    qmp.run("blockdev-add", node).await?;
    let mut job = json!({
        "job-id": JOB, "device": DISK_NODE, "target": COPY, "auto-dismiss": false,
    });
    if whole {
        // Only what the VM itself has written: the image below is everywhere.
        job["sync"] = "top".into();
    } else {
        job["sync"] = "bitmap".into();
        job["bitmap"] = BITMAP.into();
        job["bitmap-mode"] = "on-success".into();
    }
    let begun = UnixTime::now();
    let done = match qmp.run("blockdev-backup", job).await {
        Ok(_) => follow(qmp, ended).await,
        Err(error) => Err(error),
    };
    let closed = qmp.run("blockdev-del", json!({ "node-name": COPY })).await;
    let failure = done?;
    closed?;
    Ok(failure.map_or(Ok(begun), Err))
}

/// Waits until the job has ended, and ends it when another operation wants the VM; gives why it
/// failed, if it did.
async fn follow(qmp: &Qmp, ended: &mut watch::Receiver<u64>) -> Result<Option<Error>, Error> {
    let mut events = qmp.subscribe();
    let mut gives_way = false;
    loop {
        let Some(job) = job(qmp).await? else {
            return Err(refused(STEP, "the job is gone"));
        };
        if job["status"] == "concluded" {
            qmp.run("job-dismiss", json!({ "id": JOB })).await?;
            let failure = job["error"].as_str();
            return Ok(failure.map(|error| match gives_way {
                true => Error::GaveWay(format!("{STEP}: {GAVE_WAY}")),
                false => refused(STEP, error),
            }));
        }
        let event = wait_for(&mut events, LOOK, |e| {
            (e.name == "JOB_STATUS_CHANGE").then_some(())
        });
        tokio::select! {
            _ = event => {}
            Ok(()) = ended.changed(), if !gives_way => {
                gives_way = true;
                end(qmp).await;
            }
        }
    }
}

/// Ends the job; it fails if there is none, or if it has ended by itself.
async fn end(qmp: &Qmp) {
    let job = json!({ "device": JOB, "force": true });
    if let Err(error) = qmp.run("block-job-cancel", job).await {
        tracing::debug!(error = %chain(&error), "the copy of what a guest changed has ended");
    }
}

async fn job(qmp: &Qmp) -> Result<Option<Value>, Error> {
    let jobs = qmp.run("query-jobs", json!({})).await?;
    let found = jobs
        .as_array()
        .and_then(|jobs| jobs.iter().find(|job| job["id"] == JOB));
    Ok(found.cloned())
}

/// The daemon's part of a round: what the file holds, as a change of the disk's linear form.
async fn read(
    copied: Copied,
    mut disk: LinearDisk,
    file: PathBuf,
) -> Result<(ChangedDisk, LinearDisk), Error> {
    let Copied { begun, whole } = copied;
    let work = move || {
        let opened = File::open(&file).map_err(io_at(STEP, &file))?;
        let held = qcow2::read_increment(&opened, disk.disk_size()).map_err(io_at(STEP, &file))?;
        let patch = disk.take(&held, whole);
        let changed = ChangedDisk {
            file,
            patch,
            begun,
            whole,
        };
        Ok((changed, disk))
    };
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|source| Error::Task { step: STEP, source })?
}

/// Clears away a round that was not followed to its end; whether there was one.
async fn clear(qmp: &Qmp) -> Result<bool, Error> {
    let query = qmp.run("query-named-block-nodes", json!({ "flat": true }));
    let nodes = query.await?;
    let is_copy = |node: &Value| node["node-name"] == COPY;
    if !nodes
        .as_array()
        .is_some_and(|nodes| nodes.iter().any(is_copy))
    {
        return Ok(false);
    }
    end(qmp).await;
    while let Some(job) = job(qmp).await? {
        if job["status"] == "concluded" {
            qmp.run("job-dismiss", json!({ "id": JOB })).await?;
        } else {
            tokio::time::sleep(LOOK).await;
        }
    }
    qmp.run("blockdev-del", json!({ "node-name": COPY }))
        .await?;
    tracing::info!("cleared away an interrupted replica");
    Ok(true)
}

/// Clears away what a killed daemon left: a round, whose copy is useless, and the bitmap too, since
/// nobody knows which round it follows.
pub(super) async fn abandon(qmp: &Qmp) -> Result<(), Error> {
    clear(qmp).await?;
    let query = qmp.run("query-named-block-nodes", json!({ "flat": true }));
    if bitmap_of(&query.await?).is_some() {
        let bitmap = json!({ "node": DISK_NODE, "name": BITMAP });
        qmp.run("block-dirty-bitmap-remove", bitmap).await?;
    }
    Ok(())
}
