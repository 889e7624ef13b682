//! Where a replica keeps its cells: a small key-value trait with sled behind it on a node and a map
//! behind it in tests. sled 0.34 is called beta by its authors and has been corrupted by kills;
//! that is acceptable here because peers still hold what one replica lost.

use p2pvm_overlay::reserve;
use p2pvm_overlay::{lock, read_lock, write_lock};
use std::{
    collections::BTreeMap,
    io, mem,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, RwLock},
    time::{Duration, Instant},
};

/// The store could not read or write.
#[derive(Debug, thiserror::Error)]
#[error("the record store failed")]
pub struct StoreError(#[from] io::Error);

impl StoreError {
    /// Whether there was no room on the disk.
    pub fn is_full(&self) -> bool {
        reserve::is_full(&self.0)
    }
}

impl From<sled::Error> for StoreError {
    fn from(e: sled::Error) -> Self {
        Self(e.into())
    }
}

/// A key and its value.
pub type Entry = ([u8; 32], Vec<u8>);

/// Keys and values that survive a restart once flushed.
pub trait Store: Send + Sync + 'static {
    /// The value at `key`.
    ///
    /// # Errors
    /// [`StoreError`] if the disk failed, here and below.
    fn get(&self, key: &[u8; 32]) -> Result<Option<Vec<u8>>, StoreError>;

    /// Sets the value at `key`.
    ///
    /// # Errors
    /// See [`Store::get`].
    fn put(&self, key: &[u8; 32], value: Vec<u8>) -> Result<(), StoreError>;

    /// Removes the value at `key`.
    ///
    /// # Errors
    /// See [`Store::get`].
    fn remove(&self, key: &[u8; 32]) -> Result<(), StoreError>;

    /// Up to `limit` entries whose key is greater than `after`, in order.
    ///
    /// # Errors
    /// See [`Store::get`].
    fn scan(&self, after: Option<&[u8; 32]>, limit: usize) -> Result<Vec<Entry>, StoreError>;

    /// Returns once all earlier changes survive a power cut.
    ///
    /// # Errors
    /// See [`Store::get`].
    fn flush(&self) -> Result<(), StoreError>;

    /// Whether calls may wait for a disk, so that they belong on a blocking thread.
    fn blocks(&self) -> bool {
        true
    }
}

/// How long to wait for the previous process to release the store.
const LOCK_LIMIT: Duration = Duration::from_secs(3);

/// A [`Store`] in a sled directory. sled refuses every call after its first failed write; so a
/// store whose disk was full is opened again, with room from the node's [reserve] if there is any,
/// and the write is retried once.
pub struct SledStore {
    directory: PathBuf,
    db: RwLock<Option<sled::Db>>,
}

/// Opens the store in `directory`, with room from the reserve if the disk is full.
fn open(directory: &Path) -> Result<sled::Db, sled::Error> {
    // A node holds thousands of small records: the default cache of 1 GiB would only make the
    // daemon larger.
    let once = || {
        sled::Config::new()
            .path(directory)
            .cache_capacity(8 << 20)
            .flush_every_ms(None)
            .open()
    };
    // sled releases its lock in the background after a store is dropped, and the kernel a moment
    // after a process is killed.
    let began = Instant::now();
    loop {
        match once() {
            Err(sled::Error::Io(e))
                if e.to_string().contains("could not acquire lock")
                    && began.elapsed() < LOCK_LIMIT =>
            {
                std::thread::sleep(LOCK_LIMIT / 100);
            }
            Err(sled::Error::Io(e)) if reserve::is_full(&e) && reserve::spend(directory) => {}
            opened => return opened,
        }
    }
}

impl SledStore {
    /// Opens or makes the store in `directory`. A store that sled reports as corrupt is moved aside
    /// (`<directory>.corrupt`) and an empty one started: the peers hold the records, and
    /// republishing brings them back.
    ///
    /// # Errors
    /// [`StoreError`] if the disk failed.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        let opened = match open(directory) {
            Err(sled::Error::Corruption { .. }) => {
                let aside = directory.with_extension("corrupt");
                tracing::error!(
                    store = %directory.display(), aside = %aside.display(),
                    "the record store is corrupt: starting an empty one"
                );
                if aside.exists() {
                    std::fs::remove_dir_all(&aside)?;
                }
                std::fs::rename(directory, &aside)?;
                open(directory)
            }
            opened => opened,
        };
        Ok(Self {
            directory: directory.to_owned(),
            db: RwLock::new(Some(opened?)),
        })
    }

    fn read<T>(&self, work: impl Fn(&sled::Db) -> sled::Result<T>) -> Result<T, StoreError> {
        let db = read_lock(&self.db);
        Ok(work(db.as_ref().ok_or_else(closed)?)?)
    }

    /// Runs `work`; if the disk was full, once more after opening the store again.
    fn write<T>(&self, work: impl Fn(&sled::Db) -> sled::Result<T>) -> Result<T, StoreError> {
        match self.read(&work) {
            Err(StoreError(e))
                if reserve::is_full(&e) || e.kind() == io::ErrorKind::NotConnected => {}
            done => return done,
        }
        reserve::spend(&self.directory);
        let mut db = write_lock(&self.db);
        // The old one is dropped first: it holds the lock.
        drop(db.take());
        let opened = open(&self.directory)?;
        let done = work(&opened);
        *db = Some(opened);
        Ok(done?)
    }
}

/// The error of a store that is closed until its next write.
fn closed() -> StoreError {
    StoreError(io::Error::new(
        io::ErrorKind::NotConnected,
        "its disk was full: it is opened again at the next write",
    ))
}

impl Store for SledStore {
    fn get(&self, key: &[u8; 32]) -> Result<Option<Vec<u8>>, StoreError> {
        self.read(|db| Ok(db.get(key)?.map(|v| v.to_vec())))
    }

    fn put(&self, key: &[u8; 32], value: Vec<u8>) -> Result<(), StoreError> {
        self.write(|db| {
            db.insert(key, value.as_slice())
                .and_then(|_| db.flush())
                .map(drop)
        })
    }

    fn remove(&self, key: &[u8; 32]) -> Result<(), StoreError> {
        self.write(|db| db.remove(key).map(drop))
    }

    fn scan(&self, after: Option<&[u8; 32]>, limit: usize) -> Result<Vec<Entry>, StoreError> {
        self.read(|db| {
            let entries = match after {
                Some(key) => {
                    db.range((std::ops::Bound::Excluded(*key), std::ops::Bound::Unbounded))
                }
                None => db.iter(),
            };
            let mut found = Vec::new();
            for entry in entries.take(limit) {
                let (key, value) = entry?;
                found.extend(
                    key.as_ref()
                        .try_into()
                        .ok()
                        .map(|key| (key, value.to_vec())),
                );
            }
            Ok(found)
        })
    }

    fn flush(&self) -> Result<(), StoreError> {
        self.write(|db| db.flush().map(drop))
    }
}

/// A [`Store`] in memory. Shared by `Arc`, it outlives a simulated restart.
#[derive(Default)]
pub struct MemoryStore {
    entries: Mutex<BTreeMap<[u8; 32], Vec<u8>>>,
}

impl MemoryStore {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<[u8; 32], Vec<u8>>> {
        lock(&self.entries)
    }

    /// Empties the store, as a lost disk does.
    pub fn wipe(&self) {
        mem::take(&mut *self.lock());
    }
}

impl Store for MemoryStore {
    fn get(&self, key: &[u8; 32]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.lock().get(key).cloned())
    }

    fn put(&self, key: &[u8; 32], value: Vec<u8>) -> Result<(), StoreError> {
        self.lock().insert(*key, value);
        Ok(())
    }

    fn remove(&self, key: &[u8; 32]) -> Result<(), StoreError> {
        self.lock().remove(key);
        Ok(())
    }

    fn scan(&self, after: Option<&[u8; 32]>, limit: usize) -> Result<Vec<Entry>, StoreError> {
        let entries = self.lock();
        Ok(entries
            .iter()
            .filter(|(k, _)| after.is_none_or(|a| *k > a))
            .take(limit)
            .map(|(k, v)| (*k, v.clone()))
            .collect())
    }

    fn flush(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn blocks(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn promise(store: &dyn Store) {
        for n in [3u8, 1, 2] {
            store.put(&[n; 32], vec![n]).unwrap();
        }
        store.remove(&[2; 32]).unwrap();
        store.flush().unwrap();
        assert_eq!(store.get(&[2; 32]).unwrap(), None);
        assert_eq!(
            store.scan(None, 9).unwrap(),
            [([1; 32], vec![1]), ([3; 32], vec![3])]
        );
        assert_eq!(store.scan(None, 1).unwrap(), [([1; 32], vec![1])]);
        assert_eq!(store.scan(Some(&[1; 32]), 9).unwrap(), [([3; 32], vec![3])]);
    }

    #[test]
    fn both_stores_keep_the_promise_and_sled_over_a_restart() {
        promise(&MemoryStore::default());
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("records");
        promise(&SledStore::open(&path).unwrap());
        assert_eq!(
            SledStore::open(&path).unwrap().scan(None, 9).unwrap().len(),
            2
        );
    }

    #[test]
    fn a_store_survives_a_full_disk_and_writes_again_later() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let mount = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=4M", "p2pvm"])
            .arg(directory.path())
            .status();
        if !mount.is_ok_and(|status| status.success()) {
            return eprintln!("NOT RUN: a file system of its own needs root");
        }
        let checked = std::panic::catch_unwind(|| {
            let store = SledStore::open(&at("records")).unwrap();
            promise(&store);
            let mut filler = std::fs::File::create(at("guest")).unwrap();
            while std::io::Write::write_all(&mut filler, &[7; 4096]).is_ok() {}
            let key = |n: usize| blake3::hash(&n.to_be_bytes()).into();
            let refused = (0..2000).find(|n| store.put(&key(*n), vec![7; 4000]).is_err());
            let refused = refused.expect("a full disk takes no records for ever");
            assert!(
                store.put(&key(refused), vec![7; 4000]).is_err(),
                "nor at the second try"
            );
            drop(filler);
            std::fs::remove_file(at("guest")).unwrap();
            store.put(&key(refused), vec![9]).unwrap();
            store.flush().unwrap();
            assert_eq!(
                (
                    store.get(&[1; 32]).unwrap(),
                    store.get(&key(refused)).unwrap()
                ),
                (Some(vec![1]), Some(vec![9]))
            );
            drop(store);
            let store = SledStore::open(&at("records")).unwrap();
            assert_eq!(
                (
                    store.get(&[3; 32]).unwrap(),
                    store.get(&key(refused)).unwrap()
                ),
                (Some(vec![3]), Some(vec![9]))
            );
        });
        let _ = std::process::Command::new("umount")
            .arg("--lazy")
            .arg(directory.path())
            .status();
        checked.unwrap();
    }

    #[test]
    fn what_was_flushed_is_there_after_a_kill() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("records");
        let store = SledStore::open(&path).unwrap();
        promise(&store);
        // What a kill leaves: the files as they are, without what sled writes when it is closed.
        let left = directory.path().join("left");
        std::fs::create_dir(&left).unwrap();
        for entry in std::fs::read_dir(&path).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_file() {
                std::fs::copy(entry.path(), left.join(entry.file_name())).unwrap();
            } else {
                std::fs::create_dir(left.join(entry.file_name())).unwrap();
            }
        }
        assert_eq!(
            SledStore::open(&left).unwrap().scan(None, 9).unwrap().len(),
            2
        );
    }

    #[test]
    fn a_store_with_a_damaged_byte_opens_or_starts_empty() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("records");
        for at in [0usize, 10, 100, 600, 5000, 40_000] {
            promise(&SledStore::open(&path).unwrap());
            let file = path.join("db");
            let mut bytes = std::fs::read(&file).unwrap();
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 0xff;
            }
            std::fs::write(&file, bytes).unwrap();
            let store = SledStore::open(&path).unwrap_or_else(|e| panic!("byte {at}: {e:?}"));
            let _ = store.scan(None, 9);
            drop(store);
            std::fs::remove_dir_all(&path).unwrap();
        }
    }
}
