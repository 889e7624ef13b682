//! The states that a VM can be brought back to: which of its snapshots and its replica count, and
//! which of them is the newest.
//!
//! **Order.** The epoch decides first, whatever the clocks of two hosts say. An epoch is one
//! host's: its snapshots are in the order of the list. A replica's count and a snapshot's place in
//! the list cannot be compared; between these two the time decides, which is that of one host's
//! clock. Of the same second the snapshot counts as newer: it may have the guest's memory.
//!
//! **After a restore** what was taken before it belongs to a state that was given up. Only the
//! snapshot that was restored counts until there is one of the new epoch.

use crate::{
    directory::{Snapshot, VmRecord},
    framed,
    protection::Replica,
    vault::Durability,
};
use p2pvm_overlay::{Epoch, MemberId};
use p2pvm_snapshot_sync::ManifestId;
use serde::{Deserialize, Serialize};

/// How many heirs a VM has at most.
/// Reason: each waits for the ones before it.
const MAX_HEIRS: usize = 7;

/// From what a VM was restored last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restored {
    /// The epoch in which it came back: what was taken in an earlier one was given up.
    pub epoch: Epoch,
    /// The checkpoint that it came back from.
    pub checkpoint: ManifestId,
}

impl Restored {
    /// Its bytes in an optional field of a message.
    pub fn to_field(&self) -> Vec<u8> {
        framed::to_bytes(self)
    }

    /// Reads the bytes of such a field; `None` for anything else. Later releases may append to it.
    pub fn from_field(bytes: &[u8]) -> Option<Self> {
        framed::from_bytes(bytes)
    }

    /// Whether the VM's present state came after the snapshot, or from it.
    fn follows(&self, snapshot: &Snapshot) -> bool {
        snapshot.epoch >= self.epoch || snapshot.checkpoint == self.checkpoint
    }
}

/// The snapshots of a VM's present state, its replica among them, the newest first, wherever they
/// are.
pub fn states(record: &VmRecord) -> Vec<Snapshot> {
    let counts = |one: &Snapshot| record.restored.is_none_or(|from| from.follows(one));
    let snapshots = record.snapshots.iter().filter(|one| counts(one));
    let mut all: Vec<Snapshot> = snapshots.cloned().collect();
    // Those of one epoch stay in the list's order.
    all.sort_by_key(|one| one.epoch);
    let replica = record.replica.as_ref().map(Replica::as_snapshot);
    if let Some(replica) = replica.filter(|one| counts(one)) {
        let is_older = |one: &Snapshot| (one.epoch, one.taken.0) < (replica.epoch, replica.taken.0);
        let at = all.iter().rposition(is_older).map_or(0, |last| last + 1);
        all.insert(at, replica);
    }
    all.reverse();
    all
}

/// The states that other members than the VM's holder have, the newest first, down to the first
/// one that is known to be whole at its holders. Older ones are not needed.
pub fn recovery_points(record: &VmRecord) -> Vec<Snapshot> {
    let replica = record.replica.as_ref().map(|replica| replica.checkpoint);
    let is_elsewhere = |one: &Snapshot| one.providers.iter().any(|m| *m != record.holder);
    let mut points = Vec::new();
    for point in states(record).into_iter().filter(is_elsewhere) {
        // A replica is named in the record once all of its holders have it. Of a snapshot that is
        // being copied a former keeper may be named that lost chunks.
        let is_whole = point.durability == Durability::Durable || replica == Some(point.checkpoint);
        points.push(point);
        if is_whole {
            break;
        }
    }
    points
}

/// The newest state of a VM that other members than its holder have; `None`: there is none.
pub fn recovery_point(record: &VmRecord) -> Option<Snapshot> {
    recovery_points(record).into_iter().next()
}

/// The members that start the VM if its holder is lost, the first one first.
pub fn heirs_of(record: &VmRecord) -> Vec<MemberId> {
    let points = recovery_points(record).into_iter();
    let providers = points.flat_map(|point| point.providers);
    let mut heirs: Vec<MemberId> = Vec::new();
    for member in providers.filter(|member| *member != record.holder) {
        if !heirs.contains(&member) && heirs.len() < MAX_HEIRS {
            heirs.push(member);
        }
    }
    heirs
}

#[cfg(test)]
#[path = "recovery_tests.rs"]
mod tests;
