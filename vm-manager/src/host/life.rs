//! Making, starting, stopping and deleting a VM on this host.

use super::{Claimed, Entry, Host, Role, Slot, VmStatus};
use crate::{
    Definition, Error, GuestAddress, ImageSource, NewVm,
    ballot::{BallotError, Ground, Voted},
    definition::VmSecret,
    directory::{Wanted, vm_key},
    hypervisor::{Progress, RunState, Start},
};
use p2pvm_overlay::{Epoch, MemberId, UnixTime, VmId, identity::KeyPair};
use std::{
    net::{Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};
use tokio::sync::watch;

pub(crate) fn undecided(step: &'static str) -> impl FnOnce(BallotError) -> Error {
    move |error| Error::Agreement { step, detail: error.to_string() }
}

impl Host {
    /// Makes a VM: its key, voters, name, address, disk. It does not run yet.
    ///
    /// # Errors
    /// [`Error::Refused`] for a name that is taken or limits that are out of range; whatever step failed. Nothing is left behind.
    pub async fn create(&self, new: NewVm, progress: &watch::Sender<Progress>) -> Result<VmStatus, Error> {
        new.check()?;
        if self.slot_named(&new.name).is_some() {
            return Err(Error::Refused(format!("'{}' exists here already: choose another name", new.name)));
        }
        self.room_for(new.memory_mib)?;
        progress.send_modify(|p| p.phase = "image".into());
        let image = match &new.image {
            ImageSource::File(path) => self.parts.vault.import_image(path, progress).await?,
            ImageSource::Stored(id) => *id,
        };
        let path = self.parts.vault.ensure_image(image, &self.parts.fabric.connected(), progress).await?;
        let size = self.parts.hypervisor.virtual_size(&path).await?.max(new.disk_bytes.unwrap_or(0));
        let keys = KeyPair::generate();
        let unclaimed = GuestAddress { v4: Ipv4Addr::UNSPECIFIED, prefix: 0, v6: Ipv6Addr::UNSPECIFIED, mac: [0; 6], mtu: 0 };
        let slot = self.insert(Entry {
            definition: Definition {
                vm: keys.vm_id(),
                name: new.name.clone(),
                cpus: new.cpus,
                memory_mib: new.memory_mib,
                disk_bytes: size,
                image,
                voters: self.choose_voters(keys.vm_id()),
                address: unclaimed,
                created: UnixTime::now(),
            },
            secret: VmSecret::of(&keys),
            epoch: Epoch(1),
            arrived: Epoch(1),
            seq: 0,
            // Until all is done: a kill half-way has to give name and address back.
            role: Role::Unmade,
            wanted: Wanted::Stopped,
            snapshots: vec![],
            note: None,
        })?;
        let made = self.make(&slot, &keys, &path).await;
        if let Err(e) = made {
            self.unmake(&slot).await;
            return Err(e);
        }
        self.publish(&slot).await;
        Ok(slot.status(self.me))
    }

    async fn make(&self, slot: &Arc<Slot>, keys: &KeyPair, image: &std::path::Path) -> Result<(), Error> {
        let entry = slot.entry();
        let name = &entry.definition.name;
        self.directory.take_name(keys, name).await?;
        let vm = Voted { keys, voters: &entry.definition.voters };
        self.parts
            .ballot
            .grant(vm, Epoch(1), self.me, Ground::Mandate)
            .await
            .map_err(undecided("asking the VM's voters for its first epoch"))?;
        self.parts.ballot.confirm(vm, Epoch(1), self.me).await.map_err(undecided("confirming the VM's first epoch"))?;
        let address = self.parts.port.claim(keys, name, Epoch(1)).await?;
        let entry = self.update(slot, |e| e.definition.address = address)?;
        let spec = self.registry.spec(&entry);
        self.parts.hypervisor.create_disk(image, &spec.disk, Some(entry.definition.disk_bytes)).await?;
        self.update(slot, |e| e.role = Role::Held)?;
        Ok(())
    }

    /// Removes what a half-made or half-deleted VM left: name, address, record, files. What cannot be reached now stays for the next start.
    pub(crate) async fn unmake(&self, slot: &Arc<Slot>) {
        let entry = slot.entry();
        let keys = entry.secret.keys();
        let gone = async {
            for snapshot in &entry.snapshots {
                self.parts.vault.forget(snapshot.checkpoint, &snapshot.providers).await?;
            }
            if self.directory.resolve(&entry.definition.name).await? == Some(entry.definition.vm) {
                self.directory.remove(&keys, &entry.definition.name).await?;
            }
            if entry.definition.address.prefix != 0 {
                self.parts.port.release(&keys, &entry.definition).await?;
            }
            self.remove(slot)
        };
        if let Err(e) = gone.await {
            tracing::warn!(vm = %entry.definition.name, error = %e, "a VM is not wholly removed; tried again at the next start");
        }
    }

    /// Starts a VM that is stopped. One that runs is left alone.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Refused`] if it went on elsewhere, [`Error::Agreement`] if its voters cannot be asked,
    /// or the hypervisor's.
    pub async fn start(&self, name: &str) -> Result<VmStatus, Error> {
        let slot = self.named(name)?;
        let _busy = slot.begin_soon("starting").await?;
        self.must_be_held(&slot)?;
        if slot.run_state() != RunState::Running {
            self.boot(&slot).await?;
        }
        Ok(slot.status(self.me))
    }

    /// Boots a held VM from its disk, after its voters said that it is ours.
    pub(crate) async fn boot(&self, slot: &Arc<Slot>) -> Result<(), Error> {
        let entry = slot.entry();
        let name = &entry.definition.name;
        if let Some(left) = slot.take_machine() {
            left.kill().await?;
        }
        self.room_for(entry.definition.memory_mib)?;
        let entry = match self.claim(&entry).await.map_err(undecided("asking the VM's voters whether it may start here"))? {
            Claimed::Ours(epoch) => self.update(slot, |e| (e.epoch, e.note) = (epoch, None))?,
            Claimed::Theirs { holder, epoch } => {
                self.fence(slot, holder, epoch).await;
                return Err(Self::running_elsewhere(name, holder, epoch));
            }
        };
        let image = self.local_image(&entry).await?;
        let spec = self.registry.spec(&entry);
        self.parts.hypervisor.rebase_disk(&spec.disk, &image).await?;
        let entry = self.update(slot, |e| e.wanted = Wanted::Running)?;
        let machine = self.parts.hypervisor.launch(&spec, Start::Boot).await?;
        self.install(slot, machine);
        self.parts.port.attach(&spec, &entry.definition.address, entry.epoch).await?;
        self.parts.port.announce(&entry.secret.keys(), &entry.definition, self.me, entry.epoch).await?;
        self.publish(slot).await;
        Ok(())
    }

    /// Stops a VM: asks its guest to power down, kills it after a while.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Refused`] if it is busy, or the hypervisor's.
    pub async fn stop(&self, name: &str) -> Result<VmStatus, Error> {
        let slot = self.named(name)?;
        let _busy = slot.begin_soon("stopping").await?;
        self.must_be_held(&slot)?;
        self.update(&slot, |e| e.wanted = Wanted::Stopped)?;
        if let Some(machine) = slot.take_machine() {
            if let Err(e) = machine.stop(self.options.stop_patience).await {
                // It may still run: it stays listed.
                self.install(&slot, machine);
                return Err(e);
            }
            self.parts.port.detach(slot.entry().definition.vm).await?;
        }
        self.publish(&slot).await;
        Ok(slot.status(self.me))
    }

    /// Deletes a VM that is stopped, with its snapshots here, its name and its address; or a branch.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Refused`] if it runs, [`Error::Agreement`] if its voters cannot be asked.
    pub async fn delete(&self, name: &str) -> Result<(), Error> {
        let slot = self.named(name)?;
        let _busy = slot.begin_soon("deleting").await?;
        let entry = slot.entry();
        if entry.is_branch() {
            if let Some(machine) = slot.take_machine() {
                machine.kill().await?;
            }
            return self.remove(&slot);
        }
        self.must_be_held(&slot)?;
        if slot.run_state() != RunState::Stopped {
            return Err(Error::Refused(format!("'{name}' runs: stop it first")));
        }
        match self.claim(&entry).await.map_err(undecided("asking the VM's voters whether it is still here"))? {
            Claimed::Theirs { holder, epoch } => {
                self.fence(&slot, holder, epoch).await;
                Err(Self::running_elsewhere(name, holder, epoch))
            }
            Claimed::Ours(_) => {
                self.update(&slot, |e| e.role = Role::Unmade)?;
                self.unmake(&slot).await;
                Ok(())
            }
        }
    }

    pub(crate) fn must_be_held(&self, slot: &Slot) -> Result<(), Error> {
        let entry = slot.entry();
        let name = entry.listed_name();
        Err(Error::Refused(match entry.role {
            Role::Held => return Ok(()),
            Role::Branch { holder, .. } => format!("'{name}' is a copy that lost its VM to {}: it can only be deleted", holder.short()),
            Role::Doubtful { .. } => format!("'{name}' waits for its voters to say whether it may run here"),
            Role::Leaving { .. } | Role::Arriving { .. } | Role::Unmade => {
                format!("'{name}' is being moved, made or deleted: wait until that is done")
            }
        }))
    }

    /// The VM's image as a file here.
    pub(crate) async fn local_image(&self, entry: &Entry) -> Result<std::path::PathBuf, Error> {
        self.parts.vault.ensure_image(entry.definition.image, &self.parts.fabric.connected(), &watch::Sender::default()).await
    }

    pub(crate) fn room_for(&self, memory_mib: u64) -> Result<(), Error> {
        let Some(limit) = self.options.memory_mib else { return Ok(()) };
        let used: u64 = self.slots().iter().filter(|s| s.machine().is_some()).map(|s| s.entry().definition.memory_mib).sum();
        if used + memory_mib > limit {
            return Err(Error::Refused(format!("{memory_mib} MiB do not fit: {used} of the {limit} MiB for VMs are in use here")));
        }
        Ok(())
    }

    /// This member and the connected ones closest to the VM on the ring: an odd number, since an even one tolerates no more failures.
    fn choose_voters(&self, vm: VmId) -> Vec<MemberId> {
        let mut others = self.parts.fabric.connected();
        others.sort_by_key(|m| m.ring_addr().distance(&vm_key(vm)));
        let wanted = self.options.voters.min(others.len() + 1);
        others.truncate((wanted - (wanted + 1) % 2).saturating_sub(1));
        others.push(self.me);
        others.sort();
        others
    }

    /// How long a guest here may take to power down.
    pub fn stop_patience(&self) -> Duration {
        self.options.stop_patience
    }
}
