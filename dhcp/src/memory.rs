//! Records in memory with the semantics of the trait, for this crate's tests: create-if-absent,
//! owner and version checks, expiry by a clock that the test moves.

use async_trait::async_trait;
use p2pvm_dht::record::{Record, RecordError, Records};
use p2pvm_overlay::{RingAddr, UnixTime, identity::KeyPair};
use std::{
    collections::HashMap,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

#[derive(Default)]
pub(crate) struct MemoryRecords {
    pub(crate) map: Mutex<HashMap<RingAddr, Record>>,
    /// Seconds that the clock has been put forward.
    pub(crate) later: AtomicU64,
    /// Whether the quorum is gone.
    pub(crate) cut: AtomicBool,
}

impl MemoryRecords {
    fn now(&self) -> UnixTime {
        UnixTime::now().plus(self.later.load(Relaxed))
    }

    /// Yields as a network would, so that concurrent callers interleave.
    async fn pass(&self) -> Result<(), RecordError> {
        tokio::task::yield_now().await;
        if self.cut.load(Relaxed) {
            Err(RecordError::NoQuorum {
                answered: 1,
                asked: 5,
            })
        } else {
            Ok(())
        }
    }

    fn write(
        &self,
        owner: &KeyPair,
        key: RingAddr,
        value: Option<Vec<u8>>,
        ttl: Duration,
        create: bool,
        version: Option<u64>,
    ) -> Result<Record, RecordError> {
        let mut map = self.map.lock().unwrap();
        let old = map.get(&key).filter(|r| r.expires > self.now());
        if let Some(other) = old.filter(|r| r.owner != owner.public() && r.value.is_some()) {
            return Err(RecordError::Exists(Box::new(other.clone())));
        }
        let known = old.filter(|r| r.owner == owner.public()).map(|r| r.version);
        let version = version.unwrap_or(known.unwrap_or(0) + 1);
        if let Some(known) = known.filter(|known| !create && *known >= version) {
            return Err(RecordError::Stale(known));
        }
        let record = Record::sign(owner, key, version, self.now().plus(ttl.as_secs()), value);
        map.insert(key, record.clone());
        Ok(record)
    }
}

#[async_trait]
impl Records for MemoryRecords {
    async fn create(
        &self,
        owner: &KeyPair,
        key: RingAddr,
        value: Vec<u8>,
        ttl: Duration,
    ) -> Result<Record, RecordError> {
        self.pass().await?;
        self.write(owner, key, Some(value), ttl, true, None)
    }

    async fn put(
        &self,
        owner: &KeyPair,
        key: RingAddr,
        version: u64,
        value: Vec<u8>,
        ttl: Duration,
    ) -> Result<Record, RecordError> {
        self.pass().await?;
        self.write(owner, key, Some(value), ttl, false, Some(version))
    }

    async fn get(&self, key: RingAddr) -> Result<Option<Record>, RecordError> {
        self.pass().await?;
        let map = self.map.lock().unwrap();
        Ok(map
            .get(&key)
            .filter(|r| r.expires > self.now() && r.value.is_some())
            .cloned())
    }

    async fn delete(&self, owner: &KeyPair, key: RingAddr) -> Result<(), RecordError> {
        self.pass().await?;
        self.write(owner, key, None, Duration::from_secs(60), false, None)
            .map(|_| ())
    }
}
