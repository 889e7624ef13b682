//! Files into chunks and back. Blocks have a fixed length and lie at multiples of it: disks and RAM
//! files change in place, so an unchanged block keeps its name from one snapshot to the next, and
//! content-defined boundaries (Muthitacharoen et al. 2001) would gain little. Holes are neither
//! read nor stored.
//!
//! A file is never in memory as a whole: a block at a time, and 40 bytes of manifest a block.

use crate::{
    ChunkId, ChunkStore, Error, Extent, Hold, Kind, Manifest, ManifestId, Progress, SealKey,
    Sealer,
    chunk::MAX_CHUNK_BYTES,
    error::{blocking, io_at, malformed},
    seal::{NOTE, NOTE_VALUE},
    store::{Batch, sync_directory},
};
use nix::{
    errno::Errno,
    unistd::{Whence, lseek},
};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::unix::fs::{FileExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::sync::watch;

mod patch;

pub use patch::{Block, FilePatch, PatchedFile, import_patch};

/// How long a block is by default: a cluster of qcow2.
/// Reason: longer blocks make fewer files, but fewer of them stay unchanged.
pub const CHUNK_BYTES: u32 = 64 << 10;

/// How many bytes are written before they are made durable.
/// Reason: bounds what is written again after a crash.
const COMMIT_BYTES: u64 = 64 << 20;

static ZEROS: [u8; MAX_CHUNK_BYTES] = [0; MAX_CHUNK_BYTES];

/// How a file becomes a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportOptions {
    /// What the file is.
    pub kind: Kind,
    /// The length of a block: a power of two from 4 KiB to 1 MiB.
    pub chunk_bytes: u32,
    /// The caller's own notes.
    pub meta: BTreeMap<String, String>,
    /// What seals its chunks, if anything; see [`ImportOptions::sealed`].
    seal: Option<Sealer>,
}

impl ImportOptions {
    /// Blocks of [`CHUNK_BYTES`], and no notes.
    pub fn new(kind: Kind) -> Self {
        Self {
            kind,
            chunk_bytes: CHUNK_BYTES,
            meta: BTreeMap::new(),
            seal: None,
        }
    }

    /// The same, with chunks that only the sealer's key opens. The manifest stays readable, with a
    /// note that says so.
    pub fn sealed(mut self, sealer: impl Into<Sealer>) -> Self {
        self.meta.insert(NOTE.into(), NOTE_VALUE.into());
        self.seal = Some(sealer.into());
        self
    }
}

impl From<Kind> for ImportOptions {
    fn from(kind: Kind) -> Self {
        Self::new(kind)
    }
}

/// A file that has become chunks, held until this is dropped. The caller pins its id, or something
/// that names it, before that.
#[derive(Debug)]
pub struct ImportedFile {
    /// The manifest's name.
    pub id: ManifestId,
    /// The manifest.
    pub manifest: Manifest,
    /// Chunks that were not in the store before, those of the manifest included.
    pub new_chunks: u64,
    /// Their bytes on disk.
    pub new_bytes: u64,
    /// Keeps the chunks from being collected.
    pub hold: Hold,
}

/// Sets its flag when dropped, so that file work in the background ends with the future that waits
/// for it.
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Stores a file as chunks, durable on return. No program may write to it meanwhile.
///
/// # Errors
/// [`Error::Io`], or `Malformed` for an impossible block length.
pub async fn import_file(
    store: &ChunkStore,
    path: &Path,
    options: impl Into<ImportOptions>,
    progress: &watch::Sender<Progress>,
) -> Result<ImportedFile, Error> {
    let stop = StopOnDrop(Arc::default());
    let (store, path, options, progress, stopped) = (
        store.clone(),
        path.to_owned(),
        options.into(),
        progress.clone(),
        stop.0.clone(),
    );
    blocking("importing", move || {
        import(&store, &path, options, &progress, &stopped)
    })
    .await
}

/// Writes the file that `manifest` describes to `path`, sparse, which its owner alone may read. It
/// replaces an existing file in one step, when it is complete and durable. A killed export leaves
/// `.<name>.partial` beside it, which the next export to `path` overwrites. One export to a path at
/// a time.
///
/// # Errors
/// `NotFound` or `Corrupt` of a chunk, or [`Error::Io`]. Then `path` is unchanged.
pub async fn export_file(
    store: &ChunkStore,
    manifest: &Manifest,
    path: &Path,
    progress: &watch::Sender<Progress>,
) -> Result<(), Error> {
    export_with(store, (manifest, None), path, 0o600, progress).await
}

/// As [`export_file`], of a file whose chunks may be sealed with `key`.
///
/// # Errors
/// As [`export_file`], and [`Error::Locked`] if it was sealed with another key.
pub async fn export_sealed(
    store: &ChunkStore,
    manifest: &Manifest,
    key: &SealKey,
    path: &Path,
    progress: &watch::Sender<Progress>,
) -> Result<(), Error> {
    export_with(store, (manifest, Some(key)), path, 0o600, progress).await
}

/// As [`export_file`], but the file is read-only.
pub(crate) async fn export_read_only(
    store: &ChunkStore,
    manifest: &Manifest,
    path: &Path,
    progress: &watch::Sender<Progress>,
) -> Result<(), Error> {
    export_with(store, (manifest, None), path, 0o400, progress).await
}

async fn export_with(
    store: &ChunkStore,
    (manifest, key): (&Manifest, Option<&SealKey>),
    path: &Path,
    mode: u32,
    progress: &watch::Sender<Progress>,
) -> Result<(), Error> {
    let stop = StopOnDrop(Arc::default());
    // A key is of no use for what is not sealed: a file of a previous release.
    let key = key.filter(|_| manifest.is_sealed()).cloned();
    if manifest.is_sealed() && key.is_none() {
        return Err(Error::Sealed);
    }
    let (store, manifest, path, progress, stopped) = (
        store.clone(),
        manifest.clone(),
        path.to_owned(),
        progress.clone(),
        stop.0.clone(),
    );
    blocking("exporting", move || {
        let file = (&manifest, key.as_ref());
        export(&store, file, &path, mode, &progress, &stopped)
    })
    .await
}

fn check(stopped: &AtomicBool, step: &'static str) -> Result<(), Error> {
    if stopped.load(Ordering::Relaxed) {
        Err(Error::Closed { step })
    } else {
        Ok(())
    }
}

fn import(
    store: &ChunkStore,
    path: &Path,
    options: ImportOptions,
    progress: &watch::Sender<Progress>,
    stopped: &AtomicBool,
) -> Result<ImportedFile, Error> {
    let file = File::open(path).map_err(io_at("opening", path))?;
    let size = file
        .metadata()
        .map_err(io_at("reading the length of", path))?
        .len();
    let mut manifest = Manifest {
        kind: options.kind,
        size,
        chunk_bytes: options.chunk_bytes,
        chunks: Vec::new(),
        meta: options.meta,
    };
    manifest.check()?;
    let mut batch = store.batch();
    let mut buffer = vec![0; options.chunk_bytes as usize];
    let block_bytes = u64::from(options.chunk_bytes);
    let mut next_block = 0;
    while let Some((data_begin, data_end)) = next_data(&file, next_block * block_bytes, size)
        .map_err(|e| io_at("seeking in", path)(e.into()))?
    {
        for block in next_block.max(data_begin / block_bytes)..data_end.div_ceil(block_bytes) {
            check(stopped, "importing")?;
            let content = &mut buffer[..manifest.extent_bytes(block) as usize];
            file.read_exact_at(content, block * block_bytes)
                .map_err(io_at("reading", path))?;
            if *content != ZEROS[..content.len()] {
                let chunk = put_block(&mut batch, options.seal.as_ref(), content)?;
                manifest.chunks.push(Extent { block, chunk });
                commit_if_full(&mut batch)?;
            }
            progress.send_replace(Progress {
                done_bytes: ((block + 1) * block_bytes).min(size),
                total_bytes: size,
            });
        }
        next_block = data_end.div_ceil(block_bytes);
    }
    let id = manifest.store(&mut batch)?;
    batch.commit()?;
    let (new_chunks, new_bytes) = batch.written();
    progress.send_replace(Progress {
        done_bytes: size,
        total_bytes: size,
    });
    Ok(ImportedFile {
        id,
        manifest,
        new_chunks,
        new_bytes,
        hold: batch.finish()?,
    })
}

fn put_block(batch: &mut Batch, seal: Option<&Sealer>, content: &[u8]) -> Result<ChunkId, Error> {
    match seal {
        Some(sealer) => batch.put_sealed(sealer, content),
        None => batch.put(content),
    }
}

fn commit_if_full(batch: &mut Batch) -> Result<(), Error> {
    if batch.pending_bytes() >= COMMIT_BYTES {
        batch.commit()
    } else {
        Ok(())
    }
}

/// The first range at or after `from` that is not a hole; `None` if the rest is one.
fn next_data(file: &File, from: u64, size: u64) -> Result<Option<(u64, u64)>, Errno> {
    if from >= size {
        return Ok(None);
    }
    match lseek(file, from as i64, Whence::SeekData) {
        Ok(begin) => {
            let end = lseek(file, begin, Whence::SeekHole)?;
            Ok(Some((begin as u64, (end as u64).min(size))))
        }
        Err(Errno::ENXIO) => Ok(None),
        Err(Errno::EINVAL) => Ok(Some((from, size))), // a file system without holes
        Err(e) => Err(e),
    }
}

/// Where [`export_file`] writes before the file is whole.
pub(crate) fn partial_path(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.partial"))
}

fn export(
    store: &ChunkStore,
    file: (&Manifest, Option<&SealKey>),
    path: &Path,
    mode: u32,
    progress: &watch::Sender<Progress>,
    stopped: &AtomicBool,
) -> Result<(), Error> {
    let partial = partial_path(path);
    let written = write_partial(store, file, &partial, progress, stopped).and_then(|()| {
        fs::set_permissions(&partial, fs::Permissions::from_mode(mode))
            .map_err(io_at("protecting", &partial))
    });
    if let Err(e) = written {
        let _ = fs::remove_file(&partial);
        return Err(e);
    }
    fs::rename(&partial, path).map_err(io_at("naming", path))?;
    sync_directory(
        path.parent()
            .filter(|parent| !parent.as_os_str().is_empty())
            .unwrap_or(Path::new(".")),
    )
}

fn write_partial(
    store: &ChunkStore,
    (manifest, key): (&Manifest, Option<&SealKey>),
    partial: &Path,
    progress: &watch::Sender<Progress>,
    stopped: &AtomicBool,
) -> Result<(), Error> {
    // One left by a killed export may be read-only.
    match fs::remove_file(partial) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(io_at("removing", partial)(e)),
        _ => {}
    }
    let file = File::create_new(partial).map_err(io_at("creating", partial))?;
    file.set_len(manifest.size)
        .map_err(io_at("sizing", partial))?;
    let total_bytes = manifest.content_bytes();
    let mut done_bytes = 0;
    for extent in &manifest.chunks {
        check(stopped, "exporting")?;
        let content = store.get(extent.chunk)?;
        let content = match key {
            Some(key) => key.open(extent.chunk, content)?,
            None => content,
        };
        if content.len() != manifest.extent_bytes(extent.block) as usize {
            let detail = format!(
                "chunk {} has {} bytes, not those of block {}",
                extent.chunk.short(),
                content.len(),
                extent.block
            );
            return Err(malformed("manifest", detail));
        }
        file.write_all_at(&content, extent.block * u64::from(manifest.chunk_bytes))
            .map_err(io_at("writing", partial))?;
        done_bytes += content.len() as u64;
        progress.send_replace(Progress {
            done_bytes,
            total_bytes,
        });
    }
    file.sync_all().map_err(io_at("flushing", partial))
}

#[cfg(test)]
mod tests;
