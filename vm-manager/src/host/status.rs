//! The state of a host and its VMs: plain, serializable, for the control API.

use super::{Activity, Noted, ReplicationStatus};
use crate::{
    Definition,
    backups::Backups,
    directory::{RunGoal, Snapshot},
    hypervisor::{Accel, Halt, MachineStats, MigrationReport, Progress, RunState},
    protection::Restart,
};
use p2pvm_authority::Principal;
use p2pvm_overlay::{Epoch, MemberId, VmId};
use serde::{Deserialize, Serialize};

/// A VM's state, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VmState {
    /// Its guest executes here.
    Running,
    /// Its guest is held here.
    Paused,
    /// It is defined here and has no guest.
    Stopped,
    /// It is being moved away; its guest still executes here.
    Leaving,
    /// It is being moved, restored or made here.
    Arriving,
    /// It is held until the voters say whether it may run here.
    Doubtful,
    /// It is a copy that lost its VM, which went on elsewhere. It never runs as that VM again.
    Branch,
    /// Another member has it.
    Remote,
}

/// A VM as one line or page of the control API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmStatus {
    /// Its name; for a branch `<name>-branch-e<epoch>`.
    pub name: String,
    /// What it is doing.
    pub state: VmState,
    /// The member that has it; of a branch, the host where it lies.
    pub holder: MemberId,
    /// The epoch of its holding.
    pub epoch: Epoch,
    /// Whether it is meant to run.
    pub wanted: RunGoal,
    /// The operation on it now, if any.
    pub activity: Option<Activity>,
    /// What it is.
    pub definition: Definition,
    /// Its snapshots, oldest first.
    pub snapshots: Vec<Snapshot>,
    /// Why it is in a state that its user did not ask for.
    pub note: Option<String>,
    /// Why its guest stands still without a request. Other members get it after the list, where
    /// older ones do not read it.
    #[serde(skip)]
    pub still: Option<Standstill>,
    /// How well its disk is replicated; `None` if it is not. Other members get it as `still`.
    #[serde(skip)]
    pub replication: Option<ReplicationStatus>,
    /// The member that it was made for; `None` where that is unknown, as in other members' lists.
    #[serde(skip)]
    pub owner: Option<MemberId>,
    /// Whether its guest is started again when it ends; `None` in other members' lists.
    #[serde(skip)]
    pub restart: Option<Restart>,
    /// The user that it is for, by the user's key; `None` as well in other members' lists.
    #[serde(skip)]
    pub user: Option<Principal>,
    /// The schedule of its snapshots, and which of them have lost copies; nothing in other members'
    /// lists.
    #[serde(skip)]
    pub backups: Backups,
}

/// Why a guest stands still, with the room on its host's disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standstill {
    /// What happened.
    pub why: Halt,
    /// Where its disk is.
    pub path: String,
    /// Bytes that are free there.
    pub free_bytes: u64,
    /// Bytes that must be free before it goes on.
    pub needed_bytes: u64,
}

impl std::fmt::Display for Standstill {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            why,
            path,
            free_bytes,
            needed_bytes,
        } = self;
        match why {
            Halt::DiskFull => write!(
                f,
                "{why}: {} MiB are free at {path}, {} MiB are needed: make room there, and it \
                    goes on by itself",
                free_bytes >> 20,
                needed_bytes.div_ceil(1 << 20)
            ),
            Halt::DiskError => write!(
                f,
                "{why}: {path} could not be read or written: 'dmesg' says more; 'vm start' tries \
                    again"
            ),
            Halt::PoweredOff | Halt::Panicked => write!(f, "{why}"),
        }
    }
}

/// What one VM uses here.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VmStats {
    /// The VM.
    pub vm: VmId,
    /// Its name.
    pub name: String,
    /// Its processors.
    pub cpus: u32,
    /// Its memory, MiB.
    pub memory_mib: u64,
    /// What its guest uses.
    pub machine: MachineStats,
}

/// What this host runs on and what its guests use, for the load vector and `status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostStats {
    /// What guests run on; `None` if the probe failed.
    pub accel: Option<Accel>,
    /// Running VMs.
    pub vms: Vec<VmStats>,
}

/// Which side runs the guest when a migration is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunningSide {
    /// Where it was.
    Source,
    /// Where it should go.
    Target,
    /// Held on both sides until a majority of the VM's voters answers; then one goes on by itself.
    Undecided,
}

/// How a migration ended, and which side runs the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrationOutcome {
    /// The migration's id, as in the logs of both hosts (hexadecimal).
    pub id: String,
    /// The id of its trace, if it is traced.
    pub trace: Option<String>,
    /// The VM.
    pub vm: VmId,
    /// Its name.
    pub name: String,
    /// The source.
    pub from: MemberId,
    /// The target.
    pub to: MemberId,
    /// Which side has it now.
    pub runs_on: RunningSide,
    /// The epoch of its present holding.
    pub epoch: Epoch,
    /// Why it did not move, naming the step that failed.
    pub failure: Option<String>,
    /// Whether it did not move because it was cancelled on request.
    pub cancelled: bool,
    /// Whether it did not move because its guest ended by itself meanwhile: it starts again if
    /// its restart policy says so.
    pub ended: bool,
    /// From the request to the end, milliseconds.
    pub total_ms: u64,
    /// From the guest's pause here to the target's word that it runs there, milliseconds: an upper
    /// bound of the stop.
    pub pause_ms: Option<u64>,
    /// The hypervisor's own figures.
    pub report: Option<MigrationReport>,
}

/// Something that happened to a VM, for logs, `explain` and the API's event stream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "event")]
pub enum HostEvent {
    /// A VM's guest began, stopped, paused.
    State {
        /// The VM's name here.
        name: String,
        /// What the guest does now.
        state: RunState,
    },
    /// Something for the log of events.
    Noted(Noted),
    /// A move made progress.
    Migrating {
        /// The VM's name.
        name: String,
        /// The migration's id, the same in the logs of both hosts.
        id: String,
        /// The progress.
        progress: Progress,
    },
    /// A move ended.
    Migrated(MigrationOutcome),
    /// The newest replica of a VM's disk became older than twice its period, or newer again.
    RecoveryPoint {
        /// The VM's name.
        name: String,
        /// Whether it is too old.
        late: bool,
        /// How well the disk is replicated.
        status: ReplicationStatus,
    },
    /// A copy here was fenced: the VM goes on elsewhere.
    Fenced {
        /// The VM.
        vm: VmId,
        /// The branch's name.
        branch: String,
        /// The member that has the VM.
        holder: MemberId,
        /// The epoch of that holding.
        epoch: Epoch,
    },
    /// A guest here is frozen: its lease has ended, and no majority of its voters renewed it.
    Frozen {
        /// The VM.
        vm: VmId,
        /// The VM's name.
        name: String,
    },
    /// A guest that was frozen goes on: a majority of its voters renewed its lease.
    Thawed {
        /// The VM.
        vm: VmId,
        /// The VM's name.
        name: String,
    },
    /// This host started a VM unasked, whose host was lost.
    TakenOver {
        /// The VM.
        vm: VmId,
        /// The VM's name.
        name: String,
        /// The host that was lost.
        from: MemberId,
        /// The epoch in which it runs here.
        epoch: Epoch,
        /// What was lost, in a sentence.
        lost: String,
    },
    /// The host of a VM is lost, and this heir does not start it by itself.
    NotTakenOver {
        /// The VM.
        vm: VmId,
        /// The VM's name.
        name: String,
        /// The host that was lost.
        from: MemberId,
        /// Why, and what a person can do.
        why: String,
    },
}
