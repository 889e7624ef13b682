//! What this crate asks of a hypervisor, as traits, so that the moves of a VM are written once and
//! the driver (QEMU today) is one module. A [`Machine`] is one guest on this host; everything that
//! outlives the daemon (process, disk, sockets) lives in its run directory, from which
//! [`Hypervisor::adopt`] finds it again.

use crate::{Error, guardian::GuardedProcess};
use async_trait::async_trait;
use p2pvm_overlay::{BoxStream, UnixTime, VmId};
use p2pvm_snapshot_sync::FilePatch;
use serde::{Deserialize, Serialize};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::sync::watch;

/// How guest code is executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// Hardware virtualization, proved by a probe guest on this boot of the host.
    Kvm,
    /// QEMU's translator: slow, works everywhere.
    Tcg,
}

/// One guest as this host runs it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineSpec {
    /// Which VM.
    pub vm: VmId,
    /// Its name, for process lists and logs.
    pub name: String,
    /// Virtual processors.
    pub cpus: u32,
    /// Memory, MiB.
    pub memory_mib: u64,
    /// The qcow2 disk that belongs to this VM alone; its backing image is named inside it.
    pub disk: PathBuf,
    /// The guest's Ethernet address.
    pub mac: [u8; 6],
    /// The TAP interface the guest's port ends in. The driver creates it if missing and passes QEMU
    /// its file descriptor.
    pub tap: String,
    /// The MTU the guest is told by virtio.
    pub mtu: u16,
    /// Sockets, pid file and log of this guest. Owned by the driver.
    pub run_dir: PathBuf,
}

/// How a guest begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// From its disk.
    Boot,
    /// From its disk, once [`Machine::resume`] lets it: a guest that must not run before its
    /// guardian holds it.
    Held,
    /// Waits for a live migration: [`Machine::incoming`] tells where.
    Incoming,
    /// From a RAM file that [`Machine::checkpoint`] wrote, paused at the moment it was taken;
    /// [`Machine::resume`] runs it.
    Checkpoint(PathBuf),
}

/// What a guest is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunState {
    /// Executing.
    Running,
    /// Held: by this host, by an I/O error, or at the end of a migration.
    Paused,
    /// Waiting for, or receiving, a migration.
    Incoming,
    /// The guest shut itself down, or its process is gone.
    Stopped,
}

/// Why a guest stands still or ended without a request of this host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Halt {
    /// A write found this host's disk full. It is repeated when the guest goes on.
    DiskFull,
    /// This host's disk could not be read or written. What failed is repeated when the guest goes
    /// on.
    DiskError,
    /// It shut itself down.
    PoweredOff,
    /// Its kernel panicked, and it ended.
    Panicked,
}

impl std::fmt::Display for Halt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::DiskFull => "host disk full",
            Self::DiskError => "host disk error",
            Self::PoweredOff => "powered off",
            Self::Panicked => "kernel panic",
        })
    }
}

/// What a guest uses now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MachineStats {
    /// Processor time consumed by the guest's process since it began.
    pub cpu_time: Duration,
    /// Resident memory of the guest's process, bytes.
    pub resident_bytes: u64,
}

/// Where a target listens for its migration: unix sockets in its run directory, connectable by the
/// daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IncomingSockets {
    /// QEMU's migration stream.
    pub ram: PathBuf,
    /// An NBD export of the disk.
    pub disk: PathBuf,
    /// The NBD export's name.
    pub export: String,
}

/// Choices of one live migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MigrateOptions {
    /// Switch over to post-copy if pre-copy does not converge. Opt-in: either side dying then loses
    /// the guest.
    pub post_copy: bool,
    /// The longest stop that QEMU may plan for.
    pub max_downtime: Duration,
    /// Bytes per second, or 0 for all the path gives.
    pub bandwidth: u64,
}

impl Default for MigrateOptions {
    fn default() -> Self {
        Self {
            post_copy: false,
            max_downtime: Duration::from_millis(100),
            bandwidth: 0,
        }
    }
}

/// How far a live migration or a checkpoint has come.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// What is being done, in a word: "disk", "ram", "switch-over".
    pub phase: String,
    /// Bytes moved in this phase.
    pub done_bytes: u64,
    /// Bytes that this phase needs, as far as is known now.
    pub total_bytes: u64,
    /// How fast the guest dirties its memory, bytes per second.
    pub dirty_rate: u64,
    /// The stop that QEMU expects, milliseconds.
    pub expected_downtime_ms: u64,
    /// Passes over the guest's memory so far. Not told to other members.
    #[serde(skip)]
    pub rounds: u64,
    /// The rest of its memory follows after the switch-over. Not told to other members.
    #[serde(skip)]
    pub post_copy: bool,
}

/// QEMU's figures of a finished migration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrationReport {
    /// From start to completion, milliseconds.
    pub total_ms: u64,
    /// The hypervisor's own figure of the stop, milliseconds.
    pub downtime_ms: u64,
    /// RAM bytes transferred.
    pub ram_bytes: u64,
    /// Passes over RAM.
    pub rounds: u64,
}

/// A checkpoint as [`Machine::checkpoint`] leaves it: plain files, complete and flushed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointFiles {
    /// RAM and device state.
    pub ram: PathBuf,
    /// The disk at the same instant: qcow2 over the VM's base image.
    pub disk: PathBuf,
    /// How long the guest stood still.
    pub pause: Duration,
}

/// What changed on a running guest's disk since the previous copy, as [`Machine::changed_blocks`]
/// leaves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangedDisk {
    /// The file that has the changed blocks. The caller removes it.
    pub file: PathBuf,
    /// What of it changes which blocks of the disk's file: of the file that a restore writes, not
    /// of the one in use.
    pub patch: FilePatch,
    /// When it began: all that the guest had written by then is in it.
    pub begun: UnixTime,
    /// It is all of the disk, and follows no previous copy.
    pub whole: bool,
}

/// Makes guests on this host.
#[async_trait]
pub trait Hypervisor: Send + Sync + 'static {
    /// What this host's guests run on, by a probe once per boot of the host.
    async fn accel(&self) -> Result<Accel, Error>;

    /// Creates a VM's own disk over `image` (qcow2 or raw; the format is detected), at least as
    /// large as it or `size_bytes`.
    async fn create_disk(
        &self,
        image: &Path,
        disk: &Path,
        size_bytes: Option<u64>,
    ) -> Result<(), Error>;

    /// Points the disk's backing file at `image` (its path on this host) without reading its data.
    async fn rebase_disk(&self, disk: &Path, image: &Path) -> Result<(), Error>;

    /// Refuses a file that a new VM cannot start from, by its content; gives its virtual size,
    /// bytes.
    async fn check_image(&self, image: &Path) -> Result<u64, Error>;

    /// The virtual size of an image or disk, bytes.
    async fn virtual_size(&self, image: &Path) -> Result<u64, Error>;

    /// Starts a guest. It begins paused for all but [`Start::Boot`].
    async fn launch(&self, spec: &MachineSpec, start: Start) -> Result<Arc<dyn Machine>, Error>;

    /// Ends the process of a guest that an earlier daemon started, if it lives, without asking it.
    async fn end(&self, spec: &MachineSpec) -> Result<(), Error>;

    /// Takes up a guest that an earlier daemon started, if its process lives.
    async fn adopt(&self, spec: &MachineSpec) -> Result<Option<Arc<dyn Machine>>, Error>;

    /// The process of a guest that an earlier daemon started, without taking it up: a frozen one
    /// answers nobody, and must be thawed before [`Hypervisor::adopt`].
    fn guarded(&self, _spec: &MachineSpec) -> Option<GuardedProcess> {
        None
    }
}

/// One guest on this host.
#[async_trait]
pub trait Machine: Send + Sync + 'static {
    /// What it was made from.
    fn spec(&self) -> &MachineSpec;

    /// Its process for a [`crate::guardian::Guardian`]; none if it has none, or has ended.
    fn guarded(&self) -> Option<GuardedProcess> {
        None
    }

    /// Changes of what it does; ends with [`RunState::Stopped`].
    fn watch(&self) -> watch::Receiver<RunState>;

    /// Why it stands still, or ended, without a request of this host's. Set before
    /// [`Machine::watch`] reports the change.
    fn halted(&self) -> Option<Halt>;

    /// Asks the guest to power down and waits; kills it after `patience`.
    async fn stop(&self, patience: Duration) -> Result<(), Error>;

    /// Ends the process now.
    async fn kill(&self) -> Result<(), Error>;

    /// Holds the guest.
    async fn pause(&self) -> Result<(), Error>;

    /// Lets the guest run.
    async fn resume(&self) -> Result<(), Error>;

    /// Its present use of processor and memory.
    async fn stats(&self) -> Result<MachineStats, Error>;

    /// The serial console, both ways. One reader at a time; what was printed before is replayed
    /// from the log's last 64 KiB.
    async fn console(&self) -> Result<BoxStream, Error>;

    /// Target side: where to send RAM and disk. Idempotent.
    async fn incoming(&self) -> Result<IncomingSockets, Error>;

    /// Target side, after RAM and disk are complete and before [`Machine::resume`]: waits until the
    /// guest is whole (all of RAM for pre-copy, device state for post-copy) and closes the disk's
    /// export.
    async fn finish_incoming(&self) -> Result<(), Error>;

    /// Source side: mirrors the disk to the NBD export behind the local unix socket `disk`, until
    /// in step; then keeps it in step (write-blocking) until [`Machine::switch_over`] or
    /// [`Machine::cancel_migration`].
    async fn mirror(
        &self,
        disk: &Path,
        export: &str,
        progress: &watch::Sender<Progress>,
    ) -> Result<(), Error>;

    /// Source side: sends RAM to the local unix socket `ram` until little is left, then returns
    /// with the guest paused and nothing handed over yet (QEMU's pre-switchover).
    async fn migrate_until_paused(
        &self,
        ram: &Path,
        options: MigrateOptions,
        progress: &watch::Sender<Progress>,
    ) -> Result<(), Error>;

    /// Source side: completes the mirror and hands over the rest of RAM. After this the guest here
    /// never runs again unless [`Machine::cancel_migration`] is called.
    async fn switch_over(&self) -> Result<MigrationReport, Error>;

    /// Source side, for a guest that was taken up again: whether all that matters of it may have
    /// been sent. A guest that runs is no proof of the contrary, since a hypervisor lets it run on
    /// when its last bytes could not be written.
    async fn may_be_handed_over(&self) -> Result<bool, Error>;

    /// Source side: gives the migration up at any step and lets the guest run here again.
    async fn cancel_migration(&self) -> Result<(), Error>;

    /// Takes RAM and disk of one instant into `dir` while the guest runs on.
    async fn checkpoint(
        &self,
        dir: &Path,
        progress: &watch::Sender<Progress>,
    ) -> Result<CheckpointFiles, Error>;

    /// How many bytes of its disk the guest may have changed since the last
    /// [`Machine::changed_blocks`]; `None` if that is not known, and the next copies all.
    async fn changed_bytes(&self) -> Result<Option<u64>, Error> {
        Ok(None)
    }

    /// Copies into `dir` what the disk held at one instant, as far as it changed since the previous
    /// call; all of it at the first call, and with `whole`: when the caller lost a copy. The guest
    /// runs on. Moves and checkpoints go first: they end it with [`Error::GaveWay`], and it is
    /// repeated later. After an error nothing is lost to the next call.
    async fn changed_blocks(&self, dir: &Path, whole: bool) -> Result<ChangedDisk, Error> {
        let (_, _) = (dir, whole);
        Err(Error::Refused(
            "this hypervisor does not copy what a guest changes".into(),
        ))
    }
}
