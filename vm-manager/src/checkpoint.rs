//! Snapshots of VMs, and bringing a VM back from one on any member.
//!
//! A checkpoint in the chunk store names the VM's RAM, disk and image by content and holds the VM's
//! definition and key ([`SavedVm`]). RAM, disk and that are sealed (`sealed.rs`): a member that has
//! the checkpoint and what it names can run the VM again once a majority of the VM's voters have
//! released its key and granted a new epoch.

use crate::{
    Definition,
    definition::VmSecret,
    framed,
    sealed::{HoldingKeys, Sealed},
};
use p2pvm_overlay::MemberId;
use p2pvm_snapshot_sync::SealKey;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

mod look;
mod open;
mod restore;
mod right;
mod take;

pub use look::{Copy, SnapshotCheck};
pub use right::RestoreOptions;
pub(crate) use right::Right;
pub(crate) use take::candidates;
pub use take::{Content, NewSnapshot};

/// What a checkpoint holds of its VM, beside the files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedVm {
    /// The VM.
    pub definition: Definition,
    /// Its key.
    pub secret: VmSecret,
    /// The keys of its snapshots.
    #[serde(skip)]
    pub sealing: HoldingKeys,
}

/// The optional fields behind a saved VM that hold a key of its snapshots each.
const KEY: u8 = 1;

impl SavedVm {
    /// Its bytes, which releases before the sealed form had in a checkpoint as they are. Optional
    /// fields follow: one byte for the kind, one for the length, the bytes. A member skips a field
    /// whose kind it cannot read.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = framed::to_bytes(self);
        for field in self.sealing.fields() {
            bytes.extend([KEY, field.len() as u8]);
            bytes.extend(field);
        }
        bytes
    }

    /// Its bytes in a checkpoint, sealed for the VM's voters and its owner: the host that has it if
    /// the VM is of a version without owners.
    pub(crate) fn sealed(&self, owner: MemberId) -> Vec<u8> {
        let plain = Zeroizing::new(self.to_bytes());
        let of = (self.definition.vm, self.sealing.newest());
        Sealed::seal(of, owner, &self.definition.voters, &plain).to_bytes()
    }

    /// The key that seals memory and disk of the snapshots that are taken now.
    pub(crate) fn seal_key(&self) -> SealKey {
        let key = self.sealing.key(self.sealing.newest(), &self.secret);
        key.expect("the newest of the keys is one of them")
    }

    /// Reads them; `None` for anything else, or a key that is not the VM's.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (mut saved, mut fields): (Self, _) = framed::take_from_bytes(bytes)?;
        while let [field, length, rest @ ..] = fields {
            let Some((value, behind)) = rest.split_at_checked(usize::from(*length)) else {
                break;
            };
            if *field == KEY {
                saved.sealing.add_field(value);
            }
            fields = behind;
        }
        (saved.secret.keys().vm_id() == saved.definition.vm).then_some(saved)
    }
}

#[cfg(test)]
#[path = "checkpoint/saved_golden_tests.rs"]
mod golden_tests;
