//! One member's VMs: what is defined and runs here, and every operation on it.
//!
//! [`Host`] owns the incarnations ([`registry`]), takes running guests up again after a restart and
//! fences those that lost their VM ([`guard`]), and serves other members ([`remote`]). One
//! operation at a time works on a VM; a second one is refused with what is going on. Long work runs
//! in tasks that the host owns, so that a caller who goes away cancels nothing half-way.

use crate::{
    Error,
    ballot::Ballot,
    directory::{Directory, VmRecord, Wanted},
    hypervisor::{Hypervisor, Machine, RunState},
    migrate::target::Arrivals,
    port::Port,
    trace::Traces,
    vault::Vault,
};
use p2pvm_dht::Records;
use p2pvm_overlay::{BoxStream, Epoch, Fabric, MemberId, VmId, chain};
use p2pvm_snapshot_sync::ManifestId;
use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{sync::broadcast, task::JoinSet};

mod claim;
mod guard;
mod images;
mod life;
mod names;
pub mod registry;
pub mod remote;
mod room;
pub mod status;
mod underway;

pub use claim::Claimed;
pub(crate) use guard::run_here;
pub(crate) use life::undecided;
pub use registry::{Entry, Registry, Role, Side};
pub use status::{HostEvent, HostStats, Standstill, VmState, VmStats, VmStatus};
pub(crate) use underway::Underway;

/// The activity of asking a VM's voters whether it is still this host's.
pub(crate) const CHECKING: &str = "asking its voters";
/// Such a check, with voters that do not answer, is over by then.
const CHECK_LIMIT: Duration = Duration::from_secs(10);

/// What a host works with.
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
    /// The network's side.
    pub port: Arc<dyn Port>,
    /// What makes the spans of its moves.
    pub traces: Traces,
}

/// A host's own choices.
#[derive(Clone, Debug)]
pub struct HostOptions {
    /// Memory that VMs may be given in all, MiB; `None` for no limit.
    pub memory_mib: Option<u64>,
    /// How many other members should hold each snapshot.
    pub copies: usize,
    /// How many members vote on a VM made here, at most. Odd.
    pub voters: usize,
    /// How often the voters of each running VM are asked whether it is still this host's.
    pub guard_every: Duration,
    /// How often address leases and records are renewed.
    pub renew_every: Duration,
    /// How long a guest may take to power down before it is killed.
    pub stop_patience: Duration,
}

impl Default for HostOptions {
    fn default() -> Self {
        Self {
            memory_mib: None,
            copies: 2,
            voters: 3,
            guard_every: Duration::from_secs(20),
            renew_every: Duration::from_secs(20 * 60),
            stop_patience: Duration::from_secs(30),
        }
    }
}

/// One incarnation in memory.
pub(crate) struct Slot {
    entry: Mutex<Entry>,
    machine: Mutex<Option<Arc<dyn Machine>>>,
    /// Held by the one operation that changes it.
    pub(crate) op: Arc<tokio::sync::Mutex<()>>,
    activity: Mutex<Option<&'static str>>,
    /// The move to another member that is under way.
    underway: Mutex<Option<Underway>>,
    /// The record in the DHT is older than the entry.
    unpublished: AtomicBool,
    /// Snapshots that are being copied to other members.
    copying: Mutex<BTreeSet<ManifestId>>,
}

/// The right to change a VM, held for the length of one operation.
pub(crate) struct Busy {
    slot: Arc<Slot>,
    _op: tokio::sync::OwnedMutexGuard<()>,
}

impl Drop for Busy {
    fn drop(&mut self) {
        *lock(&self.slot.activity) = None;
        *lock(&self.slot.underway) = None;
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Slot {
    fn new(entry: Entry) -> Arc<Self> {
        Arc::new(Self {
            entry: Mutex::new(entry),
            machine: Mutex::new(None),
            op: Arc::default(),
            activity: Mutex::new(None),
            underway: Mutex::default(),
            unpublished: AtomicBool::new(false),
            copying: Mutex::default(),
        })
    }

    /// The entry as it is now.
    pub(crate) fn entry(&self) -> Entry {
        lock(&self.entry).clone()
    }

    /// What is being done with it, in a word.
    pub(crate) fn activity(&self) -> Option<&'static str> {
        *lock(&self.activity)
    }

    /// The guest, if it has one.
    pub(crate) fn machine(&self) -> Option<Arc<dyn Machine>> {
        lock(&self.machine).clone()
    }

    /// Takes the guest away: what happens to it from now on is not this VM's.
    pub(crate) fn take_machine(&self) -> Option<Arc<dyn Machine>> {
        lock(&self.machine).take()
    }

    /// Notes that a snapshot is being copied, or no longer.
    pub(crate) fn copying(&self, snapshot: ManifestId, begins: bool) {
        let mut copying = lock(&self.copying);
        if begins {
            copying.insert(snapshot);
        } else {
            copying.remove(&snapshot);
        }
    }

    pub(crate) fn is_copying(&self, snapshot: ManifestId) -> bool {
        lock(&self.copying).contains(&snapshot)
    }

    pub(crate) fn run_state(&self) -> RunState {
        self.machine()
            .map_or(RunState::Stopped, |m| *m.watch().borrow())
    }

    /// Begins an operation, or says what is going on.
    pub(crate) fn begin(self: &Arc<Self>, what: &'static str) -> Result<Busy, Error> {
        match self.op.clone().try_lock_owned() {
            Ok(op) => {
                *lock(&self.activity) = Some(what);
                Ok(Busy {
                    slot: self.clone(),
                    _op: op,
                })
            }
            Err(_) => {
                let name = self.entry().listed_name();
                if let Some(moving) = &*lock(&self.underway) {
                    return Err(Error::Refused(moving.refusal(&name)));
                }
                let doing = lock(&self.activity).unwrap_or("something else");
                Err(Error::Refused(format!(
                    "'{name}' is busy ({doing}): wait until that is done"
                )))
            }
        }
    }

    /// Begins something that takes a moment and is not worth a word to those who look on; one that
    /// is under way goes first.
    pub(crate) fn begin_quietly(self: &Arc<Self>) -> Result<Busy, Error> {
        self.begin(CHECKING)
    }

    /// Begins an operation, after a check with the voters that may be going on: that is the host's
    /// own doing, and soon over.
    pub(crate) async fn begin_soon(self: &Arc<Self>, what: &'static str) -> Result<Busy, Error> {
        let until = tokio::time::Instant::now() + CHECK_LIMIT;
        loop {
            match self.begin(what) {
                // Nothing is said yet, or any more, in the moment in which one operation follows
                // another.
                Err(_)
                    if matches!(self.activity(), None | Some(CHECKING))
                        && tokio::time::Instant::now() < until =>
                {
                    tokio::time::sleep(CHECK_LIMIT / 200).await;
                }
                begun => return begun,
            }
        }
    }

    /// Begins an operation when the present one is done.
    pub(crate) async fn begin_next(self: &Arc<Self>, what: &'static str) -> Busy {
        let op = self.op.clone().lock_owned().await;
        *lock(&self.activity) = Some(what);
        Busy {
            slot: self.clone(),
            _op: op,
        }
    }

    pub(crate) fn status(&self, me: MemberId) -> VmStatus {
        let entry = self.entry();
        let state = match (&entry.role, self.run_state()) {
            (Role::Branch { .. }, _) => VmState::Branch,
            (Role::Doubtful { .. }, _) => VmState::Doubtful,
            (Role::Arriving { .. } | Role::Unmade, _) => VmState::Arriving,
            (Role::Leaving { .. }, RunState::Running) => VmState::Leaving,
            (_, RunState::Running) => VmState::Running,
            (_, RunState::Paused | RunState::Incoming) => VmState::Paused,
            (_, RunState::Stopped) => VmState::Stopped,
        };
        VmStatus {
            name: entry.listed_name(),
            state,
            // A branch too is where it lies; its note says who has the VM.
            holder: me,
            epoch: entry.epoch,
            wanted: entry.wanted,
            activity: lock(&self.activity).map(str::to_owned),
            definition: entry.definition,
            snapshots: entry.snapshots,
            note: entry.note,
            still: None,
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
    slots: Mutex<BTreeMap<String, Arc<Slot>>>,
    pub(crate) arrivals: Arrivals,
    in_use: images::InUse,
    events: broadcast::Sender<HostEvent>,
    tasks: Mutex<JoinSet<()>>,
    this: Weak<Host>,
    /// The origin of the monotonic times that the hand-over's state machines see.
    origin: tokio::time::Instant,
}

impl Host {
    /// Opens the host whose VMs are defined in `dir`: takes up what runs, decides what was
    /// interrupted, serves other members.
    ///
    /// # Errors
    /// What the file system says of `dir`.
    pub async fn open(parts: Parts, options: HostOptions, dir: &Path) -> Result<Arc<Self>, Error> {
        let registry = Registry::open(&dir.join("vms"))?;
        let host = Arc::new_cyclic(|this| Self {
            me: parts.fabric.me(),
            directory: Directory::new(parts.records.clone()),
            parts,
            options,
            registry,
            slots: Mutex::default(),
            arrivals: Arrivals::default(),
            in_use: images::InUse::default(),
            events: broadcast::channel(256).0,
            tasks: Mutex::default(),
            this: this.clone(),
            origin: tokio::time::Instant::now(),
        });
        let all_known = host.adopt_all().await?;
        if all_known {
            host.watch_images();
        }
        host.serve_members();
        host.guard();
        host.watch_room();
        Ok(host)
    }

    /// This member.
    pub fn me(&self) -> MemberId {
        self.me
    }

    /// What happens to VMs here from now on. A slow reader misses the oldest.
    pub fn events(&self) -> broadcast::Receiver<HostEvent> {
        self.events.subscribe()
    }

    /// Ends the host's tasks at once and leaves the guests as they are: what a killed daemon does.
    pub fn halt(&self) {
        lock(&self.tasks).abort_all();
    }

    /// The VMs and branches on this host, by name. One that is being made or removed is none yet,
    /// or none any more.
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

    /// A VM here, or what the network knows of one elsewhere.
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
        })
    }

    /// A VM here, with why its guest stands still.
    pub(crate) fn status_of(&self, slot: &Slot) -> VmStatus {
        VmStatus {
            still: self.standstill(slot),
            ..slot.status(self.me)
        }
    }

    /// What the network knows of the VM of that name.
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

    pub(crate) fn now(&self) -> Duration {
        self.origin.elapsed()
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
        // Nobody listening is no error.
        let _ = self.events.send(event);
    }

    pub(crate) fn slots(&self) -> Vec<Arc<Slot>> {
        lock(&self.slots).values().cloned().collect()
    }

    /// Whether the incarnation is still there: what is written of one that was removed would bring
    /// it back.
    pub(crate) fn lists(&self, slot: &Arc<Slot>) -> bool {
        lock(&self.slots)
            .values()
            .any(|listed| Arc::ptr_eq(listed, slot))
    }

    /// The incarnation listed under `name`.
    pub(crate) fn slot_named(&self, name: &str) -> Option<Arc<Slot>> {
        self.slots().into_iter().find(|s| {
            lock(&s.entry).listed_name() == name && !matches!(lock(&s.entry).role, Role::Unmade)
        })
    }

    pub(crate) fn named(&self, name: &str) -> Result<Arc<Slot>, Error> {
        self.slot_named(name)
            .ok_or_else(|| Error::NotFound(format!("the VM '{name}'")))
    }

    /// The one incarnation of the VM here that is no branch.
    pub(crate) fn slot_of(&self, vm: VmId) -> Option<Arc<Slot>> {
        self.slots().into_iter().find(|s| {
            let entry = lock(&s.entry);
            entry.definition.vm == vm && !entry.is_branch()
        })
    }

    /// Writes a new entry and lists it.
    pub(crate) fn insert(&self, entry: Entry) -> Result<Arc<Slot>, Error> {
        self.registry.save(&entry)?;
        let name = entry.incarnation();
        let slot = Slot::new(entry);
        lock(&self.slots).insert(name, slot.clone());
        Ok(slot)
    }

    /// Changes an entry, durably before anyone sees it.
    pub(crate) fn update(
        &self,
        slot: &Slot,
        change: impl FnOnce(&mut Entry),
    ) -> Result<Entry, Error> {
        let mut entry = lock(&slot.entry);
        let mut next = entry.clone();
        change(&mut next);
        self.registry.save(&next)?;
        *entry = next.clone();
        Ok(next)
    }

    /// Removes an incarnation and its files. Its guest must be gone.
    pub(crate) fn remove(&self, slot: &Slot) -> Result<(), Error> {
        let entry = slot.entry();
        self.registry.remove(&entry)?;
        lock(&self.slots).remove(&entry.incarnation());
        Ok(())
    }

    /// Puts the VM's record into the DHT; what fails is tried again by the guard.
    pub(crate) async fn publish(&self, slot: &Slot) {
        slot.unpublished.store(true, Ordering::Relaxed);
        let entry = slot.entry();
        if !matches!(entry.role, Role::Held | Role::Leaving { .. }) {
            return;
        }
        let record = VmRecord {
            definition: entry.definition.clone(),
            holder: self.me,
            epoch: entry.epoch,
            wanted: entry.wanted,
            snapshots: entry.snapshots.clone(),
        };
        match self
            .directory
            .publish(&entry.secret.keys(), &record, entry.seq)
            .await
        {
            Ok(used) => {
                slot.unpublished.store(false, Ordering::Relaxed);
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
    pub(crate) fn install(&self, slot: &Arc<Slot>, machine: Arc<dyn Machine>) {
        *lock(&slot.machine) = Some(machine.clone());
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

    async fn ended_by_itself(&self, slot: &Arc<Slot>, machine: &Arc<dyn Machine>) {
        // An operation that is under way (a stop, a move) sees the end for itself.
        let Ok(_busy) = slot.begin("stopped by its guest") else {
            return;
        };
        if !slot.machine().is_some_and(|m| Arc::ptr_eq(&m, machine)) {
            return;
        }
        slot.take_machine();
        let entry = slot.entry();
        if let Err(e) = self.parts.port.detach(entry.definition.vm).await {
            tracing::warn!(vm = %entry.definition.name, error = %chain(&e), "the guest's port \
                could not be taken away");
        }
        if let Role::Held = entry.role {
            let note = Some("the guest powered itself off, or its process ended".to_owned());
            if let Err(e) = self.update(slot, |e| (e.wanted, e.note) = (Wanted::Stopped, note)) {
                tracing::error!(vm = %entry.definition.name, error = %chain(&e), "the VM's end \
                    could not be written down");
            }
            self.publish(slot).await;
        }
    }

    pub(crate) fn running_elsewhere(name: &str, holder: MemberId, epoch: Epoch) -> Error {
        let short = holder.short();
        Error::Refused(format!(
            "'{name}' belongs to {short} since epoch {epoch}; a copy here with other contents is \
                kept as a branch"
        ))
    }
}
