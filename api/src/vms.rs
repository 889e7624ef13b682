//! Virtual machines: requests and states. Moves are in `moves`.

use crate::{
    ActivityView, CheckpointIdText, MemberIdText, ProtectionView, ReachState, ReplicationView,
    RestartWord, ScheduleView, SnapshotState, Step, VmIdText, VmStateView,
};
use serde::{Deserialize, Serialize};

/// The request of `p2pvm vm create`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct CreateVm {
    /// The VM's name.
    pub name: String,
    /// A file on the VM's host, or an image id.
    pub image: String,
    /// Virtual processors.
    pub cpus: u32,
    /// Memory, MiB.
    pub memory_mib: u64,
    /// Disk size, bytes, if larger than the image.
    pub disk_bytes: Option<u64>,
    /// Whether to start it at once.
    pub start: bool,
    /// The member to create it on: a name, id or address. None is the member that was asked.
    #[serde(default)]
    pub on: Option<String>,
    /// Whether its guest is started again when it ends; none is on-failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart: Option<RestartWord>,
    /// The user that it is for: after "user:" a name known there, or the user's key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// The request of `p2pvm vm set`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SetVm {
    /// Whether its guest is started again when it ends; none leaves it as it is.
    #[serde(default)]
    pub restart: Option<RestartWord>,
}

/// The request of `p2pvm vm restore`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RestoreVm {
    /// The snapshot's name; none for the newest snapshot or replica of its present state.
    pub snapshot: Option<String>,
    /// Whether to take the VM over from a host that cannot be asked.
    #[serde(default)]
    pub force: bool,
    /// The member to restore it on: a name, id or address. None is the member that was asked.
    #[serde(default)]
    pub on: Option<String>,
}

/// The request of `p2pvm vm snapshot`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SnapshotVm {
    /// The snapshot's name; none lets the host name it after the time.
    pub name: Option<String>,
    /// Whether it is of the disk alone: a restored guest boots.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub disk_only: bool,
}

/// A VM as `vm list` and `vm show` print it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct VmView {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: VmIdText,
    /// Its state in a word.
    pub state: VmStateView,
    /// The name of the member that holds it.
    pub host: String,
    /// The id of that member.
    pub host_id: MemberIdText,
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
    /// The epoch of its present holding.
    pub epoch: u64,
    /// The members whose majority decides who may run it.
    pub voters: Vec<String>,
    /// The operation on it now.
    pub activity: Option<ActivityView>,
    /// Why it is in a state that its user did not ask for.
    pub note: Option<String>,
    /// Whether its guest answers through its interface, as its host last found; missing if it does
    /// not run.
    #[serde(default)]
    pub reach: Option<ReachView>,
    /// Why its guest is paused without a request, if it is.
    #[serde(default)]
    pub still: Option<StillView>,
    /// How well its disk is replicated, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replication: Option<ReplicationView>,
    /// Whether it is protected against the loss of its host; missing if it does not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protection: Option<ProtectionView>,
    /// When its host, which no longer answers, was last seen (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seen: Option<String>,
    /// The remedy for a VM whose host does not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
    /// How many processors it keeps busy, as its host last measured.
    #[serde(default)]
    pub cpu: Option<f64>,
    /// The progress of its move to another member, if it is being moved.
    #[serde(default)]
    pub moving: Option<Moving>,
    /// The key of the user that it is for; missing if it is for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The bound of its bandwidth on its host; missing if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<BandwidthView>,
    /// Its snapshots.
    pub snapshots: Vec<SnapshotView>,
    /// Whether its guest is started again when it ends, if its host says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart: Option<RestartWord>,
    /// When snapshots of it are taken by themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<ScheduleView>,
    /// In the answer to a restore: the snapshot, or "replica", that it was restored from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restored_from: Option<String>,
}

/// How much a guest may send, and how much receive, on its present host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct BandwidthView {
    /// Bits a second, each way.
    pub bits_per_second: u64,
    /// Bytes of packets that were dropped by the limit, both ways together, since the guest runs
    /// there.
    pub dropped_bytes: u64,
}

/// The reachability of a guest from its own host, through the guest's interface.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ReachView {
    /// Whether it answers.
    pub state: ReachState,
    /// How long this has been its state, seconds.
    pub seconds: u64,
    /// How long its answer took, milliseconds.
    pub rtt_ms: Option<f64>,
    /// Why it does not answer, as far as its host can tell.
    pub why: Option<String>,
}

impl VmView {
    /// Its state in words, with the reason if the guest is paused.
    pub fn state_text(&self) -> String {
        match &self.still {
            Some(still) => format!("{}: {}", self.state, still.why),
            None => self.state.to_string(),
        }
    }
}

/// Why a guest is paused, with the room on its host's disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Moving {
    /// The name of the target.
    pub to: String,
    /// Its progress.
    pub step: Step,
}

/// A snapshot as `vm show` prints it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SnapshotView {
    /// Its name.
    pub name: String,
    /// When it was taken (RFC 3339).
    pub taken: String,
    /// "local", "replicating N of K", "durable" or "degraded N of K".
    pub state: SnapshotState,
    /// The members that hold all of it.
    pub holders: Vec<String>,
    /// Whether a schedule took it, and may delete it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub automatic: bool,
    /// The id of its checkpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<CheckpointIdText>,
    /// The epoch in which it was taken. Of one epoch, later ones are later in the list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// Whether it has the guest's memory; without it a restored guest boots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub with_ram: Option<bool>,
}

/// The answer to `p2pvm vm snapshot`. The fields are in alphabetical order.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct SnapshotTaken {
    /// The id of its checkpoint.
    pub checkpoint: CheckpointIdText,
    /// The members that hold all of it; none if that was not known in time.
    pub holders: Option<Vec<String>>,
    /// Its name.
    pub name: String,
    /// How long the guest was paused, milliseconds.
    pub pause_ms: f64,
    /// As [`SnapshotView::state`].
    pub state: SnapshotState,
    /// When it was taken (RFC 3339).
    pub taken: String,
}

/// The answer to `p2pvm vm delete`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct VmDeleted {
    /// The VM's name.
    pub deleted: String,
}

/// The message that the dashboard's page gets instead of a console.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct NoConsole {
    /// The reason why there is no console.
    pub error: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Sorted, assert_text};

    #[test]
    fn a_snapshot_a_deletion_and_a_refused_console_keep_their_text() {
        let taken = SnapshotTaken {
            checkpoint: "c0ffee".into(),
            holders: Some(vec!["attic".into(), "cellar".into()]),
            name: "before".into(),
            pause_ms: 12.5,
            state: "durable".into(),
            taken: "2026-11-30T12:02:00Z".into(),
        };
        let text = concat!(
            r#"{"checkpoint":"c0ffee","holders":["attic","cellar"],"name":"before","#,
            r#""pause_ms":12.5,"state":"durable","taken":"2026-11-30T12:02:00Z"}"#
        );
        assert_text(&taken, text);
        assert_text(
            &SnapshotTaken {
                holders: None,
                ..taken
            },
            &text.replace(r#"["attic","cellar"]"#, "null"),
        );
        assert_text(
            &VmDeleted {
                deleted: "web".into(),
            },
            r#"{"deleted":"web"}"#,
        );
        assert_text(
            &NoConsole {
                error: "it does not run".into(),
            },
            r#"{"error":"it does not run"}"#,
        );
        assert_text(&SnapshotVm::default(), r#"{"name":null}"#);
        assert_text(
            &SnapshotVm {
                name: Some("before".into()),
                disk_only: true,
            },
            r#"{"name":"before","disk_only":true}"#,
        );
    }

    #[test]
    fn a_vm_is_shown_with_the_same_text() {
        let vm = VmView {
            name: "web".into(),
            state: VmStateView::Running,
            cpus: 2,
            memory_mib: 128,
            voters: vec!["attic".into()],
            cpu: Some(0.5),
            moving: Some(Moving {
                to: "cellar".into(),
                step: Step {
                    phase: "ram".into(),
                    ..Step::default()
                },
            }),
            ..VmView::default()
        };
        let text = concat!(
            r#"{"activity":null,"address":"","address_v6":"","cpu":0.5,"cpus":2,"epoch":0,"#,
            r#""host":"","host_id":"","id":"","image":"","mac":"","memory_mib":128,"#,
            r#""moving":{"step":{"done_bytes":0,"note":"","phase":"ram","total_bytes":0},"#,
            r#""to":"cellar"},"name":"web","note":null,"reach":null,"snapshots":[],"#,
            r#""state":"running","still":null,"voters":["attic"]}"#
        );
        assert_eq!(serde_json::to_string(&Sorted(&vm)).unwrap(), text);
    }

    #[test]
    fn answers_about_vms_of_another_version_are_understood() {
        let taken: SnapshotTaken =
            serde_json::from_str(r#"{"name":"before","state":"local","size":7}"#).unwrap();
        assert_eq!(
            taken,
            SnapshotTaken {
                name: "before".into(),
                state: "local".into(),
                ..SnapshotTaken::default()
            }
        );
        let deleted: VmDeleted =
            serde_json::from_str(r#"{"deleted":"web","freed_bytes":1}"#).unwrap();
        assert_eq!(deleted.deleted, "web");
    }
}
