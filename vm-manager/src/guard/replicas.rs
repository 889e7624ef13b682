//! Replicates the disks of running guests to other members, for the day when their host is gone.
//!
//! A round copies what the guest wrote since the round before, as it was at the round's beginning,
//! stores it as a checkpoint of the disk alone, and has other members fetch what is new of it. The
//! VM's record names the newest one that all of its holders have; the one before is released after
//! that, so that one is whole at every moment. The guest is never paused, and rounds give way to
//! moves and snapshots. When a round is due is `host::replication`'s.

use crate::{
    Error, Host,
    checkpoint::{SavedVm, candidates},
    error::io_at,
    host::{Entry, HostEvent, ReplicationStatus, Role, Slot},
    hypervisor::{ChangedDisk, Machine, RunState},
    protection::{Protection, REPLICA, Replica},
    vault::{CheckpointInput, Copies, Durability},
};
use p2pvm_api::EventKind;
use p2pvm_overlay::{Epoch, MemberId, UnixTime, VmId, chain, identity::KeyPair};
use p2pvm_snapshot_sync::ManifestId;
use std::{path::Path, sync::Arc, time::Duration};
use tokio::sync::{Semaphore, watch};

/// How long between two looks for rounds that are due.
const LOOK: Duration = Duration::from_secs(1);
/// How many rounds are made at a time; more may be sending. Reason: a host's guests share its disk.
const AT_A_TIME: usize = 2;
/// How long a replica may take to reach its holders before a newer one takes its place. Reason:
/// what came stays with the holders, and is not sent again.
const SENDING: Duration = Duration::from_secs(600);
/// How long between two looks whether a VM whose replica is being sent is still here.
const STILL_HELD: Duration = Duration::from_secs(5);
/// The same when the replica is there, and an operation on the VM goes on.
const SOON: Duration = Duration::from_millis(200);

/// Why there is no new replica.
enum Setback {
    /// Something goes before it: it is made later.
    Later(String),
    /// It failed.
    Failed(Error),
}

impl From<Error> for Setback {
    fn from(error: Error) -> Self {
        match error {
            Error::GaveWay(why) => Self::Later(why),
            error => Self::Failed(error),
        }
    }
}

fn later<T>(why: &str) -> Result<T, Setback> {
    Err(Setback::Later(why.into()))
}

impl Host {
    /// Sets how well a VM here is to outlive its host. Without replication from now on, its last
    /// replica is released: an heir would start a state that gets older and older.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Refused`] for what is impossible, or if the VM is not held
    /// here; the file system's.
    pub async fn set_protection(&self, name: &str, protection: Protection) -> Result<(), Error> {
        protection.check()?;
        let slot = self.named(name)?;
        self.must_be_held(&slot)?;
        slot.must_stay()?;
        let (known, ends) = (slot.entry(), protection.replicate_every.is_none());
        let has_replica = known.replica.is_some() || known.sending.is_some();
        if known.protection == protection && !(ends && has_replica) {
            return Ok(());
        }
        let mut dropped = (None, None);
        let entry = self.update(&slot, |e| {
            e.protection = protection;
            if ends {
                dropped = (e.replica.take(), e.sending.take());
            }
        })?;
        self.publish(&slot).await;
        let (former, unsent) = dropped;
        if ends {
            // The next round, if there is one, has nothing to follow.
            slot.replication().lost();
            self.tell_heirs(&slot, true).await;
        }
        let keys = entry.sealing.releasers(&entry.secret);
        if let Some(unsent) = unsent {
            let vm = entry.definition.vm;
            self.forget_unsent(vm, &keys, unsent.checkpoint).await;
        }
        if let Some(former) = former {
            self.forget_former(&slot, keys, former).await;
        }
        Ok(())
    }

    /// How well a VM here is to outlive its host.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn protection(&self, name: &str) -> Result<Protection, Error> {
        Ok(self.named(name)?.entry().protection)
    }

    /// Makes the rounds in tasks, as long as the host lives.
    pub(super) fn watch_replicas(&self) {
        let this = self.weak();
        let seats = Arc::new(Semaphore::new(AT_A_TIME));
        self.spawn(async move {
            loop {
                tokio::time::sleep(LOOK).await;
                let Some(host) = this.upgrade() else { return };
                for slot in host.slots() {
                    host.look_at_replica(&slot, &seats);
                }
            }
        });
    }

    /// Reports a recovery point that is too old, and begins a round that is due.
    fn look_at_replica(&self, slot: &Arc<Slot>, seats: &Arc<Semaphore>) {
        let entry = slot.entry();
        let Some(every) = entry.protection.replicate_every else {
            return;
        };
        let Some(machine) = slot.machine().filter(|_| entry.role == Role::Held) else {
            return;
        };
        // A frozen guest writes nothing, and its monitor answers nothing.
        let is_frozen = self.is_frozen(entry.definition.vm);
        if *machine.watch().borrow() != RunState::Running || is_frozen {
            return;
        }
        self.report_recovery_point(slot, &entry, every);
        let Ok(seat) = seats.clone().try_acquire_owned() else {
            return;
        };
        let now = self.now();
        if !slot.replication().begin(now) {
            return;
        }
        let Some(host) = self.strong() else { return };
        let slot = slot.clone();
        self.spawn(async move {
            let stored = host.make_replica(&slot, &*machine).await;
            drop(seat);
            let sent = match stored {
                Ok(Some(replica)) => host.send_replica(&slot, replica).await,
                Ok(None) => Ok(()),
                Err(setback) => Err(setback),
            };
            let name = entry.listed_name();
            let ended = host.now();
            match sent {
                Ok(()) => slot.replication().succeeded(now, every),
                Err(Setback::Later(why)) => slot.replication().put_off(ended, why),
                Err(Setback::Failed(error)) => {
                    let why = chain(&error);
                    tracing::info!(vm = %name, error = why, "no new replica of the VM's disk");
                    slot.replication().failed(ended, why);
                }
            }
        });
    }

    fn report_recovery_point(&self, slot: &Slot, entry: &Entry, every: Duration) {
        let Some(status) = slot.replication_status(entry) else {
            return;
        };
        let changed = slot.replication().look(self.now(), status.age_s, every);
        let Some(late) = changed else { return };
        let (vm, name) = (&entry.definition.name, entry.listed_name());
        if late {
            tracing::warn!(%vm, every_s = every.as_secs(), "the newest replica of the VM's disk is \
                too old: {status}");
        } else {
            tracing::info!(%vm, "the newest replica of the VM's disk is new enough again");
        }
        let status = ReplicationStatus {
            is_late: late,
            ..status
        };
        let kind = if late {
            EventKind::RpoExceeded
        } else {
            EventKind::RpoKept
        };
        self.note(entry, kind, &[], format!("{name}: {status}."));
        self.emit(HostEvent::RecoveryPoint { name, late, status });
    }

    /// The part of a round on this host; `None` if the newest replica is still what the disk holds.
    async fn make_replica(
        &self,
        slot: &Arc<Slot>,
        machine: &dyn Machine,
    ) -> Result<Option<Replica>, Setback> {
        if !slot.is_idle() {
            return later("another operation works on the VM");
        }
        if self.parts.fabric.connected().is_empty() {
            return later("no other member is connected");
        }
        let entry = self.with_own_key(slot)?;
        let base = slot.replication().base();
        let asked = UnixTime::now();
        let changed = match base {
            Some(_) => machine.changed_bytes().await?,
            None => None,
        };
        let newest = entry.replica.as_ref().map(|replica| replica.checkpoint);
        if changed == Some(0)
            && newest == base
            && self.is_well_kept(&entry)
            && !self.was_lost(slot, &entry).await
        {
            slot.replication().unchanged(asked);
            return Ok(None);
        }
        let disk = self.registry.spec(&entry).disk;
        let dir = self.registry.path(&entry).join("replica");
        // A killed daemon may have left a copy there, as large as the disk.
        remove_dir(&dir);
        self.room_on_disk(2 * changed.unwrap_or_else(|| allocated(&disk)))?;
        let copied = machine.changed_blocks(&dir, base.is_none()).await?;
        // From here on the bitmap no longer has what was copied.
        let base = base.filter(|_| !copied.whole);
        let stored = self.store_replica(&entry, base, copied).await;
        remove_dir(&dir);
        let (replica, new_bytes) = match stored {
            Ok(stored) => stored,
            Err(error) => {
                slot.replication().lost();
                return Err(error.into());
            }
        };
        slot.replication().stored(replica.checkpoint, new_bytes);
        self.note_sending(slot, &replica).await?;
        Ok(Some(replica))
    }

    /// Whether as many connected members as are wanted have the newest replica, or all there are.
    fn is_well_kept(&self, entry: &Entry) -> bool {
        let connected = self.parts.fabric.connected();
        let possible = entry.protection.replicas.min(connected.len());
        let providers = entry.replica.iter().flat_map(|replica| &replica.providers);
        // One that is gone for good holds nothing, and nobody else says so.
        providers.filter(|m| connected.contains(m)).count() >= possible
    }

    /// Whether a holder of the newest replica, asked from time to time, lacks some of it. One that
    /// does not answer says nothing.
    async fn was_lost(&self, slot: &Slot, entry: &Entry) -> bool {
        let period = self.options.ask_keepers_every;
        let Some(replica) = &entry.replica else {
            return true;
        };
        if !slot.replication().must_ask(self.now(), period) {
            return false;
        }
        let (id, providers) = (replica.checkpoint, &replica.providers);
        for member in providers.iter().filter(|m| **m != self.me) {
            let lacks = self.parts.vault.lacking(id, *member, providers).await;
            if let Ok(Some(1..)) = lacks {
                tracing::warn!(vm = %entry.definition.name, %member, "a member no longer has all \
                    of the newest replica of the VM's disk: it is made and sent again");
                return true;
            }
        }
        false
    }

    async fn store_replica(
        &self,
        entry: &Entry,
        base: Option<ManifestId>,
        copied: ChangedDisk,
    ) -> Result<(Replica, u64), Error> {
        let saved = SavedVm {
            definition: entry.definition.clone(),
            secret: entry.secret.clone(),
            sealing: entry.sealing.clone(),
        };
        let instant = CheckpointInput {
            vm: saved.definition.vm,
            name: REPLICA.into(),
            taken: copied.begun,
            epoch: entry.epoch,
            ram: None,
            disk: copied.file,
            image: saved.definition.image,
            spec: saved.sealed(entry.owner.unwrap_or(self.me)),
            seal: saved.seal_key(),
            releaser: saved.sealing.newest_releaser(saved.definition.vm),
        };
        let (vault, rate) = (&self.parts.vault, self.options.replica_rate);
        let changes = (base, copied.patch);
        let stored = vault.store_changes(&instant, changes, rate).await?;
        let replica = Replica {
            checkpoint: stored.checkpoint,
            epoch: entry.epoch,
            seq: next_seq(entry),
            taken: instant.taken,
            providers: vec![self.me],
            durability: Durability::Local,
        };
        Ok((replica, stored.new_bytes))
    }

    /// Writes down which replica is being sent, and removes the one before that was not sent on.
    async fn note_sending(&self, slot: &Arc<Slot>, replica: &Replica) -> Result<(), Setback> {
        let before = slot.entry();
        let vm = before.definition.vm;
        // It may have moved on meanwhile: to write its entry would bring it back.
        if !self.lists(slot) {
            let (keys, me) = (before.sealing.releasers(&before.secret), [self.me]);
            self.forget_replica(vm, &keys, (replica.checkpoint, &me))
                .await;
            return later("the VM is no longer here");
        }
        if let Some(unsent) = &before.sending {
            self.note_releases(vm, unsent.checkpoint, &self.may_keep());
        }
        if let Err(error) = self.update(slot, |e| e.sending = Some(replica.clone())) {
            // Nothing names it after this: no later round would end it.
            let keys = before.sealing.releasers(&before.secret);
            slot.replication().lost();
            self.forget_replica(vm, &keys, (replica.checkpoint, &[self.me]))
                .await;
            return Err(error.into());
        }
        if let Some(unsent) = before.sending {
            let keys = before.sealing.releasers(&before.secret);
            self.forget_unsent(vm, &keys, unsent.checkpoint).await;
        }
        Ok(())
    }

    /// Ends a replica that was not sent to its end.
    pub(crate) async fn forget_unsent(&self, vm: VmId, keys: &[KeyPair], checkpoint: ManifestId) {
        let members = self.may_keep();
        self.forget_replica(vm, keys, (checkpoint, &members)).await;
    }

    async fn forget_replica(&self, vm: VmId, keys: &[KeyPair], copies: (ManifestId, &[MemberId])) {
        let forgotten = self.end_copies(vm, copies, keys).await;
        if let Err(error) = forgotten {
            tracing::info!(error = %chain(&error), "an older replica of a VM's disk stays");
        }
    }

    /// Has other members fetch a replica, and names it in the VM's record when they have it.
    async fn send_replica(&self, slot: &Arc<Slot>, replica: Replica) -> Result<(), Setback> {
        let entry = slot.entry();
        let (fabric, me) = (self.parts.fabric.clone(), self.me);
        let holders = entry
            .replica
            .as_ref()
            .map(|replica| replica.providers.clone());
        let holders = holders.unwrap_or_default();
        // A holder that is gone takes nothing, and must not be waited for.
        let now = Box::new(move || {
            let connected = fabric.connected();
            let mut there = holders.clone();
            there.retain(|member| connected.contains(member));
            candidates(&there, &connected, &[Some(me)])
        });
        let wanted = entry.protection.replicas.min(now().len());
        if wanted == 0 {
            return later("no other member is connected");
        }
        let vault = &self.parts.vault;
        let copies = vault.replicate(replica.checkpoint, wanted, now).await?;
        let every = entry.protection.replicate_every.unwrap_or_default();
        let sent = self.sent(slot, copies, SENDING.max(every * 2)).await;
        let Some(copies) = sent else {
            let keys = entry.sealing.releasers(&entry.secret);
            slot.replication().lost();
            let vm = entry.definition.vm;
            self.forget_unsent(vm, &keys, replica.checkpoint).await;
            return later("the VM is no longer here");
        };
        let done = copies.providers.len().saturating_sub(1);
        // Members may have gone meanwhile.
        let wanted = wanted.min(self.parts.fabric.connected().len());
        let former = entry.replica.as_ref().map_or(0, Replica::copies) as usize;
        if done == 0 || (done < wanted && done < former) {
            return Err(Setback::Failed(Error::Refused(format!(
                "{done} of {wanted} members took the replica: do the others have room?"
            ))));
        }
        let wanted = entry.protection.replicas;
        let whole = Replica {
            providers: copies.providers,
            durability: match done >= wanted {
                true => Durability::Durable,
                false => Durability::Replicating { done, wanted },
            },
            ..replica
        };
        self.announce_replica(slot, whole).await
    }

    /// Waits until as many members as possible have the replica, or the time is over; `None` if the
    /// VM is no longer here.
    async fn sent(
        &self,
        slot: &Arc<Slot>,
        mut copies: watch::Receiver<Copies>,
        limit: Duration,
    ) -> Option<Copies> {
        let until = tokio::time::Instant::now() + limit;
        loop {
            let role = slot.entry().role;
            if !self.lists(slot) || matches!(role, Role::Branch { .. } | Role::Unmade) {
                return None;
            }
            let now = copies.borrow_and_update().clone();
            let connected = self.parts.fabric.connected();
            let has = |member: &MemberId| now.providers.contains(member);
            let is_over = now.durability == Durability::Durable
                || (!connected.is_empty() && connected.iter().all(has))
                || tokio::time::Instant::now() >= until
                || copies.has_changed().is_err();
            // During a move the target has been told of the replica before: that one stays until it
            // is known which host has the VM.
            if is_over && slot.is_idle() && role == Role::Held {
                return Some(now);
            }
            match is_over {
                true => tokio::time::sleep(SOON).await,
                false => {
                    let _ = tokio::time::timeout(STILL_HELD, copies.changed()).await;
                }
            }
        }
    }

    async fn announce_replica(&self, slot: &Arc<Slot>, whole: Replica) -> Result<(), Setback> {
        let checkpoint = whole.checkpoint;
        let before = slot.entry();
        let (vm, former) = (before.definition.vm, before.replica);
        if let Some(former) = &former {
            self.note_releases(vm, former.checkpoint, &former.providers);
        }
        let entry = self.update(slot, |e| {
            if e.protection.replicate_every.is_some() {
                e.replica = Some(whole);
            }
            e.sending = None;
        })?;
        let keys = entry.sealing.releasers(&entry.secret);
        if entry.protection.replicate_every.is_none() {
            slot.replication().lost();
            self.forget_unsent(vm, &keys, checkpoint).await;
            return later("replication was turned off");
        }
        self.publish(slot).await;
        if let Some(former) = former {
            self.forget_former(slot, keys, former).await;
        }
        Ok(())
    }

    /// Ends a replica that the VM's entry does not name any more, once its record does not either.
    async fn forget_former(&self, slot: &Arc<Slot>, keys: Vec<KeyPair>, former: Replica) {
        let vm = slot.entry().definition.vm;
        if !slot.is_unpublished() {
            return self
                .forget_replica(vm, &keys, (former.checkpoint, &former.providers))
                .await;
        }
        let (Some(host), slot) = (self.strong(), slot.clone()) else {
            return;
        };
        self.spawn(async move {
            // As long as the record names the former one, a restore by the record needs it.
            while slot.is_unpublished() {
                if !host.lists(&slot) || slot.entry().is_branch() {
                    return;
                }
                tokio::time::sleep(STILL_HELD).await;
            }
            host.forget_replica(vm, &keys, (former.checkpoint, &former.providers))
                .await;
        });
    }
}

/// The next replica's count, within the entry's epoch.
fn next_seq(entry: &Entry) -> u64 {
    let known = entry.replica.iter().chain(&entry.sending);
    let greatest = known.map(Replica::order).max();
    match greatest {
        Some((Epoch(epoch), seq)) if epoch == entry.epoch.0 => seq + 1,
        _ => 0,
    }
}

/// How many bytes of the file system a disk takes.
fn allocated(disk: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(disk).map_or(0, |found| found.blocks() * 512)
}

fn remove_dir(dir: &Path) {
    match std::fs::remove_dir_all(dir).map_err(io_at("removing a round's copy", dir)) {
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => {
            tracing::warn!(error = %chain(&error), "a round's copy stays on the disk")
        }
        Ok(()) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::registry::tests::entry;

    #[test]
    fn a_round_that_gives_way_is_put_off_and_did_not_fail() {
        let setback = Setback::from(Error::GaveWay("a move goes first".into()));
        assert!(matches!(setback, Setback::Later(why) if why == "a move goes first"));
        let setback = Setback::from(Error::Refused("no room".into()));
        assert!(matches!(setback, Setback::Failed(_)));
    }

    #[test]
    fn replicas_of_one_epoch_are_counted_and_a_new_epoch_begins_anew() {
        let of = |epoch, seq| {
            let replica = crate::protection::tests::replica(2);
            let epoch = Epoch(epoch);
            Some(Replica {
                epoch,
                seq,
                ..replica
            })
        };
        let mut vm = entry("web");
        vm.epoch = Epoch(3);
        assert_eq!(next_seq(&vm), 0);
        vm.replica = of(2, 9);
        assert_eq!(next_seq(&vm), 0);
        vm.sending = of(3, 4);
        assert_eq!(next_seq(&vm), 5);
    }
}
