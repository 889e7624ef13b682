//! One member's VMs: what is defined and runs here, and the operations on it.
//!
//! [`Host`] has the incarnations ([`registry`] on disk, [`slot`] in memory), answers other members
//! ([`remote`]) and fences a VM that it lost ([`fence`]). One operation at a time works on a VM; a
//! second one is refused with what is going on. Long work runs in tasks that the host owns, so that
//! a caller that goes away cancels nothing half-way. Moves, snapshots, and what a host does unasked
//! are built on this: [`crate::migrate`], [`crate::checkpoint`], [`crate::guard`].

use crate::{
    Error,
    ballot::Ballot,
    clock::{Clock, Sleep},
    directory::{Directory, VmRecord},
    guardian::Guardian,
    heal::{Inheritances, ToldHeirs},
    hypervisor::{Hypervisor, RunState},
    offer::Terms,
    port::Port,
    sealed::ReleaseRule,
    trace::Traces,
    vault::Vault,
};
use p2pvm_api::EventKind;
use p2pvm_dht::Records;
use p2pvm_overlay::{
    BoxStream, Epoch, Fabric, MemberId, UnixTime, VmId, chain, identity::Identity,
};
use std::{
    collections::BTreeMap,
    future::Future,
    path::Path,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};
use tokio::{sync::broadcast, task::JoinSet};

pub mod activity;
mod claim;
mod closing;
mod ended;
mod envelope;
mod fence;
mod images;
mod lease;
mod lease_table;
mod life;
mod memory;
mod names;
mod newcomer;
mod noted;
pub mod registry;
mod releases;
pub mod remote;
pub(crate) mod replication;
pub(crate) mod revoked;
mod room;
mod shield;
mod slot;
pub mod status;
mod underway;
mod voters;

pub use activity::Activity;
pub use claim::Ownership;
pub(crate) use envelope::Promise;
pub use envelope::Tenant;
pub(crate) use fence::run_here;
pub(crate) use names::NameChecks;
pub use noted::Noted;
pub use registry::{Entry, Healed, Registry, Role, Side};
pub(crate) use releases::Release;
pub use replication::ReplicationStatus;
pub use shield::Shield;
pub(crate) use slot::{Guest, Operation, Slot, lock};
pub use status::{
    HostEvent, HostStats, MigrationOutcome, RunningSide, Standstill, VmState, VmStats, VmStatus,
};
pub(crate) use underway::OutgoingMove;

/// What is said of a guest whose lease has ended.
const FROZEN: &str = "frozen: no majority of its voters renewed its lease; it goes on by itself \
    when they answer, unless another member has started it";

/// The parts that a host works with.
#[derive(Clone)]
pub struct Parts {
    /// The control plane.
    pub fabric: Arc<dyn Fabric>,
    /// The replicated records.
    pub records: Arc<dyn Records>,
    /// The voters.
    pub ballot: Arc<dyn Ballot>,
    /// Images and checkpoints.
    pub vault: Arc<dyn Vault>,
    /// The hypervisor.
    pub hypervisor: Arc<dyn Hypervisor>,
    /// What freezes guests whose lease has ended.
    pub guardian: Arc<dyn Guardian>,
    /// The network's side.
    pub port: Arc<dyn Port>,
    /// The maker of its moves' spans.
    pub traces: Traces,
    /// Whether the machine slept.
    pub sleep: Arc<dyn Sleep>,
    /// This member's keys, which open what is sealed for it.
    pub identity: Arc<Identity>,
    /// Which members this one, as a voter, helps to open a VM's snapshots.
    pub releases: Arc<dyn ReleaseRule>,
}

/// A host's own choices.
#[derive(Clone, Debug)]
pub struct HostOptions {
    /// Memory that guests may be given in all, MiB; `None` for all but a reserve.
    pub memory_mib: Option<u64>,
    /// What is offered to VMs of other members, until [`Host::offer`] says otherwise.
    pub terms: Terms,
    /// Whether VMs here are protected against the loss of this host, and this host is an heir of
    /// other members' VMs.
    pub protects: bool,
    /// How many other members should hold each snapshot.
    pub copies: usize,
    /// How many members vote on a VM made here, at most. Odd.
    pub voters: usize,
    /// How often the voters of each held VM, running or not, are asked whether it is still this
    /// host's.
    pub guard_every: Duration,
    /// How often address leases and records are renewed.
    pub renew_every: Duration,
    /// How often each member that keeps a snapshot is asked whether it still has all of it.
    pub ask_keepers_every: Duration,
    /// At which rate replicas of disks are sent to other members, bytes a second for all of them.
    pub replica_rate: u64,
    /// How long a guest may take to power down before it is killed.
    pub stop_patience: Duration,
}

impl Default for HostOptions {
    fn default() -> Self {
        Self {
            memory_mib: None,
            terms: Terms::default(),
            protects: true,
            copies: 2,
            voters: 3,
            guard_every: Duration::from_secs(20),
            renew_every: Duration::from_secs(20 * 60),
            ask_keepers_every: Duration::from_secs(24 * 3600),
            replica_rate: 16 << 20,
            stop_patience: Duration::from_secs(30),
        }
    }
}

/// One member's VMs.
pub struct Host {
    pub(crate) me: MemberId,
    pub(crate) parts: Parts,
    pub(crate) options: HostOptions,
    pub(crate) directory: Directory,
    pub(crate) registry: Registry,
    /// Copies of checkpoints that are to end.
    pub(crate) releases: releases::Releases,
    slots: Mutex<BTreeMap<String, Arc<Slot>>>,
    in_use: images::ImageUses,
    leases: lease_table::Leases,
    pub(crate) inheritances: Inheritances,
    pub(crate) told: ToldHeirs,
    pub(crate) envelope: envelope::Envelope,
    events: broadcast::Sender<HostEvent>,
    tasks: Mutex<JoinSet<()>>,
    closing: closing::Closing,
    this: Weak<Host>,
    /// The times that the hand-over's state machines see.
    pub(crate) clock: Clock,
}

impl Host {
    /// A host over the VMs that are defined in `dir`, none of which it has loaded yet.
    pub(crate) fn new(parts: Parts, options: HostOptions, dir: &Path) -> Result<Arc<Self>, Error> {
        let registry = Registry::open(&dir.join("vms"))?;
        let memory = memory::Memory::of_this_machine(options.memory_mib);
        let own = envelope::OwnVms::open(&dir.join("own-vms"))?;
        let inheritances = Inheritances::open(dir.join("heir-of"))?;
        let terms = options.terms.clone();
        let envelope = envelope::Envelope::new(parts.fabric.me(), (memory, own), terms);
        Ok(Arc::new_cyclic(|this| Self {
            me: parts.fabric.me(),
            directory: Directory::new(parts.records.clone()),
            clock: Clock::new(parts.sleep.clone()),
            envelope,
            parts,
            options,
            registry,
            releases: releases::Releases::open(dir.join("releases.json")),
            slots: Mutex::default(),
            in_use: images::ImageUses::default(),
            leases: lease_table::Leases::default(),
            inheritances,
            told: ToldHeirs::default(),
            events: broadcast::channel(1024).0,
            tasks: Mutex::default(),
            closing: closing::Closing::default(),
            this: this.clone(),
        }))
    }

    /// This member.
    pub fn me(&self) -> MemberId {
        self.me
    }

    /// What happens to VMs here from now on. A slow reader misses the oldest events.
    pub fn events(&self) -> broadcast::Receiver<HostEvent> {
        self.events.subscribe()
    }

    /// Ends the host's tasks at once and leaves the guests as they are: what a killed daemon does.
    pub fn halt(&self) {
        lock(&self.tasks).abort_all();
    }

    /// The VMs and branches on this host, by name, without those that are being made or removed.
    pub fn list(&self) -> Vec<VmStatus> {
        let whole = |slot: &Arc<Slot>| !matches!(lock(&slot.entry).role, Role::Unmade);
        let mut all: Vec<_> = self
            .slots()
            .iter()
            .filter(|s| whole(s))
            .map(|s| self.status_of(s))
            .collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// A VM here, or what the network's records say of one elsewhere.
    ///
    /// # Errors
    /// [`Error::NotFound`], or [`Error::Agreement`] if too few members answer.
    pub async fn status(&self, name: &str) -> Result<VmStatus, Error> {
        if let Some(slot) = self.slot_named(name) {
            return Ok(self.status_of(&slot));
        }
        let record = self.record(name).await?;
        Ok(VmStatus {
            name: record.definition.name.clone(),
            state: VmState::Remote,
            holder: record.holder,
            epoch: record.epoch,
            wanted: record.wanted,
            activity: None,
            definition: record.definition,
            snapshots: record.snapshots,
            note: None,
            still: None,
            replication: ReplicationStatus::of_record(
                &record.protection,
                record.replica.as_ref(),
                UnixTime::now(),
            ),
            owner: record.owner,
            restart: Some(record.protection.restart),
            user: record.user,
            backups: record.backups,
        })
    }

    /// A VM here, with why its guest stands still.
    pub(crate) fn status_of(&self, slot: &Slot) -> VmStatus {
        let mut status = slot.status(self.me);
        status.still = self.standstill(slot);
        if self.lacks_lease(status.definition.vm)
            && matches!(status.state, VmState::Running | VmState::Paused)
        {
            status.state = VmState::Paused;
            status.note = Some(FROZEN.to_owned());
        }
        status
    }

    /// The network's record of the VM of that name.
    ///
    /// # Errors
    /// [`Error::NotFound`], or [`Error::Agreement`] if too few members answer.
    pub async fn record(&self, name: &str) -> Result<VmRecord, Error> {
        self.directory
            .find(name)
            .await?
            .ok_or_else(|| Error::NotFound(name.to_owned()))
    }

    /// Which member has the VM: this one if it is here, else what its record says.
    ///
    /// # Errors
    /// [`Error::NotFound`], or [`Error::Agreement`] if too few members answer.
    pub async fn holder(&self, name: &str) -> Result<MemberId, Error> {
        match self.slot_named(name) {
            Some(_) => Ok(self.me),
            None => Ok(self.record(name).await?.holder),
        }
    }

    /// The guest's serial console.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Refused`] if it does not run, or the hypervisor's.
    pub async fn console(&self, name: &str) -> Result<BoxStream, Error> {
        let slot = self.named(name)?;
        let machine = slot
            .machine()
            .ok_or_else(|| Error::Refused(format!("'{name}' does not run: start it first")))?;
        machine.console().await
    }

    /// What the host's guests use.
    pub async fn stats(&self) -> HostStats {
        let mut vms = Vec::new();
        for slot in self.slots() {
            let entry = slot.entry();
            let Some(machine) = slot
                .machine()
                .filter(|_| slot.run_state() == RunState::Running)
            else {
                continue;
            };
            if let Ok(stats) = machine.stats().await {
                let Entry { definition: d, .. } = &entry;
                vms.push(VmStats {
                    vm: d.vm,
                    name: d.name.clone(),
                    cpus: d.cpus,
                    memory_mib: d.memory_mib,
                    machine: stats,
                });
            }
        }
        HostStats {
            accel: self.parts.hypervisor.accel().await.ok(),
            vms,
        }
    }

    /// Memory that guests here have been given, MiB.
    pub fn promised_mib(&self) -> u64 {
        self.envelope.memory.promised_mib()
    }

    pub(crate) fn now(&self) -> Duration {
        self.clock.now()
    }

    pub(crate) fn weak(&self) -> Weak<Host> {
        self.this.clone()
    }

    pub(crate) fn strong(&self) -> Option<Arc<Host>> {
        self.this.upgrade()
    }

    /// Runs `work` in a task that ends with the host.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = lock(&self.tasks);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(work);
    }

    pub(crate) fn emit(&self, event: HostEvent) {
        // Without a listener the event is lost, which is no error.
        let _ = self.events.send(event);
    }

    pub(crate) fn slots(&self) -> Vec<Arc<Slot>> {
        lock(&self.slots).values().cloned().collect()
    }

    /// Whether the incarnation is still listed. To write the entry of a removed one would bring it
    /// back.
    pub(crate) fn lists(&self, slot: &Arc<Slot>) -> bool {
        lock(&self.slots)
            .values()
            .any(|listed| Arc::ptr_eq(listed, slot))
    }

    /// The incarnation listed under `name`; of several the one that holds its VM.
    pub(crate) fn slot_named(&self, name: &str) -> Option<Arc<Slot>> {
        let is_it = |slot: &Arc<Slot>| {
            let entry = lock(&slot.entry);
            entry.listed_name() == name && entry.role != Role::Unmade
        };
        let all = self.slots().into_iter().filter(is_it);
        all.max_by_key(|slot| lock(&slot.entry).precedence())
    }

    pub(crate) fn named(&self, name: &str) -> Result<Arc<Slot>, Error> {
        self.slot_named(name)
            .ok_or_else(|| Error::NotFound(format!("the VM '{name}'")))
    }

    /// The incarnation of the VM here that is no branch: the one that holds it, before one that
    /// arrives by a restore.
    pub(crate) fn slot_of(&self, vm: VmId) -> Option<Arc<Slot>> {
        let is_it = |slot: &Arc<Slot>| {
            let entry = lock(&slot.entry);
            entry.definition.vm == vm && !entry.is_branch()
        };
        let all = self.slots().into_iter().filter(is_it);
        all.max_by_key(|slot| lock(&slot.entry).precedence())
    }

    /// Writes a new entry and lists it.
    pub(crate) fn insert(&self, entry: Entry) -> Result<Arc<Slot>, Error> {
        self.registry.save(&entry)?;
        Ok(self.list_entry(entry))
    }

    /// Lists and writes the entry of a VM that is not here yet; `None` if it is, and is no branch.
    ///
    /// # Errors
    /// [`Error::Refused`] if another VM here has its name or address.
    pub(crate) fn insert_if_absent(&self, entry: Entry) -> Result<Option<Arc<Slot>>, Error> {
        let slot = {
            let mut slots = lock(&self.slots);
            let is_same = |other: &Arc<Slot>| {
                let other = lock(&other.entry);
                other.definition.vm == entry.definition.vm && !other.is_branch()
            };
            if slots.values().any(is_same) {
                return Ok(None);
            }
            newcomer::refuse_clash(slots.values(), &entry.definition)?;
            // Not before: what is refused takes no place and is not remembered as this host's own.
            let slot = Slot::new(entry.clone(), self.envelope.note_stay(&entry));
            slots.insert(entry.incarnation(), slot.clone());
            slot
        };
        if let Err(e) = self.registry.save(&entry) {
            lock(&self.slots).remove(&entry.incarnation());
            return Err(e);
        }
        Ok(Some(slot))
    }

    /// Lists an entry that is written already.
    pub(crate) fn list_entry(&self, entry: Entry) -> Arc<Slot> {
        let name = entry.incarnation();
        let slot = Slot::new(entry.clone(), self.envelope.note_stay(&entry));
        lock(&self.slots).insert(name, slot.clone());
        self.assert_one_held(&entry);
        slot
    }

    /// Changes an entry; it is durable before the change is seen.
    pub(crate) fn update(
        &self,
        slot: &Slot,
        change: impl FnOnce(&mut Entry),
    ) -> Result<Entry, Error> {
        let next = {
            let mut entry = lock(&slot.entry);
            let mut next = entry.clone();
            change(&mut next);
            self.registry.save(&next)?;
            *entry = next.clone();
            next
        };
        self.assert_one_held(&next);
        Ok(next)
    }

    /// Asserts that at most one incarnation holds the VM here: a second would run it beside the
    /// first.
    fn assert_one_held(&self, entry: &Entry) {
        let is_held = |entry: &Entry, vm| entry.definition.vm == vm && entry.role.is_held();
        let vm = entry.definition.vm;
        if is_held(entry, vm) {
            let slots = self.slots();
            let held = slots.iter().filter(|s| is_held(&lock(&s.entry), vm));
            assert!(held.count() <= 1, "one incarnation at most holds a VM here");
        }
    }

    /// The other incarnations of the VM here that may run it, or may come to.
    pub(crate) fn others(&self, slot: &Arc<Slot>) -> Vec<Arc<Slot>> {
        let vm = slot.entry().definition.vm;
        let is_other = |other: &Arc<Slot>| {
            let entry = lock(&other.entry);
            let may_run = !entry.is_branch() && entry.role != Role::Unmade;
            !Arc::ptr_eq(other, slot) && entry.definition.vm == vm && may_run
        };
        self.slots().into_iter().filter(is_other).collect()
    }

    /// Removes an incarnation and its files. Its guest must be gone.
    pub(crate) fn remove(&self, slot: &Slot) -> Result<(), Error> {
        let entry = slot.entry();
        let vm = entry.definition.vm;
        // Only this entry named it.
        if let Some(unsent) = &entry.sending {
            self.note_releases(vm, unsent.checkpoint, &self.may_keep());
        }
        self.registry.remove(&entry)?;
        lock(&self.slots).remove(&entry.incarnation());
        slot.free_place();
        if let (Some(host), Some(unsent)) = (self.strong(), entry.sending) {
            let keys = entry.sealing.releasers(&entry.secret);
            self.spawn(async move { host.forget_unsent(vm, &keys, unsent.checkpoint).await });
        }
        Ok(())
    }

    /// Puts the VM's record into the DHT; after a failure the next round tries again.
    pub(crate) async fn publish(&self, slot: &Slot) {
        slot.set_unpublished(true);
        let entry = slot.entry();
        if !matches!(entry.role, Role::Held | Role::Leaving { .. }) {
            return;
        }
        let record = entry.record(self.me);
        match self
            .directory
            .publish(&entry.secret.keys(), &record, entry.seq)
            .await
        {
            Ok(used) => {
                slot.set_unpublished(false);
                let counted = self.update(slot, |e| {
                    if e.epoch == record.epoch {
                        e.seq = used.wrapping_add(1);
                    }
                });
                if let Err(e) = counted {
                    tracing::warn!(vm = %entry.definition.name, error = %chain(&e), "the record's \
                        count could not be kept");
                }
            }
            Err(e) => {
                tracing::info!(vm = %entry.definition.name, error = %chain(&e), "the VM's record \
                    will be published later")
            }
        }
    }

    /// Lists a guest as the VM's and watches it end.
    pub(crate) fn install(&self, slot: &Arc<Slot>, guest: Guest) {
        let machine = guest.machine.clone();
        *lock(&slot.guest) = Some(guest);
        let (host, slot) = (self.this.clone(), slot.clone());
        self.spawn(async move {
            let mut watch = machine.watch();
            loop {
                let state = *watch.borrow_and_update();
                let Some(host) = host.upgrade() else { return };
                if !slot.machine().is_some_and(|m| Arc::ptr_eq(&m, &machine)) {
                    return;
                }
                host.emit(HostEvent::State {
                    name: slot.entry().listed_name(),
                    state,
                });
                if let (RunState::Paused, Some(why)) = (state, machine.halted()) {
                    let entry = slot.entry();
                    let text = format!("The guest of {} stands still: {why}.", entry.listed_name());
                    host.note(
                        &entry,
                        EventKind::GuestPaused,
                        &[("why", why.to_string())],
                        text,
                    );
                }
                if state == RunState::Stopped {
                    host.ended_by_itself(&slot, &machine).await;
                    return;
                }
                drop(host);
                if watch.changed().await.is_err() {
                    return;
                }
            }
        });
    }

    pub(crate) fn running_elsewhere(name: &str, holder: MemberId, epoch: Epoch) -> Error {
        let short = holder.short();
        Error::Refused(format!(
            "'{name}' belongs to {short} since epoch {epoch}; a copy here with other contents is \
                kept as a branch"
        ))
    }
}
