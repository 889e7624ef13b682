//! A file through the store and back.

use super::*;
use proptest::prelude::*;
use std::os::unix::fs::MetadataExt;

mod sealed;

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

    fn import(&self, path: &Path, options: ImportOptions) -> ImportedFile {
        import(
            &self.store,
            path,
            options,
            &quiet(),
            &AtomicBool::new(false),
        )
        .unwrap()
    }

    fn export(&self, manifest: &Manifest, path: &Path) -> Result<(), Error> {
        export(
            &self.store,
            (manifest, None),
            path,
            0o600,
            &quiet(),
            &AtomicBool::new(false),
        )
    }
}

fn quiet() -> watch::Sender<Progress> {
    watch::channel(Progress::default()).0
}

/// Makes a file of `size` bytes with data in `ranges` and holes between them.
fn sparse(path: &Path, size: u64, ranges: &[(u64, Vec<u8>)]) {
    let file = File::create(path).unwrap();
    file.set_len(size).unwrap();
    for (at, data) in ranges {
        let at = at % size.max(1);
        let length = (data.len() as u64).min(size - at) as usize;
        file.write_all_at(&data[..length], at).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20))]

    #[test]
    fn a_file_is_the_same_after_import_and_export(
        size in 0u64..600_000,
        ranges in proptest::collection::vec(
            (any::<u64>(), proptest::collection::vec(0u8..3, 0..20_000)), 0..6
        ),
        shift in 12u32..17,
    ) {
        let case = Case::new();
        let (from, to) = (case.dir.path().join("from"), case.dir.path().join("to"));
        sparse(&from, size, &ranges);
        let imported = case.import(
            &from, ImportOptions { chunk_bytes: 1 << shift, ..ImportOptions::new(Kind::Disk) }
        );
        let loaded = Manifest::load(&case.store, imported.id).unwrap();
        prop_assert_eq!(&loaded, &imported.manifest);
        case.export(&loaded, &to).unwrap();
        prop_assert_eq!(fs::read(&from).unwrap(), fs::read(&to).unwrap());
    }
}

#[test]
fn zeros_cost_nothing_whether_holes_or_written() {
    let case = Case::new();
    let (from, to) = (case.dir.path().join("from"), case.dir.path().join("to"));
    sparse(
        &from,
        1 << 30,
        &[(0, vec![0; 1 << 20]), (512 << 20, b"data".to_vec())],
    );
    let imported = case.import(&from, Kind::Ram.into());
    assert_eq!(imported.manifest.chunks.len(), 1);
    assert_eq!(imported.new_chunks, 3, "one block, its page and the root");
    case.export(&imported.manifest, &to).unwrap();
    let about = fs::metadata(&to).unwrap();
    assert_eq!(about.len(), 1 << 30);
    assert!(about.blocks() * 512 < 1 << 20, "{} blocks", about.blocks());
}

#[test]
fn a_file_changed_in_one_place_costs_one_block_more() {
    let case = Case::new();
    let path = case.dir.path().join("disk");
    let mut data = vec![0; 8 << 20];
    blake3::Hasher::new().finalize_xof().fill(&mut data);
    fs::write(&path, &data).unwrap();
    let first = case.import(&path, Kind::Disk.into());
    data[5 << 20] ^= 1;
    fs::write(&path, &data).unwrap();
    let second = case.import(&path, Kind::Disk.into());
    assert_eq!(first.new_chunks, 128 + 2);
    assert_eq!(second.new_chunks, 1 + 2, "the block, its page and the root");
    assert_eq!(case.import(&path, Kind::Disk.into()).new_chunks, 0);
}

#[test]
fn a_failed_export_leaves_the_old_file_and_no_partial_one() {
    let case = Case::new();
    let (from, to) = (case.dir.path().join("from"), case.dir.path().join("to"));
    fs::write(&from, vec![5; 300_000]).unwrap();
    fs::write(&to, b"old").unwrap();
    let mut imported = case.import(&from, Kind::Disk.into());
    imported.manifest.chunks[2].chunk = crate::ChunkId([9; 32]);
    assert!(matches!(
        case.export(&imported.manifest, &to),
        Err(Error::NotFound(_))
    ));
    assert_eq!(fs::read(&to).unwrap(), b"old");
    assert!(!partial_path(&to).exists());
}

#[test]
fn a_partial_file_of_a_killed_export_is_overwritten() {
    let case = Case::new();
    let (from, to) = (case.dir.path().join("from"), case.dir.path().join("to"));
    fs::write(&from, vec![5; 300_000]).unwrap();
    fs::write(partial_path(&to), vec![7; 500_000]).unwrap();
    let imported = case.import(&from, Kind::Disk.into());
    case.export(&imported.manifest, &to).unwrap();
    assert_eq!(fs::read(&to).unwrap(), vec![5; 300_000]);
    assert!(!partial_path(&to).exists());
}

#[test]
fn an_import_whose_caller_has_gone_ends() {
    let case = Case::new();
    let path = case.dir.path().join("from");
    fs::write(&path, vec![5; 300_000]).unwrap();
    let ended = import(
        &case.store,
        &path,
        Kind::Disk.into(),
        &quiet(),
        &AtomicBool::new(true),
    );
    assert!(matches!(ended, Err(Error::Closed { .. })));
}

#[test]
fn an_impossible_block_length_is_refused() {
    let case = Case::new();
    let path = case.dir.path().join("from");
    fs::write(&path, b"x").unwrap();
    for chunk_bytes in [0, 1, 4095, 5000, 2 << 20] {
        let options = ImportOptions {
            chunk_bytes,
            ..ImportOptions::new(Kind::Disk)
        };
        assert!(
            import(
                &case.store,
                &path,
                options,
                &quiet(),
                &AtomicBool::new(false)
            )
            .is_err()
        );
    }
}
