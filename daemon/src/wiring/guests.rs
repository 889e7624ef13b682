//! Opens the parts that run VMs: chunks, images, the hypervisor and the host that takes the VMs up.

use crate::{
    addresses::{ports::Ports, reach::Reach},
    config::Config,
    layout::Layout,
    offer::KeptOffer,
    parts::{HOST_FACTS, Parts},
    store::{service::COLLECT_GRACE, settings::Settings},
    vms::releases::Releases,
};
use p2pvm_api::{Doing, EventKind, Outcome};
use p2pvm_authority::Subject;
use p2pvm_dht::votes::Votes;
use p2pvm_host::chain;
use p2pvm_overlay::{MemberId, UnixTime};
use p2pvm_snapshot_sync::{ChunkStore, Exchange, ExchangeOptions, Images};
use p2pvm_vm_manager::{
    Traces,
    clock::ThisMachine,
    guardian::{Guardian, HostGuardian, NoGuardian},
    host::{self, Host, HostOptions},
    qemu::Qemu,
    vault::ChunkVault,
};
use std::{
    fs,
    net::IpAddr,
    os::unix::fs::PermissionsExt,
    sync::{Arc, Weak},
    time::Duration,
};

/// How often some chunks are read, to find damage before they are needed.
const SCRUB_EVERY: Duration = Duration::from_secs(60);
/// How many of these rounds lie between two looks for unused chunks.
const COLLECT_ROUNDS: u32 = 60;

/// The chunks on the disk, and their exchange with other members.
pub(super) struct Chunks {
    pub exchange: Arc<Exchange>,
    images: Images,
}

impl Chunks {
    pub fn open(layout: &Layout, config: &Config, parts: &Parts) -> Outcome<Self> {
        let store = ChunkStore::open(layout.chunks()).doing("opening the chunk store")?;
        // Guests' memory and keys are in them: sealed, but plain in those of earlier releases.
        fs::set_permissions(layout.chunks(), fs::Permissions::from_mode(0o700))
            .doing("protecting the chunk store")?;
        let options = ExchangeOptions {
            replica_percent: config.replica_percent,
            ..ExchangeOptions::default()
        };
        let exchange = Exchange::start(parts.fabric(), store, options);
        let images = Images::open(exchange.clone(), layout.images()).doing("opening the images")?;
        Ok(Self { exchange, images })
    }
}

/// Opens the host, and takes up the VMs of the daemon's last run.
pub(super) async fn open(
    layout: &Layout,
    (config, offer): (&Config, &KeptOffer),
    parts: &Arc<Parts>,
    chunks: Chunks,
    (ports, traces, releases): (Arc<Ports>, Traces, Arc<Releases>),
) -> Outcome<Arc<Host>> {
    let host_parts = host::Parts {
        fabric: parts.fabric(),
        records: parts.records.clone(),
        ballot: Arc::new(Votes::new(parts.fabric())),
        vault: ChunkVault::new(chunks.exchange, Arc::new(chunks.images)),
        hypervisor: Arc::new(Qemu::new(HOST_FACTS, config.accel(), config.probe())),
        guardian: guardian(layout),
        port: ports.clone(),
        traces,
        sleep: Arc::new(ThisMachine),
        identity: parts.identity.clone(),
        releases,
    };
    let options = HostOptions {
        memory_mib: offer.now().all_memory(),
        terms: offer.terms(parts, offer.closed()),
        replica_rate: config.heal.replica_rate,
        protects: config.heal.protect,
        ..HostOptions::default()
    };
    let host = Host::open(host_parts, options, layout.dir())
        .await
        .doing("taking up the VMs")?;
    let limited = Arc::downgrade(&host);
    ports.limit_by(Box::new(move |vm| limited.upgrade()?.bits_per_second(vm)));
    // Guests that ran on have their ports already.
    for vm in host.list() {
        let vm = vm.definition.vm;
        parts.plane.limit_port(vm, host.bits_per_second(vm));
    }
    Ok(host)
}

/// What freezes guests whose lease has ended. Only root can hold another user's process.
fn guardian(layout: &Layout) -> Arc<dyn Guardian> {
    let dir = std::path::absolute(layout.dir());
    match dir {
        Ok(dir) if nix::unistd::geteuid().is_root() => Arc::new(HostGuardian::of_this_program(dir)),
        _ => Arc::new(NoGuardian("the daemon does not run as root")),
    }
}

/// Reports to the host addresses here whose packets other members drop.
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

/// The names of members, as far as this one knows them.
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

/// Writes down that stored chunks were damaged, and whether all were fetched again.
fn note_damage(parts: &Parts, damaged: u64, unrepaired: usize) {
    let fields = [("count", damaged.to_string())];
    let text = format!("{damaged} stored chunks were damaged on this disk: look at the disk.");
    let events = &parts.events;
    events.record(EventKind::ChunkDamaged, Subject::Host, &fields, text);
    if unrepaired == 0 {
        let text = "What was damaged was fetched again from other members.";
        events.record(EventKind::ChunkRepaired, Subject::Host, &fields, text);
    }
}

/// Reads some chunks now and then, and removes those that nothing refers to any more. What is
/// damaged is fetched again.
pub(super) async fn look_after(parts: Arc<Parts>, chunks: Weak<Exchange>, settings: Settings) {
    for round in 1u32.. {
        tokio::time::sleep(SCRUB_EVERY).await;
        let Some(chunks) = chunks.upgrade() else {
            return;
        };
        if let Some(period) = settings.period() {
            let pace = (period, SCRUB_EVERY);
            let rate = settings.bytes_per_second();
            match chunks.scrub(pace, rate, UnixTime::now()).await {
                Ok(0) => {}
                Ok(damaged) => note_damage(&parts, damaged, chunks.unrepaired()),
                Err(error) => {
                    tracing::warn!(error = %chain(&error), "the stored chunks cannot be read");
                }
            }
        }
        if !round.is_multiple_of(COLLECT_ROUNDS) {
            continue;
        }
        match chunks.collect(COLLECT_GRACE).await {
            Ok(collected) if collected.removed > 0 => {
                tracing::info!(
                    chunks = collected.removed,
                    bytes = collected.freed_bytes,
                    "removed what nothing refers to"
                );
            }
            Ok(collected) if collected.unswept => tracing::warn!(
                damaged = collected.damaged.len(),
                "unused chunks stay on the disk until what is damaged is repaired"
            ),
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(error = %chain(&error), "unused chunks stay on the disk")
            }
        }
    }
}
