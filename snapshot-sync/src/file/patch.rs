//! A file that changed in few places, into chunks: the blocks that changed are read, the others are
//! named again as the manifest of the previous state named them, without being read.
//!
//! The patched file need not exist: a block comes from any place of a source file, or from memory.

use super::{ImportOptions, ImportedFile, StopOnDrop, ZEROS, check, commit_if_full, put_block};
use crate::{
    ChunkId, ChunkStore, Error, Extent, Manifest, Progress,
    error::{blocking, io_at, malformed},
};
use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::sync::watch;

/// What a block holds now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Block {
    /// Zeros.
    Zeros,
    /// What the source file has at this offset; zeros beyond the source's end.
    At(u64),
    /// These bytes, and zeros behind them.
    Bytes(Vec<u8>),
}

/// How a file differs from its previous state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FilePatch {
    /// Its length now, bytes.
    pub size: u64,
    /// The blocks that changed, in rising order.
    pub blocks: Vec<(u64, Block)>,
}

/// A patched file that has become chunks.
#[derive(Debug)]
pub struct PatchedFile {
    /// The whole file.
    pub file: ImportedFile,
    /// The chunks of the blocks that changed.
    pub changed: Vec<ChunkId>,
}

/// Stores the file that `patch` makes of the one that `base` describes, or of a file of zeros,
/// durable on return. The caller keeps the chunks of `base`; no program may write to `source`
/// meanwhile.
///
/// # Errors
/// [`Error::Io`]; `Malformed` if blocks do not rise or lie outside the file, or if `base` has
/// another length, other blocks, or is sealed otherwise.
pub async fn import_patch(
    store: &ChunkStore,
    base: Option<Manifest>,
    (patch, source): (FilePatch, &Path),
    options: impl Into<ImportOptions>,
    progress: &watch::Sender<Progress>,
) -> Result<PatchedFile, Error> {
    let stop = StopOnDrop(Arc::default());
    let (store, source, options) = (store.clone(), source.to_owned(), options.into());
    let (progress, stopped) = (progress.clone(), stop.0.clone());
    blocking("importing what changed", move || {
        let file = File::open(&source).map_err(io_at("opening", &source))?;
        let base = base.unwrap_or_else(|| empty(&patch, &options));
        patched(&store, base, &patch, &(file, source), options, |done| {
            progress.send_replace(done);
            check(&stopped, "importing")
        })
    })
    .await
}

/// The manifest of a file of zeros.
fn empty(patch: &FilePatch, options: &ImportOptions) -> Manifest {
    Manifest {
        kind: options.kind,
        size: patch.size,
        chunk_bytes: options.chunk_bytes,
        chunks: Vec::new(),
        meta: options.meta.clone(),
    }
}

/// `report` is called for each block with the bytes that are done, and may end the import.
fn patched(
    store: &ChunkStore,
    base: Manifest,
    patch: &FilePatch,
    (source, path): &(File, PathBuf),
    options: ImportOptions,
    report: impl Fn(Progress) -> Result<(), Error>,
) -> Result<PatchedFile, Error> {
    let shape = |manifest: &Manifest| (manifest.kind, manifest.size, manifest.chunk_bytes);
    let mut next = empty(patch, &options);
    next.check()?;
    if shape(&base) != shape(&next) || base.is_sealed() != next.is_sealed() {
        return Err(malformed("patch", "it is of another file"));
    }
    let block_bytes = u64::from(options.chunk_bytes);
    check_order(patch, block_bytes)?;
    let total_bytes = patch.blocks.len() as u64 * block_bytes;
    let mut batch = store.batch();
    let mut changed = Vec::new();
    let mut buffer = vec![0; options.chunk_bytes as usize];
    let mut former = base.chunks.into_iter().peekable();
    next.chunks.reserve(former.len() + patch.blocks.len());
    for (at, (block, holds)) in patch.blocks.iter().enumerate() {
        report(Progress {
            done_bytes: at as u64 * block_bytes,
            total_bytes,
        })?;
        while let Some(unchanged) = former.next_if(|extent| extent.block < *block) {
            next.chunks.push(unchanged);
        }
        let _replaced = former.next_if(|extent| extent.block == *block);
        let content = &mut buffer[..next.extent_bytes(*block) as usize];
        fill(content, holds, source).map_err(io_at("reading", path))?;
        if *content != ZEROS[..content.len()] {
            let chunk = put_block(&mut batch, options.seal.as_ref(), content)?;
            changed.push(chunk);
            next.chunks.push(Extent {
                block: *block,
                chunk,
            });
            commit_if_full(&mut batch)?;
        }
    }
    next.chunks.extend(former);
    report(Progress {
        done_bytes: total_bytes,
        total_bytes,
    })?;
    let id = next.store(&mut batch)?;
    batch.commit()?;
    let (new_chunks, new_bytes) = batch.written();
    let file = ImportedFile {
        id,
        manifest: next,
        new_chunks,
        new_bytes,
        hold: batch.finish()?,
    };
    Ok(PatchedFile { file, changed })
}

fn check_order(patch: &FilePatch, block_bytes: u64) -> Result<(), Error> {
    let blocks = patch.size.div_ceil(block_bytes);
    let mut least = 0;
    for (block, _) in &patch.blocks {
        if *block < least || *block >= blocks {
            let detail = format!("block {block} of {blocks} out of order");
            return Err(malformed("patch", detail));
        }
        least = block + 1;
    }
    Ok(())
}

fn fill(content: &mut [u8], holds: &Block, source: &File) -> io::Result<()> {
    content.fill(0);
    match holds {
        Block::Zeros => {}
        Block::Bytes(bytes) => {
            let length = bytes.len().min(content.len());
            content[..length].copy_from_slice(&bytes[..length]);
        }
        Block::At(offset) => {
            let mut read = 0;
            while read < content.len() {
                match source.read_at(&mut content[read..], offset + read as u64) {
                    Ok(0) => break,
                    Ok(some) => read += some,
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => return Err(e),
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Kind, SealKey, file::import};
    use proptest::prelude::*;
    use std::sync::atomic::AtomicBool;

    /// How long a block is here.
    const BLOCK: u64 = 4096;

    fn options() -> ImportOptions {
        ImportOptions {
            chunk_bytes: BLOCK as u32,
            ..ImportOptions::new(Kind::Disk).sealed(SealKey::derive(&[7; 32]))
        }
    }

    struct Case {
        dir: tempfile::TempDir,
        store: ChunkStore,
    }

    impl Case {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let store = ChunkStore::open(dir.path().join("store")).unwrap();
            Self { dir, store }
        }

        fn whole(&self, content: &[u8]) -> ImportedFile {
            let path = self.dir.path().join("whole");
            std::fs::write(&path, content).unwrap();
            let quiet = watch::Sender::default();
            import(
                &self.store,
                &path,
                options(),
                &quiet,
                &AtomicBool::new(false),
            )
            .unwrap()
        }

        fn patched(
            &self,
            base: Option<&Manifest>,
            patch: &FilePatch,
            source: &[u8],
        ) -> Result<PatchedFile, Error> {
            let path = self.dir.path().join("source");
            std::fs::write(&path, source).unwrap();
            let file = File::open(&path).unwrap();
            let base = base.cloned().unwrap_or_else(|| empty(patch, &options()));
            patched(&self.store, base, patch, &(file, path), options(), |_| {
                Ok(())
            })
        }
    }

    /// A file of blocks that are all one byte each, with a shorter last one.
    fn content(bytes: &[u8], size: u64) -> Vec<u8> {
        let block = |byte: &u8| vec![*byte; BLOCK as usize];
        let mut all: Vec<u8> = bytes.iter().flat_map(block).collect();
        all.truncate(size as usize);
        all
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        #[test]
        fn a_patched_manifest_equals_that_of_the_whole_file(
            before in proptest::collection::vec(0u8..4, 1..24),
            changes in proptest::collection::btree_map(0usize..24, (0u8..4, 0u8..3), 0..24),
            cut in 0u64..BLOCK,
        ) {
            let case = Case::new();
            let size = before.len() as u64 * BLOCK - cut;
            let base = case.whole(&content(&before, size));
            let (mut after, mut source, mut blocks) = (before.clone(), Vec::new(), Vec::new());
            for (block, (byte, how)) in changes.into_iter().filter(|(at, _)| *at < before.len()) {
                let bytes = vec![byte; BLOCK as usize];
                let holds = match how {
                    0 => Block::Zeros,
                    1 => Block::Bytes(bytes),
                    _ => {
                        let at = source.len() as u64;
                        source.extend(bytes);
                        Block::At(at)
                    }
                };
                after[block] = if how == 0 { 0 } else { byte };
                blocks.push((block as u64, holds));
            }
            let patch = FilePatch { size, blocks };
            let patched = case.patched(Some(&base.manifest), &patch, &source).unwrap();
            let whole = case.whole(&content(&after, size));
            prop_assert_eq!(&patched.file.manifest, &whole.manifest);
            prop_assert_eq!(patched.file.id, whole.id);
            prop_assert_eq!(whole.new_chunks, 0, "all of it was stored by the patch");
            let named = |id| whole.manifest.chunks.iter().any(|extent| extent.chunk == id);
            prop_assert!(patched.changed.into_iter().all(named));
        }
    }

    #[test]
    fn unchanged_blocks_are_named_again_without_being_read() {
        let case = Case::new();
        let base = case.whole(&content(&[1, 2, 3], 3 * BLOCK));
        let changed = case.store.path(base.manifest.chunks[0].chunk);
        std::fs::remove_file(changed).unwrap();
        let patch = FilePatch {
            size: 3 * BLOCK,
            blocks: vec![(2, Block::Bytes(vec![9; BLOCK as usize]))],
        };
        let patched = case.patched(Some(&base.manifest), &patch, &[]).unwrap();
        assert_eq!(
            patched.file.new_chunks, 3,
            "the block, its page and the root"
        );
        assert_eq!(patched.file.manifest.chunks[..2], base.manifest.chunks[..2]);
    }

    #[test]
    fn a_patch_of_another_file_or_out_of_order_is_refused() {
        let case = Case::new();
        let base = case.whole(&content(&[1, 2, 3], 3 * BLOCK)).manifest;
        let of = |size, blocks: &[u64]| FilePatch {
            size,
            blocks: blocks.iter().map(|at| (*at, Block::Zeros)).collect(),
        };
        for wrong in [
            of(4 * BLOCK, &[]),
            of(3 * BLOCK, &[3]),
            of(3 * BLOCK, &[1, 1]),
        ] {
            assert!(matches!(
                case.patched(Some(&base), &wrong, &[]),
                Err(Error::Malformed { .. })
            ));
        }
        let plain = Manifest {
            meta: Default::default(),
            ..base
        };
        case.patched(Some(&plain), &of(3 * BLOCK, &[]), &[])
            .unwrap_err();
    }
}
