//! Content-addressed storage as the moves of a VM use it: images, and checkpoints. A trait, so that
//! the protocols here are tested without a byte of disk; [`ChunkVault`] is the one over
//! `snapshot-sync`.

use crate::{Error, hypervisor::Progress};
use async_trait::async_trait;
use p2pvm_overlay::{Epoch, MemberId, UnixTime, VmId, identity::KeyPair};
use p2pvm_snapshot_sync::{
    Checkpoint, FilePatch, ManifestId, SealKey, Verified,
    store::{CheckpointDiff, Size},
};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use tokio::sync::watch;

mod chunks;

pub use chunks::ChunkVault;

/// How well a checkpoint is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// On this host alone.
    Local,
    /// `done` of `wanted` other members hold all of it.
    Replicating {
        /// How many hold it.
        done: usize,
        /// How many should.
        wanted: usize,
    },
    /// As many other members as wanted hold it.
    Durable,
}

/// The copies of a checkpoint: how durable they make it, and which members hold one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copies {
    /// How durable it is.
    pub durability: Durability,
    /// The members that hold all of it, this one among them.
    pub providers: Vec<MemberId>,
}

/// The members that a checkpoint may be copied to, the preferred ones first, as they are now.
pub type Candidates = Box<dyn Fn() -> Vec<MemberId> + Send + Sync>;

/// The parts of a VM, all of one instant, that become a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointInput {
    /// Which VM.
    pub vm: VmId,
    /// The snapshot's name.
    pub name: String,
    /// When it was taken.
    pub taken: UnixTime,
    /// The holder's epoch then.
    pub epoch: Epoch,
    /// RAM and device state; none if the VM was stopped.
    pub ram: Option<PathBuf>,
    /// The VM's own disk.
    pub disk: PathBuf,
    /// The image that the disk lies over.
    pub image: ManifestId,
    /// The VM's definition and key, sealed, in this crate's form.
    pub spec: Vec<u8>,
    /// The key that seals the chunks of RAM and disk.
    pub seal: SealKey,
    /// The public key that ends replicas of it.
    pub releaser: VmId,
}

/// A checkpoint of what changed, as [`Vault::store_changes`] leaves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredChanges {
    /// The checkpoint document.
    pub checkpoint: ManifestId,
    /// How many bytes of chunks were not here before.
    pub new_bytes: u64,
}

/// Images and checkpoints by content.
#[async_trait]
pub trait Vault: Send + Sync + 'static {
    /// Stores a qcow2 or raw file as an image. The same content gives the same id.
    async fn import_image(
        &self,
        file: &Path,
        progress: &watch::Sender<Progress>,
    ) -> Result<ManifestId, Error>;

    /// A read-only file with the image's bytes, fetched from `providers` as far as it is missing
    /// here. The path stays valid.
    async fn ensure_image(
        &self,
        image: ManifestId,
        providers: &[MemberId],
        progress: &watch::Sender<Progress>,
    ) -> Result<PathBuf, Error>;

    /// Whether the image's file is here, so that [`Vault::ensure_image`] fetches nothing.
    async fn has_image(&self, image: ManifestId) -> bool;

    /// The images that are kept here.
    async fn images(&self) -> Result<Vec<ManifestId>, Error>;

    /// Removes an image if `unused`, which is asked while no fetch of the image is under way, says
    /// that no VM here uses it; whether it was removed.
    async fn drop_image(
        &self,
        image: ManifestId,
        unused: &(dyn Fn() -> bool + Send + Sync),
    ) -> Result<bool, Error>;

    /// Stores a checkpoint; when it returns, it is flushed and kept until [`Vault::forget`].
    async fn store(
        &self,
        instant: &CheckpointInput,
        progress: &watch::Sender<Progress>,
    ) -> Result<ManifestId, Error>;

    /// Stores a checkpoint of the disk alone: that of the checkpoint `base` with the changes of
    /// `patch`, whose blocks are in the instant's disk file. It is sent to other members at `rate`
    /// bytes a second. When it returns, it is flushed and kept until [`Vault::forget`].
    async fn store_changes(
        &self,
        instant: &CheckpointInput,
        (base, patch): (Option<ManifestId>, FilePatch),
        rate: u64,
    ) -> Result<StoredChanges, Error> {
        let (_, _, _, _) = (instant, base, patch, rate);
        Err(Error::Refused("this vault stores no changes".into()))
    }

    /// Whether a checkpoint is kept here for this host, until [`Vault::forget`].
    async fn keeps(&self, id: ManifestId) -> Result<bool, Error>;

    /// A checkpoint, fetched from `providers` if it is missing here, without the content that it
    /// names. It need not stay here.
    async fn look_at(&self, id: ManifestId, providers: &[MemberId]) -> Result<Checkpoint, Error>;

    /// A checkpoint with all that it names, fetched from `providers` as far as it is missing here,
    /// and kept from now on.
    async fn fetch(
        &self,
        id: ManifestId,
        providers: &[MemberId],
        progress: &watch::Sender<Progress>,
    ) -> Result<Checkpoint, Error>;

    /// Writes a stored file's content to `to`, atomically; `key` opens it if it is sealed. Damaged
    /// chunks are fetched again from `providers`.
    async fn export(
        &self,
        file: ManifestId,
        key: &SealKey,
        providers: &[MemberId],
        to: &Path,
        progress: &watch::Sender<Progress>,
    ) -> Result<(), Error>;

    /// Copies a checkpoint to `wanted` members of `candidates`, until it is durable or the receiver
    /// is dropped. They are asked for again when all have been tried.
    async fn replicate(
        &self,
        id: ManifestId,
        wanted: usize,
        candidates: Candidates,
    ) -> Result<watch::Receiver<Copies>, Error>;

    /// How many chunks of a checkpoint that `providers` have `member` lacks; `None` if it does not
    /// answer.
    async fn lacking(
        &self,
        id: ManifestId,
        member: MemberId,
        providers: &[MemberId],
    ) -> Result<Option<usize>, Error>;

    /// Ends the copy that `member`, one of its `providers`, has of a checkpoint, with that of the
    /// `keys` which the checkpoint names; false if it does not answer.
    async fn release(
        &self,
        (id, member): (ManifestId, MemberId),
        providers: &[MemberId],
        keys: &[KeyPair],
    ) -> Result<bool, Error>;

    /// Removes a checkpoint from this host and, as far as they answer, from the other `providers`,
    /// whichever member had them keep it, with that of the `keys` which the checkpoint names. Gives
    /// those that did not answer.
    async fn forget(
        &self,
        id: ManifestId,
        providers: &[MemberId],
        keys: &[KeyPair],
    ) -> Result<Vec<MemberId>, Error>;

    /// The checkpoints that are kept here for this host, each with the public key that ends
    /// replicas of it. Damaged ones are left out.
    async fn kept(&self) -> Result<Vec<(ManifestId, VmId)>, Error>;

    /// Reads every chunk of a checkpoint that is kept here; damaged ones are removed, to be fetched
    /// by [`Vault::mend`].
    async fn verify(&self, id: ManifestId) -> Result<Verified, Error>;

    /// Fetches what is missing here of a checkpoint that is kept here.
    async fn mend(
        &self,
        id: ManifestId,
        providers: &[MemberId],
        progress: &watch::Sender<Progress>,
    ) -> Result<(), Error>;

    /// How the second checkpoint differs from the first. What is not content of both is fetched
    /// from `providers` as far as it is missing.
    async fn diff(
        &self,
        both: (ManifestId, ManifestId),
        providers: &[MemberId],
    ) -> Result<CheckpointDiff, Error>;

    /// How large a checkpoint is. What is not content is fetched from `providers` as far as it is
    /// missing.
    async fn size_of(&self, id: ManifestId, providers: &[MemberId]) -> Result<Size, Error>;

    /// Keeps a checkpoint no longer for this host; what other members had it keep stays.
    async fn let_go(&self, id: ManifestId) -> Result<(), Error>;
}
