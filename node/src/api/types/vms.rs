//! Virtual machines: what is asked of them, how they are, and what was decided about them.

use super::Step;
use serde::{Deserialize, Serialize};

/// What `p2pvm vm create` asks for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CreateVm {
    /// The VM's name.
    pub name: String,
    /// A file on the host that is to have the VM, or an image id.
    pub image: String,
    /// Virtual processors.
    pub cpus: u32,
    /// Memory, MiB.
    pub memory_mib: u64,
    /// Disk size, bytes, if larger than the image.
    pub disk_bytes: Option<u64>,
    /// Whether to start it at once.
    pub start: bool,
    /// The member to define it on: a name, id or address. None is the member that was asked.
    #[serde(default)]
    pub on: Option<String>,
}

/// What `p2pvm vm migrate` asks for.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct MigrateVm {
    /// Where to: a name, id or address. None lets this host choose the least loaded peer it knows.
    pub to: Option<String>,
    /// Allow post-copy.
    #[serde(default)]
    pub post_copy: bool,
}

/// What `p2pvm vm restore` asks for.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RestoreVm {
    /// The snapshot's name; none for the newest.
    pub snapshot: Option<String>,
    /// Take the VM over from a host that cannot be asked.
    #[serde(default)]
    pub force: bool,
    /// The member to restore it on: a name, id or address. None is the member that was asked.
    #[serde(default)]
    pub on: Option<String>,
}

/// A VM as `vm list` and `vm show` give it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct VmView {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: String,
    /// What it is doing, in a word.
    pub state: String,
    /// The name of the member that has it.
    pub host: String,
    /// The id of that member.
    pub host_id: String,
    /// Its IPv4 address, the same wherever it runs.
    pub address: String,
    /// Its IPv6 address.
    pub address_v6: String,
    /// Its Ethernet address.
    pub mac: String,
    /// Virtual processors.
    pub cpus: u32,
    /// Memory, MiB.
    pub memory_mib: u64,
    /// The image below its disk.
    pub image: String,
    /// The epoch it is held in.
    pub epoch: u64,
    /// The members whose majority decides who may run it.
    pub voters: Vec<String>,
    /// What is being done with it.
    pub activity: Option<String>,
    /// Why it is in a state nobody asked for.
    pub note: Option<String>,
    /// Whether its guest is reached through its interface, as its host found last; nothing where it does not run.
    #[serde(default)]
    pub reach: Option<ReachView>,
    /// Why its guest stands still though nobody asked for it, if it does.
    #[serde(default)]
    pub still: Option<StillView>,
    /// When its host, which does not answer any more, was seen last (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seen: Option<String>,
    /// What a person can do about a VM whose host does not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
    /// Processors it keeps busy, as its host measured last.
    #[serde(default)]
    pub cpu: Option<f64>,
    /// How far its move to another member is, if it is being moved.
    #[serde(default)]
    pub moving: Option<Moving>,
    /// Its snapshots.
    pub snapshots: Vec<SnapshotView>,
}

/// How a host reaches a guest of its own through the guest's interface.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ReachView {
    /// "answers"; "blocked": its host drops what is for it; "silent": it has answered and does not now; "never": it has not yet.
    pub state: String,
    /// For how long it has been so, seconds.
    pub seconds: u64,
    /// How long its answer took, milliseconds.
    pub rtt_ms: Option<f64>,
    /// Why it does not answer, as far as its host can tell.
    pub why: Option<String>,
}

impl VmView {
    /// Its state in words: a guest that stands still has the reason with it.
    pub fn state_text(&self) -> String {
        match &self.still {
            Some(still) => format!("{}: {}", self.state, still.why),
            None => self.state.clone(),
        }
    }
}

/// Why a guest stands still, with the room on its host's disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StillView {
    /// In a few words: "host disk full", "host disk error".
    pub why: String,
    /// Where its disk is.
    pub path: String,
    /// Bytes that are free there.
    pub free_bytes: u64,
    /// Bytes that must be free before it goes on by itself.
    pub needed_bytes: u64,
}

/// A move that is under way.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Moving {
    /// The name of the member it goes to.
    pub to: String,
    /// How far it is.
    pub step: Step,
}

/// A snapshot as `vm show` gives it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SnapshotView {
    /// Its name.
    pub name: String,
    /// When it was taken (RFC 3339).
    pub taken: String,
    /// "local", "replicating N of K" or "durable".
    pub state: String,
    /// The members that hold all of it.
    pub holders: Vec<String>,
}

/// One line of `p2pvm explain`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Explained {
    /// When (RFC 3339).
    pub at: String,
    /// The member that decided; empty for the one that was asked, until it is shown.
    pub host: String,
    /// What was decided and why.
    pub text: String,
    /// The figures behind it.
    pub details: serde_json::Value,
}

/// A decision of the autonomic manager here, of any VM.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Decided {
    /// The VM's id: it may live elsewhere by now.
    pub vm: String,
    /// What was decided and why.
    #[serde(flatten)]
    pub explained: Explained,
}
