//! Opens the daemon's parts, each after those that it needs, and wires them.

use crate::{
    Daemon,
    access::policy::Policies,
    addresses::kept::Kept,
    addresses::ports::Ports,
    addresses::reach::Reach,
    addresses::resolver::Integration,
    machine::{changes, proof::Proofs},
    members::admission::SlotAdmission,
    members::book::Book,
    members::{admission, expelled},
    parts::{HOST_FACTS, MTU, PORT_PATIENCE, Parts},
    placement::drain::Drains,
    placement::manager::Manager,
    routes::subnets::Subnets,
    vms::absent::Absent,
    vms::guests::Guests,
};
use crate::{
    config::Config,
    http::{forward, server},
    layout::Layout,
    machine::{clocks, interface, space},
    members::twins,
    membership::Membership,
    traces,
};
use p2pvm_api::{Doing, Failure, Kind, Outcome, StartTimes};
use p2pvm_dhcp::{
    Addresses, Names, Resolver, Subject,
    dns::{CachedNames, HostResolver},
};
use p2pvm_dht::{
    Dht, DhtOptions, MemoryStore, Store,
    store::SledStore,
    votes::{Voter, VoterLog, Votes},
};
use p2pvm_host::{Board, Keeper, Wanted, chain, owner, tun::try_tun};
use p2pvm_overlay::{
    Fabric, MemberId,
    connect::{ConnectOptions, Connector, Credentials},
    control::{Control, ControlConfig, ControlError, ControlEvent},
    identity::Identity,
    membership::{NetworkConfig, Trust},
    network_time::{Exchange as ClockExchange, NetworkTime},
    notices::{Notices, Spread},
    plane::{self, Plane, PlaneConfig, PlaneEvent},
    ring_driver::RingDriver,
    ring_net::RingNet,
};
use p2pvm_snapshot_sync::{ChunkStore, Exchange, ExchangeOptions, Images};
use p2pvm_vm_manager::{
    Traces,
    host::{Host, HostOptions},
    qemu::Qemu,
    vault::ChunkVault,
};
use std::{
    net::IpAddr,
    sync::{Arc, Mutex, OnceLock, atomic::AtomicBool},
    time::{Duration, Instant},
};
use tokio::{
    sync::{broadcast, mpsc, watch},
    task::JoinSet,
};

/// Chunks that nothing refers to are looked for this often, and removed when they are this old.
const COLLECT_EVERY: Duration = Duration::from_secs(3600);
const COLLECT_GRACE: Duration = Duration::from_secs(3600);

/// What is wanted of this machine's kernel for the network, before any subnet is offered or
/// accepted.
fn wanted(parts: &Parts, config: &Config) -> Wanted {
    let port = |address: &String| {
        address
            .split_once("/udp/")?
            .1
            .split('/')
            .next()?
            .parse()
            .ok()
    };
    let control_port = match config.port {
        0 => parts
            .control
            .listen_addrs()
            .iter()
            .find_map(port)
            .unwrap_or(0),
        port => port,
    };
    let subnet = parts.network.subnet;
    Wanted {
        device: config.device.clone(),
        network: parts.network.id.to_string(),
        link_port: parts.plane.udp_port(),
        control_port,
        overlay: Some(p2pvm_host::Net::new(subnet.addr, subnet.prefix)),
        open_firewalls: config.firewall == "auto",
        ..Wanted::default()
    }
}

/// Waits until the interface of a daemon that is just ending is gone; anybody else's is a reason
/// not to start.
async fn free_device(name: &str, network: &NetworkConfig) -> Outcome<()> {
    let began = Instant::now();
    loop {
        let whose = match owner::owner(name).doing("looking at this machine's interfaces")? {
            owner::Owner::Nobody | owner::Owner::Waiting => return Ok(()),
            owner::Owner::Network(mark) if mark.network == network.id.to_string() => {
                "another daemon of this network".to_owned()
            }
            owner::Owner::Network(mark) => format!("the p2pvm network {}", mark.network),
            owner::Owner::Other(kind) => format!("another program ({kind})"),
        };
        if began.elapsed() > PORT_PATIENCE {
            let name_another = "choose another name with device = \"...\" in node.toml";
            return Err(Failure::refused(format!(
                "the interface {name} is there already and belongs to {whose}: {name_another}"
            )));
        }
        tokio::time::sleep(PORT_PATIENCE / 50).await;
    }
}

async fn start_plane(
    identity: &Identity,
    config: &Config,
    network: &NetworkConfig,
    events: mpsc::Sender<PlaneEvent>,
) -> Outcome<Plane> {
    let began = Instant::now();
    loop {
        let settings = PlaneConfig {
            me: identity.member_id(),
            link_secret: identity.link_secret(),
            udp_port: config.link_port,
            device: config.device.clone(),
            mtu: MTU,
            traffic: config.traffic,
            network: network.id.to_string(),
            control_port: config.port,
        };
        match Plane::start(settings, events.clone()) {
            Err(plane::Error::Bind { cause, .. })
                if cause.kind() == std::io::ErrorKind::AddrInUse
                    && began.elapsed() < PORT_PATIENCE =>
            {
                tokio::time::sleep(PORT_PATIENCE / 50).await;
            }
            Err(error @ plane::Error::Tun { .. }) => {
                let help = try_tun().err().map_or_else(String::new, |trouble| {
                    format!("; {trouble}: {}", trouble.remedy())
                });
                return Err(error)
                    .doing("starting the packet plane")
                    .map_err(|failure| Failure::new(failure.kind, failure.message + &help));
            }
            started => return started.doing("starting the packet plane"),
        }
    }
}

/// Any port was asked for: the interface's mark names the one that it came to be.
async fn tell_control_port(control: Arc<Control>, plane: Plane) {
    for _ in 0..100 {
        if let Some(port) = control.listen_port() {
            return plane.set_control_port(port);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

pub(crate) async fn open(
    layout: &Layout,
    config: Config,
    membership: Membership,
    began: Instant,
) -> Outcome<(Arc<Daemon>, JoinSet<()>)> {
    // What a killed daemon left is put back before anything is changed again.
    changes::undo(layout);
    let Membership {
        network,
        certificate,
        identity,
        root,
        bootstrap,
    } = membership;
    let founder = root.is_some();
    let identity = Arc::new(identity);
    let times = Arc::new(Mutex::new(StartTimes::default()));

    let has_bootstrap = !bootstrap.is_empty();
    free_device(&config.device, &network).await?;
    let (plane_events, from_plane) = mpsc::channel(1024);
    let plane = start_plane(&identity, &config, &network, plane_events).await?;

    let trust =
        Arc::new(Trust::load(network.id, &layout.revocations()).doing("reading revocations")?);
    let control = Control::start(ControlConfig {
        listen_port: config.port,
        bootstrap,
        issuer_key: root,
        public_addresses: config.public_addresses(),
        map_port: config.upnp && config.reachable_at.is_empty(),
        full_mesh: config.full_mesh,
        underlay: plane.underlay(),
        ..ControlConfig::new(
            identity.clone(),
            certificate.clone(),
            network.clone(),
            trust.clone(),
            layout.dir().to_owned(),
            Arc::new(admission::NotYet),
        )
    })
    .await
    .map_err(|e| match e {
        // Starting again changes nothing: the exit code says so to the service manager.
        ControlError::NotAMember(why) => {
            Failure::refused(expelled::sentence(&trust, &certificate, &why))
        }
        other => Failure::new(
            Kind::Failed,
            format!("starting the control plane: {}", chain(&other)),
        ),
    })?;
    let fabric: Arc<dyn Fabric> = control.clone();
    let control_events = control.events();
    // Before anything is signed with a time in it: members are asked as soon as one is connected.
    let time = NetworkTime::of_process();
    time.note_signed(network.created.max(certificate.issued()));
    let clocks = ClockExchange::start(fabric.clone(), time);
    if config.port == 0 {
        tokio::spawn(tell_control_port(control.clone(), plane.clone()));
    }

    let store = tables(layout)?;
    let records = Dht::start(fabric.clone(), store, DhtOptions::default());
    Voter::start(
        &fabric,
        identity.clone(),
        VoterLog::open(&layout.votes()).doing("opening the voter's log")?,
    );
    let derive = network.clone();
    let addresses = Addresses::new(
        records.clone(),
        (network.subnet.addr, network.subnet.prefix).into(),
        layout.leases(),
    )
    .with_v6(Arc::new(move |subject| match subject {
        Subject::Member(member) => derive.member_v6(member),
        Subject::Vm(vm) => derive.vm_v6(vm),
    }));
    let addresses = Arc::new(addresses);
    control.set_admission(Arc::new(SlotAdmission::open(
        records.clone(),
        addresses.clone(),
        &layout.admissions(),
    )?));

    let notices = Arc::new(
        Notices::load(trust.clone(), &layout.notices()).doing("reading the network's notices")?,
    );
    let spread = Spread::start(fabric.clone(), notices.clone());
    let book = Book::new(control.clone());
    let names: Arc<dyn Names> = Arc::new(CachedNames::new(addresses.clone()));

    let connect_options = ConnectOptions {
        stun: true,
        upnp: config.upnp,
        outside: config.outside(),
        relay: config.relay(),
    };
    let ring = RingNet::new(plane.clone());
    let papers = Credentials {
        certificate: certificate.clone(),
        trust: trust.clone(),
    };
    let connector = Connector::start_with_ring(
        plane.clone(),
        fabric.clone(),
        connect_options,
        ring.clone(),
        papers,
    );
    let ring_driver = RingDriver::start(
        ring.clone(),
        connector.clone(),
        fabric.clone(),
        config.ring.options(),
    );
    let parts = Arc::new(Parts {
        control,
        identity,
        certificate,
        network,
        plane,
        records,
        addresses,
        connector,
        ring,
        book,
        names,
        notices,
        spread,
        trust,
        board: Board::default(),
        has_bootstrap,
    });
    let policies = Policies::start(parts.clone(), founder);
    let bare = wanted(&parts, &config);
    let keeper = Keeper::start(bare.clone(), changes::journal(layout), parts.board.clone())
        .doing("watching this machine's network")?;
    let keeper = Arc::new(keeper);
    let subnets = Subnets::open(
        parts.clone(),
        policies.clone(),
        layout,
        (keeper.clone(), bare),
        config.multicast,
    )?;
    let resolver = Resolver::new(&parts.domain(), parts.addresses.subnet())
        .doing("the network's name")?
        .with_v6(parts.network.ula_prefix(), 48);
    let integration = Integration::start(
        layout,
        &config,
        &parts.network,
        resolver.upstream(),
        parts.board.clone(),
    )?;
    let reach = Reach::start(parts.clone(), Kept::new(layout.lease()));
    let ports = Ports::new(parts.clone(), reach.clone(), resolver.clone());

    // Everything that answers members is in place before VMs are taken up, so that none waits for
    // another.
    let chunks = ChunkStore::open(layout.chunks()).doing("opening the chunk store")?;
    let exchange = Exchange::start(fabric.clone(), chunks.clone(), ExchangeOptions::default());
    let images = Images::open(exchange.clone(), layout.images()).doing("opening the images")?;
    let exporter = traces::Exporter::start(&config.traces, parts.me(), parts.certificate.name())?;
    let traces = exporter
        .as_ref()
        .map_or_else(Traces::default, |exporter| exporter.traces(naming(&parts)));
    let hypervisor = Arc::new(Qemu::new(HOST_FACTS, config.accel(), config.probe()));
    let host_parts = p2pvm_vm_manager::host::Parts {
        fabric: fabric.clone(),
        records: parts.records.clone(),
        ballot: Arc::new(Votes::new(fabric.clone())),
        vault: ChunkVault::new(exchange, Arc::new(images)),
        hypervisor,
        port: ports.clone(),
        traces: traces.clone(),
    };
    let host = Host::open(host_parts, HostOptions::default(), layout.dir())
        .await
        .doing("taking up the VMs")?;
    let fenced = Arc::downgrade(&host);
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
    let manager = Manager::start(parts.clone(), host.clone(), &config);
    let daemon = Arc::new(Daemon {
        absent: Absent::new(parts.clone(), host.clone()),
        parts,
        reach,
        host,
        manager,
        drains: Drains::default(),
        policies,
        subnets,
        keeper,
        integration,
        began,
        times,
        stop: watch::channel(false).0,
        again: AtomicBool::new(false),
        expelled: Mutex::default(),
        layout: layout.clone(),
        traces,
        exporter,
        _ring: ring_driver,
        _clocks: clocks,
        ask: OnceLock::new(),
        guests: Guests::default(),
        proofs: Proofs::default(),
    });
    daemon.answer_questions();
    let mut tasks = spawn(
        &daemon,
        ports,
        resolver,
        control_events,
        from_plane,
        config.autonomic,
    );
    tasks.spawn(collect(chunks));
    Ok((daemon, tasks))
}

/// Starts the daemon's long-lived tasks; dropping the set ends them.
fn spawn(
    daemon: &Arc<Daemon>,
    ports: Arc<Ports>,
    resolver: Resolver,
    control: broadcast::Receiver<ControlEvent>,
    plane: mpsc::Receiver<PlaneEvent>,
    autonomic: bool,
) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    let (want, wanted) = mpsc::channel(256);
    let reach = daemon.reach.clone();
    tasks.spawn(async move { reach.resolve_all(wanted).await });
    let reach = daemon.reach.clone();
    tasks.spawn(async move { reach.keep_address().await });
    let (reach, parts) = (daemon.reach.clone(), &daemon.parts);
    let host = HostResolver {
        resolver,
        names: parts.names.clone(),
        network: parts.network.id.to_string(),
        own_name: format!(
            "{}.{}",
            parts.certificate.name().to_ascii_lowercase(),
            parts.domain()
        ),
        keeper: daemon.integration.keeper(),
    };
    tasks.spawn(async move { reach.serve_names(host).await });
    let policies = daemon.policies.clone();
    tasks.spawn(async move { policies.run().await });
    let subnets = daemon.subnets.clone();
    tasks.spawn(async move { subnets.run().await });
    let ticking = ports.clone();
    tasks.spawn(async move { ticking.tick().await });
    tasks.spawn(daemon.clone().follow_plane(plane, ports, want));
    tasks.spawn(daemon.clone().follow_control(control));
    tasks.spawn(daemon.clone().time_address());
    tasks.spawn(daemon.clone().follow_ring());
    let manager = daemon.manager.clone();
    if autonomic {
        tasks.spawn(async move { manager.run().await });
    }
    tasks.spawn(serve_members(daemon.clone()));
    tasks.spawn(daemon.clone().keep_proving());
    tasks.spawn(daemon.clone().watch_networks());
    tasks.spawn(daemon.clone().watch_control());
    tasks.spawn(daemon.absent.clone().run());
    tasks.spawn(clocks::watch(daemon.parts.clone()));
    tasks.spawn(interface::watch(daemon.parts.clone()));
    tasks.spawn(space::watch(daemon.clone()));
    tasks.spawn(twins::run(daemon.clone()));
    tasks
}

/// Serves the VM part of the control API to other members, one connection a stream.
async fn serve_members(daemon: Arc<Daemon>) {
    let mut streams = daemon.fabric().accept_streams(forward::SERVICE);
    let router = server::for_members(daemon.clone());
    let mut running = JoinSet::new();
    while let Some((member, stream)) = streams.recv().await {
        while running.try_join_next().is_some() {}
        let service = hyper_util::service::TowerToHyperService::new(router.clone());
        running.spawn(async move {
            let connection = hyper::server::conn::http1::Builder::new()
                .serve_connection(hyper_util::rt::TokioIo::new(stream), service);
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(?member, error = %chain(&error), "a member's request ended");
            }
        });
    }
}

/// The node's tables; in memory where the disk has no room to open them: the peers hold the
/// records.
fn tables(layout: &Layout) -> Outcome<Arc<dyn Store>> {
    match SledStore::open(&layout.tables()) {
        Ok(store) => Ok(Arc::new(store)),
        Err(error) if error.is_full() => {
            tracing::error!(error = %chain(&error), "the node's tables are kept in memory until \
                the daemon is started with room on its disk");
            Ok(Arc::new(MemoryStore::default()))
        }
        Err(error) => Err(error).doing("opening the node's tables"),
    }
}

/// What members are called, as far as this one knows.
fn naming(parts: &Arc<Parts>) -> impl Fn(MemberId) -> Option<String> + Send + Sync + 'static {
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
async fn collect(chunks: ChunkStore) {
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
