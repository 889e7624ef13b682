//! Creating, starting, stopping and deleting a VM on this host.

use super::{Activity, Entry, Guest, Host, Ownership, Role, Slot, VmStatus, lock};
use crate::{
    Definition, Error, GuestAddress, ImageSource, NewVm, Protection,
    backups::Backups,
    ballot::{Ground, VmVoters},
    definition::VmSecret,
    directory::RunGoal,
    error::undecided,
    hypervisor::{Machine, Progress, RunState, Start},
    image_file::ImageFile,
    sealed::HoldingKeys,
};
use p2pvm_api::EventKind;
use p2pvm_authority::Revocations;
use p2pvm_overlay::{Epoch, MemberId, UnixTime, chain, identity::KeyPair};
use p2pvm_snapshot_sync::ManifestId;
use std::{
    net::{Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};
use tokio::sync::watch;

/// The size of a disk over an image: as large as the image, or as wanted if that is not less.
fn disk_size(image: u64, wanted: Option<u64>) -> Result<u64, Error> {
    match wanted {
        Some(wanted) if wanted < image => {
            let mib = image.div_ceil(1 << 20);
            Err(Error::Refused(format!(
                "the disk cannot be smaller than its image, {mib} MiB: --disk {mib}M or more, or \
                    no --disk"
            )))
        }
        Some(wanted) => Ok(wanted),
        None => Ok(image),
    }
}

/// The address of a VM that has none yet.
const UNCLAIMED: GuestAddress = GuestAddress {
    v4: Ipv4Addr::UNSPECIFIED,
    prefix: 0,
    v6: Ipv6Addr::UNSPECIFIED,
    mac: [0; 6],
    mtu: 0,
};

impl Host {
    /// Makes a VM of this host's own: [`Host::create_for`].
    ///
    /// # Errors
    /// As [`Host::create_for`].
    pub async fn create(
        &self,
        new: NewVm,
        progress: &watch::Sender<Progress>,
    ) -> Result<VmStatus, Error> {
        self.create_for(self.me, new, progress).await
    }

    /// Makes a VM for a member: its key, voters, name, address, disk. It does not run yet.
    ///
    /// # Errors
    /// [`Error::Refused`] for a name that is taken or limits that are out of range; the error of
    /// the step that failed. Nothing is left behind.
    pub async fn create_for(
        &self,
        owner: MemberId,
        new: NewVm,
        progress: &watch::Sender<Progress>,
    ) -> Result<VmStatus, Error> {
        new.check()?;
        if self.slot_named(&new.name).is_some() {
            return Err(Error::Refused(format!(
                "'{}' exists here already: choose another name",
                new.name
            )));
        }
        // Before a byte of an image moves.
        let size = (new.cpus, new.memory_mib, new.disk_bytes.unwrap_or(0));
        self.has_room(owner, size, false)?;
        progress.send_modify(|p| p.phase = "image".into());
        let (image, is_new) = match &new.image {
            ImageSource::Stored(id) => (*id, !self.parts.vault.has_image(*id).await),
            ImageSource::File(_) | ImageSource::Below { .. } => {
                (self.import(&new, progress).await?, true)
            }
        };
        let made = self.create_from(&new, (image, owner), progress).await;
        if made.is_err() && is_new {
            self.drop_unused(image).await;
        }
        made
    }

    /// Makes an image of the file that a new VM names. The file is checked before anything is
    /// stored: a file that is no image, or does not fit, leaves nothing behind.
    async fn import(
        &self,
        new: &NewVm,
        progress: &watch::Sender<Progress>,
    ) -> Result<ManifestId, Error> {
        let source = new.image.clone();
        let step = "open the disk image";
        let opened = tokio::task::spawn_blocking(move || ImageFile::of(&source)).await;
        let file = opened
            .map_err(|source| Error::Task { step, source })??
            .ok_or_else(|| Error::NotFound("the image's file".into()))?;
        let path = file.path();
        let checked = self.parts.hypervisor.check_image(path).await;
        disk_size(checked.map_err(|e| file.named(e))?, new.disk_bytes)?;
        self.room_on_disk(std::fs::metadata(path).map_or(0, |found| found.len()))?;
        self.parts.vault.import_image(path, progress).await
    }

    async fn create_from(
        &self,
        new: &NewVm,
        (image, owner): (ManifestId, MemberId),
        progress: &watch::Sender<Progress>,
    ) -> Result<VmStatus, Error> {
        // Until the VM is listed.
        let _using = self.using(image);
        let path = self
            .parts
            .vault
            .ensure_image(image, &self.parts.fabric.connected(), progress)
            .await?;
        let size = disk_size(
            self.parts.hypervisor.virtual_size(&path).await?,
            new.disk_bytes,
        )?;
        let keys = KeyPair::generate();
        let need = self
            .envelope
            .need_of_new(owner, (new.cpus, new.memory_mib, size));
        // Until the VM is listed with a place of its own.
        let _place = self.envelope.stay(&need.of(keys.vm_id()))?;
        let slot = self.insert(Entry {
            definition: Definition {
                vm: keys.vm_id(),
                name: new.name.clone(),
                cpus: new.cpus,
                memory_mib: new.memory_mib,
                disk_bytes: size,
                image,
                voters: self.choose_voters(&keys).await,
                address: UNCLAIMED,
                created: UnixTime::now(),
            },
            secret: VmSecret::of(&keys),
            epoch: Epoch(1),
            arrived: Epoch(1),
            seq: 0,
            // Until all is done. Reason: after a kill half-way, name and address are given back.
            role: Role::Unmade,
            wanted: RunGoal::Stopped,
            snapshots: vec![],
            note: None,
            gives_way: None,
            owner: Some(owner),
            user: new.user,
            revoked: Revocations::NONE,
            protection: Protection::default(),
            replica: None,
            sending: None,
            leased: false,
            healed: None,
            bits_per_second: new.bits_per_second,
            backups: Backups::NONE,
            sealing: HoldingKeys::NONE,
            restored: None,
        })?;
        // The rounds do not touch a VM on which an operation works.
        let operation = slot.begin(Activity::Creating)?;
        if let Err(e) = self.make(&slot, &keys, &path).await {
            self.unmake(&slot).await;
            return Err(e);
        }
        self.publish(&slot).await;
        drop(operation);
        let text = format!("{} was made here.", new.name);
        self.note(&slot.entry(), EventKind::VmCreated, &[], text);
        Ok(self.status_of(&slot))
    }

    async fn make(
        &self,
        slot: &Arc<Slot>,
        keys: &KeyPair,
        image: &std::path::Path,
    ) -> Result<(), Error> {
        let entry = slot.entry();
        let name = &entry.definition.name;
        self.directory.take_name(keys, name).await?;
        let vm = VmVoters {
            keys,
            voters: &entry.definition.voters,
        };
        self.parts
            .ballot
            .grant(vm, Epoch(1), self.me, Ground::Mandate)
            .await
            .map_err(undecided("asking the VM's voters for its first epoch"))?;
        self.parts
            .ballot
            .confirm(vm, Epoch(1), self.me)
            .await
            .map_err(undecided("confirming the VM's first epoch"))?;
        let address = self.parts.port.claim(keys, name, Epoch(1)).await?;
        let entry = self.update(slot, |e| e.definition.address = address)?;
        let spec = self.registry.spec(&entry);
        self.parts
            .hypervisor
            .create_disk(image, &spec.disk, Some(entry.definition.disk_bytes))
            .await?;
        self.update(slot, |e| e.role = Role::Held)?;
        Ok(())
    }

    /// Removes what a half-made or half-deleted VM left: name, address, record, files. If a part
    /// cannot be removed now, the VM stays, unlisted, and the next round tries again.
    pub(crate) async fn unmake(&self, slot: &Arc<Slot>) {
        let entry = slot.entry();
        let keys = entry.secret.keys();
        let (vm, releasers) = (entry.definition.vm, entry.sealing.releasers(&entry.secret));
        let gone = async {
            for s in &entry.snapshots {
                self.end_copies(vm, (s.checkpoint, &s.providers), &releasers)
                    .await?;
            }
            if let Some(r) = &entry.replica {
                self.end_copies(vm, (r.checkpoint, &r.providers), &releasers)
                    .await?;
            }
            self.directory.remove(&keys, &entry.definition.name).await?;
            if entry.definition.address.prefix != 0 {
                self.parts.port.release(&keys, &entry.definition).await?;
            }
            self.remove(slot)
        };
        if let Err(e) = gone.await {
            tracing::warn!(vm = %entry.definition.name, error = %chain(&e), "cannot remove all of \
                a VM yet: the next round tries again");
            return;
        }
        self.forget_own(entry.definition.vm);
        let vm = VmVoters {
            keys: &keys,
            voters: &entry.definition.voters,
        };
        let told = self.parts.ballot.deleted(vm, entry.epoch, self.me).await;
        if let Err(e) = told {
            tracing::debug!(vm = %entry.definition.name, error = %chain(&e), "cannot tell the \
                voters that the VM was deleted");
        }
    }

    /// Starts a VM that is stopped. A running one is left alone; a guest that only stands still
    /// goes on, and is never ended.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Refused`] if it went on elsewhere, or stands still and cannot
    /// go on yet, [`Error::Agreement`] if its voters cannot be asked, or the hypervisor's.
    pub async fn start(&self, name: &str) -> Result<VmStatus, Error> {
        let slot = self.named(name)?;
        let _operation = slot.begin_after_check(Activity::Starting).await?;
        self.must_be_held(&slot)?;
        match (slot.run_state(), slot.machine()) {
            (RunState::Running, _) => {}
            (RunState::Paused, Some(machine)) => self.go_on(&slot, &*machine).await?,
            _ => {
                lock(&slot.restarts).forget();
                self.boot(&slot).await?;
                let text = format!("{name} was started.");
                self.note(&slot.entry(), EventKind::GuestRunning, &[], text);
            }
        }
        Ok(self.status_of(&slot))
    }

    /// Boots a held VM from its disk, once its voters have said that it is this host's.
    pub(crate) async fn boot(&self, slot: &Arc<Slot>) -> Result<(), Error> {
        let entry = slot.entry();
        let name = &entry.definition.name;
        self.kill_guest(slot).await?;
        let memory = self.envelope.promise(&self.envelope.need_of(&entry))?;
        let entry = match self.claim(&entry).await.map_err(undecided(
            "asking the VM's voters whether it may start here",
        ))? {
            Ownership::Ours(epoch) => self.update(slot, |e| {
                (e.epoch, e.note, e.gives_way) = (epoch, None, None)
            })?,
            Ownership::Theirs { holder, epoch } => {
                self.lose(slot, holder, epoch).await;
                return Err(Self::running_elsewhere(name, holder, epoch));
            }
        };
        let image = self.local_image(&entry).await?;
        let spec = self.registry.spec(&entry);
        self.parts
            .hypervisor
            .rebase_disk(&spec.disk, &image)
            .await?;
        let entry = self.update(slot, |e| e.wanted = RunGoal::Running)?;
        self.ease();
        let start = match self.begins_held(&entry).await {
            true => Start::Held,
            false => Start::Boot,
        };
        let machine = self.parts.hypervisor.launch(&spec, start).await?;
        self.install(slot, Guest::new(machine.clone(), memory));
        if let Err(e) = self.begin_to_run(slot, &*machine).await {
            self.kill_guest(slot).await?;
            return Err(e);
        }
        let entry = slot.entry();
        self.parts
            .port
            .attach(&spec, &entry.definition.address, entry.epoch)
            .await?;
        self.parts
            .port
            .announce(
                &entry.secret.keys(),
                &entry.definition,
                self.me,
                entry.epoch,
            )
            .await?;
        self.publish(slot).await;
        Ok(())
    }

    /// Brings a guest that was launched under a lease, if its VM is to be protected, and lets it
    /// run.
    async fn begin_to_run(&self, slot: &Arc<Slot>, machine: &dyn Machine) -> Result<(), Error> {
        self.secure(slot, machine).await?;
        match slot.run_state() {
            RunState::Running => Ok(()),
            _ => machine.resume().await,
        }
    }

    /// Stops a VM: asks its guest to power down, kills it after a while. A move that is under way
    /// is given up for it.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Refused`] if it is busy, or the hypervisor's.
    pub async fn stop(&self, name: &str) -> Result<VmStatus, Error> {
        self.stop_within(name, self.options.stop_patience).await
    }

    /// The same, but the guest may take no longer than `patience`; with none it is not asked at
    /// all.
    ///
    /// # Errors
    /// As [`Host::stop`].
    pub async fn stop_within(&self, name: &str, patience: Duration) -> Result<VmStatus, Error> {
        let slot = self.named(name)?;
        let _operation = self.begin_before_move(&slot, Activity::Stopping).await?;
        self.must_be_held(&slot)?;
        let ran = slot.machine().is_some();
        self.update(&slot, |e| {
            // A guest that waited for its restart is not started again.
            if !ran && e.wanted == RunGoal::Running {
                e.note = None;
            }
            e.wanted = RunGoal::Stopped;
        })?;
        self.end_guest(&slot, patience).await?;
        if ran {
            let text = format!("{name} was stopped.");
            self.note(&slot.entry(), EventKind::GuestStopped, &[], text);
        }
        self.publish(&slot).await;
        Ok(self.status_of(&slot))
    }

    /// Ends a VM's guest because the host shuts down. The VM is still meant to run: the next daemon
    /// here boots it.
    ///
    /// # Errors
    /// As [`Host::stop`].
    pub async fn stop_for_now(&self, name: &str, patience: Duration) -> Result<(), Error> {
        let slot = self.named(name)?;
        let _operation = self.begin_before_move(&slot, Activity::Stopping).await?;
        self.must_be_held(&slot)?;
        self.end_guest(&slot, patience).await
    }

    async fn end_guest(&self, slot: &Arc<Slot>, patience: Duration) -> Result<(), Error> {
        let Some(guest) = slot.take_guest() else {
            return Ok(());
        };
        let is_frozen = self.is_frozen(slot.entry().definition.vm);
        let stopped = if patience.is_zero() || is_frozen {
            guest.machine.kill().await
        } else {
            guest.machine.stop(patience).await
        };
        if let Err(e) = stopped {
            // It may still run: it stays listed.
            self.install(slot, guest);
            return Err(e);
        }
        drop(guest);
        let entry = slot.entry();
        self.end_lease(slot).await;
        self.parts.port.detach(entry.definition.vm).await
    }

    /// Deletes a VM that is stopped, with its snapshots here and on the members that answer, its
    /// name and its address; or a branch.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Refused`] if it runs, [`Error::Agreement`] if its voters
    /// cannot be asked.
    pub async fn delete(&self, name: &str) -> Result<(), Error> {
        let slot = self.named(name)?;
        if !slot.entry().is_branch() && slot.run_state() != RunState::Stopped {
            return Err(Error::Refused(format!("'{name}' runs: stop it first")));
        }
        let _operation = slot.begin_after_check(Activity::Deleting).await?;
        let entry = slot.entry();
        if entry.is_branch() {
            self.kill_guest(&slot).await?;
            return self.remove(&slot);
        }
        self.must_be_held(&slot)?;
        if slot.run_state() != RunState::Stopped {
            return Err(Error::Refused(format!("'{name}' runs: stop it first")));
        }
        match self
            .claim(&entry)
            .await
            .map_err(undecided("asking the VM's voters whether it is still here"))?
        {
            Ownership::Theirs { holder, epoch } => {
                self.lose(&slot, holder, epoch).await;
                Err(Self::running_elsewhere(name, holder, epoch))
            }
            Ownership::Ours(epoch) => {
                self.update(&slot, |e| (e.role, e.epoch) = (Role::Unmade, epoch))?;
                self.unmake(&slot).await;
                self.note(
                    &entry,
                    EventKind::VmDeleted,
                    &[],
                    format!("{name} was deleted."),
                );
                Ok(())
            }
        }
    }

    pub(crate) fn must_be_held(&self, slot: &Slot) -> Result<(), Error> {
        let entry = slot.entry();
        let name = entry.listed_name();
        Err(Error::Refused(match entry.role {
            Role::Held => return Ok(()),
            Role::Branch { holder, .. } => format!(
                "'{name}' is a copy that lost its VM to {}: it can only be deleted",
                holder.short()
            ),
            Role::Doubtful { .. } => {
                format!("'{name}' waits for its voters to say whether it may run here")
            }
            Role::Leaving { .. } | Role::Arriving { .. } | Role::Unmade => {
                format!("'{name}' is being moved, made or deleted: wait until that is done")
            }
        }))
    }

    /// The VM's image as a file here.
    pub(crate) async fn local_image(&self, entry: &Entry) -> Result<std::path::PathBuf, Error> {
        self.parts
            .vault
            .ensure_image(
                entry.definition.image,
                &self.parts.fabric.connected(),
                &watch::Sender::default(),
            )
            .await
    }

    /// How long a guest here may take to power down.
    pub fn stop_patience(&self) -> Duration {
        self.options.stop_patience
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_smaller_than_its_image_is_refused_with_the_least_size() {
        assert_eq!(
            (disk_size(5, None).unwrap(), disk_size(5, Some(9)).unwrap()),
            (5, 9)
        );
        let refused = disk_size((49 << 20) - 1, Some(10 << 20))
            .unwrap_err()
            .to_string();
        assert!(refused.contains("--disk 49M"), "{refused}");
    }
}
