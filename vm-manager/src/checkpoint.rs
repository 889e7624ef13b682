//! Snapshots of VMs, and bringing a VM back from one on any member.
//!
//! A checkpoint in the chunk store names the VM's RAM, disk and image by content and holds the VM's
//! definition and key ([`SavedVm`]). A member that has the checkpoint and what it names can run the
//! VM again, once the VM's voters have granted a new epoch. It travels between proved members only,
//! and is in no record.

use crate::{Definition, definition::VmSecret, framed};
use serde::{Deserialize, Serialize};

mod restore;
mod take;

pub use restore::RestoreOptions;
pub use take::NewSnapshot;

/// What a checkpoint holds of its VM, beside the files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedVm {
    /// The VM.
    pub definition: Definition,
    /// Its key.
    pub secret: VmSecret,
}

impl SavedVm {
    /// Its bytes in a checkpoint.
    pub fn to_bytes(&self) -> Vec<u8> {
        framed::to_bytes(self)
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
