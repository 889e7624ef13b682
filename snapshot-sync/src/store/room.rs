//! Room on the store's file system: how much a manifest takes, and how much the replicas of one
//! member take.

use super::ChunkStore;
use crate::{ChunkId, Error, ManifestId, error::io_at, tree::Role};
use p2pvm_overlay::{
    MemberId,
    reserve::{self, Room},
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    io,
};

/// How much a manifest's content takes, before compression; each chunk once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// In all.
    pub bytes: u64,
    /// Of that, what is not here.
    pub missing_bytes: u64,
}

impl ChunkStore {
    /// How much the content of `id` takes. All its nodes must be here.
    ///
    /// # Errors
    /// `NotFound` or `Corrupt` of a node; [`Error::Io`].
    pub fn size_of(&self, id: ManifestId) -> Result<Size, Error> {
        let mut chunks = HashMap::new();
        self.note_content(id, &mut chunks)?;
        let mut size = Size::default();
        for (chunk, bytes) in chunks {
            size.bytes += bytes;
            size.missing_bytes += if self.has(chunk) { 0 } else { bytes };
        }
        Ok(size)
    }

    /// How many bytes the replicas of a member and `id` take together: a chunk that several of them
    /// name counts once.
    ///
    /// # Errors
    /// As [`ChunkStore::size_of`] for `id`; a damaged replica does not count.
    pub fn kept_with(&self, owner: MemberId, id: ManifestId) -> Result<u64, Error> {
        let mut chunks = HashMap::new();
        self.note_content(id, &mut chunks)?;
        let pins = self.pins()?.into_iter();
        let kept: HashSet<ManifestId> = pins
            .filter(|pin| pin.owner == Some(owner) && pin.manifest != id)
            .map(|pin| pin.manifest)
            .collect();
        for manifest in kept {
            match self.note_content(manifest, &mut chunks) {
                Err(other @ Error::Io { .. }) => return Err(other),
                _ => continue,
            }
        }
        Ok(chunks.into_values().sum())
    }

    /// How many bytes the replicas of each member take, counted as by [`ChunkStore::kept_with`].
    ///
    /// # Errors
    /// [`Error::Io`]; a damaged replica does not count.
    pub fn kept_by_member(&self) -> Result<BTreeMap<MemberId, u64>, Error> {
        let mut manifests: BTreeMap<MemberId, BTreeSet<ManifestId>> = BTreeMap::new();
        for pin in self.pins()? {
            if let Some(owner) = pin.owner {
                manifests.entry(owner).or_default().insert(pin.manifest);
            }
        }
        let mut kept = BTreeMap::new();
        for (owner, manifests) in manifests {
            let mut chunks = HashMap::new();
            for manifest in manifests {
                match self.note_content(manifest, &mut chunks) {
                    Err(other @ Error::Io { .. }) => return Err(other),
                    _ => continue,
                }
            }
            kept.insert(owner, chunks.into_values().sum());
        }
        Ok(kept)
    }

    fn note_content(
        &self,
        id: ManifestId,
        chunks: &mut HashMap<ChunkId, u64>,
    ) -> Result<(), Error> {
        self.walk_roles(id, |role, chunk| {
            if let Role::Data { bytes } = role {
                chunks.insert(chunk, bytes.into());
            }
            true
        })
    }

    pub(crate) fn room(&self) -> Result<Room, Error> {
        reserve::room(&self.0.dir).map_err(io_at("looking for room in", &self.0.dir))
    }

    /// Checks that the file system has room for `bytes`, and a tenth for names and file ends, with
    /// `reserve` left.
    pub(crate) fn has_room(&self, bytes: u64, reserve: u64) -> Result<(), Error> {
        let free = self.room()?.free;
        let wanted = bytes.saturating_add(bytes / 10);
        if free >= wanted.saturating_add(reserve) {
            return Ok(());
        }
        let detail = format!(
            "{} MiB are needed, {} MiB are kept in reserve, and {} MiB free",
            mib(wanted),
            mib(reserve),
            free >> 20
        );
        Err(io_at("looking for room in", &self.0.dir)(io::Error::new(
            io::ErrorKind::StorageFull,
            detail,
        )))
    }
}

fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}
