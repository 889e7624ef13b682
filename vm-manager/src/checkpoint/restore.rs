//! Restoring a VM from a snapshot on this host: all bytes first, then the right to run it, then its
//! guest.
//!
//! A VM whose guest runs somewhere is never restored beside it. A holder that cannot be asked may
//! run it: its user has to say `force`, and the new epoch fences whatever the old holder still
//! does.

use super::Kept;
use crate::{
    Error,
    ballot::{Ground, Newest, Voted},
    directory::{Snapshot, VmRecord, Wanted},
    host::{
        Entry, Host, Role, Slot, VmStatus,
        remote::{VmAnswer, VmRequest},
    },
    hypervisor::{Progress, RunState, Start},
    migrate::handover::longest_run,
};
use p2pvm_overlay::{Epoch, MemberId, chain, identity::KeyPair};
use p2pvm_snapshot_sync::Checkpoint;
use std::sync::Arc;
use tokio::sync::watch;

/// Choices of a restore.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RestoreOptions {
    /// The holder does not answer, and its user says that it is dead or may be fenced.
    pub force: bool,
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
        let record = self.known(name).await?;
        let found = record
            .snapshots
            .iter()
            .find(|s| s.name == snapshot)
            .cloned();
        let found =
            found.ok_or_else(|| Error::NotFound(format!("the snapshot '{name}@{snapshot}'")))?;
        let holder = self.may_restore(&record, options).await?;
        self.room_for(record.definition.memory_mib)?;
        progress.send_modify(|p| p.phase = "fetch".into());
        let was_kept = self.parts.vault.keeps(found.checkpoint).await?;
        let restored = self.restore_from(&record, &found, holder, progress).await;
        if restored.is_err() && !was_kept && self.slot_of(record.definition.vm).is_none() {
            self.let_go(&record, &found).await;
        }
        restored
    }

    /// What came for a VM that was not restored here goes.
    async fn let_go(&self, record: &VmRecord, snapshot: &Snapshot) {
        if let Err(error) = self.parts.vault.forget(snapshot.checkpoint, &[]).await {
            tracing::info!(error = %chain(&error), "the snapshot of a VM that was not restored \
                stays");
        }
        self.drop_unused(record.definition.image).await;
    }

    async fn restore_from(
        self: &Arc<Self>,
        record: &VmRecord,
        found: &Snapshot,
        holder: MemberId,
        progress: &watch::Sender<Progress>,
    ) -> Result<VmStatus, Error> {
        let name = &record.definition.name;
        let (checkpoint, kept) = self.checkpoint_of(record, found, progress).await?;
        // An older stay here gives way only once the new one has all its bytes and the epoch.
        let older = self.slot_of(record.definition.vm);
        let _older_busy = older
            .as_ref()
            .map(|slot| slot.begin("giving way to a restore"))
            .transpose()?;
        let keys = kept.secret.keys();
        let newest = self.newest(record, &keys).await?;
        if newest.is_some_and(|n| n.holder != holder && n.holder != self.me && n.confirmed) {
            return Err(Error::Refused(format!(
                "'{name}' has just changed hands: look at its state and try again"
            )));
        }
        let epoch = newest
            .map_or(record.epoch, |n| n.epoch.max(record.epoch))
            .next();
        self.let_give_way(record, holder).await?;
        let slot = self.restored_entry(record, &kept, epoch)?;
        let busy = slot.begin("restoring")?;
        let restored = self
            .bring_back(&slot, &checkpoint, found, newest, older.as_ref(), progress)
            .await;
        match restored {
            Ok(()) => {}
            Err(e) => {
                self.drop_restored(&slot).await;
                return Err(e);
            }
        }
        drop(busy);
        if let Some(older) = older
            && let Err(e) = self.remove(&older)
        {
            tracing::warn!(error = %chain(&e), "the disk from before the restore stays");
        }
        if holder != self.me {
            // One that does not hear it finds out in its own next round.
            let _ = self
                .ask_member(holder, &VmRequest::Took(record.definition.vm))
                .await;
        }
        self.resume_copies(&slot).await;
        Ok(self.status_of(&slot))
    }

    /// A holder that answers lets its stopped copy go: a restore there would put another in its
    /// place as well. One that does not answer, or does not know the question, keeps its copy as a
    /// branch.
    async fn let_give_way(&self, record: &VmRecord, holder: MemberId) -> Result<(), Error> {
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

    /// What is known of the VM: its entry here, or its record.
    async fn known(&self, name: &str) -> Result<VmRecord, Error> {
        match self
            .slot_named(name)
            .map(|s| s.entry())
            .filter(|e| !e.is_branch())
        {
            Some(e) => Ok(VmRecord {
                definition: e.definition,
                holder: self.me,
                epoch: e.epoch,
                wanted: e.wanted,
                snapshots: e.snapshots,
            }),
            None => self.record(name).await,
        }
    }

    /// Whether the VM's guest runs nowhere, as far as can be known; returns its present holder.
    async fn may_restore(
        self: &Arc<Self>,
        record: &VmRecord,
        options: RestoreOptions,
    ) -> Result<MemberId, Error> {
        let (name, holder) = (&record.definition.name, record.holder);
        match self
            .ask_member(holder, &VmRequest::Runs(record.definition.vm))
            .await
        {
            Ok(VmAnswer::Runs(Some(true))) => Err(Error::Refused(format!(
                "'{name}' runs on {}: stop it first, then restore",
                holder.short()
            ))),
            Ok(_) => Ok(holder),
            Err(_) if options.force => Ok(holder),
            Err(_) => Err(Error::Refused(format!(
                "the host of '{name}', {}, does not answer and may still run it: if it is dead, \
                    restore with --force \
                 (its copy is then cut off from the network for good)",
                holder.short()
            ))),
        }
    }

    async fn checkpoint_of(
        &self,
        record: &VmRecord,
        snapshot: &Snapshot,
        progress: &watch::Sender<Progress>,
    ) -> Result<(Checkpoint, Kept), Error> {
        let checkpoint = self
            .parts
            .vault
            .fetch(snapshot.checkpoint, &snapshot.providers, progress)
            .await?;
        let kept =
            Kept::from_bytes(&checkpoint.spec).filter(|k| k.definition.vm == record.definition.vm);
        let broken = || Error::Chunks {
            step: "reading the snapshot",
            detail: "it is not a checkpoint of this VM".into(),
        };
        kept.map(|kept| (checkpoint, kept)).ok_or_else(broken)
    }

    async fn newest(&self, record: &VmRecord, keys: &KeyPair) -> Result<Option<Newest>, Error> {
        let vm = Voted {
            keys,
            voters: &record.definition.voters,
        };
        self.parts
            .ballot
            .newest(vm)
            .await
            .map_err(crate::host::undecided(
                "asking the VM's voters for its newest epoch",
            ))
    }

    fn restored_entry(
        &self,
        record: &VmRecord,
        kept: &Kept,
        epoch: Epoch,
    ) -> Result<Arc<Slot>, Error> {
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
            wanted: Wanted::Stopped,
            snapshots: record.snapshots.clone(),
            note: None,
            gives_way: None,
        })
    }

    async fn bring_back(
        &self,
        slot: &Arc<Slot>,
        checkpoint: &Checkpoint,
        snapshot: &Snapshot,
        newest: Option<Newest>,
        older: Option<&Arc<Slot>>,
        progress: &watch::Sender<Progress>,
    ) -> Result<(), Error> {
        let (entry, vault, hypervisor) = (slot.entry(), &self.parts.vault, &self.parts.hypervisor);
        let spec = self.registry.spec(&entry);
        let image = vault
            .ensure_image(entry.definition.image, &snapshot.providers, progress)
            .await?;
        vault
            .export(checkpoint.disk, &snapshot.providers, &spec.disk, progress)
            .await?;
        hypervisor.rebase_disk(&spec.disk, &image).await?;
        let ram_file = self.registry.path(&entry).join("restore.ram");
        if let Some(ram) = checkpoint.ram {
            vault
                .export(ram, &snapshot.providers, &ram_file, progress)
                .await?;
        }
        progress.send_modify(|p| p.phase = "voters".into());
        let keys = entry.secret.keys();
        let vm = Voted {
            keys: &keys,
            voters: &entry.definition.voters,
        };
        let undecided = crate::host::undecided;
        self.parts
            .ballot
            .grant(vm, entry.epoch, self.me, Ground::Mandate)
            .await
            .map_err(undecided("asking the VM's voters for a new epoch"))?;
        if newest.is_some_and(|n| !n.confirmed && n.holder != self.me) {
            // A migration's target may still run it unconfirmed; it cannot confirm any more, and
            // freezes within this time.
            tokio::time::sleep(longest_run(1)).await;
        }
        self.parts
            .ballot
            .confirm(vm, entry.epoch, self.me)
            .await
            .map_err(undecided("confirming the VM's new epoch"))?;
        if let Some(older) = older {
            self.kill_guest(older).await?;
        }
        let entry = self.update(slot, |e| e.role = Role::Held)?;
        let start = if checkpoint.ram.is_some() {
            Start::Checkpoint(ram_file.clone())
        } else {
            Start::Boot
        };
        progress.send_modify(|p| p.phase = "start".into());
        let machine = hypervisor.launch(&spec, start).await?;
        self.install(slot, machine.clone());
        self.parts
            .port
            .attach(&spec, &entry.definition.address, entry.epoch)
            .await?;
        self.parts.port.frozen(entry.definition.vm, false).await?;
        if *machine.watch().borrow() != RunState::Running {
            machine.resume().await?;
        }
        self.update(slot, |e| e.wanted = Wanted::Running)?;
        self.parts
            .port
            .announce(&keys, &entry.definition, self.me, entry.epoch)
            .await?;
        self.publish(slot).await;
        // The RAM file has been read; what stays of it costs only space.
        let _ = std::fs::remove_file(&ram_file);
        Ok(())
    }

    /// A restore that failed: before it had the epoch nothing stays; after it the VM is ours and
    /// stopped, to be tried again.
    async fn drop_restored(&self, slot: &Arc<Slot>) {
        if let Err(e) = self.kill_guest(slot).await {
            tracing::error!(error = %chain(&e), "the half-restored guest could not be ended");
            return;
        }
        let entry = slot.entry();
        if entry.role == Role::Held {
            let note = Some("a restore got its epoch and then failed: restore it again".to_owned());
            if let Err(e) = self.update(slot, |e| e.note = note) {
                tracing::error!(error = %chain(&e), "that could not be written down");
            }
            self.publish(slot).await;
        } else if let Err(e) = self.remove(slot) {
            tracing::error!(error = %chain(&e), "the half-restored VM's files stay");
        }
    }
}
