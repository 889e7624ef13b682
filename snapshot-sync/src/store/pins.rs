//! Pins: which manifests must stay, under which label, and for which member. A pin is a small file
//! of its own, so that setting or removing one touches no other; it is durable before the call
//! returns.
//!
//! The file has the label, and for a replica a zero byte and the member that asked for it. A pin
//! without a member is this member's own, or a replica that the first release kept, which stored no
//! member.

use super::{ChunkStore, Hold, sync_directory};
use crate::{
    ChunkId, Error, ManifestId,
    error::io_at,
    tree::{self, Role},
};
use data_encoding::HEXLOWER;
use p2pvm_overlay::MemberId;
use std::{
    collections::HashSet,
    fs::{self, File},
    io::{self, Write},
    path::PathBuf,
};

/// How many bytes the label of a pin has at most.
pub const MAX_LABEL_BYTES: usize = 512;

/// A manifest that must stay.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pin {
    /// What stays.
    pub manifest: ManifestId,
    /// The label that it was pinned under.
    pub label: String,
    /// The member that asked for it; `None` for this one.
    pub owner: Option<MemberId>,
}

impl Pin {
    /// A pin of this member's own.
    pub fn own(manifest: ManifestId, label: &str) -> Self {
        let (label, owner) = (label.to_owned(), None);
        Self {
            manifest,
            label,
            owner,
        }
    }

    /// A pin that a member asked for.
    pub fn of(owner: MemberId, manifest: ManifestId, label: &str) -> Self {
        Self {
            owner: Some(owner),
            ..Self::own(manifest, label)
        }
    }

    fn content(&self) -> String {
        match self.owner {
            None => self.label.clone(),
            Some(owner) => format!("{}\0{owner}", self.label),
        }
    }

    fn parse(manifest: ManifestId, content: &str) -> Self {
        let owned = content.rsplit_once('\0').and_then(|(label, owner)| {
            let owner = owner.parse().ok()?;
            Some(Self::of(owner, manifest, label))
        });
        owned.unwrap_or_else(|| Self::own(manifest, content))
    }
}

impl ChunkStore {
    /// Keeps all that `id` names from collections until [`ChunkStore::unpin`] with the same label.
    /// Durable on return, idempotent.
    ///
    /// # Errors
    /// `Incomplete` if some chunk is missing: a pin promises that all are here. `TooLarge`
    /// for a label beyond [`MAX_LABEL_BYTES`].
    pub fn pin(&self, id: ManifestId, label: &str) -> Result<(), Error> {
        self.set_pin(&Pin::own(id, label))
    }

    /// As [`ChunkStore::pin`], for any member.
    ///
    /// # Errors
    /// As [`ChunkStore::pin`].
    pub fn set_pin(&self, pin: &Pin) -> Result<(), Error> {
        if pin.label.len() > MAX_LABEL_BYTES {
            return Err(Error::TooLarge {
                what: "a pin's label",
                bytes: pin.label.len(),
            });
        }
        let hold = self.hold_all(pin.manifest)?;
        self.note_names(pin.manifest, hold.ids())?;
        let path = self.pin_path(pin);
        if !path.exists() {
            let temporary = self.temporary();
            let written = File::create_new(&temporary).and_then(|mut file| {
                file.write_all(pin.content().as_bytes())?;
                file.sync_all()
            });
            written.map_err(io_at("writing a pin", &temporary))?;
            fs::rename(&temporary, &path).map_err(io_at("naming a pin", &path))?;
        }
        sync_directory(&self.0.dir.join("pins"))?;
        drop(hold);
        Ok(())
    }

    /// Removes a pin of this member's own. Returns whether there was one.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn unpin(&self, id: ManifestId, label: &str) -> Result<bool, Error> {
        self.remove_pin(&Pin::own(id, label))
    }

    /// As [`ChunkStore::unpin`], for any member.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn remove_pin(&self, pin: &Pin) -> Result<bool, Error> {
        let path = self.pin_path(pin);
        match fs::remove_file(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            other => other.map_err(io_at("removing a pin", &path))?,
        }
        sync_directory(&self.0.dir.join("pins"))?;
        Ok(true)
    }

    /// Every pin, sorted.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn pins(&self) -> Result<Vec<Pin>, Error> {
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
                Ok(content) => pins.push(Pin::parse(id, &String::from_utf8_lossy(&content))),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {} // removed meanwhile
                Err(e) => return Err(io_at("reading a pin", entry.path())(e)),
            }
        }
        pins.sort();
        Ok(pins)
    }

    /// The pins of a manifest under a label, of any member.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn pins_of(&self, id: ManifestId, label: &str) -> Result<Vec<Pin>, Error> {
        let is_meant = |pin: &Pin| pin.manifest == id && pin.label == label;
        Ok(self.pins()?.into_iter().filter(is_meant).collect())
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

    /// Calls `see` once for each chunk in the tree of `id`, and reads what a chunk names only if
    /// `see` returns true.
    pub(crate) fn walk(
        &self,
        id: ManifestId,
        mut see: impl FnMut(ChunkId) -> bool,
    ) -> Result<(), Error> {
        self.walk_roles(id, |_, chunk| see(chunk))
    }

    /// As [`Self::walk`], with the part that the chunk has in the tree.
    pub(crate) fn walk_roles(
        &self,
        id: ManifestId,
        mut see: impl FnMut(Role, ChunkId) -> bool,
    ) -> Result<(), Error> {
        let mut seen = HashSet::new();
        let mut open = vec![(Role::Root, id.0)];
        while let Some((role, chunk)) = open.pop() {
            if !seen.insert((chunk, matches!(role, Role::Data { .. }))) || !see(role, chunk) {
                continue;
            }
            if !matches!(role, Role::Data { .. }) {
                open.extend(tree::children(role, &self.get(chunk)?)?);
            }
        }
        Ok(())
    }

    fn pin_path(&self, pin: &Pin) -> PathBuf {
        let hash = blake3::hash(pin.content().as_bytes());
        let hash = HEXLOWER.encode(&hash.as_bytes()[..16]);
        let name = format!("{}-{hash}", pin.manifest);
        self.0.dir.join("pins").join(name)
    }
}

#[cfg(test)]
#[path = "pins_golden_tests.rs"]
mod golden_tests;
