//! Where VMs are, for all members: one record a VM, owned by the VM's own key and written by the
//! host that holds it, and one a name. Records find, they do not decide: a record may be stale, and
//! the voters named in it say which host may run the VM.

use crate::{
    Definition, Error,
    backups::Backups,
    error::undecided,
    framed,
    protection::{self, Protection, Replica},
    recovery::Restored,
    vault::Durability,
};
use p2pvm_authority::{Principal, Revocation, Revocations};
use p2pvm_dht::{Record, RecordError, Records};
use p2pvm_overlay::{Epoch, MemberId, RingAddr, UnixTime, VmId, identity::KeyPair};
use p2pvm_snapshot_sync::ManifestId;
use serde::{Deserialize, Serialize};
use std::{sync::Arc, time::Duration};

/// How long a VM's records live without their holder. Reason: a dead host's VM is restored by what
/// its record says.
pub const RECORD_TTL: Duration = Duration::from_secs(30 * 24 * 3600);

/// How many snapshots one VM's record lists at most. Reason: the record stays within its bounds.
pub const MAX_SNAPSHOTS: usize = 64;

/// How many members one of them names at most. Reason: as above.
pub(crate) const MAX_PROVIDERS: usize = 8;

/// How many counts a record is published with before the attempt fails. Reason: a member that
/// refuses one names its own, so that only another writer makes the next one fail.
const PUBLISH_TRIES: u32 = 4;

/// A snapshot of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its name, unique for the VM.
    pub name: String,
    /// The checkpoint document.
    pub checkpoint: ManifestId,
    /// When it was taken.
    pub taken: UnixTime,
    /// The VM's epoch at that time.
    pub epoch: Epoch,
    /// Whether the guest's memory is in it (it ran), or only its disk.
    pub with_ram: bool,
    /// How well it is kept.
    pub durability: Durability,
    /// Members that hold all of it.
    pub providers: Vec<MemberId>,
}

impl Replica {
    /// The same as a snapshot, which a restore brings back.
    pub fn as_snapshot(&self) -> Snapshot {
        Snapshot {
            name: protection::REPLICA.into(),
            checkpoint: self.checkpoint,
            taken: self.taken,
            epoch: self.epoch,
            with_ram: false,
            durability: self.durability.clone(),
            providers: self.providers.clone(),
        }
    }
}

/// Whether a VM is meant to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunGoal {
    /// It should run.
    Running,
    /// It should not.
    Stopped,
}

/// What the network's records say of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmRecord {
    /// The VM.
    pub definition: Definition,
    /// The member that holds it.
    pub holder: MemberId,
    /// The epoch of that holding.
    pub epoch: Epoch,
    /// Whether it is meant to run.
    pub wanted: RunGoal,
    /// Its snapshots, oldest first.
    pub snapshots: Vec<Snapshot>,
    /// The member that the VM was made for; `None` in records of earlier versions.
    #[serde(skip)]
    pub owner: Option<MemberId>,
    /// The user that the VM is for, by the user's key.
    #[serde(skip)]
    pub user: Option<Principal>,
    /// The tokens for the VM that were revoked, as its host says: not checked.
    #[serde(skip)]
    pub revoked: Revocations,
    /// How well it is to outlive its host.
    #[serde(skip)]
    pub protection: Protection,
    /// The newest replica of its disk that all its holders have.
    #[serde(skip)]
    pub replica: Option<Replica>,
    /// The schedule of its snapshots, and which of them have lost copies.
    #[serde(skip)]
    pub backups: Backups,
    /// From what it was restored last.
    #[serde(skip)]
    pub restored: Option<Restored>,
}

/// The optional field behind a record that holds the VM's owner.
const OWNER: u8 = 1;
/// The optional field that holds the key of the VM's user.
const USER: u8 = 2;
/// The optional fields that hold a revoked token each.
const REVOKED: u8 = 8;
/// The optional field that holds how the VM is protected, unless as one of a previous release.
const PROTECTION: u8 = 16;
/// The optional field that holds the newest replica of its disk.
const REPLICA: u8 = 17;
/// The optional field that says from what the VM was restored last.
const RESTORED: u8 = 19;
/// The optional field with the schedule of snapshots, and which of them have lost copies.
const BACKUPS: u8 = 20;

/// The names of their content.
pub(crate) fn checkpoints(snapshots: &[Snapshot]) -> impl Iterator<Item = ManifestId> {
    snapshots.iter().map(|s| s.checkpoint)
}

impl VmRecord {
    /// The record's value. Optional fields follow the record: one byte for the kind, one for the
    /// length, the bytes. A member skips a field whose kind it cannot read; one of an earlier
    /// version reads no further than the record.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = framed::to_bytes(self);
        if let Some(MemberId(owner)) = self.owner {
            bytes.extend([OWNER, owner.len() as u8]);
            bytes.extend(owner);
        }
        if let Some(user) = self.user {
            bytes.extend([USER, user.len() as u8]);
            bytes.extend(user);
        }
        for one in self.revoked.iter().map(Revocation::to_field) {
            bytes.extend([REVOKED, one.len() as u8]);
            bytes.extend(one);
        }
        if !self.protection.is_default() {
            let field = self.protection.to_field();
            bytes.extend([PROTECTION, field.len() as u8]);
            bytes.extend(field);
        }
        if let Some(field) = self.replica.as_ref().map(Replica::to_field) {
            bytes.extend([REPLICA, field.len() as u8]);
            bytes.extend(field);
        }
        if let Some(field) = self.backups.to_field(checkpoints(&self.snapshots)) {
            bytes.extend([BACKUPS, field.len() as u8]);
            bytes.extend(field);
        }
        if let Some(field) = self.restored.as_ref().map(Restored::to_field) {
            bytes.extend([RESTORED, field.len() as u8]);
            bytes.extend(field);
        }
        bytes
    }

    /// Reads a record's value; `None` for anything else.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (mut record, mut fields): (Self, _) = framed::take_from_bytes(bytes)?;
        let mut revoked = Vec::new();
        while let [field, length, rest @ ..] = fields {
            let Some((value, behind)) = rest.split_at_checked(usize::from(*length)) else {
                break;
            };
            match *field {
                OWNER => record.owner = value.try_into().ok().map(MemberId),
                USER => record.user = value.try_into().ok(),
                REVOKED => revoked.extend(Revocation::from_field(value)),
                PROTECTION => {
                    let read = Protection::from_field(value);
                    record.protection = read.unwrap_or(record.protection);
                }
                REPLICA => record.replica = Replica::from_field(value).or(record.replica),
                RESTORED => record.restored = Restored::from_field(value).or(record.restored),
                BACKUPS => {
                    let told = Backups::from_field(value, checkpoints(&record.snapshots));
                    record.backups = told.unwrap_or_default();
                }
                _ => {}
            }
            fields = behind;
        }
        record.revoked = Revocations::unchecked(revoked);
        Some(record)
    }

    /// What a record says of a VM; `None` if it is no VM's, lies at another VM's place or is not
    /// the VM's own. The caller checks the signature.
    pub fn of(record: &Record) -> Option<Self> {
        let found = Self::from_bytes(record.value.as_deref()?)?;
        let vm = found.definition.vm;
        (record.owner == vm.0 && record.key == vm_key(vm)).then_some(found)
    }
}

/// Where a VM's record lives.
pub fn vm_key(vm: VmId) -> RingAddr {
    RingAddr::of("p2pvm 2026 record of a VM", &vm.0)
}

/// Where the record of a VM's name lives.
pub fn name_key(name: &str) -> RingAddr {
    RingAddr::of("p2pvm 2026 name of a VM", name.as_bytes())
}

/// The version of a VM's record: the epoch decides, then the holder's own count.
pub fn version(epoch: Epoch, seq: u32) -> u64 {
    epoch.first_version() | u64::from(seq)
}

/// The VM records of the network.
#[derive(Clone)]
pub struct Directory(Arc<dyn Records>);

impl Directory {
    /// The directory kept in `records`.
    pub fn new(records: Arc<dyn Records>) -> Self {
        Self(records)
    }

    /// Takes a name for a VM.
    ///
    /// # Errors
    /// [`Error::Refused`] if another VM has it, [`Error::Agreement`] if too few members answer.
    pub async fn take_name(&self, keys: &KeyPair, name: &str) -> Result<(), Error> {
        match self
            .0
            .create(keys, name_key(name), keys.public().to_vec(), RECORD_TTL)
            .await
        {
            Ok(_) => Ok(()),
            Err(RecordError::Exists(_)) => Err(Error::Refused(format!(
                "the network has a VM named '{name}' already: choose another name, or delete \
                    that one"
            ))),
            Err(e) => Err(undecided("taking the VM's name")(e)),
        }
    }

    /// The VM that has a name.
    ///
    /// # Errors
    /// [`Error::Agreement`] if too few members answer.
    pub async fn resolve(&self, name: &str) -> Result<Option<VmId>, Error> {
        let record = self
            .0
            .get(name_key(name))
            .await
            .map_err(undecided("looking the VM's name up"))?;
        Ok(record
            .and_then(|r| {
                <[u8; 32]>::try_from(r.value.as_deref()?)
                    .ok()
                    .filter(|id| *id == r.owner)
            })
            .map(VmId))
    }

    /// A VM's record.
    ///
    /// # Errors
    /// [`Error::Agreement`] if too few members answer.
    pub async fn record(&self, vm: VmId) -> Result<Option<VmRecord>, Error> {
        let record = self
            .0
            .get(vm_key(vm))
            .await
            .map_err(undecided("looking the VM up"))?;
        Ok(record
            .and_then(|r| VmRecord::of(&r))
            .filter(|found| found.definition.vm == vm))
    }

    /// The record of the VM with that name.
    ///
    /// # Errors
    /// [`Error::Agreement`] if too few members answer.
    pub async fn find(&self, name: &str) -> Result<Option<VmRecord>, Error> {
        match self.resolve(name).await? {
            Some(vm) => self.record(vm).await,
            None => Ok(None),
        }
    }

    /// Publishes a VM's record with the least count not yet used, beginning at `seq`; returns the
    /// one used.
    ///
    /// # Errors
    /// [`Error::Agreement`] if too few members answer, or one has a newer epoch.
    pub async fn publish(
        &self,
        keys: &KeyPair,
        record: &VmRecord,
        mut seq: u32,
    ) -> Result<u32, Error> {
        for _ in 0..PUBLISH_TRIES {
            match self
                .0
                .put(
                    keys,
                    vm_key(record.definition.vm),
                    version(record.epoch, seq),
                    record.to_bytes(),
                    RECORD_TTL,
                )
                .await
            {
                Ok(_) => return Ok(seq),
                Err(RecordError::Stale(known))
                    if known >> 32 == record.epoch.0 && known as u32 != u32::MAX =>
                {
                    seq = known as u32 + 1
                }
                Err(e) => return Err(undecided("publishing the VM's record")(e)),
            }
        }
        Err(undecided("publishing the VM's record")(
            "another writer keeps racing",
        ))
    }

    /// Removes a VM and its name.
    ///
    /// # Errors
    /// [`Error::Agreement`] if too few members answer.
    pub async fn remove(&self, keys: &KeyPair, name: &str) -> Result<(), Error> {
        self.0
            .delete(keys, vm_key(keys.vm_id()))
            .await
            .map_err(undecided("deleting the VM's record"))?;
        match self.0.delete(keys, name_key(name)).await {
            // The name is another VM's by now, so nothing of this one is left there.
            Ok(()) | Err(RecordError::Exists(_)) => Ok(()),
            Err(e) => Err(undecided("giving the VM's name back")(e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::registry::tests::entry;
    use p2pvm_authority::Resource;
    use p2pvm_snapshot_sync::ChunkId;

    #[test]
    fn a_later_epochs_version_is_newer_whatever_was_counted() {
        assert_eq!(version(Epoch(2), 7), (2 << 32) + 7);
        assert!(version(Epoch(2), 0) > version(Epoch(1), u32::MAX));
        assert!(version(Epoch(u64::MAX), 0) > version(Epoch(3), u32::MAX));
    }

    #[test]
    fn a_records_owner_is_read_and_former_versions_read_the_rest() {
        let record = VmRecord {
            definition: entry("web").definition,
            holder: MemberId([4; 32]),
            epoch: Epoch(3),
            wanted: RunGoal::Running,
            snapshots: vec![],
            owner: Some(MemberId([9; 32])),
            user: None,
            revoked: Revocations::NONE,
            protection: Protection::default(),
            replica: None,
            backups: Backups::NONE,
            restored: None,
        };
        let bytes = record.to_bytes();
        assert_eq!(VmRecord::from_bytes(&bytes), Some(record.clone()));
        let plain = VmRecord {
            owner: None,
            user: None,
            ..record.clone()
        };
        assert_eq!(
            framed::from_bytes::<VmRecord>(&bytes),
            Some(plain.clone()),
            "as it was read before there were such fields"
        );
        assert_eq!(
            VmRecord::from_bytes(&framed::to_bytes(&plain)),
            Some(plain.clone())
        );
        let later = [
            plain.to_bytes(),
            vec![200, 2, 7, 7],
            bytes[bytes.len() - 34..].into(),
        ];
        assert_eq!(VmRecord::from_bytes(&later.concat()), Some(record));
        for junk in [&[OWNER][..], &[OWNER, 32, 1], &[OWNER, 1, 1]] {
            let bytes = [plain.to_bytes(), junk.into()].concat();
            assert_eq!(VmRecord::from_bytes(&bytes), Some(plain.clone()));
        }
    }

    #[test]
    fn a_record_lists_revoked_tokens_behind_what_former_versions_read() {
        let definition = entry("web").definition;
        let of_vm = Resource::Vm(definition.vm);
        let revoked = (0..40).map(|serial| {
            Revocation::sign(&KeyPair::from_seed(&[5; 32]), of_vm, [serial; 16], u64::MAX)
        });
        let record = VmRecord {
            definition,
            holder: MemberId([4; 32]),
            epoch: Epoch(3),
            wanted: RunGoal::Running,
            snapshots: vec![],
            owner: Some(MemberId([9; 32])),
            user: None,
            revoked: Revocations::unchecked(revoked),
            protection: Protection::default(),
            replica: None,
            backups: Backups::NONE,
            restored: None,
        };
        let bytes = record.to_bytes();
        assert_eq!(VmRecord::from_bytes(&bytes), Some(record.clone()));
        let plain = VmRecord {
            revoked: Revocations::NONE,
            ..record
        };
        assert_eq!(bytes[..plain.to_bytes().len()], plain.to_bytes());
        assert!(
            bytes.len() - plain.to_bytes().len() < 5 << 10,
            "the record has 32 KiB"
        );
        let broken = [plain.to_bytes(), vec![REVOKED, 3, 1, 2, 3]].concat();
        assert_eq!(VmRecord::from_bytes(&broken), Some(plain));
    }

    #[test]
    fn a_record_of_all_that_a_vm_can_have_fits() {
        let definition = entry(&"w".repeat(63)).definition;
        let (of_vm, keys) = (Resource::Vm(definition.vm), KeyPair::from_seed(&[5; 32]));
        let most = p2pvm_authority::MAX_REVOCATIONS as u8;
        let revoked = (0..most).map(|n| Revocation::sign(&keys, of_vm, [n; 16], u64::MAX));
        let snapshot = Snapshot {
            name: "s".repeat(63),
            ..crate::protection::tests::replica(MAX_PROVIDERS).as_snapshot()
        };
        let snapshots = vec![snapshot; MAX_SNAPSHOTS];
        let record = VmRecord {
            definition,
            holder: MemberId([4; 32]),
            epoch: Epoch(u64::MAX),
            wanted: RunGoal::Running,
            backups: Backups {
                schedule: None,
                degraded: checkpoints(&snapshots).collect(),
            },
            snapshots,
            owner: Some(MemberId([9; 32])),
            user: Some([8; 32]),
            revoked: Revocations::unchecked(revoked),
            protection: crate::protection::tests::chosen(),
            replica: Some(crate::protection::tests::replica(5)),
            restored: Some(Restored {
                epoch: Epoch(u64::MAX),
                checkpoint: ManifestId(ChunkId([7; 32])),
            }),
        };
        let bytes = record.to_bytes();
        assert!(
            bytes.len() <= 30 << 10,
            "{}: the DHT takes 32 KiB",
            bytes.len()
        );
        assert_eq!(VmRecord::from_bytes(&bytes), Some(record));
    }
}

#[cfg(test)]
#[path = "directory_golden_tests.rs"]
pub(crate) mod golden_tests;
