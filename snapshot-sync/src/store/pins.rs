//! Pins: which manifests must stay, and under which label. A pin is a small file of its own, so
//! that setting or removing one touches no other; it is durable before the call returns.

use super::{ChunkStore, Hold, sync_directory};
use crate::{
    ChunkId, Error, ManifestId,
    error::io_at,
    tree::{self, Role},
};
use data_encoding::HEXLOWER;
use std::{
    collections::HashSet,
    fs::{self, File},
    io::{self, Write},
    path::PathBuf,
};

/// How many bytes the label of a pin has at most.
pub const MAX_LABEL_BYTES: usize = 512;

impl ChunkStore {
    /// Keeps all that `id` names from being collected until [`ChunkStore::unpin`] with the same
    /// label. Durable on return, idempotent.
    ///
    /// # Errors
    /// `Incomplete` if some chunk is missing: a pin promises that all are here. `TooLarge`
    /// for a label beyond [`MAX_LABEL_BYTES`].
    pub fn pin(&self, id: ManifestId, label: &str) -> Result<(), Error> {
        if label.len() > MAX_LABEL_BYTES {
            return Err(Error::TooLarge {
                what: "a pin's label",
                bytes: label.len(),
            });
        }
        let hold = self.hold_all(id)?;
        let path = self.pin_path(id, label);
        if !path.exists() {
            let temporary = self.temporary();
            let written = File::create_new(&temporary).and_then(|mut file| {
                file.write_all(label.as_bytes())?;
                file.sync_all()
            });
            written.map_err(io_at("writing a pin", &temporary))?;
            fs::rename(&temporary, &path).map_err(io_at("naming a pin", &path))?;
        }
        sync_directory(&self.0.dir.join("pins"))?;
        drop(hold);
        Ok(())
    }

    /// Removes a pin. Returns whether there was one.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn unpin(&self, id: ManifestId, label: &str) -> Result<bool, Error> {
        let path = self.pin_path(id, label);
        match fs::remove_file(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            other => other.map_err(io_at("removing a pin", &path))?,
        }
        sync_directory(&self.0.dir.join("pins"))?;
        Ok(true)
    }

    /// Every pin: what it keeps and its label.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn pins(&self) -> Result<Vec<(ManifestId, String)>, Error> {
        let dir = self.0.dir.join("pins");
        let mut pins = Vec::new();
        for entry in fs::read_dir(&dir).map_err(io_at("listing", &dir))? {
            let entry = entry.map_err(io_at("listing", &dir))?;
            let name = entry.file_name();
            let id = name
                .to_str()
                .and_then(|name| name.split_once('-'))
                .and_then(|(id, _)| id.parse().ok());
            let Some(id) = id else { continue };
            match fs::read(entry.path()) {
                Ok(label) => pins.push((id, String::from_utf8_lossy(&label).into_owned())),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {} // removed meanwhile
                Err(e) => return Err(io_at("reading a pin", entry.path())(e)),
            }
        }
        pins.sort();
        Ok(pins)
    }

    /// Holds everything that `id` names.
    ///
    /// # Errors
    /// `Incomplete` if some chunk is missing.
    pub fn hold_all(&self, id: ManifestId) -> Result<Hold, Error> {
        let mut hold = self.hold();
        let mut missing = 0;
        self.walk(id, |chunk| {
            hold.add(chunk);
            let here = self.has(chunk);
            missing += usize::from(!here);
            here
        })?;
        if missing > 0 {
            Err(Error::Incomplete {
                manifest: id,
                missing,
            })
        } else {
            Ok(hold)
        }
    }

    /// Whether everything that `id` names is here.
    pub fn is_complete(&self, id: ManifestId) -> bool {
        self.hold_all(id).is_ok()
    }

    /// Calls `see` once for each chunk in the tree of `id`, and follows a chunk only if `see`
    /// returns true.
    pub(crate) fn walk(
        &self,
        id: ManifestId,
        mut see: impl FnMut(ChunkId) -> bool,
    ) -> Result<(), Error> {
        let mut seen = HashSet::new();
        let mut open = vec![(Role::Root, id.0)];
        while let Some((role, chunk)) = open.pop() {
            if !seen.insert((chunk, matches!(role, Role::Data { .. }))) || !see(chunk) {
                continue;
            }
            if !matches!(role, Role::Data { .. }) {
                open.extend(tree::children(role, &self.get(chunk)?)?);
            }
        }
        Ok(())
    }

    fn pin_path(&self, id: ManifestId, label: &str) -> PathBuf {
        let hash = blake3::hash(label.as_bytes());
        self.0
            .dir
            .join("pins")
            .join(format!("{id}-{}", HEXLOWER.encode(&hash.as_bytes()[..16])))
    }
}
