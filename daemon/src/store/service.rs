//! What `p2pvm store` asks about the chunks on this host's disk.

use crate::{clock, parts::Parts};
use p2pvm_api::{
    Doing, Failure, Kind, Outcome, ScrubView, StoreAmount, StoreCollected, StoreOfMember,
    StoreView, StoredView,
};
use p2pvm_overlay::reserve;
use p2pvm_snapshot_sync::{
    Census, Exchange, ManifestId, ScrubState,
    images::PIN as IMAGE,
    store::{Amount, PinnedManifest},
};
use p2pvm_vm_manager::host::Host;
use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::Duration,
};

/// How old unused chunks are when they are removed. Reason: a fetch that a restart interrupted
/// finds its chunks again.
pub(crate) const COLLECT_GRACE: Duration = Duration::from_secs(3600);
/// How many snapshots and images an answer lists, the largest first.
const LISTED: usize = 200;

pub(crate) struct Chunks {
    pub parts: Arc<Parts>,
    pub host: Arc<Host>,
    /// Gone at the daemon's end.
    pub exchange: Weak<Exchange>,
}

impl Chunks {
    fn exchange(&self) -> Outcome<Arc<Exchange>> {
        let ending = || {
            Failure::new(
                Kind::NotNow,
                "the daemon ends: ask again when it has started",
            )
        };
        self.exchange.upgrade().ok_or_else(ending)
    }

    /// What uses the disk.
    pub async fn show(&self) -> Outcome<StoreView> {
        let exchange = self.exchange()?;
        let store = exchange.store().clone();
        let counted = tokio::task::spawn_blocking(move || {
            let free = reserve::room(store.dir()).map_or(0, |room| room.free);
            store.census(IMAGE).map(|census| (census, free))
        });
        let counted = counted.await.doing("counting the stored chunks")?;
        let (census, free_bytes) = counted.doing("counting the stored chunks")?;
        let scrub = scrub_view(&exchange.scrub_state(), exchange.unrepaired());
        Ok(self.view(census, free_bytes, scrub))
    }

    fn view(&self, census: Census, free_bytes: u64, scrub: ScrubView) -> StoreView {
        let names = self.names();
        let mut stored: Vec<StoredView> = census
            .manifests
            .iter()
            .map(|pinned| self.stored(pinned, &names))
            .collect();
        stored.sort_by_key(|one| std::cmp::Reverse(one.all.bytes));
        stored.truncate(LISTED);
        let of_member = |(member, used): (&_, &Amount)| StoreOfMember {
            amount: amount(used),
            member: self.parts.name_of(*member),
        };
        StoreView {
            all: amount(&census.all),
            free_bytes,
            images: amount(&census.images),
            scrub,
            snapshots: amount(&census.own),
            stored,
            replicas: census.replicas.iter().map(of_member).collect(),
            unreferenced: amount(&census.unreferenced),
        }
    }

    /// The names of the snapshots of the VMs here, and of the replicas of their disks.
    fn names(&self) -> HashMap<ManifestId, String> {
        self.host.checkpoints().into_iter().collect()
    }

    fn stored(&self, pinned: &PinnedManifest, names: &HashMap<ManifestId, String>) -> StoredView {
        let what = match pinned.is_own {
            true if pinned.labels.contains(IMAGE) => "image",
            true => "snapshot",
            false => "replica",
        };
        let name = names.get(&pinned.manifest).cloned();
        let members = pinned.owners.iter().map(|m| self.parts.name_of(*m));
        StoredView {
            all: amount(&pinned.all),
            alone: amount(&pinned.alone),
            checkpoint: pinned.manifest.to_string().into(),
            members: members.collect(),
            name: name.unwrap_or_else(|| what.to_owned()),
        }
    }

    /// Removes what nothing uses, or says what would go.
    pub async fn collect(&self, dry_run: bool) -> Outcome<StoreCollected> {
        let exchange = self.exchange()?;
        let report = if dry_run {
            let store = exchange.store().clone();
            let counted = tokio::task::spawn_blocking(move || store.gc_dry_run(COLLECT_GRACE));
            let counted = counted.await.doing("looking for unused chunks")?;
            counted.doing("looking for unused chunks")?
        } else {
            let collected = exchange.collect(COLLECT_GRACE).await;
            collected.doing("removing unused chunks")?
        };
        Ok(StoreCollected {
            damaged: report.damaged.len() as u64,
            dry_run,
            kept: report.kept,
            removed: StoreAmount {
                bytes: report.freed_bytes,
                chunks: report.removed,
            },
            unswept: report.unswept,
        })
    }
}

fn amount(of: &Amount) -> StoreAmount {
    StoreAmount {
        bytes: of.bytes,
        chunks: of.chunks,
    }
}

fn scrub_view(state: &ScrubState, unrepaired: usize) -> ScrubView {
    ScrubView {
        finished: state.finished.map(clock::shown),
        damaged: state.damaged,
        read: state.read,
        total: state.total,
        unrepaired: unrepaired as u64,
    }
}
