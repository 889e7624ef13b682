//! Restoring a VM from a snapshot on this host: all bytes first, then the right to run it, then its
//! guest.
//!
//! A VM whose guest runs somewhere is never restored beside it. A holder that does not answer may
//! run it: the user has to set `force`, and the new epoch fences the old holder's guest.

use super::{RestoreOptions, Right, SavedVm, open::Opened};
use crate::{
    Error,
    ballot::{Ground, NewestPromise, VmVoters, after},
    directory::{RunGoal, Snapshot, VmRecord},
    error::undecided,
    handover::longest_run,
    host::{
        Activity, Entry, Guest, Host, Promise, Role, Slot, VmStatus,
        remote::{VmAnswer, VmRequest},
        revoked::checked,
    },
    hypervisor::{Progress, RunState, Start},
    protection::{REPLICA, Replica},
    recovery::{self, Restored},
};
use p2pvm_api::EventKind;
use p2pvm_overlay::{Epoch, MemberId, chain, identity::KeyPair};
use p2pvm_snapshot_sync::{Checkpoint, SealKey};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::sync::watch;

/// One restore: what its steps work with.
struct Restore<'r> {
    /// The new incarnation.
    slot: &'r Arc<Slot>,
    checkpoint: &'r Checkpoint,
    /// What opens its memory and disk.
    key: &'r SealKey,
    snapshot: &'r Snapshot,
    /// The voters' newest epoch before it.
    newest: Option<NewestPromise>,
    /// An older incarnation here, which it replaces.
    older: Option<&'r Arc<Slot>>,
    right: Right<'r>,
    progress: &'r watch::Sender<Progress>,
}

impl Host {
    /// Brings a VM back on this host as it was in a snapshot: same name, address, memory.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Refused`] if the VM runs, or its holder does not answer and
    /// `force` is not given; [`Error::Agreement`] if no majority of its voters answers;
    /// [`Error::Chunks`] if no provider has all of it.
    pub async fn restore(
        self: &Arc<Self>,
        name: &str,
        snapshot: &str,
        options: RestoreOptions,
        progress: &watch::Sender<Progress>,
    ) -> Result<VmStatus, Error> {
        self.restore_with(name, snapshot, (options, &[]), progress)
            .await
    }

    /// The same, showing `proofs` to the VM's voters that this host may restore it.
    ///
    /// # Errors
    /// As [`Host::restore`].
    pub async fn restore_with(
        self: &Arc<Self>,
        name: &str,
        snapshot: &str,
        (options, proofs): (RestoreOptions, &[Vec<u8>]),
        progress: &watch::Sender<Progress>,
    ) -> Result<VmStatus, Error> {
        let record = self.known(name).await?;
        let found = record
            .snapshots
            .iter()
            .find(|s| s.name == snapshot)
            .cloned()
            .or_else(|| {
                let replica = record.replica.as_ref().filter(|_| snapshot == REPLICA);
                replica.map(Replica::as_snapshot)
            });
        let found =
            found.ok_or_else(|| Error::NotFound(format!("the snapshot '{name}@{snapshot}'")))?;
        self.restore_found((&record, &found), (options, proofs), progress)
            .await
    }

    /// Brings a VM back from the newest snapshot or replica of its present state that a connected
    /// member has. Gives the name of that as well.
    ///
    /// # Errors
    /// As [`Host::restore`]; `None` without such a state.
    pub async fn restore_newest(
        self: &Arc<Self>,
        name: &str,
        how: (RestoreOptions, &[Vec<u8>]),
        progress: &watch::Sender<Progress>,
    ) -> Result<Option<(VmStatus, String)>, Error> {
        let record = self.known(name).await?;
        let mut states = recovery::states(&record);
        let connected = self.parts.fabric.connected();
        let there = |member: &MemberId| *member == self.me || connected.contains(member);
        // What only a lost host has brings nothing back.
        let newest = states
            .iter()
            .position(|one| one.providers.iter().any(there));
        if states.is_empty() {
            return Ok(None);
        }
        let found = states.swap_remove(newest.unwrap_or_default());
        let vm = self.restore_found((&record, &found), how, progress).await?;
        Ok(Some((vm, found.name)))
    }

    async fn restore_found(
        self: &Arc<Self>,
        (record, found): (&VmRecord, &Snapshot),
        (options, proofs): (RestoreOptions, &[Vec<u8>]),
        progress: &watch::Sender<Progress>,
    ) -> Result<VmStatus, Error> {
        if self.slot_of(record.definition.vm).is_none() {
            self.may_come(&record.definition).await?;
        }
        let right = match self.may_restore(record, options).await? {
            true => Right::Asked(proofs),
            false => Right::Forced(proofs),
        };
        let what = (record, found, record.holder, right);
        self.restore_within_limits(what, progress).await
    }

    /// Brings a VM back whose host is lost, from a recovery point that its record names.
    ///
    /// # Errors
    /// As [`Host::restore`]; [`Error::Agreement`] also if the lease of the VM's host still runs.
    pub(crate) async fn restore_as_heir(
        self: &Arc<Self>,
        (record, found, right): (&VmRecord, &Snapshot, Right<'_>),
        progress: &watch::Sender<Progress>,
    ) -> Result<VmStatus, Error> {
        if self.slot_of(record.definition.vm).is_some() {
            return Err(Error::Refused(format!(
                "'{}' is on this host already",
                record.definition.name
            )));
        }
        self.must_be_open(&record.definition.name)?;
        self.may_come(&record.definition).await?;
        let what = (record, found, record.holder, right);
        self.restore_within_limits(what, progress).await
    }

    async fn restore_within_limits(
        self: &Arc<Self>,
        (record, found, holder, right): (&VmRecord, &Snapshot, MemberId, Right<'_>),
        progress: &watch::Sender<Progress>,
    ) -> Result<VmStatus, Error> {
        let need = self
            .envelope
            .need_from(&record.definition, record.owner, record.holder);
        // Until the VM is listed with a place of its own.
        let _place = self.envelope.stay(&need)?;
        let memory = self.envelope.promise(&need)?;
        progress.send_modify(|p| p.phase = "fetch".into());
        let was_kept = self.parts.vault.keeps(found.checkpoint).await?;
        let what = (record, found, holder, right);
        let restored = self.restore_from(what, memory, progress).await;
        if restored.is_err() && !was_kept && self.slot_of(record.definition.vm).is_none() {
            self.let_go(record, found).await;
        }
        restored
    }

    /// Removes what was fetched for a VM that was not restored here.
    async fn let_go(&self, record: &VmRecord, snapshot: &Snapshot) {
        if let Err(error) = self.parts.vault.let_go(snapshot.checkpoint).await {
            tracing::info!(error = %chain(&error), "the snapshot of a VM that was not restored \
                stays");
        }
        self.drop_unused(record.definition.image).await;
    }

    async fn restore_from(
        self: &Arc<Self>,
        (record, found, holder, right): (&VmRecord, &Snapshot, MemberId, Right<'_>),
        memory: Promise,
        progress: &watch::Sender<Progress>,
    ) -> Result<VmStatus, Error> {
        let name = &record.definition.name;
        let what = (record, found, right);
        let (checkpoint, Opened { saved: kept, key }) = self.checkpoint_of(what, progress).await?;
        // An older incarnation here is replaced only once the new one has all bytes and the epoch.
        let older = self.slot_of(record.definition.vm);
        let _older_operation = older
            .as_ref()
            .map(|slot| slot.begin(Activity::Replaced))
            .transpose()?;
        let keys = kept.secret.keys();
        let newest = self.newest(record, &keys).await?;
        let theirs = newest.filter(|n| n.holder != holder && n.holder != self.me && n.confirmed);
        // The voters judge of an heir's, and whether an earlier heir's reached a majority.
        if theirs.is_some() && !right.waits_for_lease() {
            return Err(Error::Refused(format!(
                "'{name}' has just changed hands: look at its state and try again"
            )));
        }
        let epoch = after(newest.map_or(record.epoch, |n| n.epoch.max(record.epoch)))
            .map_err(undecided("asking for the VM's next epoch"))?;
        if !right.waits_for_lease() {
            self.ask_to_give_way(record, holder).await?;
        }
        let leased = right.waits_for_lease()
            || self
                .has_lease(&kept, matches!(right, Right::Forced(_)), progress)
                .await?;
        let before = (&kept, older.as_deref());
        let how = (epoch, leased, right.waits_for_lease());
        let slot = self.restored_entry((record, found), before, how)?;
        let operation = slot.begin(Activity::Restoring)?;
        let restore = Restore {
            slot: &slot,
            checkpoint: &checkpoint,
            key: &key,
            snapshot: found,
            newest,
            older: older.as_ref(),
            right,
            progress,
        };
        if let Err(e) = self.bring_back(&restore, memory).await {
            self.drop_restored(&slot).await;
            return Err(e);
        }
        drop(operation);
        if let Some(older) = older
            && let Err(e) = self.remove(&older)
        {
            tracing::warn!(error = %chain(&e), "the disk from before the restore stays");
        }
        if holder != self.me && !right.waits_for_lease() {
            // A holder that does not receive this finds out in its own next round.
            let _ = self
                .ask_member(holder, &VmRequest::Took(record.definition.vm))
                .await;
        }
        self.note_restored(&slot, &found.name);
        self.resume_copies(&slot).await;
        let (telling, of) = (self.clone(), slot.clone());
        self.spawn(async move { telling.tell_heirs(&of, true).await });
        self.learn_keys(slot.clone(), record, found, right.proofs());
        Ok(self.status_of(&slot))
    }

    /// Gets the keys of the VM's newest snapshot, in a task, after an older one was restored: with
    /// them this host opens and deletes the snapshots of the holdings between.
    fn learn_keys(
        self: &Arc<Self>,
        slot: Arc<Slot>,
        record: &VmRecord,
        restored: &Snapshot,
        proofs: &[Vec<u8>],
    ) {
        let replica = record.replica.as_ref().map(Replica::as_snapshot);
        let all = replica.into_iter().chain(record.snapshots.iter().cloned());
        let newest = all.max_by_key(|s| s.epoch);
        let Some(newest) = newest.filter(|s| s.epoch > restored.epoch) else {
            return;
        };
        let (host, record, proofs) = (Arc::downgrade(self), record.clone(), proofs.to_vec());
        self.spawn(async move {
            let Some(host) = host.upgrade() else { return };
            let looking = host
                .parts
                .vault
                .look_at(newest.checkpoint, &newest.providers);
            let learnt: Result<(), Error> = async {
                let seen = looking.await?;
                let opened = host
                    .open_saved(&seen.spec, &record, Right::Asked(&proofs))
                    .await?;
                let Some(opened) = opened else { return Ok(()) };
                let saved = opened.saved.sealing;
                // The VM may be moved or deleted meanwhile: then its file must not come back.
                let _operation = slot.begin_next(Activity::Checking).await;
                let here = host.slot_of(record.definition.vm);
                if here.is_none_or(|here| !Arc::ptr_eq(&here, &slot)) {
                    return Ok(());
                }
                let learn = |e: &mut Entry| e.sealing.learn(&saved.handed_on(e.arrived));
                host.update(&slot, learn).map(drop)
            }
            .await;
            if let Err(error) = learnt {
                tracing::info!(error = %chain(&error), "copies of newer snapshots of the restored \
                    VM may stay with their keepers when it is deleted");
            }
        });
    }

    /// Asks the holder to remove its stopped copy when the VM runs here, as a restore there would
    /// replace it as well. A holder that does not answer, or is too old for the request, keeps its
    /// copy as a branch.
    async fn ask_to_give_way(&self, record: &VmRecord, holder: MemberId) -> Result<(), Error> {
        let (name, vm) = (&record.definition.name, record.definition.vm);
        if holder == self.me
            || !matches!(
                self.ask_member(holder, &VmRequest::Runs(vm)).await,
                Ok(VmAnswer::Runs(Some(_)))
            )
        {
            return Ok(());
        }
        match self.ask_member(holder, &VmRequest::GiveWay(vm)).await {
            Ok(VmAnswer::GivesWay(false)) => Err(Error::Refused(format!(
                "'{name}' was started on {} meanwhile, or something is done with it: stop it \
                    first, then restore",
                holder.short()
            ))),
            _ => Ok(()),
        }
    }

    /// The VM's record, made of its entry here if there is one.
    async fn known(&self, name: &str) -> Result<VmRecord, Error> {
        match self
            .slot_named(name)
            .map(|s| s.entry())
            .filter(|e| !e.is_branch())
        {
            Some(entry) => Ok(entry.record(self.me)),
            None => self.record(name).await,
        }
    }

    /// Refuses a VM whose guest runs at its holder, or may run there since the holder does not
    /// answer and `force` is not set; returns whether it answers.
    async fn may_restore(
        self: &Arc<Self>,
        record: &VmRecord,
        options: RestoreOptions,
    ) -> Result<bool, Error> {
        let (name, holder) = (&record.definition.name, record.holder);
        match self
            .ask_member(holder, &VmRequest::Runs(record.definition.vm))
            .await
        {
            Ok(VmAnswer::Runs(Some(true))) => Err(Error::Refused(format!(
                "'{name}' runs on {}: stop it first, then restore",
                holder.short()
            ))),
            Ok(_) => Ok(true),
            Err(_) if options.force => Ok(false),
            Err(_) => Err(Error::Refused(format!(
                "the host of '{name}', {}, does not answer and may still run it: if it is dead, \
                    restore with --force (its copy is then cut off from the network for good)",
                holder.short()
            ))),
        }
    }

    async fn checkpoint_of(
        &self,
        (record, snapshot, right): (&VmRecord, &Snapshot, Right<'_>),
        progress: &watch::Sender<Progress>,
    ) -> Result<(Checkpoint, Opened), Error> {
        let (id, providers) = (snapshot.checkpoint, &snapshot.providers);
        let vault = &self.parts.vault;
        // Its content may be large, and is of no use to a host for which nobody opens it.
        let seen = vault.look_at(id, providers).await?;
        let kept = self.open_saved(&seen.spec, record, right).await?;
        let kept = kept.filter(|k| k.saved.definition.vm == record.definition.vm);
        let kept = kept.ok_or_else(|| Error::Chunks {
            step: "reading the snapshot",
            source: "it is not a checkpoint of this VM".into(),
        })?;
        Ok((vault.fetch(id, providers, progress).await?, kept))
    }

    async fn newest(
        &self,
        record: &VmRecord,
        keys: &KeyPair,
    ) -> Result<Option<NewestPromise>, Error> {
        let vm = VmVoters {
            keys,
            voters: &record.definition.voters,
        };
        self.parts
            .ballot
            .newest(vm)
            .await
            .map_err(undecided("asking the VM's voters for its newest epoch"))
    }

    fn restored_entry(
        &self,
        (record, found): (&VmRecord, &Snapshot),
        (kept, older): (&SavedVm, Option<&Slot>),
        (epoch, leased, is_heirs): (Epoch, bool, bool),
    ) -> Result<Arc<Slot>, Error> {
        let sealing = kept.sealing.clone().handed_on(epoch);
        self.insert(Entry {
            // Address and size are as the record says now; what runs is as it was then.
            definition: record.definition.clone(),
            secret: kept.secret.clone(),
            epoch,
            arrived: epoch,
            seq: 0,
            role: Role::Arriving {
                id: 0,
                from: self.me,
            },
            // Nobody looks on whether an heir's start succeeds: its next daemon tries it too.
            wanted: match is_heirs {
                true => RunGoal::Running,
                false => RunGoal::Stopped,
            },
            snapshots: record.snapshots.clone(),
            note: None,
            gives_way: None,
            owner: record.owner,
            user: record.user,
            revoked: checked(record.definition.vm, &record.revoked),
            protection: record.protection.clone(),
            replica: record.replica.clone(),
            sending: None,
            leased,
            healed: None,
            bits_per_second: older.and_then(|slot| slot.entry().bits_per_second),
            backups: record.backups.clone(),
            sealing: match older.map(Slot::entry) {
                Some(e) => sealing.with_older(&e.sealing, e.arrived, e.role.is_held()),
                None => sealing,
            },
            restored: Some(Restored {
                epoch,
                checkpoint: found.checkpoint,
            }),
        })
    }

    /// All bytes first, then the right to run the VM, then its guest.
    async fn bring_back(&self, restore: &Restore<'_>, memory: Promise) -> Result<(), Error> {
        let ram = self.fetch_files(restore).await?;
        self.take_over(restore).await?;
        self.start_restored(restore, memory, ram.as_deref()).await?;
        if let Some(ram) = ram {
            // The guest has read it; a file left behind costs only space.
            let _ = std::fs::remove_file(&ram);
        }
        Ok(())
    }

    /// Makes the new incarnation's disk; gives the file of RAM, if the snapshot has one.
    async fn fetch_files(&self, restore: &Restore<'_>) -> Result<Option<PathBuf>, Error> {
        let (checkpoint, key) = (restore.checkpoint, restore.key);
        let progress = restore.progress;
        let providers = &restore.snapshot.providers;
        let (entry, vault) = (restore.slot.entry(), &self.parts.vault);
        let spec = self.registry.spec(&entry);
        let image = vault
            .ensure_image(entry.definition.image, providers, progress)
            .await?;
        vault
            .export(checkpoint.disk, key, providers, &spec.disk, progress)
            .await?;
        self.parts
            .hypervisor
            .rebase_disk(&spec.disk, &image)
            .await?;
        let Some(ram) = checkpoint.ram else {
            return Ok(None);
        };
        let ram_file = self.registry.path(&entry).join("restore.ram");
        vault
            .export(ram, key, providers, &ram_file, progress)
            .await?;
        Ok(Some(ram_file))
    }

    /// Has the voters grant and confirm the new epoch; from then on the new incarnation holds the
    /// VM, and an older one here is a branch.
    async fn take_over(&self, restore: &Restore<'_>) -> Result<(), Error> {
        restore.progress.send_modify(|p| p.phase = "voters".into());
        let (entry, ballot) = (restore.slot.entry(), &self.parts.ballot);
        let keys = entry.secret.keys();
        let vm = VmVoters {
            keys: &keys,
            voters: &entry.definition.voters,
        };
        if restore.right.waits_for_lease() {
            ballot
                .take_over(vm, entry.epoch, self.me)
                .await
                .map_err(undecided("asking the VM's voters for the lost host's VM"))?;
            return self.update(restore.slot, |e| e.role = Role::Held).map(drop);
        }
        ballot
            .grant(vm, entry.epoch, self.me, Ground::Force)
            .await
            .map_err(undecided("asking the VM's voters for a new epoch"))?;
        if restore
            .newest
            .is_some_and(|n| !n.confirmed && n.holder != self.me)
        {
            // A migration's target may still run it unconfirmed; it cannot confirm any more, and
            // freezes within this time.
            tokio::time::sleep(longest_run(1)).await;
        }
        ballot
            .confirm(vm, entry.epoch, self.me)
            .await
            .map_err(undecided("confirming the VM's new epoch"))?;
        if let Some(older) = restore.older {
            self.kill_guest(older).await?;
            self.replace(older, entry.epoch)?;
        }
        self.update(restore.slot, |e| e.role = Role::Held).map(drop)
    }

    /// An older incarnation here is a branch, from before the new one holds the VM.
    fn replace(&self, older: &Slot, newer: Epoch) -> Result<(), Error> {
        if older.entry().role == Role::Unmade {
            return Ok(());
        }
        self.update(older, |e| e.make_replaced(self.me, newer))
            .map(drop)
    }

    async fn start_restored(
        &self,
        restore: &Restore<'_>,
        memory: Promise,
        ram: Option<&Path>,
    ) -> Result<(), Error> {
        restore.progress.send_modify(|p| p.phase = "start".into());
        let (slot, port) = (restore.slot, &self.parts.port);
        let entry = slot.entry();
        let spec = self.registry.spec(&entry);
        let start = match ram {
            Some(ram) => Start::Checkpoint(ram.to_owned()),
            None if self.begins_held(&entry).await => Start::Held,
            None => Start::Boot,
        };
        let machine = self.parts.hypervisor.launch(&spec, start).await?;
        self.install(slot, Guest::new(machine.clone(), memory));
        self.secure(slot, &*machine).await?;
        let entry = slot.entry();
        port.attach(&spec, &entry.definition.address, entry.epoch)
            .await?;
        port.frozen(entry.definition.vm, false).await?;
        if *machine.watch().borrow() != RunState::Running {
            machine.resume().await?;
        }
        self.update(slot, |e| e.wanted = RunGoal::Running)?;
        let keys = entry.secret.keys();
        port.announce(&keys, &entry.definition, self.me, entry.epoch)
            .await?;
        self.publish(slot).await;
        Ok(())
    }

    fn note_restored(&self, slot: &Slot, snapshot: &str) {
        let entry = slot.entry();
        let name = &entry.definition.name;
        let fields = [
            ("snapshot", snapshot.to_owned()),
            ("epoch", entry.epoch.0.to_string()),
        ];
        let text = format!("{name} was restored here from its snapshot {snapshot}.");
        self.note(&entry, EventKind::VmRestored, &fields, text);
    }

    /// Cleans up after a restore that failed: before it had the epoch nothing stays; after it the
    /// VM is this host's and stopped, to be restored again.
    async fn drop_restored(&self, slot: &Arc<Slot>) {
        if let Err(e) = self.kill_guest(slot).await {
            tracing::error!(error = %chain(&e), "the half-restored guest could not be ended");
            return;
        }
        let entry = slot.entry();
        if entry.role == Role::Held {
            let note = Some("a restore got its epoch and then failed: restore it again".to_owned());
            if let Err(e) = self.update(slot, |e| e.note = note) {
                tracing::error!(error = %chain(&e), "the failed restore could not be written down");
            }
            self.publish(slot).await;
        } else if let Err(e) = self.remove(slot) {
            tracing::error!(error = %chain(&e), "the half-restored VM's files stay");
        }
    }
}
