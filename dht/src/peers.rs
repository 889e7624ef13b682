//! The replicas of this network as one node reaches them: its own behind a lock, the others over
//! the fabric. Each request has one answer or none; the modules above decide what the answers mean
//! ([`crate::dht`], [`crate::conflict`], [`crate::republish`]).

use crate::{
    coordinate::{Write, WriteOutcome},
    options::{Clock, DhtOptions},
    record::{Record, RecordError},
    replica::{Replica, ReplicaError},
    store::Store,
    wire::{self, Reply, Request},
};
use async_trait::async_trait;
use p2pvm_overlay::lock;
use p2pvm_overlay::{Fabric, MemberId, RingAddr, Serve, UnixTime, chain};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::sync::{Notify, mpsc};

/// The service that replicas answer.
pub const SERVICE: &str = "dht";

/// How many times a withdrawal or a settlement is sent to a replica that does not answer.
/// Reason: with the pauses between them, the last one ends before
/// [`crate::limits::ATTEMPT_SECONDS`].
const BACKGROUND_TRIES: u32 = 3;

/// The replicas of this network as one node reaches them: its own locally, the others over the
/// fabric.
#[derive(Clone)]
pub(crate) struct Peers {
    pub(crate) fabric: Arc<dyn Fabric>,
    pub(crate) local: Arc<LocalReplica>,
    pub(crate) options: DhtOptions,
}

impl Peers {
    /// Starts the replica over `store`, which answers other members from now on. `claimed` is
    /// notified when it has claims to look into.
    pub(crate) fn start(
        fabric: Arc<dyn Fabric>,
        store: Arc<dyn Store>,
        options: DhtOptions,
        claimed: Arc<Notify>,
    ) -> Self {
        let me = fabric.me();
        let local = Arc::new(LocalReplica {
            me,
            blocks: store.blocks(),
            replica: Mutex::new(Replica::new(me, store, options.limits)),
            clock: options.clock.clone(),
            claimed,
        });
        fabric.serve(SERVICE, Arc::new(Service(local.clone())));
        Self {
            fabric,
            local,
            options,
        }
    }

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

    /// One request to one replica; `None` if no answer comes.
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
            .inspect_err(|e| {
                tracing::debug!(
                    replica = %to.short(),
                    error = %chain(e),
                    "a replica did not answer"
                )
            })
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
                // Sending fails if the caller has decided already.
                let _ = sender.send((replica, reply)).await;
            });
        }
        receiver
    }

    /// Sends in the background to each of them, again where no answer comes.
    pub(crate) fn tell(&self, replicas: Vec<MemberId>, request: Request) {
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

    /// One round of a write: the record to all replicas at once, until the outcome is certain.
    pub(crate) async fn write_once(
        &self,
        record: &Record,
        attempt: u64,
        creates: bool,
    ) -> (WriteOutcome, Vec<MemberId>) {
        let Ok(replicas) = self.replicas(record.key).await else {
            return (
                WriteOutcome::NoQuorum {
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
pub(crate) struct LocalReplica {
    me: MemberId,
    claimed: Arc<Notify>,
    replica: Mutex<Replica>,
    clock: Clock,
    blocks: bool,
}

impl LocalReplica {
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
        let locked = move || work(&mut lock(&local.replica), (local.clock)());
        if !self.blocks {
            return locked();
        }
        match tokio::task::spawn_blocking(locked).await {
            Ok(done) => done,
            Err(e) if e.is_panic() => std::panic::resume_unwind(e.into_panic()),
            // Only a runtime that shuts down cancels a blocking task, and then no caller waits.
            Err(_) => std::future::pending().await,
        }
    }
}

struct Service(Arc<LocalReplica>);

impl Service {
    async fn answer(&self, from: MemberId, body: &[u8]) -> Result<Vec<u8>, ReplicaError> {
        let request = wire::parse(body).ok_or(ReplicaError::Malformed)?;
        let reply = self.0.handle_from(from, request).await?;
        Ok(wire::emit(&reply))
    }
}

#[async_trait]
impl Serve for Service {
    async fn serve(&self, from: MemberId, body: Vec<u8>) -> Result<Vec<u8>, String> {
        self.answer(from, &body).await.map_err(|e| chain(&e))
    }
}
