//! Copies of checkpoints that are to end. They are written down before the entry that names a
//! checkpoint changes, and crossed out when its keeper has answered: neither a daemon that dies in
//! between nor a keeper that is off leaves a copy for ever.
//!
//! No key is written down. As long as the VM is here its keys are at hand; without them a member
//! still ends what this host asked it to keep.

use super::{Host, lock};
use crate::Error;
use p2pvm_overlay::{
    MemberId, UnixTime, VmId, chain, durable::write_atomically, identity::KeyPair,
};
use p2pvm_snapshot_sync::ManifestId;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Mutex,
};

/// How many releases are remembered, the newest ones.
/// Reason: bounds the file, which is written whole.
const MOST: usize = 4096;
/// How many seconds a keeper that does not answer is remembered: 90 days.
const FORGOTTEN_AFTER: u64 = 90 * 86_400;

/// A copy that is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Release {
    pub vm: VmId,
    pub checkpoint: ManifestId,
    /// The member that has it; also this one.
    pub member: MemberId,
    since: UnixTime,
}

/// The copies that are to end, those first that are tried next.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ReleaseList {
    open: Vec<Release>,
}

impl ReleaseList {
    fn add(&mut self, now: UnixTime, vm: VmId, checkpoint: ManifestId, members: &[MemberId]) {
        for member in members {
            let is_same = |r: &Release| r.checkpoint == checkpoint && r.member == *member;
            if !self.open.iter().any(is_same) {
                self.open.push(Release {
                    vm,
                    checkpoint,
                    member: *member,
                    since: now,
                });
            }
        }
        self.open
            .retain(|r| now.0.saturating_sub(r.since.0) < FORGOTTEN_AFTER);
        let over = self.open.len().saturating_sub(MOST);
        self.open.drain(..over);
    }

    /// Of a checkpoint's copies only those at these members are still to end.
    fn answered(&mut self, checkpoint: ManifestId, open: &[MemberId]) {
        self.open
            .retain(|r| r.checkpoint != checkpoint || open.contains(&r.member));
    }

    fn cross_out(&mut self, one: &Release) {
        self.open
            .retain(|r| r.checkpoint != one.checkpoint || r.member != one.member);
    }

    /// The member did not answer: others are tried before it is tried again.
    fn put_back(&mut self, one: &Release) {
        self.cross_out(one);
        self.open.push(*one);
    }
}

/// The list, and the file that it is in.
pub(crate) struct Releases {
    file: PathBuf,
    list: Mutex<ReleaseList>,
}

impl Releases {
    /// The list in the file. One that cannot be read begins empty.
    pub(super) fn open(file: PathBuf) -> Self {
        let list = load(&file);
        Self {
            file,
            list: Mutex::new(list),
        }
    }

    fn change(&self, change: impl FnOnce(&mut ReleaseList)) {
        let mut list = lock(&self.list);
        let before = list.clone();
        change(&mut list);
        if *list == before {
            return;
        }
        let bytes = serde_json::to_vec(&*list).expect("plain fields always serialize");
        if let Err(error) = write_atomically(&self.file, &bytes, 0o600) {
            tracing::warn!(error = %chain(&error), "which copies are to end is not written down");
        }
    }

    /// The copies that are to end.
    pub(crate) fn all(&self) -> Vec<Release> {
        lock(&self.list).open.clone()
    }

    /// A copy has ended, or is wanted.
    pub(crate) fn cross_out(&self, one: &Release) {
        self.change(|list| list.cross_out(one));
    }

    /// A copy is tried again after the others. The order is kept in memory alone.
    pub(crate) fn put_back(&self, one: &Release) {
        lock(&self.list).put_back(one);
    }
}

fn load(file: &Path) -> ReleaseList {
    let read = std::fs::read(file).ok();
    read.and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .unwrap_or_default()
}

impl Host {
    /// Writes down that these members' copies of a checkpoint are to end: before the entry no
    /// longer names it.
    pub(crate) fn note_releases(&self, vm: VmId, id: ManifestId, members: &[MemberId]) {
        self.releases
            .change(|list| list.add(UnixTime::now(), vm, id, members));
    }

    /// The members that may have begun to keep what was not sent to its end: which, is not written
    /// down.
    pub(crate) fn may_keep(&self) -> Vec<MemberId> {
        let mut members = self.parts.fabric.connected();
        members.push(self.me);
        members
    }

    /// Ends the copies of a checkpoint here and at other members; those that do not answer are
    /// asked again later.
    ///
    /// # Errors
    /// The chunk store's.
    pub(crate) async fn end_copies(
        &self,
        vm: VmId,
        (id, providers): (ManifestId, &[MemberId]),
        keys: &[KeyPair],
    ) -> Result<(), Error> {
        self.note_releases(vm, id, providers);
        let open = self.parts.vault.forget(id, providers, keys).await?;
        self.releases.change(|list| list.answered(id, &open));
        Ok(())
    }

    /// The checkpoints that entries here name, each with what it is in words: `VM@SNAPSHOT`, or
    /// whose replica.
    pub fn checkpoints(&self) -> Vec<(ManifestId, String)> {
        let mut all = Vec::new();
        for slot in self.slots() {
            let entry = slot.entry();
            let vm = entry.listed_name();
            let snapshots = entry.snapshots.iter();
            all.extend(snapshots.map(|s| (s.checkpoint, format!("{vm}@{}", s.name))));
            for replica in entry.replica.iter().chain(&entry.sending) {
                all.push((replica.checkpoint, format!("replica of {vm}'s disk")));
            }
        }
        all
    }

    /// The checkpoints that entries here name.
    pub(crate) fn named_checkpoints(&self) -> BTreeSet<ManifestId> {
        let all = self.checkpoints().into_iter();
        all.map(|(checkpoint, _)| checkpoint).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2pvm_snapshot_sync::ChunkId;

    const VM: VmId = VmId([7; 32]);
    const NOW: UnixTime = UnixTime(1_796_000_000);

    fn id(n: u8) -> ManifestId {
        ManifestId(ChunkId([n; 32]))
    }

    fn members<const N: usize>(all: [u8; N]) -> [MemberId; N] {
        all.map(|n| MemberId([n; 32]))
    }

    #[test]
    fn what_was_not_answered_is_still_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("releases.json");
        let releases = Releases::open(file.clone());
        releases.change(|list| list.add(NOW, VM, id(1), &members([1, 2, 3])));
        releases.change(|list| list.add(NOW, VM, id(2), &members([1])));
        releases.change(|list| list.answered(id(1), &members([3])));
        let again = Releases::open(file);
        let open: Vec<_> = again
            .all()
            .iter()
            .map(|r| (r.checkpoint, r.member))
            .collect();
        let [a, c] = members([1, 3]);
        assert_eq!(open, [(id(1), c), (id(2), a)]);
        again.put_back(&again.all()[0]);
        assert_eq!(again.all()[1].checkpoint, id(1));
        again.cross_out(&again.all()[1]);
        assert_eq!(again.all().len(), 1);
    }

    #[test]
    fn the_list_is_bounded_in_length_and_age() {
        let mut list = ReleaseList::default();
        for n in 0..=130 {
            let many: Vec<MemberId> = (0..32).map(|m| MemberId([m; 32])).collect();
            list.add(NOW, VM, id(n), &many);
            list.add(NOW, VM, id(n), &many);
        }
        assert_eq!(list.open.len(), MOST);
        assert_eq!(list.open.last().unwrap().checkpoint, id(130));
        list.add(NOW.plus(FORGOTTEN_AFTER), VM, id(1), &members([9]));
        assert_eq!(list.open.len(), 1);
    }
}
