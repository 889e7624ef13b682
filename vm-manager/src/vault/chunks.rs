//! The [`Vault`] over `snapshot-sync`.

use super::{Candidates, CheckpointInput, Copies, Durability, StoredChanges, Vault};
use crate::{Error, error::Cause, hypervisor::Progress};
use async_trait::async_trait;
use p2pvm_overlay::{FabricError, MemberId, VmId, chain, identity::KeyPair, lock};
use p2pvm_snapshot_sync::{
    self as sync, Checkpoint, ChunkStore, Exchange, FilePatch, Images, Kind, Manifest, ManifestId,
    Replication, ReplicationState, SealKey, Sealer, Verified,
    file::ImportOptions,
    store::{CheckpointDiff, Size},
};
use std::{
    collections::HashMap,
    future::Future,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
};
use tokio::sync::watch;

/// The label of the pins that keep checkpoints.
const PIN: &str = "vm-snapshot";

/// How many VMs' last snapshots are remembered, to make the next ones faster.
/// Reason: bounds memory.
const REMEMBERED: usize = 16;

/// Images and checkpoints in this member's chunk store, exchanged with the others.
pub struct ChunkVault {
    exchange: Arc<Exchange>,
    images: Arc<Images>,
    /// What sealed each VM's last snapshot here.
    sealers: Mutex<HashMap<VmId, Sealer>>,
}

impl ChunkVault {
    /// A vault over the member's exchange and images.
    pub fn new(exchange: Arc<Exchange>, images: Arc<Images>) -> Arc<Self> {
        Arc::new(Self {
            exchange,
            images,
            sealers: Mutex::default(),
        })
    }

    fn sealers(&self) -> MutexGuard<'_, HashMap<VmId, Sealer>> {
        lock(&self.sealers)
    }

    /// What seals a VM's next snapshot.
    fn sealer(&self, vm: VmId, key: &SealKey) -> Sealer {
        let last = self.sealers().remove(&vm);
        last.filter(|last| last.key() == key)
            .unwrap_or_else(|| key.clone().into())
    }

    fn remember(&self, vm: VmId, sealer: &Sealer) {
        remember(&mut self.sealers(), vm, sealer.after());
    }

    fn chunks(&self) -> ChunkStore {
        self.exchange.store().clone()
    }

    /// The key that ends replicas of a checkpoint; the first one if the checkpoint names none of
    /// them or cannot be read.
    async fn releaser<'k>(
        &self,
        id: ManifestId,
        providers: &[MemberId],
        keys: &'k [KeyPair],
    ) -> Option<&'k KeyPair> {
        if keys.len() < 2 {
            return keys.first();
        }
        let named = match self.look_at(id, providers).await {
            Ok(checkpoint) => keys.iter().find(|key| key.vm_id() == checkpoint.vm),
            Err(error) => {
                tracing::info!(error = %chain(&error), "cannot read which key ends the copies of a \
                    snapshot");
                None
            }
        };
        named.or(keys.first())
    }
}

/// One is forgotten for each beyond [`REMEMBERED`], whichever: a host with a few VMs more than that
/// still remembers most of them.
fn remember(sealers: &mut HashMap<VmId, Sealer>, vm: VmId, sealer: Sealer) {
    if sealers.len() >= REMEMBERED
        && let Some(other) = sealers.keys().next().copied()
    {
        sealers.remove(&other);
    }
    sealers.insert(vm, sealer);
}

fn failed<E: Into<Cause>>(step: &'static str) -> impl FnOnce(E) -> Error {
    move |cause| Error::Chunks {
        step,
        source: cause.into(),
    }
}

/// Runs work that reads or writes files on the pool for such work.
async fn blocking<T: Send + 'static>(
    step: &'static str,
    work: impl FnOnce() -> Result<T, sync::Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|source| Error::Task { step, source })?
        .map_err(failed(step))
}

/// Runs `work` and passes its progress on as bytes of the present phase.
async fn followed<T>(
    progress: &watch::Sender<Progress>,
    work: impl AsyncFnOnce(&watch::Sender<sync::Progress>) -> T,
) -> T {
    let (sender, mut seen) = watch::channel(sync::Progress::default());
    let follow = async {
        while seen.changed().await.is_ok() {
            let now = *seen.borrow_and_update();
            progress
                .send_modify(|p| (p.done_bytes, p.total_bytes) = (now.done_bytes, now.total_bytes));
        }
        std::future::pending::<()>().await;
    };
    first(work(&sender), follow).await
}

/// Whether a member has answered to a release. One that refuses has: it keeps nothing for this VM.
fn has_answered(released: &Result<(), sync::Error>) -> bool {
    matches!(
        released,
        Ok(())
            | Err(sync::Error::Peer {
                source: FabricError::Refused(..),
                ..
            })
    )
}

async fn first<T>(work: impl Future<Output = T>, follow: impl Future<Output = ()>) -> T {
    tokio::select! {
        done = work => done,
        () = follow => unreachable!("following never ends"),
    }
}

#[async_trait]
impl Vault for ChunkVault {
    async fn import_image(
        &self,
        file: &Path,
        progress: &watch::Sender<Progress>,
    ) -> Result<ManifestId, Error> {
        followed(progress, async |p| self.images.import(file, p).await)
            .await
            .map_err(failed("importing the image"))
    }

    async fn ensure_image(
        &self,
        image: ManifestId,
        providers: &[MemberId],
        progress: &watch::Sender<Progress>,
    ) -> Result<PathBuf, Error> {
        followed(progress, async |p| {
            self.images.ensure_local(image, providers, p).await
        })
        .await
        .map_err(failed("fetching the image"))
    }

    async fn has_image(&self, image: ManifestId) -> bool {
        self.images.path(image).exists()
    }

    async fn images(&self) -> Result<Vec<ManifestId>, Error> {
        self.images
            .list()
            .await
            .map_err(failed("listing the images"))
    }

    async fn drop_image(
        &self,
        image: ManifestId,
        unused: &(dyn Fn() -> bool + Send + Sync),
    ) -> Result<bool, Error> {
        self.images
            .remove_if(image, unused)
            .await
            .map_err(failed("removing the image"))
    }

    async fn store(
        &self,
        instant: &CheckpointInput,
        progress: &watch::Sender<Progress>,
    ) -> Result<ManifestId, Error> {
        let step = "storing the snapshot";
        let chunks = self.chunks();
        // Dropped once the pin keeps the chunks: the holds keep them until then.
        let mut imported = Vec::new();
        let sealer = self.sealer(instant.vm, &instant.seal);
        for (path, kind) in instant
            .ram
            .iter()
            .map(|path| (path, Kind::Ram))
            .chain([(&instant.disk, Kind::Disk)])
        {
            let file = followed(progress, async |p| {
                let options = ImportOptions::new(kind).sealed(sealer.clone());
                sync::import_file(&chunks, path, options, p).await
            })
            .await;
            imported.push(file.map_err(failed(step))?);
        }
        let checkpoint = Checkpoint {
            vm: instant.releaser,
            name: instant.name.clone(),
            taken: instant.taken,
            epoch: instant.epoch,
            ram: instant.ram.as_ref().and(imported.first()).map(|f| f.id),
            disk: imported.last().expect("a disk is always imported").id,
            image: Some(instant.image),
            spec: instant.spec.clone(),
        };
        let id = blocking(step, move || {
            let (id, _hold) = checkpoint.store(&chunks)?;
            chunks.pin(id, PIN)?;
            Ok(id)
        })
        .await?;
        drop(imported);
        self.remember(instant.vm, &sealer);
        Ok(id)
    }

    async fn store_changes(
        &self,
        instant: &CheckpointInput,
        (base, patch): (Option<ManifestId>, FilePatch),
        rate: u64,
    ) -> Result<StoredChanges, Error> {
        let step = "storing what changed";
        let chunks = self.chunks();
        let reading = chunks.clone();
        let load = move || match base {
            Some(base) => {
                let disk = Checkpoint::load(&reading, base)?.disk;
                Manifest::load(&reading, disk).map(Some)
            }
            None => Ok(None),
        };
        let base = blocking(step, load).await?;
        // Of all of a disk most blocks are known from before; of what changed, few are.
        let sealer = match base {
            Some(_) => Sealer::from(instant.seal.clone()),
            None => self.sealer(instant.vm, &instant.seal),
        };
        let options = ImportOptions::new(Kind::Disk).sealed(sealer.clone());
        let (is_whole, quiet) = (base.is_none(), watch::Sender::default());
        let stored = sync::import_patch(&chunks, base, (patch, &instant.disk), options, &quiet)
            .await
            .map_err(failed(step))?;
        self.exchange.pace(stored.changed.iter().copied(), rate);
        let checkpoint = Checkpoint {
            vm: instant.releaser,
            name: instant.name.clone(),
            taken: instant.taken,
            epoch: instant.epoch,
            ram: None,
            disk: stored.file.id,
            image: Some(instant.image),
            spec: instant.spec.clone(),
        };
        let checkpoint = blocking(step, move || {
            let (id, _hold) = checkpoint.store(&chunks)?;
            chunks.pin(id, PIN)?;
            Ok(id)
        })
        .await?;
        if is_whole {
            self.remember(instant.vm, &sealer);
        }
        Ok(StoredChanges {
            checkpoint,
            new_bytes: stored.file.new_bytes,
        })
    }

    async fn keeps(&self, id: ManifestId) -> Result<bool, Error> {
        let chunks = self.chunks();
        let pins = blocking("listing the snapshots", move || chunks.pins_of(id, PIN)).await?;
        Ok(pins.iter().any(|pin| pin.owner.is_none()))
    }

    async fn look_at(&self, id: ManifestId, providers: &[MemberId]) -> Result<Checkpoint, Error> {
        let step = "fetching the snapshot";
        let nodes = self.exchange.fetch_nodes(id, providers).await;
        let nodes = nodes.map_err(failed(step))?;
        let chunks = self.chunks();
        let checkpoint = blocking(step, move || Checkpoint::load(&chunks, id)).await;
        drop(nodes);
        checkpoint
    }

    async fn fetch(
        &self,
        id: ManifestId,
        providers: &[MemberId],
        progress: &watch::Sender<Progress>,
    ) -> Result<Checkpoint, Error> {
        let step = "fetching the snapshot";
        let report = followed(progress, async |p| {
            self.exchange.fetch(id, providers, p).await
        })
        .await
        .map_err(failed(step))?;
        let chunks = self.chunks();
        let checkpoint = blocking(step, move || {
            chunks.pin(id, PIN)?;
            Checkpoint::load(&chunks, id)
        })
        .await;
        drop(report);
        checkpoint
    }

    async fn export(
        &self,
        file: ManifestId,
        key: &SealKey,
        providers: &[MemberId],
        to: &Path,
        progress: &watch::Sender<Progress>,
    ) -> Result<(), Error> {
        let (step, chunks) = ("writing a file of the snapshot", self.chunks());
        let reading = chunks.clone();
        let attempt = async |p: &watch::Sender<sync::Progress>| {
            let reading = reading.clone();
            let loaded = tokio::task::spawn_blocking(move || Manifest::load(&reading, file)).await;
            let manifest = loaded.map_err(|_| sync::Error::Closed { step })??;
            sync::export_sealed(&chunks, &manifest, key, to, p).await
        };
        let done = followed(progress, async |p| match attempt(p).await {
            Err(sync::Error::NotFound(_) | sync::Error::Corrupt { .. }) => {
                self.exchange.mend(file, providers, p).await?;
                attempt(p).await
            }
            done => done,
        });
        done.await.map_err(failed(step))
    }

    async fn replicate(
        &self,
        id: ManifestId,
        wanted: usize,
        candidates: Candidates,
    ) -> Result<watch::Receiver<Copies>, Error> {
        let me = self.exchange.me();
        let (sender, copies) = watch::channel(Copies {
            durability: Durability::Local,
            providers: vec![me],
        });
        // No more than there are: this ends, and goes on with the candidates there are later.
        let possible = wanted.min(candidates().len());
        if possible == 0 {
            return Ok(copies);
        }
        let exchange = &self.exchange;
        let mut seen = exchange.replicate_among(id, PIN, possible, candidates);
        tokio::spawn(async move {
            loop {
                let Replication { state, holders, .. } = seen.borrow_and_update().clone();
                let done = holders.len();
                let durability = match state {
                    _ if done >= wanted => Durability::Durable,
                    ReplicationState::Local => Durability::Local,
                    // Fewer candidates than copies wanted: as good as it gets now, and not durable.
                    _ => Durability::Replicating { done, wanted },
                };
                sender.send_if_modified(|copies| {
                    let new = Copies {
                        durability,
                        providers: std::iter::once(me).chain(holders).collect(),
                    };
                    let changed = *copies != new;
                    *copies = new;
                    changed
                });
                tokio::select! {
                    changed = seen.changed() => if changed.is_err() { return },
                    () = sender.closed() => return,
                }
            }
        });
        Ok(copies)
    }

    async fn lacking(
        &self,
        id: ManifestId,
        member: MemberId,
        providers: &[MemberId],
    ) -> Result<Option<usize>, Error> {
        match self.exchange.lacking(id, member, providers).await {
            Ok(lacking) => Ok(Some(lacking)),
            Err(sync::Error::Peer { .. }) => Ok(None),
            Err(e) => Err(failed("asking a member for its copy of the snapshot")(e)),
        }
    }

    async fn release(
        &self,
        (id, member): (ManifestId, MemberId),
        providers: &[MemberId],
        keys: &[KeyPair],
    ) -> Result<bool, Error> {
        let key = self.releaser(id, providers, keys).await;
        match self.exchange.release(id, PIN, member, key).await {
            released if has_answered(&released) => Ok(true),
            Ok(()) | Err(sync::Error::Peer { .. }) => Ok(false),
            Err(e) => Err(failed("ending a copy of the snapshot")(e)),
        }
    }

    async fn forget(
        &self,
        id: ManifestId,
        providers: &[MemberId],
        keys: &[KeyPair],
    ) -> Result<Vec<MemberId>, Error> {
        // Before the chunks here may go.
        let key = self.releaser(id, providers, keys).await;
        let (chunks, me) = (self.chunks(), self.exchange.me());
        let is_provider = providers.contains(&me);
        blocking("removing the snapshot", move || {
            // This host may have kept it for the VM's previous holder.
            let mut pins = chunks.pins_of(id, PIN)?;
            pins.retain(|pin| is_provider || pin.owner.is_none());
            pins.iter()
                .try_for_each(|pin| chunks.remove_pin(pin).map(drop))
        })
        .await?;
        let mut silent = Vec::new();
        for provider in providers.iter().filter(|p| **p != me) {
            let released = self.exchange.release(id, PIN, *provider, key).await;
            if let Err(e) = &released {
                tracing::info!(provider = %provider.short(), error = %chain(e), "cannot remove \
                    the member's copy of a deleted snapshot");
            }
            if !has_answered(&released) {
                silent.push(*provider);
            }
        }
        Ok(silent)
    }

    async fn kept(&self) -> Result<Vec<(ManifestId, VmId)>, Error> {
        let chunks = self.chunks();
        blocking("listing the snapshots", move || {
            let pins = chunks.pins()?.into_iter();
            let own = pins.filter(|pin| pin.owner.is_none() && pin.label == PIN);
            let named = own.filter_map(|pin| {
                let checkpoint = Checkpoint::load(&chunks, pin.manifest).ok()?;
                Some((pin.manifest, checkpoint.vm))
            });
            Ok(named.collect())
        })
        .await
    }

    async fn verify(&self, id: ManifestId) -> Result<Verified, Error> {
        let chunks = self.chunks();
        blocking("reading the snapshot", move || chunks.verify(id)).await
    }

    async fn mend(
        &self,
        id: ManifestId,
        providers: &[MemberId],
        progress: &watch::Sender<Progress>,
    ) -> Result<(), Error> {
        let me = self.exchange.me();
        let others: Vec<MemberId> = providers.iter().copied().filter(|m| *m != me).collect();
        followed(progress, async |p| self.exchange.mend(id, &others, p).await)
            .await
            .map_err(failed("repairing the snapshot from other members"))
    }

    async fn diff(
        &self,
        (older, newer): (ManifestId, ManifestId),
        providers: &[MemberId],
    ) -> Result<CheckpointDiff, Error> {
        let step = "comparing the snapshots";
        let nodes = [
            self.exchange.fetch_nodes(older, providers).await,
            self.exchange.fetch_nodes(newer, providers).await,
        ];
        let mut held = Vec::new();
        for nodes in nodes {
            held.push(nodes.map_err(failed(step))?);
        }
        let chunks = self.chunks();
        let diff = blocking(step, move || chunks.diff(older, newer)).await;
        drop(held);
        diff
    }

    async fn size_of(&self, id: ManifestId, providers: &[MemberId]) -> Result<Size, Error> {
        let step = "measuring the snapshot";
        let nodes = self.exchange.fetch_nodes(id, providers).await;
        let nodes = nodes.map_err(failed(step))?;
        let chunks = self.chunks();
        let size = blocking(step, move || chunks.size_of(id)).await;
        drop(nodes);
        size
    }

    async fn let_go(&self, id: ManifestId) -> Result<(), Error> {
        let chunks = self.chunks();
        blocking("removing the snapshot", move || chunks.unpin(id, PIN))
            .await
            .map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn with_more_vms_than_are_remembered_only_one_is_forgotten_at_once() {
        let mut sealers = HashMap::new();
        for n in 0..=REMEMBERED as u8 {
            let sealer = SealKey::derive(&[n; 32]).into();
            remember(&mut sealers, VmId([n; 32]), sealer);
        }
        assert_eq!(sealers.len(), REMEMBERED);
        assert!(sealers.contains_key(&VmId([REMEMBERED as u8; 32])));
    }
}
