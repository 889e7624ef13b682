//! The names of all chunks of a pinned manifest, in a file beside the pins. A collection reads them
//! if a node of the manifest is damaged: what that node names must stay until it is mended. The
//! file has 32 bytes for each chunk and a hash at the end.

use super::{ChunkStore, sync_directory};
use crate::{ChunkId, Error, ManifestId, error::io_at};
use std::{
    collections::HashSet,
    fs::{self, File},
    io::{self, Write},
    path::PathBuf,
};

impl ChunkStore {
    /// Writes the names, unless the file is there.
    pub(super) fn note_names(&self, id: ManifestId, names: &HashSet<ChunkId>) -> Result<(), Error> {
        let path = self.names_path(id);
        if path.exists() {
            return Ok(());
        }
        let mut bytes = Vec::with_capacity((names.len() + 1) * 32);
        names.iter().for_each(|name| bytes.extend(name.0));
        bytes.extend(blake3::hash(&bytes).as_bytes());
        let temporary = self.temporary();
        let written = File::create_new(&temporary).and_then(|mut file| {
            file.write_all(&bytes)?;
            file.sync_all()
        });
        if let Err(e) = written {
            // A file that cannot be removed now goes when the store is next opened.
            let _ = fs::remove_file(&temporary);
            return Err(io_at("writing a list of chunks", &temporary)(e));
        }
        fs::rename(&temporary, &path).map_err(io_at("naming a list of chunks", &path))?;
        sync_directory(&self.names_dir())
    }

    /// The names in the file; `None` if it is missing or damaged.
    pub(super) fn noted_names(&self, id: ManifestId) -> Option<Vec<ChunkId>> {
        let bytes = fs::read(self.names_path(id)).ok()?;
        let (names, hash) = bytes.split_last_chunk::<32>()?;
        if blake3::hash(names).as_bytes() != hash {
            return None;
        }
        let (names, _) = names.as_chunks::<32>();
        Some(names.iter().copied().map(ChunkId).collect())
    }

    /// Removes the files of manifests that are no longer pinned.
    pub(super) fn drop_names(&self, pinned: &HashSet<ManifestId>) -> Result<(), Error> {
        let dir = self.names_dir();
        for entry in fs::read_dir(&dir).map_err(io_at("listing", &dir))? {
            let entry = entry.map_err(io_at("listing", &dir))?;
            let name = entry.file_name();
            let id = name.to_str().and_then(|name| name.parse().ok());
            if id.is_some_and(|id| !pinned.contains(&id)) {
                match fs::remove_file(entry.path()) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => {
                        return Err(io_at("removing", entry.path())(e));
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    pub(super) fn names_dir(&self) -> PathBuf {
        self.0.dir.join("names")
    }

    fn names_path(&self, id: ManifestId) -> PathBuf {
        self.names_dir().join(id.to_string())
    }
}
