//! Files whose chunks are sealed.

use super::*;
use crate::store::Portion;

const BLOCK: usize = 64 << 10;

impl Case {
    fn open(&self, manifest: &Manifest, key: &SealKey, path: &Path) -> Result<(), Error> {
        export(
            &self.store,
            (manifest, Some(key)),
            path,
            0o600,
            &quiet(),
            &AtomicBool::new(false),
        )
    }

    /// The contents of all files of the store, one after the other.
    fn stored(&self) -> Vec<u8> {
        let chunks = self.store.list().unwrap().into_iter();
        let mut all = Vec::new();
        chunks.for_each(|id| all.extend(fs::read(self.store.path(id)).unwrap()));
        all
    }
}

fn key(secret: u8) -> SealKey {
    SealKey::derive(&[secret; 32])
}

/// A block that cannot be compressed, then one that can, then the first again.
fn disk(path: &Path) -> Vec<u8> {
    let mut data = vec![0; BLOCK];
    blake3::Hasher::new().finalize_xof().fill(&mut data);
    let first = data.clone();
    data.extend(b"what the guest wrote".repeat(BLOCK / 20));
    data.resize(2 * BLOCK, b'.');
    data.extend(first);
    fs::write(path, &data).unwrap();
    data
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|at| at == needle)
}

#[test]
fn a_store_with_a_sealed_file_has_no_plaintext() {
    let (plain, sealed) = (Case::new(), Case::new());
    for (case, options) in [
        (&plain, ImportOptions::new(Kind::Disk)),
        (&sealed, ImportOptions::new(Kind::Disk).sealed(key(1))),
    ] {
        let from = case.dir.path().join("from");
        let data = disk(&from);
        let imported = case.import(&from, options);
        assert_eq!(
            imported.new_chunks, 4,
            "a block that is there twice is kept once"
        );
        let is_sealed = imported.manifest.is_sealed();
        let stored = case.stored();
        for at in [0, 1000, BLOCK] {
            let pattern = &data[at..at + 20];
            assert_eq!(
                contains(&stored, pattern),
                !is_sealed,
                "sealed: {is_sealed}, at {at}"
            );
        }
    }
}

#[test]
fn a_sealed_file_comes_back_with_its_key_alone() {
    let case = Case::new();
    let (from, to) = (case.dir.path().join("from"), case.dir.path().join("to"));
    let data = disk(&from);
    let imported = case.import(&from, ImportOptions::new(Kind::Disk).sealed(key(1)));
    let manifest = Manifest::load(&case.store, imported.id).unwrap();
    assert!(manifest.is_sealed());
    assert!(matches!(
        case.open(&manifest, &key(2), &to),
        Err(Error::Locked(_))
    ));
    assert!(!to.exists());
    case.open(&manifest, &key(1), &to).unwrap();
    assert_eq!(fs::read(&to).unwrap(), data);
}

#[tokio::test]
async fn a_sealed_file_is_not_written_without_a_key() {
    let case = Case::new();
    let (from, to) = (case.dir.path().join("from"), case.dir.path().join("to"));
    let data = disk(&from);
    let plain = case.import(&from, Kind::Disk.into());
    let sealed = case.import(&from, ImportOptions::new(Kind::Disk).sealed(key(1)));
    let refused = export_file(&case.store, &sealed.manifest, &to, &quiet()).await;
    assert!(matches!(refused, Err(Error::Sealed)));
    // A file of the previous release, whose chunks are plain.
    export_sealed(&case.store, &plain.manifest, &key(1), &to, &quiet())
        .await
        .unwrap();
    assert_eq!(fs::read(&to).unwrap(), data);
}

#[test]
fn unchanged_blocks_stay_and_another_key_has_other_chunks() {
    let case = Case::new();
    let path = case.dir.path().join("from");
    disk(&path);
    let import = |secret| case.import(&path, ImportOptions::new(Kind::Disk).sealed(key(secret)));
    let first = import(1);
    assert_eq!(import(1).new_chunks, 0);
    let other = import(2);
    assert_eq!(other.new_chunks, first.new_chunks);
    let ids = |file: &ImportedFile| -> Vec<_> {
        file.manifest
            .chunks
            .iter()
            .map(|extent| extent.chunk)
            .collect()
    };
    assert!(ids(&first).iter().all(|id| !ids(&other).contains(id)));
}

#[test]
fn an_unchanged_block_is_found_by_what_was_sealed_last() {
    let case = Case::new();
    let path = case.dir.path().join("from");
    let mut data = disk(&path);
    let options = |sealer: &Sealer| ImportOptions::new(Kind::Disk).sealed(sealer.clone());
    let mut sealer = Sealer::from(key(1));
    let first = case.import(&path, options(&sealer));
    data[0] ^= 1;
    fs::write(&path, &data).unwrap();
    // One of the unchanged chunks is lost.
    fs::remove_file(case.store.path(first.manifest.chunks[1].chunk)).unwrap();
    sealer = sealer.after();
    let second = case.import(&path, options(&sealer));
    assert_eq!(
        second.new_chunks,
        2 + 2,
        "two blocks, their page and the root"
    );
    assert_eq!(second.manifest.chunks[1..], first.manifest.chunks[1..]);
    let to = case.dir.path().join("to");
    case.open(&second.manifest, &key(1), &to).unwrap();
    assert_eq!(fs::read(&to).unwrap(), data);
    // What a sealer knows changes no chunk.
    let afresh = case.import(&path, options(&key(1).into()));
    assert_eq!(afresh.id, second.id);
}

#[test]
fn a_damaged_sealed_chunk_is_found_without_a_key() {
    let case = Case::new();
    let path = case.dir.path().join("from");
    disk(&path);
    let imported = case.import(&path, ImportOptions::new(Kind::Disk).sealed(key(1)));
    case.store.pin(imported.id, "test").unwrap();
    let damaged = imported.manifest.chunks[1].chunk;
    let file = case.store.path(damaged);
    let mut stored = fs::read(&file).unwrap();
    *stored.last_mut().unwrap() ^= 1;
    fs::write(&file, stored).unwrap();
    let all = Portion {
        chunks: 100,
        bytes: u64::MAX,
    };
    let report = case.store.scrub(None, all).unwrap();
    assert_eq!((report.last, report.damaged), (None, 1));
    assert!(!case.store.has(damaged));
    assert_eq!(case.store.damaged_pins().unwrap().len(), 1);
}

#[test]
fn blocks_that_sealing_would_make_too_long_are_refused() {
    let case = Case::new();
    let path = case.dir.path().join("from");
    fs::write(&path, vec![1; 1 << 20]).unwrap();
    let options = ImportOptions {
        chunk_bytes: 1 << 20,
        ..ImportOptions::new(Kind::Disk)
    };
    let (stopped, options) = (AtomicBool::new(false), options.sealed(key(1)));
    let refused = import(&case.store, &path, options, &quiet(), &stopped);
    assert!(matches!(refused, Err(Error::TooLarge { .. })));
}
