//! Snapshots of VMs, and bringing a VM back from one on any member.
//!
//! A checkpoint in the chunk store names the VM's RAM, disk and image by content and holds the VM's
//! definition and key ([`SavedVm`]). RAM, disk and that are sealed (`sealed.rs`): a member that has
//! the checkpoint and what it names can run the VM again once a majority of the VM's voters have
//! released its key and granted a new epoch.

use crate::{Definition, definition::VmSecret, framed, sealed::Sealed};
use p2pvm_overlay::MemberId;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

mod open;
mod restore;
mod take;

pub use restore::RestoreOptions;
pub(crate) use restore::Right;
pub use take::NewSnapshot;
pub(crate) use take::candidates;

/// What a checkpoint holds of its VM, beside the files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedVm {
    /// The VM.
    pub definition: Definition,
    /// Its key.
    pub secret: VmSecret,
}

impl SavedVm {
    /// Its bytes, as releases before the sealed form had them in a checkpoint.
    pub fn to_bytes(&self) -> Vec<u8> {
        framed::to_bytes(self)
    }

    /// Its bytes in a checkpoint, sealed for the VM's voters and its owner: the host that has it if
    /// the VM is of a version without owners.
    pub(crate) fn sealed(&self, owner: MemberId) -> Vec<u8> {
        let plain = Zeroizing::new(self.to_bytes());
        let (vm, voters) = (self.definition.vm, &self.definition.voters);
        Sealed::seal(vm, owner, voters, &plain).to_bytes()
    }

    /// Reads them; `None` for anything else, or a key that is not the VM's.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        framed::from_bytes(bytes)
            .filter(|saved: &Self| saved.secret.keys().vm_id() == saved.definition.vm)
    }
}

#[cfg(test)]
#[path = "checkpoint/saved_golden_tests.rs"]
mod golden_tests;
