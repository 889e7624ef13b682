//! What freezes a guest whose right to run has ended, when nothing else of this host does.
//!
//! A protected VM runs under a lease of its voters. A daemon that hangs, was stopped or is cut off
//! cannot renew it, and cannot be trusted to stop the guest either. So a process of its own does,
//! one on each host: the guest guardian (`p2pvm guest-guardian`, [`serve`]). It knows processes,
//! deadlines by `CLOCK_BOOTTIME` and nothing else. At a deadline it writes to `cgroup.freeze` of
//! the VM's version 2 control group and then sends SIGSTOP; its own death stops the guests too.
//!
//! `rule` decides, without IO; `message` is what daemon and guardian say; `grip` is its hold on a
//! process, `standing` what the guardian's own process gets of the kernel, `place` its directory.
//! [`HostGuardian`] is the daemon's side, [`FakeGuardian`] one for tests. Decision 58 has the
//! reasons and what was dropped.

mod client;
mod fake;
mod grip;
mod kernel;
mod message;
mod outlook;
mod place;
mod rule;
mod serve;
mod standing;

pub use client::HostGuardian;
pub use fake::FakeGuardian;
pub use kernel::boot_time;
#[cfg(fuzzing)]
pub use message::parse as parse_message;
pub use message::{Cause, LONGEST, Refusal};
pub use outlook::{Outlook, outlook};
pub use serve::serve;

use async_trait::async_trait;
use p2pvm_overlay::{Epoch, VmId};
use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::sync::broadcast;

/// The process that is a guest, as its hypervisor knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuardedProcess {
    /// Its number.
    pub pid: i32,
    /// When it started, by `/proc/<pid>/stat` (field 22): a number alone is used again.
    pub started: u64,
    /// `cgroup.freeze` of its own version 2 control group. Without one it is stopped by SIGSTOP
    /// alone, which reaches a busy process tens of milliseconds late.
    pub freeze: Option<PathBuf>,
}

/// What a renewal found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// The guest runs on, until the later of its deadlines.
    Armed,
    /// It came too late: the guest is frozen, and only [`Guardian::thaw`] lets it go on.
    Frozen,
}

/// What the guardian has of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ward {
    /// Nothing: no deadline stands.
    Unknown,
    /// Its guest runs under a deadline.
    Armed,
    /// Its guest is frozen.
    Frozen,
}

/// A guest that was frozen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrozenVm {
    /// Which.
    pub vm: VmId,
    /// How long after the deadline the guardian woke. Zero if no deadline was the cause.
    pub woke_late: Duration,
    /// How long after the deadline, or after the other cause was seen, the guest was frozen.
    pub done: Duration,
    /// Why.
    pub cause: Cause,
}

/// Why the guardian did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum GuardianError {
    /// Guests of this host cannot be guarded.
    #[error("guests cannot be guarded here: {0}")]
    NotSupported(&'static str),
    /// Its process could not be started or found.
    #[error("start the guest guardian; 'p2pvm doctor' says what it needs")]
    Start(#[source] io::Error),
    /// It could not be spoken to, or ended.
    #[error("ask the guest guardian")]
    Link(#[source] io::Error),
    /// It did not answer in time.
    #[error("the guest guardian did not answer within {} s", client::PATIENCE.as_secs())]
    TimedOut,
    /// The guest's process has ended, or is another one.
    #[error("the guest's process has ended; start the VM again")]
    NoProcess,
    /// No process is known for that VM.
    #[error("the VM has no deadline here: arm its guardian first")]
    NotArmed,
    /// The guest stands frozen already. It is held by the guardian from now on.
    #[error("the guest is frozen; only a renewed lease lets it go on")]
    Frozen,
    /// The guardian refused.
    #[error("the guest guardian refused: {0}")]
    Refused(Refusal),
}

/// The guardian of this host's guests. All deadlines are by `CLOCK_BOOTTIME` ([`boot_time`]), and
/// none may be more than [`LONGEST`] away.
#[async_trait]
pub trait Guardian: Send + Sync + 'static {
    /// Takes a guest's process under a deadline; ends with the guardian's answer. For a process
    /// that is held already it is a renewal.
    ///
    /// # Errors
    /// [`GuardianError::Frozen`] if the guest stands frozen: it is held, and [`Guardian::thaw`]
    /// lets it go on. Any other error: it is not held, and must not run.
    async fn arm(
        &self,
        vm: VmId,
        epoch: Epoch,
        deadline: Duration,
        process: &GuardedProcess,
    ) -> Result<(), GuardianError>;

    /// Moves the deadline; never to an earlier one.
    ///
    /// # Errors
    /// [`GuardianError::Refused`], or the guardian could not be asked. The old deadline stands.
    async fn renew(
        &self,
        vm: VmId,
        epoch: Epoch,
        deadline: Duration,
    ) -> Result<Renewal, GuardianError>;

    /// Lets a frozen guest go on until a deadline in the future. Its clocks count on by themselves:
    /// a frozen process's guest sees the time jump, not stand still.
    ///
    /// # Errors
    /// [`GuardianError::Refused`], or the guardian could not be asked. The guest stays frozen.
    async fn thaw(&self, vm: VmId, epoch: Epoch, deadline: Duration) -> Result<(), GuardianError>;

    /// Holds the VM no longer. A frozen guest stays frozen; ending its process is possible.
    ///
    /// # Errors
    /// The guardian could not be asked.
    async fn drop_vm(&self, vm: VmId) -> Result<(), GuardianError>;

    /// What the guardian has of a VM, also of one that an earlier daemon armed.
    ///
    /// # Errors
    /// The guardian could not be asked.
    async fn ward(&self, vm: VmId) -> Result<Ward, GuardianError>;

    /// VMs that were frozen, as they happen.
    fn frozen(&self) -> broadcast::Receiver<FrozenVm>;

    /// Jumps of the wall clock beside `CLOCK_BOOTTIME`, nanoseconds: the host was set, or another
    /// machine held this one still. A lease that was taken before one needs a new look.
    fn jumps(&self) -> broadcast::Receiver<i64>;
}

/// The guardian of the host whose state directory is `dir`, an absolute path; none where it could
/// not freeze in time. The program itself is its program.
pub fn of_host(dir: &Path) -> Arc<dyn Guardian> {
    match nix::unistd::geteuid().is_root() {
        true => Arc::new(HostGuardian::of_this_program(dir)),
        false => Arc::new(NoGuardian("the daemon is not root")),
    }
}

/// For hosts whose guests cannot be guarded, as those of an unprivileged daemon.
pub struct NoGuardian(
    /// Why, as the end of a sentence.
    pub &'static str,
);

#[async_trait]
impl Guardian for NoGuardian {
    async fn arm(
        &self,
        _: VmId,
        _: Epoch,
        _: Duration,
        _: &GuardedProcess,
    ) -> Result<(), GuardianError> {
        Err(GuardianError::NotSupported(self.0))
    }

    async fn renew(&self, _: VmId, _: Epoch, _: Duration) -> Result<Renewal, GuardianError> {
        Err(GuardianError::NotSupported(self.0))
    }

    async fn thaw(&self, _: VmId, _: Epoch, _: Duration) -> Result<(), GuardianError> {
        Err(GuardianError::NotSupported(self.0))
    }

    async fn drop_vm(&self, _: VmId) -> Result<(), GuardianError> {
        Ok(())
    }

    async fn ward(&self, _: VmId) -> Result<Ward, GuardianError> {
        Ok(Ward::Unknown)
    }

    fn frozen(&self) -> broadcast::Receiver<FrozenVm> {
        broadcast::channel(1).1
    }

    fn jumps(&self) -> broadcast::Receiver<i64> {
        broadcast::channel(1).1
    }
}
