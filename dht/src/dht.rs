//! The async shell: asks the fabric who is closest to a key, sends one request to each of them at
//! once, lets [`crate::coordinate`] decide, and serves this node's own [`Replica`]. What a decision
//! leaves to do (settling, withdrawing, repairing) goes on in the background.

use crate::{
    cell::{Cell, prefers},
    conflict,
    coordinate::{Doubt, Read, Write, Written},
    limits::Limits,
    record::{MAX_VALUE_BYTES, Record, RecordError, Records},
    replica::{Replica, ReplicaError},
    republish,
    store::{Store, StoreError},
    wire::{self, Reply, Request},
};
use async_trait::async_trait;
use p2pvm_overlay::{Fabric, MemberId, RingAddr, Serve, UnixTime, chain, identity::KeyPair};
use rand::{
    Rng, SeedableRng,
    distr::{Distribution, StandardUniform},
    rngs::StdRng,
};
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{Notify, mpsc},
    task::JoinHandle,
    time::Instant,
};

/// The service that replicas answer.
pub const SERVICE: &str = "dht";

/// Tries of a create or put that meets concurrent ones; each waits longer than the one before.
const ATTEMPTS: u32 = 10;

/// How often a withdrawal or a settlement is tried again at a replica that does not answer. With
/// the pauses between, all is over before [`republish::ATTEMPT_SECONDS`].
const BACKGROUND_TRIES: u32 = 3;

/// The shortest life of a tombstone: longer than any replica is away without being republished to.
const GRAVE_SECONDS: u64 = 3600;

/// Where the DHT takes the time from.
pub type Clock = Arc<dyn Fn() -> UnixTime + Send + Sync>;

/// What may be set.
#[derive(Clone)]
pub struct DhtOptions {
    /// Replicas of a key: the k closest members.
    pub replicas: usize,
    /// How long one replica may take to answer.
    pub call_timeout: Duration,
    /// How often all records are compared with the other replicas.
    pub republish_every: Duration,
    /// What one owner, one member and all may have this node keep.
    pub limits: Limits,
    /// The wall clock.
    pub clock: Clock,
    /// Seeds the waits and names of attempts, so that a simulation can be repeated; from the system
    /// if `None`.
    pub seed: Option<u64>,
}

impl Default for DhtOptions {
    /// 5 replicas (two may be dead), 3 s (a dial over a 200 ms path and a flush, with room), 30
    /// min, the system's clock and chance.
    fn default() -> Self {
        Self {
            replicas: 5,
            call_timeout: Duration::from_secs(3),
            republish_every: Duration::from_secs(30 * 60),
            limits: Limits::default(),
            clock: Arc::new(UnixTime::now),
            seed: None,
        }
    }
}

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
        let blocks = store.blocks();
        let replica = Mutex::new(Replica::new(fabric.me(), store, options.limits));
        let claimed = Arc::new(Notify::new());
        let (me, clock) = (fabric.me(), options.clock.clone());
        let local = Arc::new(Local {
            me,
            blocks,
            replica,
            clock,
            claimed: claimed.clone(),
        });
        fabric.serve(SERVICE, Arc::new(Service(local.clone())));
        let chance = Mutex::new(
            options
                .seed
                .map_or_else(StdRng::from_os_rng, StdRng::seed_from_u64),
        );
        let peers = Peers {
            fabric,
            local,
            options,
        };
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

    /// Tells that members came or went: records move to the members that are closest to them now.
    /// Cheap; call it often.
    pub fn membership_changed(&self) {
        self.changed.notify_one();
    }

    /// The live records that this node's own replica holds and `wanted` picks, without a word to
    /// anybody.
    ///
    /// # Errors
    /// The disk's.
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
        self.chance
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .random()
    }

    async fn write(
        &self,
        sign: impl Fn(u64) -> Record,
        key: RingAddr,
        mut version: u64,
        how: How,
    ) -> Result<Record, RecordError> {
        let mut last = RecordError::NoQuorum {
            answered: 0,
            asked: 0,
        };
        for tried in 0..ATTEMPTS {
            let begun = Instant::now();
            let record = sign(version);
            let attempt = self.draw();
            match self.peers.write(&record, attempt, how == How::Create).await {
                (Written::Won, replicas) => {
                    if record.value.is_some() {
                        self.peers.tell(
                            replicas,
                            Request::Merge(key, Cell::of(record.clone(), true)),
                        );
                    }
                    return Ok(record);
                }
                (Written::Stale(newest), _) if how != How::Put => {
                    version = newest.saturating_add(1)
                }
                (Written::Stale(newest), replicas) => {
                    self.peers
                        .tell(replicas, Request::Withdraw { key, attempt });
                    return Err(RecordError::Stale(newest));
                }
                (Written::Exists(other), replicas) => {
                    self.peers
                        .tell(replicas, Request::Withdraw { key, attempt });
                    return Err(RecordError::Exists(Box::new(other)));
                }
                (Written::Refused(refusal), replicas) => {
                    self.peers
                        .tell(replicas, Request::Withdraw { key, attempt });
                    return Err(RecordError::Refused(refusal));
                }
                (Written::NoQuorum { answered, asked }, replicas) => {
                    self.peers
                        .tell(replicas, Request::Withdraw { key, attempt });
                    return Err(RecordError::NoQuorum { answered, asked });
                }
                (Written::Contended(other), replicas) => {
                    tracing::debug!(key = %key.short(), tried, "a concurrent write: trying again");
                    self.peers
                        .tell(replicas, Request::Withdraw { key, attempt });
                    // About a round trip, doubled each time; the preferred owner in the lower half,
                    // so that he mostly comes first.
                    let longest =
                        (begun.elapsed() + Duration::from_millis(10)) * 2u32.pow(tried.min(5));
                    let half = if prefers(&key, &record.owner, &other.owner) {
                        0.0
                    } else {
                        0.5
                    };
                    last = RecordError::Exists(Box::new(other));
                    tokio::time::sleep(
                        longest
                            .min(Duration::from_secs(5))
                            .mul_f64(half + self.draw::<f64>() / 2.0),
                    )
                    .await;
                }
            }
        }
        Err(last)
    }

    async fn read(&self, key: RingAddr) -> Result<Cell, RecordError> {
        let replicas = self.peers.replicas(key).await?;
        let asked = replicas.len();
        let mut read = Read::new(asked);
        let mut answers = self.peers.ask(&replicas, Request::Read(key));
        let mut told = Vec::new();
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
            told.extend(cell.clone().map(|cell| (member, cell)));
            read.heard(cell);
        };
        let record = outcome.map_err(|doubt| match doubt {
            Doubt::NoQuorum { answered, asked } => RecordError::NoQuorum { answered, asked },
            Doubt::Disagreement => RecordError::Disagreement,
        })?;
        let merged = read.merged();
        if read.is_of_one_owner() && (merged.settled.is_some() || merged.record.is_none()) {
            let behind = told
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
        self.write(sign, key, now.0, How::Create).await
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
        self.write(sign, key, version, How::Put).await
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
        self.write(
            |version| Record::sign(owner, key, version, expires, None),
            key,
            record.version.saturating_add(1),
            How::Delete,
        )
        .await?;
        Ok(())
    }
}

/// What a write is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
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

/// The replicas of this network as one node reaches them: its own locally, the others over the
/// fabric.
#[derive(Clone)]
pub(crate) struct Peers {
    pub(crate) fabric: Arc<dyn Fabric>,
    pub(crate) local: Arc<Local>,
    pub(crate) options: DhtOptions,
}

impl Peers {
    pub(crate) fn now(&self) -> UnixTime {
        (self.options.clock)()
    }

    pub(crate) async fn replicas(&self, key: RingAddr) -> Result<Vec<MemberId>, RecordError> {
        let found = self.fabric.closest(key, self.options.replicas).await;
        found
            .inspect_err(
                |e| tracing::warn!(error = %chain(e), "cannot look up the closest members"),
            )
            .ok()
            .filter(|r| !r.is_empty())
            .ok_or(RecordError::NoQuorum {
                answered: 0,
                asked: 0,
            })
    }

    /// One request to one replica.
    pub(crate) async fn call(&self, to: MemberId, request: Request) -> Option<Reply> {
        if to == self.fabric.me() {
            return self
                .local
                .handle(request)
                .await
                .inspect_err(|e| tracing::error!(error = %chain(e), "this node's replica failed"))
                .ok();
        }
        let answer = self
            .fabric
            .call(to, SERVICE, wire::emit(&request), self.options.call_timeout)
            .await;
        let answer = answer
            .inspect_err(
                |e| tracing::debug!(replica = %to.short(), error = %e, "a replica did not answer"),
            )
            .ok()?;
        wire::parse(&answer)
    }

    /// One request to all of them at once; the answers as they come. Dropping the receiver does not
    /// stop the requests.
    pub(crate) fn ask(
        &self,
        replicas: &[MemberId],
        request: Request,
    ) -> mpsc::Receiver<(MemberId, Option<Reply>)> {
        let (sender, receiver) = mpsc::channel(replicas.len().max(1));
        for &replica in replicas {
            let (peers, request, sender) = (self.clone(), request.clone(), sender.clone());
            tokio::spawn(async move {
                let reply = peers.call(replica, request).await;
                // The asker may have decided already and be gone.
                let _ = sender.send((replica, reply)).await;
            });
        }
        receiver
    }

    /// Sends in the background to each of them, again where no answer comes.
    fn tell(&self, replicas: Vec<MemberId>, request: Request) {
        for replica in replicas {
            let (peers, request) = (self.clone(), request.clone());
            tokio::spawn(async move {
                for tried in 0..BACKGROUND_TRIES {
                    if peers.call(replica, request.clone()).await.is_some() {
                        return;
                    }
                    tokio::time::sleep(Duration::from_secs(1 << tried)).await;
                }
            });
        }
    }

    async fn write(
        &self,
        record: &Record,
        attempt: u64,
        creates: bool,
    ) -> (Written, Vec<MemberId>) {
        let Ok(replicas) = self.replicas(record.key).await else {
            return (
                Written::NoQuorum {
                    answered: 0,
                    asked: 0,
                },
                Vec::new(),
            );
        };
        let mut write = if creates {
            Write::create(record.clone(), replicas.len())
        } else {
            Write::new(record.clone(), replicas.len())
        };
        let mut answers = self.ask(
            &replicas,
            Request::Write {
                record: record.clone(),
                attempt,
            },
        );
        loop {
            if let Some(outcome) = write.outcome() {
                return (outcome, replicas);
            }
            let answer = match answers.recv().await {
                Some((_, Some(Reply::Refused(refusal)))) => {
                    write.refused(refusal);
                    continue;
                }
                Some((_, Some(Reply::Written { accepted, cell })))
                    if cell.is_authentic(&record.key) =>
                {
                    Some((accepted, cell))
                }
                _ => None,
            };
            write.heard(answer);
        }
    }
}

/// This node's replica behind its lock.
pub(crate) struct Local {
    me: MemberId,
    claimed: Arc<Notify>,
    replica: Mutex<Replica>,
    clock: Clock,
    blocks: bool,
}

impl Local {
    /// Answers a request of this node's own.
    pub(crate) async fn handle(self: &Arc<Self>, request: Request) -> Result<Reply, ReplicaError> {
        self.handle_from(self.me, request).await
    }

    async fn handle_from(
        self: &Arc<Self>,
        from: MemberId,
        request: Request,
    ) -> Result<Reply, ReplicaError> {
        let (reply, claims) = self
            .with(move |replica, now| (replica.handle(now, from, request), replica.has_claims()))
            .await;
        if claims {
            self.claimed.notify_one();
        }
        reply
    }

    /// Runs `work` on the replica, on a blocking thread if its store may wait for a disk.
    pub(crate) async fn with<T, F>(self: &Arc<Self>, work: F) -> T
    where
        T: Send + 'static,
        F: FnOnce(&mut Replica, UnixTime) -> T + Send + 'static,
    {
        let local = self.clone();
        let locked = move || {
            work(
                &mut local.replica.lock().unwrap_or_else(PoisonError::into_inner),
                (local.clock)(),
            )
        };
        if !self.blocks {
            return locked();
        }
        match tokio::task::spawn_blocking(locked).await {
            Ok(done) => done,
            Err(e) if e.is_panic() => std::panic::resume_unwind(e.into_panic()),
            // Only a runtime that shuts down cancels a blocking task; nobody waits for the answer
            // then.
            Err(_) => std::future::pending().await,
        }
    }
}

struct Service(Arc<Local>);

#[async_trait]
impl Serve for Service {
    async fn serve(&self, from: MemberId, body: Vec<u8>) -> Result<Vec<u8>, String> {
        let request = wire::parse(&body).ok_or("not a record request")?;
        let reply = self
            .0
            .handle_from(from, request)
            .await
            .map_err(|e| chain(&e))?;
        Ok(wire::emit(&reply))
    }
}
