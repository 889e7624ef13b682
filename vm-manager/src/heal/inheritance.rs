//! The VMs that this host is an heir of, in a file each that survives a restart: with the host all
//! members of a site may have lost their power.

use super::heard::Heard;
use crate::{
    Error,
    directory::{RunGoal, VmRecord},
    error::io_at,
    framed,
    protection::{Protect, Replace},
    recovery::heirs_of,
};
use p2pvm_dht::VoterSet;
use p2pvm_overlay::{MemberId, VmId, chain, durable::write_atomically, lock};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::Mutex,
};

/// How many VMs of one member this host is an heir of at most.
const MAX_OF_MEMBER: usize = 256;
/// How many VMs this host is an heir of at most.
const MAX: usize = 1024;

/// Why `me` is no heir of the VM by its record.
pub(super) fn not_heir(record: &VmRecord, me: MemberId) -> Option<&'static str> {
    let protection = &record.protection;
    if protection.protect == Protect::Off {
        Some("the VM is not protected")
    } else if protection.replace == Replace::Never {
        Some("the VM is not to be started elsewhere")
    } else if record.wanted == RunGoal::Stopped {
        Some("the VM is meant to be stopped")
    } else if !heirs_of(record).contains(&me) {
        Some("the VM's record does not name this member's copy as its newest")
    } else {
        None
    }
}

/// A VM that this host is an heir of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Inheritance {
    /// Its voters, signed with its key.
    pub(super) set: VoterSet,
    /// Its record when its host told of it.
    pub(super) record: VmRecord,
}

/// [`Inheritance`] in its file.
#[derive(Serialize, Deserialize)]
struct Kept {
    set: VoterSet,
    record: Vec<u8>,
}

impl Inheritance {
    fn to_bytes(&self) -> Vec<u8> {
        framed::to_bytes(&Kept {
            set: self.set.clone(),
            record: self.record.to_bytes(),
        })
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let kept: Kept = framed::from_bytes(bytes)?;
        let record = VmRecord::from_bytes(&kept.record)?;
        (record.definition.vm == kept.set.vm).then_some(Self {
            set: kept.set,
            record,
        })
    }

    /// Where it is among the VM's heirs, from zero.
    pub(super) fn rank(&self, me: MemberId) -> usize {
        let heirs = heirs_of(&self.record);
        let rank = heirs.iter().position(|heir| *heir == me);
        rank.unwrap_or(heirs.len())
    }
}

/// Reads a file as a disk may have damaged it, for the fuzzer.
#[cfg(fuzzing)]
pub fn parse(bytes: &[u8]) {
    let _ = Inheritance::from_bytes(bytes);
}

/// A VM of a lost host that this host, an heir of it, does not start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Untaken {
    /// The VM's name.
    pub name: String,
    /// The host that was lost.
    pub from: MemberId,
    /// Why, and what a person can do.
    pub why: String,
}

/// The VMs that this host is an heir of.
pub(crate) struct Inheritances {
    dir: PathBuf,
    by_vm: Mutex<BTreeMap<VmId, Inheritance>>,
    /// The VMs whose hosts are watched, each by one task.
    watched: Mutex<BTreeSet<VmId>>,
    /// The VMs that are being started here.
    taking: Mutex<BTreeSet<VmId>>,
    /// The VMs of lost hosts that this host does not start, and why.
    refused: Mutex<BTreeMap<VmId, Untaken>>,
    pub(super) heard: Heard,
}

/// A VM that is being started here, until it is dropped.
pub(super) struct Taking<'i> {
    all: &'i Inheritances,
    vm: VmId,
}

impl Drop for Taking<'_> {
    fn drop(&mut self) {
        lock(&self.all.taking).remove(&self.vm);
    }
}

impl Inheritances {
    /// Those in `dir`, made if missing. A file that cannot be read is removed: the VM's host tells
    /// of it again.
    pub(crate) fn open(dir: PathBuf) -> Result<Self, Error> {
        let step = io_at("reading what this host is an heir of", &dir);
        let read = || {
            fs::create_dir_all(&dir)?;
            let mut found = BTreeMap::new();
            for file in fs::read_dir(&dir)? {
                let path = file?.path();
                match fs::read(&path)
                    .ok()
                    .and_then(|bytes| Inheritance::from_bytes(&bytes))
                {
                    Some(one) => drop(found.insert(one.set.vm, one)),
                    None => drop(fs::remove_file(&path)),
                }
            }
            Ok(found)
        };
        let by_vm = Mutex::new(read().map_err(step)?);
        Ok(Self {
            dir,
            by_vm,
            watched: Mutex::default(),
            taking: Mutex::default(),
            refused: Mutex::default(),
            heard: Heard::default(),
        })
    }

    fn file(&self, vm: VmId) -> PathBuf {
        Path::new(&self.dir).join(vm.to_string())
    }

    pub(super) fn vms(&self) -> Vec<VmId> {
        lock(&self.by_vm).keys().copied().collect()
    }

    pub(super) fn get(&self, vm: VmId) -> Option<Inheritance> {
        lock(&self.by_vm).get(&vm).cloned()
    }

    /// The VM of that name.
    pub(super) fn named(&self, name: &str) -> Option<Inheritance> {
        let by_vm = lock(&self.by_vm);
        let mut all = by_vm.values();
        all.find(|one| one.record.definition.name == name).cloned()
    }

    /// Keeps one; says whether it is new. When it returns, it survives a power cut.
    ///
    /// # Errors
    /// A sentence for the VM's host.
    pub(super) fn keep(&self, one: Inheritance) -> Result<bool, String> {
        let (vm, holder) = (one.set.vm, one.record.holder);
        let mut by_vm = lock(&self.by_vm);
        let known = by_vm.get(&vm);
        if known == Some(&one) {
            return Ok(false);
        }
        let is_new = known.is_none();
        let theirs = by_vm.values().filter(|one| one.record.holder == holder);
        if is_new && (by_vm.len() >= MAX || theirs.count() >= MAX_OF_MEMBER) {
            return Err(format!(
                "this host is an heir of {} VMs already, at most {MAX_OF_MEMBER} of one member \
                    and {MAX} in all: choose other members for replicas",
                by_vm.len()
            ));
        }
        write_atomically(&self.file(vm), &one.to_bytes(), 0o600)
            .map_err(|e| format!("this host cannot write that down: {}", chain(&e)))?;
        by_vm.insert(vm, one);
        Ok(is_new)
    }

    /// Begins to start a VM here; `None` while it is being started: the watch of its host and a
    /// person's word may meet.
    pub(super) fn begin_taking(&self, vm: VmId) -> Option<Taking<'_>> {
        let is_new = lock(&self.taking).insert(vm);
        is_new.then_some(Taking { all: self, vm })
    }

    /// Notes why a VM of a lost host is not started here; says whether that is news.
    pub(super) fn refuse(&self, vm: VmId, what: Untaken) -> bool {
        let mut refused = lock(&self.refused);
        if refused.get(&vm) == Some(&what) {
            return false;
        }
        refused.insert(vm, what);
        true
    }

    /// The VM's host is there again, or the VM runs.
    pub(super) fn clear(&self, vm: VmId) {
        lock(&self.refused).remove(&vm);
    }

    pub(super) fn refused(&self) -> Vec<Untaken> {
        lock(&self.refused).values().cloned().collect()
    }

    /// Whether a task is to begin to watch the VM's host.
    pub(super) fn begin_watch(&self, vm: VmId) -> bool {
        lock(&self.watched).insert(vm)
    }

    /// Whether the task that watches the VM's host is to end: this host is no heir of it any more.
    pub(super) fn end_watch(&self, vm: VmId) -> bool {
        let mut watched = lock(&self.watched);
        let is_over = !lock(&self.by_vm).contains_key(&vm);
        if is_over {
            watched.remove(&vm);
        }
        is_over
    }

    pub(super) fn forget(&self, vm: VmId) {
        self.clear(vm);
        if lock(&self.by_vm).remove(&vm).is_none() {
            return;
        }
        if let Err(e) = fs::remove_file(self.file(vm)) {
            tracing::debug!(vm = %vm.short(), error = %chain(&e), "what this host was an heir of \
                stays on its disk");
        }
    }
}

#[cfg(test)]
#[path = "inheritance_tests.rs"]
mod tests;
