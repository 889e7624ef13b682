//! The async shell: asks the fabric for the members closest to a key, sends one request to each of
//! them at once, lets [`crate::coordinate`] decide, and serves this node's own
//! [`crate::replica::Replica`]. What a decision leaves to do (settling, withdrawing, repairing)
//! goes on in the background.

use crate::{
    cell::{Cell, prefers},
    conflict,
    coordinate::{Read, ReadFailure, WriteOutcome},
    options::DhtOptions,
    peers::Peers,
    record::{MAX_VALUE_BYTES, Record, RecordError, Records},
    republish,
    store::{Store, StoreError},
    wire::{Reply, Request},
};
use async_trait::async_trait;
use p2pvm_overlay::lock;
use p2pvm_overlay::{Fabric, RingAddr, identity::KeyPair};
use rand::{
    Rng, SeedableRng,
    distr::{Distribution, StandardUniform},
    rngs::StdRng,
};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{sync::Notify, task::JoinHandle, time::Instant};

/// How many times a create or put that meets concurrent ones is tried before it fails.
/// Reason: each wait is longer than the previous one, together about half a minute.
const ATTEMPTS: u32 = 10;

/// How long to wait at most before a create or put is tried again.
/// Reason: longer than any round of calls takes.
const LONGEST_BACKOFF: Duration = Duration::from_secs(5);

/// How long a tombstone lives at least, and never less than the record that it deletes.
/// Reason: all replicas of a key are compared twice in that time.
const GRAVE_SECONDS: u64 = 3600;

/// The replicated records of the network, and this node's share of them.
pub struct Dht {
    pub(crate) peers: Peers,
    chance: Mutex<StdRng>,
    changed: Arc<Notify>,
    tasks: [JoinHandle<()>; 2],
}

impl Dht {
    /// Serves this node's replica from now on, and keeps its records on the members closest to them
    /// until dropped. Needs a tokio runtime.
    pub fn start(fabric: Arc<dyn Fabric>, store: Arc<dyn Store>, options: DhtOptions) -> Arc<Self> {
        let chance = Mutex::new(
            options
                .seed
                .map_or_else(StdRng::from_os_rng, StdRng::seed_from_u64),
        );
        let claimed = Arc::new(Notify::new());
        let peers = Peers::start(fabric, store, options, claimed.clone());
        let changed = Arc::new(Notify::new());
        let tasks = [
            tokio::spawn(republish::run(peers.clone(), changed.clone())),
            tokio::spawn(conflict::run(peers.clone(), claimed)),
        ];
        Arc::new(Self {
            peers,
            chance,
            changed,
            tasks,
        })
    }

    /// Moves records to the members that are closest to them now. The caller calls it whenever
    /// members come or go; it is cheap.
    pub fn membership_changed(&self) {
        self.changed.notify_one();
    }

    /// The live records that this node's own replica holds and `wanted` picks. No other member is
    /// asked.
    ///
    /// # Errors
    /// [`StoreError`] if the disk failed.
    pub async fn held_here(
        &self,
        wanted: impl Fn(&Record) -> bool + Send + 'static,
    ) -> Result<Vec<Record>, StoreError> {
        self.peers
            .local
            .with(move |replica, now| replica.live(now, wanted))
            .await
    }

    fn draw<T>(&self) -> T
    where
        StandardUniform: Distribution<T>,
    {
        lock(&self.chance).random()
    }

    /// Repeats a write until it wins or cannot win. The waits in between let concurrent writers
    /// succeed one after another.
    async fn retry_write(
        &self,
        sign: impl Fn(u64) -> Record,
        key: RingAddr,
        mut version: u64,
        kind: WriteKind,
    ) -> Result<Record, RecordError> {
        let mut last = RecordError::NoQuorum {
            answered: 0,
            asked: 0,
        };
        for tried in 0..ATTEMPTS {
            let begun = Instant::now();
            let record = sign(version);
            let attempt = self.draw();
            let is_create = kind == WriteKind::Create;
            let (outcome, replicas) = self.peers.write_once(&record, attempt, is_create).await;
            let failure = match outcome {
                WriteOutcome::Won => {
                    if record.value.is_some() {
                        let settled = Cell::of(record.clone(), true);
                        self.peers.tell(replicas, Request::Merge(key, settled));
                    }
                    return Ok(record);
                }
                WriteOutcome::Stale(newest) if kind != WriteKind::Put => {
                    version = newest.saturating_add(1);
                    continue;
                }
                failure => failure,
            };
            self.peers
                .tell(replicas, Request::Withdraw { key, attempt });
            let other = failure.into_contender()?;
            tracing::debug!(key = %key.short(), tried, "a concurrent write: trying again");
            let is_preferred = prefers(&key, &record.owner, &other.owner);
            last = RecordError::Exists(Box::new(other));
            tokio::time::sleep(self.backoff(begun.elapsed(), tried, is_preferred)).await;
        }
        Err(last)
    }

    /// How long to wait after a contended write: about a round trip, doubled each time. The
    /// preferred owner draws from the lower half, so that it mostly comes first.
    fn backoff(&self, round: Duration, tried: u32, is_preferred: bool) -> Duration {
        let longest = (round + Duration::from_millis(10)) * 2u32.pow(tried.min(5));
        let half = if is_preferred { 0.0 } else { 0.5 };
        longest
            .min(LONGEST_BACKOFF)
            .mul_f64(half + self.draw::<f64>() / 2.0)
    }

    async fn read(&self, key: RingAddr) -> Result<Cell, RecordError> {
        let replicas = self.peers.replicas(key).await?;
        let asked = replicas.len();
        let mut read = Read::new(asked);
        let mut answers = self.peers.ask(&replicas, Request::Read(key));
        let mut answered = Vec::new();
        let outcome = loop {
            if let Some(outcome) = read.outcome(self.peers.now()) {
                break outcome;
            }
            let (member, reply) = answers
                .recv()
                .await
                .unwrap_or((self.peers.fabric.me(), None));
            let cell = match reply {
                Some(Reply::Holds(cell)) if cell.is_authentic(&key) => Some(cell),
                _ => None,
            };
            answered.extend(cell.clone().map(|cell| (member, cell)));
            read.heard(cell);
        };
        let record = outcome.map_err(|failure| match failure {
            ReadFailure::NoQuorum { answered, asked } => RecordError::NoQuorum { answered, asked },
            ReadFailure::Disagreement => RecordError::Disagreement,
        })?;
        let merged = read.merged();
        if read.is_of_one_owner() && (merged.settled.is_some() || merged.record.is_none()) {
            let behind = answered
                .into_iter()
                .filter(|(_, cell)| cell.digest() != merged.digest())
                .map(|(member, _)| member)
                .collect();
            self.peers.tell(behind, Request::Merge(key, merged.clone()));
        }
        Ok(Cell { record, ..merged })
    }
}

impl Drop for Dht {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

#[async_trait]
impl Records for Dht {
    async fn create(
        &self,
        owner: &KeyPair,
        key: RingAddr,
        value: Vec<u8>,
        ttl: Duration,
    ) -> Result<Record, RecordError> {
        check_size(&value)?;
        let now = self.peers.now();
        let sign = |version| {
            Record::sign(
                owner,
                key,
                version,
                now.plus(ttl.as_secs()),
                Some(value.clone()),
            )
        };
        // Seconds as the first version: a renewal is newer without asking, and a VM's `epoch << 32
        // | seq` is newer still.
        self.retry_write(sign, key, now.0, WriteKind::Create).await
    }

    async fn put(
        &self,
        owner: &KeyPair,
        key: RingAddr,
        version: u64,
        value: Vec<u8>,
        ttl: Duration,
    ) -> Result<Record, RecordError> {
        check_size(&value)?;
        let expires = self.peers.now().plus(ttl.as_secs());
        let sign = |version| Record::sign(owner, key, version, expires, Some(value.clone()));
        self.retry_write(sign, key, version, WriteKind::Put).await
    }

    async fn get(&self, key: RingAddr) -> Result<Option<Record>, RecordError> {
        Ok(self.read(key).await?.record)
    }

    async fn delete(&self, owner: &KeyPair, key: RingAddr) -> Result<(), RecordError> {
        let seen = self.read(key).await?;
        let record = match seen.record {
            Some(record) if record.owner == owner.public() => record,
            Some(other) => return Err(RecordError::Exists(Box::new(other))),
            None => return Ok(()),
        };
        let expires = record.expires.max(self.peers.now().plus(GRAVE_SECONDS));
        self.retry_write(
            |version| Record::sign(owner, key, version, expires, None),
            key,
            record.version.saturating_add(1),
            WriteKind::Delete,
        )
        .await?;
        Ok(())
    }
}

/// What a write is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum WriteKind {
    Create,
    Put,
    Delete,
}

fn check_size(value: &[u8]) -> Result<(), RecordError> {
    if value.len() > MAX_VALUE_BYTES {
        Err(RecordError::TooLarge(value.len()))
    } else {
        Ok(())
    }
}
