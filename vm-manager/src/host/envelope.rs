//! What this host has promised to guests: memory to all of them, and to VMs of other members no
//! more than its owner offers ([`crate::offer`]).
//!
//! A VM of another member has a [`Place`] as long as it is here, and its guest a [`Promise`] as
//! long as it runs. Checking and taking are one step under one lock, so that of two VMs that come
//! at once and do not both fit, one is refused.
//!
//! The host does not believe a member that a VM which it brings is the host's own: [`OwnVms`] has
//! the ids of the VMs that were made here for this host.

use super::{Entry, Host, lock, memory::Memory, memory::Promise as MemoryPromise};
use crate::{
    Definition, Error,
    error::io_at,
    offer::{Others, Refusal, Share, Terms, decide},
};
use p2pvm_overlay::{Epoch, MemberId, VmId, chain, durable::write_atomically};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

/// The ids of the VMs that were made here for this host, in a file, a line each; also of those that
/// have moved away, which may come home whatever is offered to others.
pub(crate) struct OwnVms {
    file: PathBuf,
    ids: Mutex<BTreeSet<VmId>>,
    /// Whether the VMs of an earlier version, which kept no such file, are being taken up.
    first: AtomicBool,
}

impl OwnVms {
    /// Those in `file`, which need not exist.
    pub(crate) fn open(file: &Path) -> Result<Self, Error> {
        let text = match fs::read_to_string(file) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            read => Some(read.map_err(io_at("read the ids of this host's own VMs", file))?),
        };
        let lines = text.iter().flat_map(|text| text.lines());
        let ids = lines.filter_map(|line| line.parse().ok()).collect();
        Ok(Self {
            file: file.to_owned(),
            ids: Mutex::new(ids),
            first: AtomicBool::new(text.is_none()),
        })
    }

    /// All VMs of the last run have been listed.
    pub(crate) fn settle(&self) {
        if self.first.swap(false, Ordering::AcqRel) {
            self.change(|_| true);
        }
    }

    fn has(&self, vm: VmId) -> bool {
        lock(&self.ids).contains(&vm)
    }

    fn change(&self, change: impl FnOnce(&mut BTreeSet<VmId>) -> bool) {
        let mut ids = lock(&self.ids);
        if !change(&mut ids) {
            return;
        }
        let text: String = ids.iter().map(|vm| format!("{vm}\n")).collect();
        if let Err(e) = write_atomically(&self.file, text.as_bytes(), 0o600) {
            tracing::warn!(file = %self.file.display(), error = %chain(&e), "the ids of this \
                host's own VMs could not be written down: if one leaves, it comes back as another \
                member's");
        }
    }
}

/// What a VM needs here, and the members that answer for it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Need {
    vm: VmId,
    /// `None` for a VM of this host's own.
    whose: Option<Others>,
    cpus: u64,
    memory_mib: u64,
    disk_bytes: u64,
}

impl Need {
    /// The same for a VM of that id.
    pub(crate) fn of(self, vm: VmId) -> Self {
        Self { vm, ..self }
    }

    /// Its part while it is here, running or not.
    fn stay(&self) -> Share {
        Share {
            vms: 1,
            disk_bytes: self.disk_bytes,
            ..Share::default()
        }
    }

    /// What it needs besides while it runs.
    fn run(&self) -> Share {
        Share {
            cpus: self.cpus,
            memory_mib: self.memory_mib,
            ..Share::default()
        }
    }
}

/// What VMs of one member have here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tenant {
    /// The VMs' owner.
    pub owner: MemberId,
    /// What they have together.
    pub share: Share,
}

/// A part of this host that a VM of another member has.
struct Taken {
    vm: VmId,
    owner: MemberId,
    /// Whether it is that of a running guest.
    runs: bool,
    share: Share,
}

#[derive(Default)]
struct State {
    terms: Terms,
    host: String,
    taken: BTreeMap<u64, Taken>,
    last: u64,
}

impl State {
    /// The parts that VMs of other members have, each once: while a VM comes, its part may be
    /// noted twice.
    fn parts(&self) -> impl Iterator<Item = &Taken> {
        let mut seen = BTreeSet::new();
        let parts = self.taken.values();
        parts.filter(move |part| seen.insert((part.vm, part.runs)))
    }

    fn used(&self) -> Share {
        let parts = self.parts();
        parts.fold(Share::default(), |sum, part| sum.plus(part.share))
    }

    fn has(&self, vm: VmId, runs: bool) -> bool {
        let mut parts = self.taken.values();
        parts.any(|part| part.vm == vm && part.runs == runs)
    }

    /// Whether the VM may have that part. A VM that is here keeps its place whatever is offered.
    fn judge(&self, need: &Need, asked: Share) -> Result<(), Error> {
        decide(&self.terms, need.whose, asked, self.used()).map_err(|refusal| self.refused(refusal))
    }

    fn refused(&self, refusal: Refusal) -> Error {
        Error::Refused(refusal.sentence(&self.host, &*self.terms.known))
    }
}

/// A part of this host that is free again when this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    state: Shared,
    at: u64,
}

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<State>>);

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("..")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.state.0).taken.remove(&self.at);
    }
}

/// What a guest is given; dropped when its process has ended.
#[derive(Debug)]
pub(crate) struct Promise {
    _memory: MemoryPromise,
    _place: Option<Place>,
}

/// What this host has promised.
pub(crate) struct Envelope {
    me: MemberId,
    pub(crate) memory: Memory,
    pub(crate) own: OwnVms,
    state: Shared,
}

impl Envelope {
    pub(crate) fn new(me: MemberId, (memory, own): (Memory, OwnVms), terms: Terms) -> Self {
        let state = Shared::default();
        {
            let mut state = lock(&state.0);
            (state.host, state.terms) = (me.short(), terms);
        }
        Self {
            me,
            memory,
            own,
            state,
        }
    }

    fn take(&self, need: &Need, runs: bool, state: &mut State) -> Option<Place> {
        let owner = need.whose?.owner;
        state.last += 1;
        let share = if runs { need.run() } else { need.stay() };
        let part = Taken {
            vm: need.vm,
            owner,
            runs,
            share,
        };
        state.taken.insert(state.last, part);
        Some(Place {
            state: self.state.clone(),
            at: state.last,
        })
    }

    /// Lets a VM be here, running or not.
    ///
    /// # Errors
    /// [`Error::Refused`] with the limit and its figures.
    pub(crate) fn stay(&self, need: &Need) -> Result<Option<Place>, Error> {
        let mut state = lock(&self.state.0);
        if !state.has(need.vm, false) {
            state.judge(need, need.stay())?;
        }
        Ok(self.take(need, false, &mut state))
    }

    /// Gives a guest what it needs to run.
    ///
    /// # Errors
    /// [`Error::Refused`] with the limit and its figures.
    pub(crate) fn promise(&self, need: &Need) -> Result<Promise, Error> {
        let mut state = lock(&self.state.0);
        state.judge(need, need.run())?;
        let memory = self.memory.promise(need.memory_mib)?;
        Ok(Promise {
            _memory: memory,
            _place: self.take(need, true, &mut state),
        })
    }

    /// Whether a VM could come and run now; takes nothing.
    ///
    /// # Errors
    /// [`Error::Refused`] with the limit and its figures.
    pub(crate) fn check(&self, need: &Need, runs: bool) -> Result<(), Error> {
        let state = lock(&self.state.0);
        let mut asked = need.run();
        if !state.has(need.vm, false) {
            asked = asked.plus(need.stay());
        }
        if !runs {
            (asked.cpus, asked.memory_mib) = (0, 0);
        }
        state.judge(need, asked)?;
        match runs {
            true => self.memory.promise(need.memory_mib).map(drop),
            false => self.memory.can_ever_hold(need.memory_mib),
        }
    }

    /// The promise to a guest that runs already.
    pub(crate) fn note_run(&self, need: &Need) -> Promise {
        let mut state = lock(&self.state.0);
        Promise {
            _memory: self.memory.note(need.memory_mib),
            _place: self.take(need, true, &mut state),
        }
    }

    /// The place of a VM that is here already. A VM of this host's own is remembered as that.
    pub(crate) fn note_stay(&self, entry: &Entry) -> Option<Place> {
        if self.is_own(entry) {
            self.own.change(|ids| ids.insert(entry.definition.vm));
        }
        let need = self.need_of(entry);
        self.take(&need, false, &mut lock(&self.state.0))
    }

    /// Whether a VM here is this host's own. Reason for asking the epoch: only a VM that was made
    /// here has its first epoch here, whatever a VM that arrived claims.
    fn is_own(&self, entry: &Entry) -> bool {
        let said = entry.owner.is_none_or(|owner| owner == self.me);
        let own = &self.own;
        said && (entry.arrived <= Epoch(1)
            || own.first.load(Ordering::Acquire)
            || own.has(entry.definition.vm))
    }

    /// What a VM here needs.
    pub(crate) fn need_of(&self, entry: &Entry) -> Need {
        let owner = entry.owner.unwrap_or(self.me);
        let others = Others { owner, by: owner };
        self.need(&entry.definition, (!self.is_own(entry)).then_some(others))
    }

    /// What a VM needs that `by` brings, or that `by` has by its record.
    pub(crate) fn need_from(
        &self,
        definition: &Definition,
        owner: Option<MemberId>,
        by: MemberId,
    ) -> Need {
        // No other member speaks for this host.
        let owner = owner.filter(|owner| *owner != self.me).unwrap_or(by);
        let is_own = self.own.has(definition.vm);
        self.need(definition, (!is_own).then_some(Others { owner, by }))
    }

    fn need(&self, definition: &Definition, whose: Option<Others>) -> Need {
        Need {
            vm: definition.vm,
            whose,
            cpus: definition.cpus.into(),
            memory_mib: definition.memory_mib,
            disk_bytes: definition.disk_bytes,
        }
    }

    /// What a new VM of a member needs that has no id yet.
    pub(crate) fn need_of_new(&self, owner: MemberId, (cpus, mib, disk): (u32, u64, u64)) -> Need {
        let others = Others { owner, by: owner };
        Need {
            vm: VmId([0; 32]),
            whose: (owner != self.me).then_some(others),
            cpus: cpus.into(),
            memory_mib: mib,
            disk_bytes: disk,
        }
    }
}

impl Host {
    /// Puts an offer into force at once, for `host` as the host's name. What is here already stays.
    pub fn offer(&self, host: &str, terms: Terms) {
        self.envelope.memory.choose(terms.all_memory_mib);
        let mut state = lock(&self.envelope.state.0);
        host.clone_into(&mut state.host);
        state.terms = terms;
    }

    /// What VMs of other members have here, by their owner.
    pub fn tenants(&self) -> Vec<Tenant> {
        let state = lock(&self.envelope.state.0);
        let mut by_owner: BTreeMap<MemberId, Share> = BTreeMap::new();
        for part in state.parts() {
            let share = by_owner.entry(part.owner).or_default();
            *share = share.plus(part.share);
        }
        let tenants = by_owner.into_iter();
        tenants
            .map(|(owner, share)| Tenant { owner, share })
            .collect()
    }

    /// The names of other members' VMs here, branches left out.
    pub fn names_of_others(&self) -> BTreeSet<String> {
        let entries = self.slots().into_iter().map(|slot| slot.entry());
        entries
            .filter(|entry| !entry.is_branch() && !self.envelope.is_own(entry))
            .map(|entry| entry.listed_name())
            .collect()
    }

    /// How much a guest may send, and how much receive, bits a second: by the offer, unless it is
    /// this host's own, and by the token by which it was made here.
    pub fn bits_per_second(&self, vm: VmId) -> Option<u64> {
        let entry = self.slot_of(vm).map(|slot| slot.entry());
        let is_own = match &entry {
            Some(entry) => self.envelope.is_own(entry),
            None => self.envelope.own.has(vm),
        };
        let offered = lock(&self.envelope.state.0).terms.bits_per_second;
        let offered = offered.filter(|_| !is_own);
        let allowed = entry.and_then(|entry| entry.bits_per_second);
        offered.into_iter().chain(allowed).min()
    }

    /// The most memory that guests may have in all, MiB.
    pub fn memory_limit_mib(&self) -> u64 {
        self.envelope.memory.limit()
    }

    /// Whether a new VM of a member would be admitted now; with `runs` also its guest.
    ///
    /// # Errors
    /// [`Error::Refused`] with the limit and its figures.
    pub fn has_room(
        &self,
        owner: MemberId,
        (cpus, memory_mib, disk_bytes): (u32, u64, u64),
        runs: bool,
    ) -> Result<(), Error> {
        let size = (cpus, memory_mib, disk_bytes);
        let need = self.envelope.need_of_new(owner, size);
        self.envelope.check(&need, runs)
    }

    /// Whether a VM that a member offers to move here would be admitted now, as far as the offer
    /// says what it needs.
    ///
    /// # Errors
    /// [`Error::Refused`] with the limit and its figures.
    pub fn would_take(&self, vm: VmId, from: MemberId, memory_mib: u64) -> Result<(), Error> {
        let mut need = self.envelope.need_of_new(from, (1, memory_mib, 0)).of(vm);
        if self.envelope.own.has(vm) {
            need.whose = None;
        }
        self.envelope.check(&need, true)
    }

    /// Forgets a VM of this host's own that was deleted.
    pub(super) fn forget_own(&self, vm: VmId) {
        self.envelope.own.change(|ids| ids.remove(&vm));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        host::registry::tests::entry,
        offer::{Closed, Limits},
    };

    const ME: MemberId = MemberId([1; 32]);
    const OTHER: MemberId = MemberId([2; 32]);

    fn envelope(dir: &tempfile::TempDir) -> Envelope {
        let own = OwnVms::open(&dir.path().join("own-vms")).unwrap();
        own.settle();
        let memory = Memory::of_this_machine(Some(512));
        Envelope::new(ME, (memory, own), Terms::default())
    }

    fn set(envelope: &Envelope, limits: Limits, closed: Option<Closed>) {
        lock(&envelope.state.0).terms = Terms {
            limits,
            closed,
            ..Terms::default()
        };
    }

    fn vm_of(name: &str, owner: Option<MemberId>, arrived: u64) -> Entry {
        let mut vm = entry(name);
        (vm.owner, vm.arrived) = (owner, Epoch(arrived));
        vm.definition.memory_mib = 64;
        vm
    }

    #[test]
    fn only_vms_made_here_are_this_hosts_own_also_after_a_journey() {
        let dir = tempfile::tempdir().unwrap();
        let envelope = envelope(&dir);
        let table = [
            (None, 1, true),
            (Some(ME), 1, true),
            (Some(OTHER), 1, false),
            (None, 2, false),
            (Some(ME), 2, false),
        ];
        for (owner, arrived, own) in table {
            let vm = vm_of("web", owner, arrived);
            assert_eq!(envelope.is_own(&vm), own, "{owner:?} {arrived}");
        }
        let mut mine = vm_of("mine", Some(ME), 1);
        assert!(envelope.note_stay(&mine).is_none(), "it counts for nothing");
        mine.arrived = Epoch(7);
        assert!(envelope.is_own(&mine), "it went and came back");
        let again = super::tests::envelope(&dir);
        assert!(again.is_own(&mine), "after a restart as well");
        let brought = again.need_from(&mine.definition, Some(ME), OTHER);
        assert_eq!(brought.whose, None);
        let forged = again.need_from(&vm_of("x", None, 3).definition, Some(ME), OTHER);
        assert_eq!(forged.whose.unwrap().owner, OTHER, "it speaks for itself");
        again.own.change(|ids| ids.remove(&mine.definition.vm));
        assert!(!again.is_own(&mine), "it was deleted");
    }

    #[test]
    fn vms_of_an_earlier_version_stay_this_hosts_own() {
        let dir = tempfile::tempdir().unwrap();
        let own = || OwnVms::open(&dir.path().join("own-vms")).unwrap();
        let memory = || Memory::of_this_machine(Some(512));
        let open = || Envelope::new(ME, (memory(), own()), Terms::default());
        let (before, [old, new]) = (open(), ["old", "new"].map(|vm| vm_of(vm, Some(ME), 5)));
        assert!(before.note_stay(&old).is_none());
        before.own.settle();
        assert!(before.note_stay(&new).is_some(), "it comes from elsewhere");
        let after = open();
        assert!(after.is_own(&old) && !after.is_own(&new));
    }

    #[test]
    fn places_of_others_are_counted_once_and_free_again() {
        let dir = tempfile::tempdir().unwrap();
        let envelope = envelope(&dir);
        let limits = Limits {
            vms: Some(1),
            memory_mib: Some(100),
            ..Limits::default()
        };
        set(&envelope, limits, None);
        let [web, db] = ["web", "db"].map(|name| vm_of(name, Some(OTHER), 2));
        let coming = envelope.stay(&envelope.need_of(&web)).unwrap();
        let listed = envelope.note_stay(&web);
        assert_eq!(lock(&envelope.state.0).used().vms, 1);
        drop(coming);
        assert_eq!(lock(&envelope.state.0).used().vms, 1);
        assert!(envelope.stay(&envelope.need_of(&db)).is_err());
        let run = envelope.promise(&envelope.need_of(&web)).unwrap();
        let said = envelope.promise(&envelope.need_of(&db)).unwrap_err();
        assert!(said.to_string().contains("64 MiB are used"), "{said}");
        let own = vm_of("own", Some(ME), 1);
        assert!(envelope.promise(&envelope.need_of(&own)).is_ok());
        drop((listed, run));
        assert_eq!(lock(&envelope.state.0).used(), Share::default());
        assert_eq!(envelope.memory.promised_mib(), 0);
        assert!(envelope.stay(&envelope.need_of(&db)).is_ok());
    }

    #[test]
    fn of_many_at_once_only_those_with_a_place_are_admitted() {
        let dir = tempfile::tempdir().unwrap();
        let envelope = envelope(&dir);
        let limits = Limits {
            cpus: Some(3),
            ..Limits::default()
        };
        set(&envelope, limits, None);
        let vms: Vec<Entry> = (0..16)
            .map(|n| {
                let mut vm = vm_of(&format!("vm{n}"), Some(OTHER), 2);
                (vm.definition.vm, vm.definition.cpus) = (VmId([n; 32]), 1);
                vm.definition.memory_mib = 16;
                vm
            })
            .collect();
        let envelope = &envelope;
        let admitted: Vec<Promise> = std::thread::scope(|scope| {
            let ask = |vm| scope.spawn(move || envelope.promise(&envelope.need_of(vm)).ok());
            let asked: Vec<_> = vms.iter().map(ask).collect();
            let all = asked.into_iter();
            all.filter_map(|asked| asked.join().unwrap()).collect()
        });
        assert_eq!(admitted.len(), 3);
    }

    #[test]
    fn a_closed_offer_leaves_places_but_lets_nothing_start() {
        let dir = tempfile::tempdir().unwrap();
        let envelope = envelope(&dir);
        let web = vm_of("web", Some(OTHER), 2);
        let _listed = envelope.note_stay(&web);
        set(&envelope, Limits::default(), Some(Closed::Off));
        let need = envelope.need_of(&web);
        assert!(envelope.stay(&need).is_ok());
        let said = envelope.promise(&need).unwrap_err().to_string();
        assert!(said.contains("its offer is off"), "{said}");
        assert!(envelope.check(&need, true).is_err());
        assert!(
            envelope
                .promise(&envelope.need_of(&vm_of("own", None, 1)))
                .is_ok()
        );
    }
}
