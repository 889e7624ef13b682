//! The lease cache: the last address of this node and of each VM that it holds, so that a restart
//! asks for the same one again. It can be lost without harm; a damaged file counts as empty.

use p2pvm_host::lock;
use p2pvm_overlay::{UnixTime, durable::write_atomically};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fs, io, net::Ipv4Addr, path::PathBuf, sync::Mutex};

/// How many seconds an entry is unused before the next write drops it.
const FORGET_AFTER_SECONDS: u64 = 90 * 24 * 3600;

const HASH_BYTES: usize = 32;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct CacheEntry {
    v4: Ipv4Addr,
    used: UnixTime,
}

type Entries = BTreeMap<[u8; 32], CacheEntry>;

pub(crate) struct LeaseCache {
    path: PathBuf,
    entries: Mutex<Entries>,
}

impl LeaseCache {
    pub(crate) fn open(path: PathBuf) -> Self {
        let entries = match fs::read(&path) {
            Ok(bytes) => parse(&bytes).unwrap_or_else(|| {
                tracing::warn!(path = %path.display(), "the lease cache is damaged: starting with \
                    an empty one");
                Entries::new()
            }),
            Err(e) => {
                if e.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(
                        path = %path.display(),
                        error = %p2pvm_host::chain(&e),
                        "the lease cache cannot be read: starting with an empty one"
                    );
                }
                Entries::new()
            }
        };
        Self {
            path,
            entries: Mutex::new(entries),
        }
    }

    pub(crate) fn get(&self, owner: &[u8; 32]) -> Option<Ipv4Addr> {
        lock(&self.entries).get(owner).map(|cached| cached.v4)
    }

    /// Keeps the address. The file is written if the address is new or a day has passed; a failure
    /// to write costs a new draw after a restart and is only logged.
    pub(crate) fn set(&self, owner: [u8; 32], v4: Ipv4Addr, now: UnixTime) {
        let mut entries = lock(&self.entries);
        let before = entries.insert(owner, CacheEntry { v4, used: now });
        if before.is_none_or(|b| b.v4 != v4 || b.used.plus(24 * 3600) < now) {
            entries.retain(|_, cached| cached.used.plus(FORGET_AFTER_SECONDS) >= now);
            self.save(&entries);
        }
    }

    pub(crate) fn remove(&self, owner: &[u8; 32]) {
        let mut entries = lock(&self.entries);
        if entries.remove(owner).is_some() {
            self.save(&entries);
        }
    }

    fn save(&self, entries: &Entries) {
        if let Err(e) = self.try_save(entries) {
            tracing::warn!(
                path = %self.path.display(),
                error = %p2pvm_host::chain(&e),
                "the lease cache cannot be written: addresses may change after a restart"
            );
        }
    }

    fn try_save(&self, entries: &Entries) -> io::Result<()> {
        let body = postcard::to_allocvec(entries).map_err(io::Error::other)?;
        write_atomically(
            &self.path,
            &[&blake3::hash(&body).as_bytes()[..], &body].concat(),
            0o644,
        )
    }
}

fn parse(bytes: &[u8]) -> Option<Entries> {
    let (hash, body) = bytes.split_at_checked(HASH_BYTES)?;
    (blake3::hash(body).as_bytes() == hash).then(|| postcard::from_bytes(body).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_outlives_a_restart_and_a_damaged_cache_is_empty() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("leases");
        let (owner, ip) = ([3; 32], Ipv4Addr::new(10, 7, 0, 9));
        LeaseCache::open(path.clone()).set(owner, ip, UnixTime(1000));
        assert_eq!(LeaseCache::open(path.clone()).get(&owner), Some(ip));
        let mut bytes = fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&path, &bytes).unwrap();
        assert_eq!(LeaseCache::open(path.clone()).get(&owner), None);
        fs::write(&path, b"torn").unwrap();
        assert_eq!(LeaseCache::open(path).get(&owner), None);
    }

    #[test]
    fn leases_long_unused_are_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let cache = LeaseCache::open(dir.path().join("leases"));
        cache.set([1; 32], Ipv4Addr::new(10, 0, 0, 5), UnixTime(0));
        cache.set(
            [2; 32],
            Ipv4Addr::new(10, 0, 0, 6),
            UnixTime(FORGET_AFTER_SECONDS + 1),
        );
        assert_eq!(
            (cache.get(&[1; 32]), cache.get(&[2; 32]).is_some()),
            (None, true)
        );
        cache.remove(&[2; 32]);
        assert_eq!(cache.get(&[2; 32]), None);
    }
}
