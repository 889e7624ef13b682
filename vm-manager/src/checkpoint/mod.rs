//! Snapshots of VMs, and bringing a VM back from one on any member.
//!
//! A checkpoint in the chunk store names the VM's RAM, disk and image by content and holds the
//! definition and key of the VM ([`Kept`]). Whoever has it and what it names can run the VM again,
//! once the VM's voters have granted a new epoch. It travels between proved members only, and is in
//! no record.

use crate::{Definition, definition::VmSecret, framed};
use serde::{Deserialize, Serialize};

mod restore;
mod take;

pub use restore::RestoreOptions;
pub use take::Taken;

/// What a checkpoint says of its VM, beside the files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// The VM.
    pub definition: Definition,
    /// Its key.
    pub secret: VmSecret,
}

impl Kept {
    /// As bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        framed::to_bytes(self)
    }

    /// Reads them; `None` for anything else, or a key that is not the VM's.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        framed::from_bytes(bytes).filter(|k: &Self| k.secret.keys().vm_id() == k.definition.vm)
    }
}
