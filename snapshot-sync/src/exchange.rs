//! Chunks between members. All bulk data is *pulled*: a fetch asks several providers over streams,
//! and a push asks the other side to fetch from here and pin. So the receiver alone moves data; it
//! verifies each chunk, and after a restart it continues where it stopped.
//!
//! Service `chunk` of the fabric: requests (which chunks are there, keep this, release it) and
//! streams (wants one way, chunks the other).

mod custody;
mod fetch;
mod pace;
mod plan;
mod replicas;
mod replicate;
mod serve;
mod shared;
mod upkeep;
pub mod wire;

pub use fetch::FetchReport;
pub use pace::MIN_RATE;
pub use replicate::{Replication, ReplicationState};
pub use shared::{ExchangeOptions, SERVICE};

use crate::{
    ChunkId, ChunkStore, Error, ManifestId, Progress,
    error::{blocking, malformed},
    store::{Pin, ScrubState},
};
use fetch::Scope;
use p2pvm_overlay::{Fabric, FabricError, MemberId, identity::KeyPair};
use shared::{Core, Turns};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicUsize},
};
use tokio::{sync::watch, task::JoinHandle};

/// How many bytes stay free when this member fetches for itself.
/// Reason: records and voters' promises need room.
const KEPT_FREE: u64 = 64 << 20;
/// The part of a small file system that stays free: one in this many.
const KEPT_SHARE: u64 = 16;

/// This member's part in the exchange of chunks.
///
/// The caller
/// - holds or pins what it offers: a push and a replication hold it only while they run;
/// - pins what a fetch brought before it drops [`FetchReport::hold`], or a collection may remove
///   it;
/// - repeats a call that failed: the chunks that came are kept and not fetched again. Timeouts are
///   the exchange's own ([`ExchangeOptions`]); dropping a future cancels the work.
///
/// ```
/// use p2pvm_overlay::{MemberId, fabric::memory::MemoryNet};
/// use p2pvm_snapshot_sync::{ChunkStore, Exchange, Kind, Progress, import_file};
/// use std::time::Duration;
/// use tokio::sync::watch;
///
/// # let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
/// # runtime.block_on(async {
/// let directory = tempfile::tempdir().unwrap();
/// let (net, quiet) = (MemoryNet::new(Duration::ZERO), watch::channel(Progress::default()).0);
/// let start = |n: u8| {
///     let store = ChunkStore::open(directory.path().join(n.to_string())).unwrap();
///     Exchange::start(net.add(MemberId([n; 32])), store, Default::default())
/// };
/// let (source, target) = (start(1), start(2));
///
/// let path = directory.path().join("disk");
/// std::fs::write(&path, b"content").unwrap();
/// let file = import_file(source.store(), &path, Kind::Disk, &quiet).await.unwrap();
///
/// let fetched = target.fetch(file.id, &[source.me()], &quiet).await.unwrap();
/// target.store().pin(file.id, "example").unwrap();
/// drop(fetched.hold);
/// assert!(target.store().is_complete(file.id));
/// # });
/// ```
pub struct Exchange {
    core: Core,
    keeping: Mutex<HashMap<Pin, replicas::ReplicaFetch>>,
    /// How far the search for damaged chunks is.
    scrubbed: Mutex<ScrubState>,
    /// How many pinned manifests could not be repaired when they were last looked at.
    unrepaired: AtomicUsize,
    acceptor: Mutex<Option<JoinHandle<()>>>,
}

impl Exchange {
    /// Serves `store`'s chunks to the members, and fetches into it, until the last clone of the
    /// `Arc` is dropped.
    pub fn start(
        fabric: Arc<dyn Fabric>,
        store: ChunkStore,
        options: ExchangeOptions,
    ) -> Arc<Self> {
        let core = Core {
            fabric,
            store,
            options,
            turns: Turns::default(),
            pace: Arc::default(),
        };
        let scrubbed = Mutex::new(core.store.scrub_state());
        let exchange = Arc::new(Self {
            core,
            keeping: Mutex::default(),
            scrubbed,
            unrepaired: AtomicUsize::new(0),
            acceptor: Mutex::default(),
        });
        let acceptor = serve::start(&exchange);
        *exchange
            .acceptor
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(acceptor);
        exchange
    }

    /// The chunks here.
    pub fn store(&self) -> &ChunkStore {
        &self.core.store
    }

    /// This node.
    pub fn me(&self) -> MemberId {
        self.core.fabric.me()
    }

    /// Sends these chunks, to all members together, at `rate` bytes a second at most: at least
    /// [`MIN_RATE`]. Only the latest quarter of a million are paced.
    pub fn pace(&self, chunks: impl IntoIterator<Item = ChunkId>, rate: u64) {
        self.core.pace.add(chunks, rate);
    }

    /// Fetches the missing chunks of `manifest` (a file's, or a checkpoint's with its files) from
    /// those of `providers` that have them. Durable on return; chunks that came before an error
    /// stay for the next try.
    ///
    /// # Errors
    /// `NoProvider` if some chunk is missing from all of them, or if nothing came for
    /// [`ExchangeOptions::patience`]; `Malformed` if `manifest` names something else;
    /// [`Error::Io`], also without room.
    pub async fn fetch(
        &self,
        manifest: ManifestId,
        providers: &[MemberId],
        progress: &watch::Sender<Progress>,
    ) -> Result<FetchReport, Error> {
        let store = self.core.store.clone();
        let room = blocking("looking for room", move || store.room()).await?;
        let reserve = KEPT_FREE.min(room.size / KEPT_SHARE);
        let scope = Scope::All { reserve };
        self.core.fetch(manifest, providers, scope, progress).await
    }

    /// Fetches what of `manifest` is not content: about one part in 2000.
    ///
    /// # Errors
    /// As [`Exchange::fetch`].
    pub async fn fetch_nodes(
        &self,
        manifest: ManifestId,
        providers: &[MemberId],
    ) -> Result<FetchReport, Error> {
        let quiet = watch::Sender::new(Progress::default());
        self.core
            .fetch(manifest, providers, Scope::Nodes, &quiet)
            .await
    }

    /// Fetches the damaged and missing chunks of `manifest` from `providers`.
    ///
    /// # Errors
    /// As [`Exchange::fetch`].
    pub async fn mend(
        &self,
        manifest: ManifestId,
        providers: &[MemberId],
        progress: &watch::Sender<Progress>,
    ) -> Result<(), Error> {
        let report = self.fetch(manifest, providers, progress).await?;
        if report.fetched_chunks > 0 {
            tracing::warn!(
                file = %manifest.short(),
                chunks = report.fetched_chunks,
                "a stored file was damaged on this disk and has been repaired from other members: \
                    look at the disk"
            );
        }
        Ok(())
    }

    /// Which of `ids` the member has, in their order.
    ///
    /// # Errors
    /// `Peer` if it does not answer.
    pub async fn has(&self, member: MemberId, ids: &[ChunkId]) -> Result<Vec<bool>, Error> {
        let mut answers = Vec::with_capacity(ids.len());
        for some in ids.chunks(wire::MAX_IDS) {
            match self
                .core
                .ask(
                    member,
                    "asking for chunks",
                    &wire::Request::Has(some.to_vec()),
                    self.core.options.call_timeout,
                )
                .await?
            {
                wire::Answer::Has(bits) => answers.extend(
                    (0..some.len()).map(|i| bits.get(i / 8).is_some_and(|b| b >> (i % 8) & 1 == 1)),
                ),
                _ => return Err(unexpected("asking for chunks")),
            }
        }
        Ok(answers)
    }

    /// Asks a member to release `manifest` under `label`. Its next collection removes the chunks
    /// that nothing else names. A member releases what the caller asked it to keep, and with the
    /// key of the checkpoint's VM also what other members asked it to keep, such as a holder that
    /// is gone.
    ///
    /// # Errors
    /// `Peer` if it does not answer, or keeps it for other members alone.
    pub async fn release(
        &self,
        manifest: ManifestId,
        label: &str,
        member: MemberId,
        vm: Option<&KeyPair>,
    ) -> Result<(), Error> {
        let message = wire::release_message(manifest, label, member);
        let request = wire::Request::Release {
            manifest,
            label: label.to_owned(),
            proof: vm.map(|keys| keys.sign(wire::RELEASE_DOMAIN, &message)),
        };
        match self
            .core
            .ask(
                member,
                "releasing a replica",
                &request,
                self.core.options.call_timeout,
            )
            .await?
        {
            wire::Answer::Released => Ok(()),
            _ => Err(unexpected("releasing a replica")),
        }
    }

    fn keeping(&self) -> MutexGuard<'_, HashMap<Pin, replicas::ReplicaFetch>> {
        self.keeping.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if let Some(acceptor) = self
            .acceptor
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
        {
            acceptor.abort();
        }
    }
}

fn unexpected(what: &'static str) -> Error {
    malformed("answer", format!("not one to {what}"))
}

/// Whether a retry may succeed.
fn is_transient(error: &FabricError) -> bool {
    matches!(
        error,
        FabricError::Unreachable(_) | FabricError::TimedOut(..)
    )
}

#[cfg(test)]
mod tests;
