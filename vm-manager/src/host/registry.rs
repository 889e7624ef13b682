//! The VMs this host answers for, on disk: one directory an incarnation, one file in it that is
//! replaced atomically (temporary name, fsync, rename, fsync of the directory), so that a daemon
//! killed at any instant leaves either the old entry or the new one.
//!
//! An *incarnation* is one stay of a VM on a host, named by the VM and the epoch in which it came.
//! A copy that lost the VM and a later stay of the same VM are two incarnations with two
//! directories.

use crate::{
    Definition, Error,
    backups::Backups,
    definition::VmSecret,
    directory::{RunGoal, Snapshot, VmRecord},
    error::io_at,
    hypervisor::MachineSpec,
    protection::{Protection, Replica},
    recovery::Restored,
    sealed::HoldingKeys,
    vault::Durability,
};
use data_encoding::BASE32_NOPAD;
use p2pvm_authority::{Principal, Revocations};
use p2pvm_overlay::{Epoch, MemberId, UnixTime, VmId, durable::write_atomically};
use p2pvm_snapshot_sync::ManifestId;
use serde::{Deserialize, Serialize};
use std::{
    fs,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

const FILE: &str = "vm.json";
/// What the name of an incarnation's directory begins with while its files are removed.
const GONE: &str = ".gone-";

/// A side of a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// Where the VM was.
    Source,
    /// Where it should go.
    Target,
}

/// This host's relation to a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "role")]
pub enum Role {
    /// The VM's holder, as far as is known.
    Held,
    /// Its holder, moving it away. Written before RAM is sent: from then on a paused guest may have
    /// been handed over.
    Leaving {
        /// The migration.
        id: u64,
        /// The target.
        to: MemberId,
        /// The target's epoch.
        epoch: Epoch,
    },
    /// The target of a migration, or of a restore, not yet settled.
    Arriving {
        /// The migration, or 0 for a restore.
        id: u64,
        /// The source; this member itself for a restore.
        from: MemberId,
    },
    /// Held still until the voters decide whether it may run here.
    Doubtful {
        /// The migration.
        id: u64,
        /// This host's side of it.
        side: Side,
        /// The other side, which may have it.
        other: MemberId,
    },
    /// It is being made or deleted: if that is broken off, a round of the host removes what is left
    /// of it.
    Unmade,
    /// A copy that lost the VM to another holder.
    Branch {
        /// The member that has it.
        holder: MemberId,
        /// The epoch of that holding.
        newer: Epoch,
    },
}

impl Role {
    /// Whether this host is the VM's holder. At most one incarnation of a VM is held here.
    pub(crate) fn is_held(&self) -> bool {
        matches!(self, Self::Held | Self::Leaving { .. })
    }

    /// Whether this host is the VM's holder, or may prove to be when a doubt is settled.
    fn may_be_held(&self) -> bool {
        self.is_held() || matches!(self, Self::Doubtful { .. })
    }
}

/// One incarnation of a VM on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// What it is.
    pub definition: Definition,
    /// Its key.
    pub secret: VmSecret,
    /// The epoch in which it is held here.
    pub epoch: Epoch,
    /// The epoch in which it came here: part of its directory's name.
    pub arrived: Epoch,
    /// The next count of its record's version.
    pub seq: u32,
    /// This host's relation to it.
    pub role: Role,
    /// Whether it is meant to run.
    pub wanted: RunGoal,
    /// Its snapshots, oldest first.
    #[serde(default)]
    pub snapshots: Vec<Snapshot>,
    /// Why it is in a state that its user did not ask for.
    #[serde(default)]
    pub note: Option<String>,
    /// The member that was allowed to restore it while it is stopped here: then the copy here goes,
    /// and is no branch.
    #[serde(default)]
    pub gives_way: Option<MemberId>,
    /// The member that it was made for; `None` for a VM of an earlier version.
    #[serde(default)]
    pub owner: Option<MemberId>,
    /// The user that it is for, by the user's key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<Principal>,
    /// The tokens for it that were revoked before their end.
    #[serde(default, skip_serializing_if = "Revocations::is_empty")]
    pub revoked: Revocations,
    /// How well it is to outlive its host.
    #[serde(default, skip_serializing_if = "Protection::is_default")]
    pub protection: Protection,
    /// The newest replica of its disk that all its holders have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replica: Option<Replica>,
    /// A newer one that is stored here and not yet at its holders.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sending: Option<Replica>,
    /// How much it may send, and how much receive, on this host, bits a second, beside the offer's
    /// bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bits_per_second: Option<u64>,
    /// The schedule of its snapshots, and which of them have lost copies.
    #[serde(default, skip_serializing_if = "Backups::is_none")]
    pub backups: Backups,
    /// The keys that seal its snapshots, but the one that is derived from its own.
    #[serde(default, skip_serializing_if = "HoldingKeys::is_none")]
    pub sealing: HoldingKeys,
    /// Whether its voters may have it as protected: its guest runs under a lease, or not at all.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub leased: bool,
    /// How it came here, if its host was lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healed: Option<Healed>,
    /// From what it was restored last, here or on a host before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restored: Option<Restored>,
}

/// A start of a VM whose host was lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Healed {
    /// When.
    pub at: UnixTime,
    /// The host that was lost.
    pub from: MemberId,
    /// What was lost, in a few words.
    pub lost: String,
}

impl Entry {
    /// The name it is listed under here.
    pub fn listed_name(&self) -> String {
        match self.role {
            Role::Branch { .. } => format!("{}-branch-e{}", self.definition.name, self.epoch),
            _ => self.definition.name.clone(),
        }
    }

    /// Whether it is a copy that lost its VM.
    pub fn is_branch(&self) -> bool {
        matches!(self.role, Role::Branch { .. })
    }

    /// Which of a VM's incarnations here is meant by the VM: the greatest.
    pub(crate) fn precedence(&self) -> (bool, bool, Epoch) {
        (self.role.is_held(), self.role.may_be_held(), self.arrived)
    }

    /// Makes it a copy that lost its VM.
    pub(crate) fn make_branch(&mut self, holder: MemberId, newer: Epoch, note: String) {
        self.role = Role::Branch { holder, newer };
        self.note = Some(note);
        self.gives_way = None;
    }

    /// Makes it a copy that a newer incarnation on this host, `me`, replaces.
    pub(crate) fn make_replaced(&mut self, me: MemberId, newer: Epoch) {
        let note = format!("a restore here replaced it in epoch {newer}");
        self.make_branch(me, newer, note);
    }

    /// What the network's records are to say of it, held by `holder`.
    pub(crate) fn record(&self, holder: MemberId) -> VmRecord {
        VmRecord {
            definition: self.definition.clone(),
            holder,
            epoch: self.epoch,
            wanted: self.wanted,
            snapshots: self.snapshots.clone(),
            owner: self.owner,
            user: self.user,
            revoked: self.revoked.clone(),
            backups: self.backups.clone(),
            protection: self.protection.clone(),
            replica: self.replica.clone(),
            restored: self.restored,
        }
    }

    /// Notes how well a snapshot is kept from now on: one that is durable no longer is degraded
    /// until it is durable again. To be called before that is written to the snapshot.
    pub(crate) fn note_durability(&mut self, id: ManifestId, now: &Durability) {
        let known = self.snapshots.iter().find(|s| s.checkpoint == id);
        let Some(before) = known.map(|s| &s.durability) else {
            return;
        };
        match now {
            Durability::Durable => drop(self.backups.degraded.remove(&id)),
            _ if *before == Durability::Durable => drop(self.backups.degraded.insert(id)),
            _ => {}
        }
    }

    /// The name of its directory.
    pub fn incarnation(&self) -> String {
        incarnation(self.definition.vm, self.arrived)
    }
}

/// The name of an incarnation: short, because unix socket paths below it are bounded to 107 bytes.
pub fn incarnation(vm: VmId, arrived: Epoch) -> String {
    format!("{}-e{arrived}", vm.short())
}

/// Directories without a readable entry, with the reason.
pub type UnreadableDirs = Vec<(PathBuf, String)>;

/// The places of entries that hold a VM, or may come to, though a newer entry holds it, each with
/// that entry's epoch.
///
/// Reason: a restore by an earlier version left both where the daemon ended, or the new guest
/// failed, in its last steps.
pub(crate) fn superseded(entries: &[Entry]) -> Vec<(usize, Epoch)> {
    let newer = |entry: &Entry| {
        let is_newer = |other: &&Entry| {
            other.role.is_held()
                && other.definition.vm == entry.definition.vm
                && other.arrived > entry.arrived
        };
        entries.iter().filter(is_newer).map(|e| e.epoch).max()
    };
    let all = entries.iter().enumerate();
    let held = all.filter(|(_, entry)| entry.role.may_be_held());
    held.filter_map(|(at, entry)| Some((at, newer(entry)?)))
        .collect()
}

/// The directory of this host's VMs.
#[derive(Clone, Debug)]
pub struct Registry {
    dir: PathBuf,
}

impl Registry {
    /// The registry in `dir`, made if missing.
    ///
    /// # Errors
    /// The file system's error.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        // Traversable by the guests' own users: those of earlier versions reach their sockets below
        // it. The entries themselves are 0600.
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(dir)
            .map_err(io_at("making the directory of VMs", dir))?;
        Ok(Self {
            dir: dir.to_owned(),
        })
    }

    /// Where the VMs are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Every entry, and the directories without a readable one.
    ///
    /// # Errors
    /// The file system's error for the registry's directory itself.
    pub fn load(&self) -> Result<(Vec<Entry>, UnreadableDirs), Error> {
        let (mut entries, mut unreadable) = (Vec::new(), UnreadableDirs::new());
        for item in fs::read_dir(&self.dir).map_err(io_at("listing the VMs", &self.dir))? {
            let path = item.map_err(io_at("listing the VMs", &self.dir))?.path();
            if path
                .file_name()
                .is_some_and(|name| name.as_encoded_bytes().starts_with(GONE.as_bytes()))
            {
                fs::remove_dir_all(&path)
                    .map_err(io_at("removing what is left of a deleted VM", &path))?;
                continue;
            }
            match fs::read(path.join(FILE)) {
                Ok(bytes) => match serde_json::from_slice::<Entry>(&bytes) {
                    Ok(entry) => entries.push(entry),
                    Err(e) => unreadable.push((path, e.to_string())),
                },
                // A directory whose entry was not written yet, or was removed already: what is left
                // of an interrupted step.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                    unreadable.push((path, "no definition in it".into()))
                }
                Err(e) => unreadable.push((path, e.to_string())),
            }
        }
        entries.sort_by_key(|e| (e.definition.name.clone(), e.arrived));
        Ok((entries, unreadable))
    }

    /// Writes an entry; when it returns, the entry survives a power cut.
    ///
    /// # Errors
    /// The file system's error.
    pub fn save(&self, entry: &Entry) -> Result<(), Error> {
        let dir = self.path(entry);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(&dir)
            .map_err(io_at("making the VM's directory", &dir))?;
        let path = dir.join(FILE);
        let bytes = serde_json::to_vec_pretty(entry).expect("plain fields always serialize");
        write_atomically(&path, &bytes, 0o600)
            .map_err(io_at("writing the VM's definition", &path))?;
        sync_dir(&self.dir)
    }

    /// Removes an incarnation. It is renamed first, so that a kill half-way leaves no VM that seems
    /// whole.
    ///
    /// # Errors
    /// The file system's error.
    pub fn remove(&self, entry: &Entry) -> Result<(), Error> {
        let dir = self.path(entry);
        let gone = self.dir.join(format!("{GONE}{}", entry.incarnation()));
        match fs::rename(&dir, &gone) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            done => done.map_err(io_at("removing the VM's definition", &dir))?,
        }
        sync_dir(&self.dir)?;
        fs::remove_dir_all(&gone).map_err(io_at("removing the VM's files", &gone))
    }

    /// An incarnation's directory.
    pub fn path(&self, entry: &Entry) -> PathBuf {
        self.dir.join(entry.incarnation())
    }

    /// How the hypervisor runs it.
    pub fn spec(&self, entry: &Entry) -> MachineSpec {
        let (dir, definition) = (self.path(entry), &entry.definition);
        MachineSpec {
            vm: definition.vm,
            name: definition.name.clone(),
            cpus: definition.cpus,
            memory_mib: definition.memory_mib,
            disk: dir.join("disk.qcow2"),
            mac: definition.address.mac,
            tap: tap_name(&entry.incarnation()),
            mtu: definition.address.mtu,
            run_dir: dir.join("run"),
        }
    }
}

/// A TAP interface's name for an incarnation: at most 15 bytes, and distinct for two stays of one
/// VM.
fn tap_name(incarnation: &str) -> String {
    let hash = blake3::hash(incarnation.as_bytes());
    format!(
        "pv{}",
        BASE32_NOPAD
            .encode(&hash.as_bytes()[..6])
            .to_ascii_lowercase()
    )
}

fn sync_dir(dir: &Path) -> Result<(), Error> {
    fs::File::open(dir)
        .and_then(|d| d.sync_all())
        .map_err(io_at("flushing the VM's directory", dir))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::GuestAddress;
    use p2pvm_overlay::identity::KeyPair;
    use p2pvm_snapshot_sync::ChunkId;

    pub(crate) fn entry(name: &str) -> Entry {
        let keys = KeyPair::generate();
        Entry {
            definition: Definition {
                vm: keys.vm_id(),
                name: name.into(),
                cpus: 1,
                memory_mib: 64,
                disk_bytes: 1 << 20,
                image: ManifestId(ChunkId([1; 32])),
                voters: vec![MemberId([2; 32])],
                address: GuestAddress {
                    v4: [10, 1, 2, 3].into(),
                    prefix: 16,
                    v6: std::net::Ipv6Addr::LOCALHOST,
                    mac: [2; 6],
                    mtu: 1340,
                },
                created: UnixTime(7),
            },
            secret: VmSecret::of(&keys),
            epoch: Epoch(1),
            arrived: Epoch(1),
            seq: 0,
            role: Role::Held,
            wanted: RunGoal::Running,
            snapshots: vec![],
            note: None,
            gives_way: None,
            owner: None,
            user: None,
            revoked: Revocations::NONE,
            protection: Protection::default(),
            replica: None,
            sending: None,
            leased: false,
            healed: None,
            bits_per_second: None,
            backups: Backups::NONE,
            sealing: HoldingKeys::NONE,
            restored: None,
        }
    }

    #[test]
    fn a_kill_between_any_two_writes_loses_no_definition() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(dir.path()).unwrap();
        let mut first = entry("web");
        registry.save(&first).unwrap();
        // A kill while the next version was being written leaves a torn temporary file beside the
        // old entry.
        fs::write(registry.path(&first).join("vm.new"), b"{\"definition\":").unwrap();
        let (entries, broken) = registry.load().unwrap();
        assert_eq!(
            (entries.as_slice(), broken.len()),
            (&[first.clone()][..], 0)
        );
        first.wanted = RunGoal::Stopped;
        registry.save(&first).unwrap();
        assert_eq!(registry.load().unwrap().0, vec![first.clone()]);
        // A kill while a VM was being made or removed leaves a directory without an entry: no VM,
        // and said so.
        fs::create_dir(dir.path().join("half")).unwrap();
        let (entries, broken) = registry.load().unwrap();
        assert_eq!((entries.len(), broken.len()), (1, 1));
        registry.remove(&first).unwrap();
        assert!(registry.load().unwrap().0.is_empty());
    }

    #[test]
    fn of_two_held_stays_of_one_vm_the_older_is_superseded() {
        let older = entry("web");
        let stay = |arrived, role| Entry {
            arrived: Epoch(arrived),
            role,
            ..older.clone()
        };
        let branch = Role::Branch {
            holder: MemberId([9; 32]),
            newer: Epoch(2),
        };
        let all = [
            older.clone(),
            stay(3, Role::Held),
            entry("another"),
            stay(2, branch),
            stay(4, Role::Unmade),
        ];
        assert_eq!(superseded(&all), [(0, Epoch(1))]);
        assert!(superseded(&all[1..]).is_empty());
    }

    #[test]
    fn a_stay_in_doubt_gives_way_to_a_newer_held_one() {
        let doubtful = Entry {
            role: Role::Doubtful {
                id: 7,
                side: Side::Source,
                other: MemberId([9; 32]),
            },
            ..entry("web")
        };
        let held = Entry {
            arrived: Epoch(10),
            epoch: Epoch(10),
            role: Role::Held,
            ..doubtful.clone()
        };
        assert_eq!(superseded(&[held, doubtful]), [(1, Epoch(10))]);
    }

    #[test]
    fn two_stays_of_one_vm_share_neither_directory_nor_interface() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(dir.path()).unwrap();
        let first = entry("web");
        let second = Entry {
            arrived: Epoch(3),
            epoch: Epoch(3),
            ..first.clone()
        };
        let (a, b) = (registry.spec(&first), registry.spec(&second));
        assert_ne!((a.disk, a.run_dir, &a.tap), (b.disk, b.run_dir, &b.tap));
        assert!(a.tap.len() <= 15 && b.tap.len() <= 15);
    }

    #[test]
    fn the_secret_is_readable_by_its_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(dir.path()).unwrap();
        let first = entry("web");
        registry.save(&first).unwrap();
        let mode = fs::metadata(registry.path(&first).join(FILE))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o077, 0);
    }
}

#[cfg(test)]
#[path = "registry_golden_tests.rs"]
mod golden_tests;
