//! Taking a snapshot: the files of one instant while the guest runs on, into chunks, into the VM's
//! record, then onto other members in the background until it is durable.

use super::SavedVm;
use crate::{
    Error,
    backups::is_automatic,
    definition::check_name,
    directory::{MAX_PROVIDERS, MAX_SNAPSHOTS, Snapshot},
    error::io_at,
    host::{Activity, Entry, Host, Role, Slot},
    hypervisor::{Progress, RunState},
    vault::{CheckpointInput, Copies, Durability},
};
use p2pvm_api::EventKind;
use p2pvm_overlay::{MemberId, UnixTime, chain};
use p2pvm_snapshot_sync::ManifestId;
use std::{path::Path, sync::Arc, time::Duration};
use tokio::sync::watch;

/// How long between two looks whether a snapshot that is being copied is still wanted.
const STILL_LISTED: Duration = Duration::from_secs(5);

/// What a snapshot of a running VM has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Content {
    /// Disk and memory: a restored guest goes on where it was.
    #[default]
    All,
    /// The disk alone, as after a power cut: a restored guest boots.
    Disk,
}

/// A snapshot just taken.
#[derive(Debug)]
pub struct NewSnapshot {
    /// The snapshot.
    pub snapshot: Snapshot,
    /// How long the guest stood still.
    pub pause: Duration,
    /// How well it is kept from now on; ends when it is durable or the host ends.
    pub copies: watch::Receiver<Copies>,
}

impl Host {
    /// Takes a snapshot of a VM here. It is on this host's disk when this returns; copies to other
    /// members go on.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Refused`] for a name in use, or the step that failed.
    pub async fn snapshot(
        &self,
        name: &str,
        snapshot: &str,
        progress: &watch::Sender<Progress>,
    ) -> Result<NewSnapshot, Error> {
        self.snapshot_of(name, snapshot, Content::All, progress)
            .await
    }

    /// The same, of the disk alone if `content` says so.
    ///
    /// # Errors
    /// As [`Host::snapshot`], and for a name that schedules use.
    pub async fn snapshot_of(
        &self,
        name: &str,
        snapshot: &str,
        content: Content,
        progress: &watch::Sender<Progress>,
    ) -> Result<NewSnapshot, Error> {
        if is_automatic(snapshot) {
            return Err(Error::Refused(format!(
                "'{snapshot}' is a name that schedules give, whose snapshots are deleted by \
                    themselves: choose another one"
            )));
        }
        self.take(name, snapshot, content, progress).await
    }

    pub(crate) async fn take(
        &self,
        name: &str,
        snapshot: &str,
        content: Content,
        progress: &watch::Sender<Progress>,
    ) -> Result<NewSnapshot, Error> {
        check_name(snapshot)?;
        let slot = self.named(name)?;
        let _operation = slot.begin_after_check(Activity::Snapshot).await?;
        self.must_be_held(&slot)?;
        self.must_have_lease(&slot)?;
        let entry = slot.entry();
        if entry.snapshots.iter().any(|s| s.name == snapshot) {
            return Err(Error::Refused(format!(
                "'{name}' has a snapshot '{snapshot}' already: choose another name"
            )));
        }
        if entry.snapshots.len() >= MAX_SNAPSHOTS {
            return Err(Error::Refused(format!(
                "'{name}' has {MAX_SNAPSHOTS} snapshots, the most a VM can have: delete one"
            )));
        }
        let dir = self.registry.path(&entry).join("checkpoint");
        let what = (snapshot, content);
        let stored = self.store_instant(&slot, what, &dir, progress).await;
        match std::fs::remove_dir_all(&dir) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(error = %chain(&e), "the checkpoint's files stay on the disk")
            }
            _ => {}
        }
        let (taken, pause) = stored.inspect_err(|e| {
            let text = format!("The snapshot {name}@{snapshot} failed: {}.", chain(e));
            self.note(&entry, EventKind::SnapshotFailed, &[], text);
        })?;
        self.update(&slot, |e| e.snapshots.push(taken.clone()))?;
        let text = format!("The snapshot {name}@{snapshot} was taken.");
        let fields = [("snapshot", snapshot.to_owned())];
        self.note(&entry, EventKind::SnapshotTaken, &fields, text);
        self.publish(&slot).await;
        let copies = self.replicate(&slot, &taken).await?;
        Ok(NewSnapshot {
            snapshot: taken,
            pause,
            copies,
        })
    }

    async fn store_instant(
        &self,
        slot: &Slot,
        (snapshot, content): (&str, Content),
        dir: &Path,
        progress: &watch::Sender<Progress>,
    ) -> Result<(Snapshot, Duration), Error> {
        let entry = self.with_own_key(slot)?;
        // A guest that stands still counts too: its disk is QEMU's as long as there is a guest.
        let machine = slot
            .machine()
            .filter(|_| slot.run_state() != RunState::Stopped);
        let taken = UnixTime::now();
        let (ram, disk, pause) = match machine {
            Some(machine) => {
                // The most that it takes: pages of zeros take nothing, but are not counted here.
                let memory = entry.definition.memory_mib << 20;
                let resident = machine
                    .stats()
                    .await
                    .map_or(memory, |used| used.resident_bytes);
                self.room_on_disk(memory.min(resident))?;
                std::fs::create_dir_all(dir)
                    .map_err(io_at("making room for the checkpoint", dir))?;
                let files = machine.checkpoint(dir, progress).await?;
                let ram = (content == Content::All).then_some(files.ram);
                (ram, files.disk, files.pause)
            }
            None => (None, self.registry.spec(&entry).disk, Duration::ZERO),
        };
        begin_storing(progress);
        let (name, epoch, with_ram, image) = (
            snapshot.to_owned(),
            entry.epoch,
            ram.is_some(),
            entry.definition.image,
        );
        let saved = SavedVm {
            definition: entry.definition,
            secret: entry.secret,
            sealing: entry.sealing,
        };
        let instant = CheckpointInput {
            vm: saved.definition.vm,
            name: name.clone(),
            taken,
            epoch,
            ram,
            disk,
            image,
            spec: saved.sealed(entry.owner.unwrap_or(self.me)),
            seal: saved.seal_key(),
            releaser: saved.sealing.newest_releaser(saved.definition.vm),
        };
        let checkpoint = self.parts.vault.store(&instant, progress).await?;
        Ok((
            Snapshot {
                name,
                checkpoint,
                taken,
                epoch,
                with_ram,
                durability: Durability::Local,
                providers: vec![self.me],
            },
            pause,
        ))
    }

    /// The VM's entry, with a key for this holding that no former host knows.
    pub(crate) fn with_own_key(&self, slot: &Slot) -> Result<Entry, Error> {
        let entry = slot.entry();
        if !entry.sealing.needs_own(entry.arrived) {
            return Ok(entry);
        }
        // On the disk before anything is sealed with it. Asked again where no other change comes
        // between: a snapshot and a replica may begin together, and both need the same key.
        self.update(slot, |e| {
            if e.sealing.needs_own(e.arrived) {
                e.sealing.draw(e.epoch);
            }
        })
    }

    /// Has a snapshot copied to other members, and writes its durability down as that grows.
    pub(crate) async fn replicate(
        &self,
        slot: &Arc<Slot>,
        snapshot: &Snapshot,
    ) -> Result<watch::Receiver<Copies>, Error> {
        self.replicate_without(slot, snapshot, None).await
    }

    /// The same, but not to a member that is gone.
    pub(crate) async fn replicate_without(
        &self,
        slot: &Arc<Slot>,
        snapshot: &Snapshot,
        gone: Option<MemberId>,
    ) -> Result<watch::Receiver<Copies>, Error> {
        let (fabric, providers) = (self.parts.fabric.clone(), snapshot.providers.clone());
        let not = [Some(self.me), gone];
        let now = Box::new(move || candidates(&providers, &fabric.connected(), &not));
        slot.set_copying(snapshot.checkpoint, true);
        let begun = self
            .parts
            .vault
            .replicate(snapshot.checkpoint, self.options.copies, now)
            .await;
        let mut seen = begun.inspect_err(|_| slot.set_copying(snapshot.checkpoint, false))?;
        let (slot, id) = (slot.clone(), snapshot.checkpoint);
        let before = snapshot.providers.clone();
        // Only the task has the vault's receiver: copying ends when it is dropped.
        let told = watch::Sender::new(seen.borrow().clone());
        let copies = told.subscribe();
        let Some(host) = self.strong() else {
            return Ok(copies);
        };
        self.spawn(async move {
            loop {
                let now = seen.borrow_and_update().clone();
                let entry = slot.entry();
                let listed = entry.snapshots.iter().find(|s| s.checkpoint == id);
                let is_deleted = listed.is_none() || entry.role == Role::Unmade;
                if is_deleted || !host.lists(&slot) {
                    drop(seen);
                    if is_deleted {
                        host.forget_unfinished(&entry, id).await;
                    }
                    return slot.set_copying(id, false);
                }
                let providers = match now.durability {
                    Durability::Durable => now.providers.clone(),
                    _ => with_former(&now.providers, &before, gone),
                };
                let known = listed
                    .is_some_and(|s| s.durability == now.durability && s.providers == providers);
                if !known {
                    host.note_copies(&slot, id, &now.durability, providers)
                        .await;
                }
                let is_durable = now.durability == Durability::Durable;
                told.send_replace(now);
                if is_durable {
                    return slot.set_copying(id, false);
                }
                // A snapshot may be deleted, and its VM move on, while nothing is copied.
                if let Ok(Err(_)) = tokio::time::timeout(STILL_LISTED, seen.changed()).await {
                    return slot.set_copying(id, false);
                }
            }
        });
        Ok(copies)
    }

    /// Copies a snapshot again; a host that the VM has moved to fetches it first.
    pub(crate) async fn copy_again(
        &self,
        slot: &Arc<Slot>,
        snapshot: &Snapshot,
        gone: Option<MemberId>,
    ) -> Result<(), Error> {
        let (vault, id) = (&self.parts.vault, snapshot.checkpoint);
        if !vault.keeps(id).await? {
            let quiet = watch::Sender::default();
            vault.fetch(id, &snapshot.providers, &quiet).await?;
        }
        self.replicate_without(slot, snapshot, gone).await.map(drop)
    }

    /// Writes down how well a snapshot is kept, and by which members.
    async fn note_copies(
        &self,
        slot: &Slot,
        id: ManifestId,
        durability: &Durability,
        providers: Vec<MemberId>,
    ) {
        let written = self.update(slot, |e| {
            e.note_durability(id, durability);
            if let Some(s) = e.snapshots.iter_mut().find(|s| s.checkpoint == id) {
                (s.durability, s.providers) = (durability.clone(), providers);
            }
        });
        if let Err(e) = written {
            tracing::warn!(error = %chain(&e), "the snapshot's state could not be written down");
        }
        self.publish(slot).await;
        if *durability == Durability::Durable {
            self.note_durable(slot, id);
        }
    }

    /// Ends the copies of a snapshot that was deleted while it was copied.
    async fn forget_unfinished(&self, entry: &Entry, id: ManifestId) {
        let keys = entry.sealing.releasers(&entry.secret);
        let (vm, members) = (entry.definition.vm, self.may_keep());
        if let Err(error) = self.end_copies(vm, (id, &members), &keys).await {
            tracing::info!(error = %chain(&error), "copies of a deleted snapshot may stay with \
                other members");
        }
    }

    fn note_durable(&self, slot: &Slot, checkpoint: ManifestId) {
        let entry = slot.entry();
        let found = entry.snapshots.iter().find(|s| s.checkpoint == checkpoint);
        if let Some(snapshot) = found {
            let what = format!("{}@{}", entry.definition.name, snapshot.name);
            let fields = [("members", (snapshot.providers.len()).to_string())];
            let text = format!("The snapshot {what} is on as many members as are wanted.");
            self.note(&entry, EventKind::SnapshotDurable, &fields, text);
        }
    }

    /// Goes on with copies that a restart or a lack of members interrupted.
    pub(crate) async fn resume_copies(&self, slot: &Arc<Slot>) {
        let others = self.parts.fabric.connected().len();
        for snapshot in slot.entry().snapshots {
            if others > copies_of(&snapshot.durability)
                && snapshot.durability != Durability::Durable
                && !slot.is_copying(snapshot.checkpoint)
                // On a host that the VM has moved to it need not be: it keeps its providers.
                && self.parts.vault.keeps(snapshot.checkpoint).await.unwrap_or(false)
                && let Err(e) = self.replicate(slot, &snapshot).await
            {
                tracing::warn!(snapshot = snapshot.name, error = %chain(&e), "cannot continue \
                    its copies to other members");
            }
        }
    }

    /// Deletes a snapshot of a VM here.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Refused`] if the VM is busy, or what the store says.
    pub async fn delete_snapshot(&self, name: &str, snapshot: &str) -> Result<(), Error> {
        let slot = self.named(name)?;
        let _operation = slot.begin_after_check(Activity::DeletingSnapshot).await?;
        let entry = slot.entry();
        let found = entry.snapshots.iter().find(|s| s.name == snapshot);
        let found =
            found.ok_or_else(|| Error::NotFound(format!("the snapshot '{name}@{snapshot}'")))?;
        let vm = entry.definition.vm;
        self.note_releases(vm, found.checkpoint, &found.providers);
        self.update(&slot, |e| {
            e.snapshots.retain(|s| s.name != snapshot);
            e.backups.degraded.remove(&found.checkpoint);
        })?;
        let text = format!("The snapshot {name}@{snapshot} was deleted.");
        self.note(&entry, EventKind::SnapshotDeleted, &[], text);
        self.publish(&slot).await;
        let keys = entry.sealing.releasers(&entry.secret);
        let copies = (found.checkpoint, &*found.providers);
        self.end_copies(vm, copies, &keys).await
    }
}

/// The members that a snapshot is copied to, the preferred ones first: those that have it, then
/// those that are connected; without those named in `not`.
pub(crate) fn candidates(
    providers: &[MemberId],
    connected: &[MemberId],
    not: &[Option<MemberId>],
) -> Vec<MemberId> {
    let mut all = Vec::new();
    // Alone, a member copies nothing.
    if connected.is_empty() {
        return all;
    }
    for member in providers.iter().chain(connected) {
        if !not.contains(&Some(*member)) && !all.contains(member) {
            all.push(*member);
        }
    }
    all
}

/// The members that a restore asks for a snapshot that is not durable: those that had it before
/// are named as well, in case that this host dies before they are known to have it.
fn with_former(now: &[MemberId], before: &[MemberId], gone: Option<MemberId>) -> Vec<MemberId> {
    let former = before
        .iter()
        .filter(|m| Some(**m) != gone && !now.contains(m));
    let all = now.iter().chain(former).copied();
    all.take(MAX_PROVIDERS.max(now.len())).collect()
}

/// How many other members are known to hold a snapshot, as far as fewer than wanted do.
fn copies_of(durability: &Durability) -> usize {
    match durability {
        Durability::Replicating { done, .. } => *done,
        Durability::Local | Durability::Durable => 0,
    }
}

/// What is reported from now on is the way of files into the store.
fn begin_storing(progress: &watch::Sender<Progress>) {
    progress.send_replace(Progress {
        phase: "store".into(),
        ..Progress::default()
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_with_the_snapshot_are_preferred_and_gone_ones_left_out() {
        let [me, a, b, c, gone] = [1, 2, 3, 4, 5].map(|n| MemberId([n; 32]));
        let not = [Some(me), Some(gone)];
        let chosen = candidates(&[me, c, gone], &[a, b, c], &not);
        assert_eq!(chosen, [c, a, b]);
        assert!(candidates(&[me, c], &[], &[Some(me), None]).is_empty());
    }

    #[test]
    fn while_a_snapshot_is_copied_again_its_former_keepers_stay_known() {
        let [me, a, b, gone] = [1, 2, 3, 4].map(|n| MemberId([n; 32]));
        assert_eq!(with_former(&[me], &[me, a, gone], Some(gone)), [me, a]);
        assert_eq!(with_former(&[me, b], &[me, a, b], None), [me, b, a]);
        let many: Vec<MemberId> = (10..40).map(|n| MemberId([n; 32])).collect();
        let bounded = with_former(&[me, b], &many, None);
        assert_eq!((bounded.len(), bounded[1]), (MAX_PROVIDERS, b));
    }
}
