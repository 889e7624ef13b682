//! A checkpoint: RAM, disk and base image of a VM at one instant, under one name. A member that has
//! the checkpoint's chunks can run the VM from that instant on.

use crate::ManifestId;
use p2pvm_overlay::{Epoch, UnixTime, VmId};
use serde::{Deserialize, Serialize};

/// One instant of a VM. [`Checkpoint::store`] gives it a [`ManifestId`], which is fetched, pinned
/// and replicated like a file's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The public key that ends replicas of it: the VM's id, or a key that its host has made for
    /// that.
    pub vm: VmId,
    /// The snapshot's name.
    pub name: String,
    /// When it was taken.
    pub taken: UnixTime,
    /// The holder's epoch at that time.
    pub epoch: Epoch,
    /// RAM and device state; `None` if the VM was stopped.
    pub ram: Option<ManifestId>,
    /// The VM's own disk.
    pub disk: ManifestId,
    /// The image that the disk is based on, if any.
    pub image: Option<ManifestId>,
    /// The VM's definition, in the caller's own form.
    pub spec: Vec<u8>,
}

impl Checkpoint {
    /// The manifests that it names.
    pub fn files(&self) -> impl Iterator<Item = ManifestId> {
        [self.ram, Some(self.disk), self.image]
            .into_iter()
            .flatten()
    }
}
