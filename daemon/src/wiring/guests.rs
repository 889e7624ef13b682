//! Opens what runs VMs: chunks, images, the hypervisor and the host that takes the VMs up.

use crate::{
    addresses::{ports::Ports, reach::Reach},
    config::Config,
    layout::Layout,
    parts::{HOST_FACTS, Parts},
};
use p2pvm_api::{Doing, Outcome};
use p2pvm_dht::votes::Votes;
use p2pvm_host::chain;
use p2pvm_overlay::MemberId;
use p2pvm_snapshot_sync::{ChunkStore, Exchange, ExchangeOptions, Images};
use p2pvm_vm_manager::{
    Traces,
    host::{self, Host, HostOptions},
    qemu::Qemu,
    vault::ChunkVault,
};
use std::{fs, net::IpAddr, os::unix::fs::PermissionsExt, sync::Arc, time::Duration};

/// How often unused chunks are looked for, and how old they are when they are removed.
const COLLECT_EVERY: Duration = Duration::from_secs(3600);
const COLLECT_GRACE: Duration = Duration::from_secs(3600);

/// The chunks on the disk, and their exchange with other members.
pub(super) struct Chunks {
    pub store: ChunkStore,
    exchange: Arc<Exchange>,
    images: Images,
}

impl Chunks {
    pub fn open(layout: &Layout, parts: &Parts) -> Outcome<Self> {
        let store = ChunkStore::open(layout.chunks()).doing("opening the chunk store")?;
        // Guests' memory and keys are in them.
        fs::set_permissions(layout.chunks(), fs::Permissions::from_mode(0o700))
            .doing("protecting the chunk store")?;
        let exchange = Exchange::start(parts.fabric(), store.clone(), ExchangeOptions::default());
        let images = Images::open(exchange.clone(), layout.images()).doing("opening the images")?;
        Ok(Self {
            store,
            exchange,
            images,
        })
    }
}

/// Opens the host, and takes the VMs up that were here when the daemon last ended.
pub(super) async fn open(
    layout: &Layout,
    config: &Config,
    parts: &Parts,
    chunks: Chunks,
    (ports, traces): (Arc<Ports>, Traces),
) -> Outcome<Arc<Host>> {
    let host_parts = host::Parts {
        fabric: parts.fabric(),
        records: parts.records.clone(),
        ballot: Arc::new(Votes::new(parts.fabric())),
        vault: ChunkVault::new(chunks.exchange, Arc::new(chunks.images)),
        hypervisor: Arc::new(Qemu::new(HOST_FACTS, config.accel(), config.probe())),
        port: ports,
        traces,
    };
    let options = HostOptions {
        memory_mib: (config.offer.memory_mib > 0).then_some(config.offer.memory_mib),
        ..HostOptions::default()
    };
    Host::open(host_parts, options, layout.dir())
        .await
        .doing("taking up the VMs")
}

/// Has the host told of addresses here whose packets others drop.
pub(super) fn heed_fences(reach: &Reach, host: &Arc<Host>) {
    let fenced = Arc::downgrade(host);
    reach.on_stale(Box::new(move |addr, known| {
        let Some(host) = fenced.upgrade() else { return };
        let here = host.list().into_iter().find(|vm| {
            IpAddr::V4(vm.definition.address.v4) == addr
                || IpAddr::V6(vm.definition.address.v6) == addr
        });
        if let Some(vm) = here {
            host.stale_epoch(vm.definition.vm, known);
        }
    }));
}

/// What members are called, as far as this one knows.
pub(super) fn naming(
    parts: &Arc<Parts>,
) -> impl Fn(MemberId) -> Option<String> + Send + Sync + 'static {
    let parts = Arc::downgrade(parts);
    move |member| {
        let parts = parts.upgrade()?;
        if member == parts.me() {
            return Some(parts.certificate.name().to_owned());
        }
        Some(parts.control.certificate(member)?.name().to_owned())
    }
}

/// Removes chunks that nothing refers to any more, now and then.
pub(super) async fn collect(chunks: ChunkStore) {
    loop {
        tokio::time::sleep(COLLECT_EVERY).await;
        let chunks = chunks.clone();
        match tokio::task::spawn_blocking(move || chunks.gc(COLLECT_GRACE)).await {
            Ok(Ok(collected)) if collected.removed > 0 => {
                tracing::info!(
                    chunks = collected.removed,
                    bytes = collected.freed_bytes,
                    "removed what nothing refers to"
                );
            }
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                tracing::warn!(error = %chain(&error), "unused chunks stay on the disk")
            }
            Err(_) => return,
        }
    }
}
