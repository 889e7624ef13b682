//! Opens the daemon's parts and services, each after those that it needs, connects them and starts
//! their tasks. The only file that knows all of them.

#[cfg(test)]
pub(crate) mod alone;
mod event_log;
mod guests;
mod network;
mod planes;
mod records;
mod services;

use crate::{
    access::{
        policy::Policies,
        service::{Access, Offerer},
    },
    addresses::{reach::Reach, resolver::Integration},
    cluster::{answer::Responder, ask::Questions, service::Cluster},
    config::Config,
    events,
    http::{connection, forward},
    layout::Layout,
    lifecycle::Lifecycle,
    machine::{
        changes, clocks, control, interface, networks, proof::Proofs, service::Machine, space,
    },
    members::{ring, service::Members, twins, twins::Twins},
    membership::Membership,
    node::service::Node,
    offer::{KeptOffer, service::Offers},
    parts::Parts,
    placement::{drain::Drains, manager::Manager, service::Placement},
    routes::subnets::Subnets,
    store::service::Chunks as StoredChunks,
    tokens::{revoke::Revoker, service::Tokens},
    traces::Exporter,
    usage::service::Accounting,
    vms::{self, absent::AbsentHosts, guests::Guests, releases::Releases, service::Vms, voters},
    web::Dashboard,
};
use guests::Chunks;
use network::Network;
use p2pvm_api::Outcome;
use p2pvm_dhcp::dns::HostResolver;
use p2pvm_host::{Keeper, chain};
use p2pvm_overlay::{network_time::Exchange as ClockExchange, ring_driver::RingDriver};
use p2pvm_snapshot_sync::Exchange as SyncExchange;
use p2pvm_vm_manager::{Traces, host::Host};
use planes::Events;
pub(crate) use services::Services;
use std::{
    net::IpAddr,
    sync::{Arc, Weak},
    time::Duration,
};
use tokio::{sync::mpsc, task::JoinSet};

/// How long the head of another member's request may take to arrive.
/// Reason: the member opens a stream to send a request at once.
const HEAD_LIMIT: Duration = Duration::from_secs(10);

/// The daemon's services and parts, until its end.
pub(crate) struct Daemon {
    pub parts: Arc<Parts>,
    pub lifecycle: Arc<Lifecycle>,
    pub services: Services,
    pub host: Arc<Host>,
    pub keeper: Arc<Keeper>,
    pub integration: Integration,
    pub exporter: Option<Arc<Exporter>>,
    _ring: RingDriver,
    _clocks: ClockExchange,
}

/// Opens everything. Dropping the set ends the long-lived tasks.
pub(crate) async fn open(
    layout: &Layout,
    config: &Config,
    membership: Membership,
    lifecycle: Arc<Lifecycle>,
) -> Outcome<(Daemon, JoinSet<()>)> {
    // Changes of a killed daemon are undone before anything is changed again.
    changes::undo(layout);
    let (planes, events, clocks) = planes::open(layout, config, membership).await?;
    let founder = planes.founder;
    let (parts, ring) = records::open(layout, config, planes)?;
    let network = network::open(layout, config, &parts, founder)?;
    // Everything that answers members is ready before VMs are taken up, so that none waits for
    // another.
    let chunks = Chunks::open(layout, config, &parts)?;
    let exchange = Arc::downgrade(&chunks.exchange);
    let exporter = Exporter::start(&config.traces, parts.me(), parts.certificate.name())?;
    let exporter = exporter.map(Arc::new);
    let traces = exporter.as_ref().map_or_else(Traces::default, |exporter| {
        exporter.traces(guests::naming(&parts))
    });
    let releases = Releases::new(parts.clone(), network.policies.clone());
    let beside = (network.ports.clone(), traces.clone(), releases);
    let offer = KeptOffer::open(layout.offer(), &config.offer)?;
    let host = guests::open(layout, (config, &offer), &parts, chunks, beside).await?;
    guests::heed_fences(&network.reach, &host);
    let happened = host.events();
    let own = RunParts {
        lifecycle: lifecycle.clone(),
        layout: layout.clone(),
        exporter: exporter.clone(),
        traces,
        offer,
    };
    let below = LowerParts {
        policies: network.policies.clone(),
        subnets: network.subnets.clone(),
        reach: network.reach.clone(),
        usage: Accounting::open(
            (parts.clone(), host.clone(), exchange.clone()),
            layout.usage(),
        ),
        chunks: exchange.clone(),
        host: host.clone(),
    };
    let wired = wire(config, &parts, below, own)?;
    let mut tasks = spawn(
        &parts,
        &lifecycle,
        &network,
        &wired,
        (events, config, layout),
    );
    let caring = guests::look_after(parts.clone(), exchange, config.store.clone());
    tasks.spawn(caring);
    event_log::spawn(&mut tasks, &parts, config, happened);
    let daemon = Daemon {
        parts,
        lifecycle,
        services: wired.services,
        host,
        keeper: network.keeper,
        integration: network.integration,
        exporter,
        _ring: ring,
        _clocks: clocks,
    };
    Ok((daemon, tasks))
}

/// The state of this run of the daemon.
struct RunParts {
    lifecycle: Arc<Lifecycle>,
    layout: Layout,
    exporter: Option<Arc<Exporter>>,
    traces: Traces,
    /// What is offered to other members' VMs.
    offer: KeptOffer,
}

/// The parts below the services, beside the shared ones.
struct LowerParts {
    policies: Arc<Policies>,
    subnets: Arc<Subnets>,
    reach: Arc<Reach>,
    host: Arc<Host>,
    usage: Arc<Accounting>,
    /// The stored chunks; gone at the daemon's end.
    chunks: Weak<SyncExchange>,
}

/// The services, and the tasks beside them.
struct WiredServices {
    services: Services,
    absent: Arc<AbsentHosts>,
    manager: Arc<Manager>,
    proofs: Arc<Proofs>,
}

/// Makes the services, and lets them answer questions to the whole cluster.
fn wire(
    config: &Config,
    parts: &Arc<Parts>,
    below: LowerParts,
    own: RunParts,
) -> Outcome<WiredServices> {
    let (policies, subnets) = (below.policies, below.subnets);
    let (reach, host) = (below.reach, below.host);
    let manager = Manager::start(parts.clone(), host.clone(), config);
    let absent = AbsentHosts::new(parts.clone(), host.clone());
    let guests = Guests::new(parts.clone(), host.clone());
    let (questions, members) = (Questions::new(parts.clone()), Members::new(parts.clone()));
    let proofs = proofs(parts, (&policies, &reach, &guests));
    let (drains, offers) = offers(parts, &host, &manager, (own.offer, config.cpus));
    let machine = Machine::new(parts.clone(), proofs.clone());
    let (tokens, revoker) = tokens(parts, &host, &own.layout);
    let vms = Arc::new(Vms {
        parts: parts.clone(),
        host,
        absent: absent.clone(),
        guests,
        manager: manager.clone(),
        policies: policies.clone(),
        questions: questions.clone(),
        reach: reach.clone(),
        tokens: tokens.clone(),
        traces: own.traces,
        image_dirs: config.offer.image_dirs(),
    });
    let node = Arc::new(Node {
        parts: parts.clone(),
        lifecycle: own.lifecycle,
        reach,
        members: members.clone(),
        machine: machine.clone(),
        vms: vms.clone(),
        usage: below.usage.clone(),
        exporter: own.exporter,
        layout: own.layout,
    });
    let cluster = Cluster::new(parts.clone(), questions.clone());
    let dashboard = Dashboard::open((node.clone(), offers.clone()), cluster.clone(), config)?;
    questions.answer(Responder::new(&node, &vms));
    let services = Services {
        access: Access::new(parts.clone(), policies, offerer(&subnets)),
        cluster,
        dashboard,
        machine,
        members,
        node,
        offers,
        placement: Placement::new(manager.clone(), drains, config.at_shutdown),
        revoker,
        store: chunks_of(&vms, below.chunks),
        subnets,
        tokens,
        usage: below.usage,
        vms,
    };
    Ok(WiredServices {
        services,
        absent,
        manager,
        proofs,
    })
}

/// The tokens that this member gave and was given, and what revokes them.
fn tokens(parts: &Arc<Parts>, host: &Arc<Host>, layout: &Layout) -> (Arc<Tokens>, Arc<Revoker>) {
    let tokens = Tokens::new(parts.clone(), layout);
    let revoker = Revoker::new(parts.clone(), host.clone(), tokens.clone());
    (tokens, revoker)
}

/// What proves that this host's addresses and guests are reached.
fn proofs(
    parts: &Arc<Parts>,
    (policies, reach, guests): (&Arc<Policies>, &Arc<Reach>, &Arc<Guests>),
) -> Arc<Proofs> {
    Proofs::new(
        parts.clone(),
        policies.clone(),
        reach.clone(),
        guests.clone(),
    )
}

/// The stored chunks, for the control API.
fn chunks_of(vms: &Vms, exchange: Weak<SyncExchange>) -> Arc<StoredChunks> {
    let (parts, host) = (vms.parts.clone(), vms.host.clone());
    Arc::new(StoredChunks {
        parts,
        host,
        exchange,
    })
}

/// Who offers an address beyond hosts.
fn offerer(subnets: &Arc<Subnets>) -> Offerer {
    let offering = subnets.clone();
    Box::new(move |addr: &IpAddr| offering.offerer(addr))
}

/// The drains of this host and its offer to other members.
fn offers(
    parts: &Arc<Parts>,
    host: &Arc<Host>,
    manager: &Arc<Manager>,
    (kept, cpus): (KeptOffer, u32),
) -> (Arc<Drains>, Arc<Offers>) {
    let drains = Drains::new(parts.clone(), host.clone(), manager.clone());
    let drains = Arc::new(drains);
    let means = (manager.clone(), drains.clone());
    let offers = Offers::new(parts.clone(), host.clone(), means, kept, cpus);
    (drains, offers)
}

/// Starts the daemon's long-lived tasks; dropping the set ends them.
fn spawn(
    parts: &Arc<Parts>,
    lifecycle: &Arc<Lifecycle>,
    network: &Network,
    wired: &WiredServices,
    (events, config, layout): (Events, &Config, &Layout),
) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    let (want, wanted) = mpsc::channel(256);
    let (reach, services) = (&network.reach, &wired.services);
    let host = &services.vms.host;
    let resolving = reach.clone();
    tasks.spawn(async move { resolving.resolve_all(wanted).await });
    let keeping = reach.clone();
    tasks.spawn(async move { keeping.keep_address().await });
    let (naming, names) = (reach.clone(), host_resolver(parts, network));
    tasks.spawn(async move { naming.serve_names(names).await });
    let policies = network.policies.clone();
    tasks.spawn(async move { policies.run().await });
    let subnets = network.subnets.clone();
    tasks.spawn(async move { subnets.run().await });
    let ticking = network.ports.clone();
    tasks.spawn(async move { ticking.tick().await });
    tasks.spawn(events::follow_plane(
        (parts.clone(), reach.clone(), network.ports.clone()),
        events.plane,
        want,
    ));
    tasks.spawn(events::follow_control(
        (parts.clone(), reach.clone(), lifecycle.clone()),
        events.control,
    ));
    tasks.spawn(events::time_address(reach.clone(), lifecycle.clone()));
    tasks.spawn(ring::follow(parts.clone()));
    let manager = wired.manager.clone();
    if config.autonomic {
        tasks.spawn(async move { manager.run().await });
    }
    tasks.spawn(services.usage.clone().run());
    tasks.spawn(services.offers.clone().run());
    tasks.spawn(serve_members(services.vms.clone()));
    services.dashboard.offer(services.for_tokens());
    tasks.spawn(services.dashboard.clone().serve());
    tasks.spawn(services.revoker.clone().run());
    tasks.spawn(wired.proofs.clone().run());
    tasks.spawn(networks::watch(parts.clone()));
    tasks.spawn(control::watch(
        services.members.clone(),
        parts.clone(),
        network.keeper.clone(),
    ));
    tasks.spawn(wired.absent.clone().run());
    tasks.spawn(voters::watch(
        parts.clone(),
        host.clone(),
        wired.absent.clone(),
    ));
    tasks.spawn(clocks::watch(parts.clone()));
    tasks.spawn(interface::watch(parts.clone()));
    let dir = layout.dir().to_owned();
    tasks.spawn(space::watch(parts.clone(), host.clone(), dir));
    let twins = Twins::new(
        parts.clone(),
        host.clone(),
        lifecycle.clone(),
        layout.clone(),
    );
    tasks.spawn(twins::run(twins));
    tasks
}

/// The resolver for this host's programs.
fn host_resolver(parts: &Parts, network: &Network) -> HostResolver {
    HostResolver {
        resolver: network.resolver.clone(),
        names: parts.names.clone(),
        network: parts.network.id.to_string(),
        own_name: format!(
            "{}.{}",
            parts.certificate.name().to_ascii_lowercase(),
            parts.domain()
        ),
        keeper: network.integration.keeper(),
    }
}

/// Serves the VM part of the control API to other members, one connection a stream.
async fn serve_members(vms: Arc<Vms>) {
    let mut streams = vms.parts.fabric().accept_streams(forward::SERVICE);
    let mut running = JoinSet::new();
    while let Some((member, stream)) = streams.recv().await {
        while running.try_join_next().is_some() {}
        let router = vms::http::for_member(vms.clone(), member);
        running.spawn(async move {
            if let Err(error) = connection::converse(stream, router, HEAD_LIMIT).await {
                tracing::debug!(?member, error = %chain(&error), "a member's request ended");
            }
        });
    }
}
