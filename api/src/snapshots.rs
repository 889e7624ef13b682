//! Snapshots as backups: what is in one and who has it, schedules, and what uses a host's disk.
//!
//! Fields are in alphabetical order.

use crate::{CheckpointIdText, SnapshotView};
use serde::{Deserialize, Serialize};

/// The answer to `p2pvm vm snapshot show`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct SnapshotDetail {
    /// How much content it has, before compression, its image included; each block once.
    pub content_bytes: u64,
    /// How much of that its VM's host does not have.
    pub missing_bytes: u64,
    /// The snapshot.
    pub snapshot: SnapshotView,
}

/// The answer to `p2pvm vm snapshot delete`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct SnapshotDeleted {
    /// The snapshot's name.
    pub deleted: String,
    /// The VM's name.
    pub vm: String,
}

/// The request of `p2pvm vm snapshot verify`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct VerifySnapshot {
    /// Whether what is missing or damaged is fetched again.
    pub repair: bool,
}

/// The answer to `p2pvm vm snapshot verify`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct SnapshotVerified {
    /// What each other member that keeps it says.
    pub copies: Vec<CopyVerified>,
    /// What its VM's host read of its own; missing if that host keeps none.
    pub here: Option<HereVerified>,
    /// The snapshot's name.
    pub name: String,
}

/// What a host found when it read every chunk of a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct HereVerified {
    /// The bytes of the whole chunks, before compression.
    pub bytes: u64,
    /// How many chunks had other content than their names say.
    pub damaged: u64,
    /// The host.
    pub host: String,
    /// How many chunks are missing.
    pub missing: u64,
    /// Whether all is there now, after a repair.
    pub repaired: bool,
    /// Why a repair failed.
    pub unrepaired: Option<String>,
    /// How many chunks are whole.
    pub whole: u64,
}

/// What a member that keeps a snapshot says of its copy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct CopyVerified {
    /// The member.
    pub host: String,
    /// How many chunks it lacks; missing if it did not answer.
    pub lacking: Option<u64>,
}

/// The answer to `p2pvm vm snapshot diff`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct SnapshotDiff {
    /// The disks.
    pub disk: DiffView,
    /// The first snapshot's name.
    pub from: String,
    /// The memory, if both have it.
    pub ram: Option<DiffView>,
    /// The second snapshot's name.
    pub to: String,
}

/// How a file of the second snapshot differs from that of the first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct DiffView {
    /// The bytes of the second that are not zeros.
    pub bytes: u64,
    /// How many blocks have other content.
    pub changed_blocks: u64,
    /// The bytes of these blocks.
    pub changed_bytes: u64,
    /// The bytes that the second adds to a store that has the first.
    pub new_bytes: u64,
}

/// Which scheduled snapshots stay: the newest of each of so many hours, days and weeks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct KeepView {
    /// Of days, UTC.
    pub days: u8,
    /// Of hours.
    pub hours: u8,
    /// The newest ones.
    pub last: u8,
    /// Of weeks.
    pub weeks: u8,
}

/// When snapshots of a VM are taken by themselves, and which stay.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ScheduleView {
    /// Whether they are of the disk alone.
    pub disk_only: bool,
    /// How many seconds lie between two.
    pub every_seconds: u64,
    /// Which stay.
    pub keep: KeepView,
}

/// The request of `p2pvm vm snapshot schedule`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct ScheduleChange {
    /// The schedule; none ends it.
    pub schedule: Option<ScheduleView>,
}

/// The answer to `p2pvm vm snapshot schedule`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct ScheduleAnswer {
    /// The schedule, if there is one.
    pub schedule: Option<ScheduleView>,
    /// The VM's name.
    pub vm: String,
}

/// Chunks on a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct StoreAmount {
    /// Their bytes, compressed.
    pub bytes: u64,
    /// How many.
    pub chunks: u64,
}

/// What one member has this host keep.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct StoreOfMember {
    /// What only its replicas use.
    pub amount: StoreAmount,
    /// The member.
    pub member: String,
}

/// A snapshot or image that is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct StoredView {
    /// All that it uses.
    pub all: StoreAmount,
    /// What goes when it goes: nothing else uses it.
    pub alone: StoreAmount,
    /// Its id.
    pub checkpoint: CheckpointIdText,
    /// The other members that had it kept.
    pub members: Vec<String>,
    /// The VM and snapshot, or whose disk's replica, if a VM of this host has it; else "image",
    /// "snapshot" or "replica".
    pub name: String,
}

/// How far the search for damaged chunks is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct ScrubView {
    /// How many damaged chunks were found since this store was made.
    pub damaged: u64,
    /// When the last whole pass ended (RFC 3339).
    pub finished: Option<String>,
    /// How many chunks the present pass has read.
    pub read: u64,
    /// How many chunks there were when it began.
    pub total: u64,
    /// How many snapshots and images lack chunks that no connected member could give.
    pub unrepaired: u64,
}

/// The answer to `p2pvm store`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct StoreView {
    /// All chunks here.
    pub all: StoreAmount,
    /// Bytes that are free on its file system.
    pub free_bytes: u64,
    /// What images use.
    pub images: StoreAmount,
    /// The search for damage.
    pub scrub: ScrubView,
    /// What this host's snapshots use beside images.
    pub snapshots: StoreAmount,
    /// Each snapshot and image that is kept, the largest first.
    pub stored: Vec<StoredView>,
    /// What only replicas for other members use.
    pub replicas: Vec<StoreOfMember>,
    /// What nothing uses.
    pub unreferenced: StoreAmount,
}

/// The request of `p2pvm store gc`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct CollectStore {
    /// Whether only to say what would go.
    pub dry_run: bool,
}

/// The answer to `p2pvm store gc`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct StoreCollected {
    /// How many snapshots and images lack chunks.
    pub damaged: u64,
    /// Whether it was only said.
    pub dry_run: bool,
    /// How many chunks stay.
    pub kept: u64,
    /// What went, or would go.
    pub removed: StoreAmount,
    /// Whether nothing went because what a damaged snapshot uses is unknown.
    pub unswept: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assert_text;

    #[test]
    fn answers_about_snapshots_keep_their_text() {
        assert_text(&VerifySnapshot { repair: true }, r#"{"repair":true}"#);
        let schedule = Some(ScheduleView {
            disk_only: false,
            every_seconds: 21_600,
            keep: KeepView {
                days: 7,
                hours: 8,
                last: 0,
                weeks: 4,
            },
        });
        let text = concat!(
            r#"{"schedule":{"disk_only":false,"every_seconds":21600,"#,
            r#""keep":{"days":7,"hours":8,"last":0,"weeks":4}}}"#
        );
        assert_text(&ScheduleChange { schedule }, text);
        assert_text(&ScheduleChange::default(), r#"{"schedule":null}"#);
        let later: SnapshotVerified =
            serde_json::from_str(r#"{"name":"before","sites":3}"#).unwrap();
        assert_eq!(later.name, "before");
    }
}
