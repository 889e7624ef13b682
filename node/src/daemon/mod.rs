//! The daemon: what its parts share, its long-lived tasks, and the order in which it ends. How the
//! parts are opened is in `open`; what a part does is the part's own matter.

mod absent;
mod admission;
mod ask;
mod book;
pub mod changes;
mod clocks;
mod dashboard;
mod drain;
mod expelled;
mod guests;
mod health;
mod interface;
mod kept;
mod load;
pub mod lock;
mod manager;
pub mod metrics;
mod moves;
mod netcheck;
mod networks;
mod notify;
mod open;
mod policy;
mod ports;
mod proof;
mod reach;
mod resolver;
mod ring;
mod space;
mod status;
mod subnets;
mod twins;
mod vms;

use crate::{
    api,
    cli::UpArgs,
    config::Config,
    failure::{Doing, Failure, Kind, Outcome},
    guardian::Guardian,
    layout::Layout,
    membership::{self, Membership},
    succession, traces,
    web::Dashboard,
};
use absent::Absent;
use book::Book;
use manager::Manager;
pub use notify::Notifier;
use p2pvm_dhcp::{Addresses, Names, Resolver, dns::HostResolver};
use p2pvm_dht::{Dht, Records};
use p2pvm_host::{Board, Keeper, SocketPath, chain, reserve};
use p2pvm_overlay::{
    Fabric, MemberId,
    connect::Connector,
    control::{Control, ControlEvent},
    identity::Identity,
    membership::{Certificate, NetworkConfig, Refusal, Trust},
    network_time::Exchange as ClockExchange,
    notices::{Notices, Spread},
    plane::{Plane, PlaneEvent},
    ring::ask::AskAll,
    ring_driver::RingDriver,
    ring_net::RingNet,
};
use p2pvm_vm_manager::{Traces, host::Host};
use policy::Policies;
use ports::Ports;
use reach::Reach;
use resolver::Integration;
use std::{
    future::IntoFuture,
    net::IpAddr,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::Path,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use subnets::Subnets;
use tokio::{
    net::UnixListener,
    sync::{broadcast, mpsc, watch},
    task::JoinSet,
};

/// The packet plane's MTU: an IPv6 minimum path less our headers still carries it, and 1500 does
/// with room.
pub const MTU: u16 = 1340;

/// Requests under way when the daemon is told to stop have this long.
const CLOSING: Duration = Duration::from_millis(500);
/// A daemon that has just ended or was killed gives its lock back before its port: the kernel takes
/// it apart in an order of its own.
const PORT_PATIENCE: Duration = Duration::from_secs(3);
/// Where it is remembered, until the host boots again, whether its KVM works.
pub const HOST_FACTS: &str = "/run/p2pvm";

/// What the daemon's modules share.
pub struct Parts {
    control: Arc<Control>,
    identity: Arc<Identity>,
    certificate: Certificate,
    network: NetworkConfig,
    plane: Plane,
    records: Arc<Dht>,
    addresses: Arc<Addresses>,
    connector: Arc<Connector>,
    /// Whose each address is.
    book: Arc<Book>,
    /// The same names as `addresses`, remembered for a while.
    names: Arc<dyn Names>,
    notices: Arc<Notices>,
    spread: Arc<Spread>,
    trust: Arc<Trust>,
    ring: Arc<RingNet>,
    /// What is found wrong with this machine.
    board: Board,
    /// Whether this node was told of others when it joined.
    has_bootstrap: bool,
}

impl Parts {
    fn me(&self) -> MemberId {
        self.identity.member_id()
    }

    fn fabric(&self) -> Arc<dyn Fabric> {
        self.control.clone()
    }

    fn records(&self) -> &dyn Records {
        self.records.as_ref()
    }

    /// The network's DNS domain.
    fn domain(&self) -> String {
        format!("{}.p2p", self.network.name)
    }
}

/// The running node.
pub struct Daemon {
    parts: Arc<Parts>,
    reach: Arc<Reach>,
    host: Arc<Host>,
    manager: Arc<Manager>,
    absent: Arc<Absent>,
    drains: drain::Drains,
    policies: Arc<Policies>,
    subnets: Arc<Subnets>,
    keeper: Arc<Keeper>,
    integration: Integration,
    began: Instant,
    times: Arc<Mutex<api::types::StartTimes>>,
    stop: watch::Sender<bool>,
    /// Whether the program is to start again when it has ended.
    again: AtomicBool,
    /// Why the daemon cannot go on, if it cannot.
    expelled: Mutex<Option<Failure>>,
    layout: Layout,
    traces: Traces,
    /// Where spans go, if anybody wants them.
    exporter: Option<traces::Exporter>,
    _ring: RingDriver,
    _clocks: ClockExchange,
    ask: OnceLock<AskAll>,
    guests: guests::Guests,
    proofs: proof::Proofs,
}

/// Runs the daemon in the foreground until it is told to stop.
pub fn run(layout: &Layout, up: &UpArgs) -> Outcome<()> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Failure::refused(
            "the daemon needs root for its network interface and its guests: run it as root",
        ));
    }
    let began = Instant::now();
    membership::require_member(layout)?;
    let mut config = Config::load(layout)?;
    config.port = up.port.unwrap_or(config.port);
    config.link_port = up.link_port.unwrap_or(config.link_port);
    config.accel = up.accel.clone().unwrap_or(config.accel);
    let lock = lock::DaemonLock::take(layout)?;
    // The control plane goes on without a port that it does not get, and would be reached by
    // nobody. Not a refusal: tried again later it may be free.
    crate::preflight::free_ports(config.port, config.link_port)
        .map_err(|failure| Failure::new(Kind::Failed, failure.message))?;
    // Before anything is changed or opened: it is to have none of it.
    let guardian = Guardian::start(layout)?;
    // What this node has to write for others is written on a full disk too.
    let reserve = reserve::keep(&layout.reserve());
    let filter = tracing_subscriber::EnvFilter::try_from_env("P2PVM_LOG")
        .unwrap_or_else(|_| "info,libp2p=warn,libp2p_kad=error".into());
    // A log whose disk is full loses lines; it must not end the daemon, as a complaint about that
    // on the same file would.
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .log_internal_errors(false);
    log.with_writer(std::io::stderr).init();
    if let Some(renamed) = &config.renamed {
        tracing::warn!("{renamed}: rename it");
    }
    if let Err(error) = reserve {
        tracing::warn!(%error, "no room can be kept for a full disk");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .doing("cannot start")?;
    let outcome = runtime.block_on(async {
        succession::complete(layout, &Notifier::from_env()).await?;
        serve(layout, config, membership::load(layout)?, began).await
    });
    runtime.shutdown_timeout(Duration::from_secs(2));
    // After a failure the guardian undoes what may be left, when the last thread of this process
    // has gone.
    let again = outcome?;
    guardian.goodbye();
    if !again {
        return Ok(());
    }
    // The same process, so that a service manager sees one service; every descriptor but the log's
    // closes with the program.
    drop(lock);
    let cause = std::process::Command::new("/proc/self/exe")
        .args(std::env::args_os().skip(1))
        .exec();
    Err(cause).doing("cannot start again")
}

/// Serves until told to stop; true if the program is to start again.
async fn serve(
    layout: &Layout,
    config: Config,
    membership: Membership,
    began: Instant,
) -> Outcome<bool> {
    let settings = config.clone();
    let (daemon, mut tasks) = open::open(layout, config, membership, began).await?;
    let listener = listen(layout)?;
    let dashboard = Dashboard::open(daemon.clone(), layout, &settings)?;
    let served =
        api::server::local(daemon.clone()).merge(api::dashboard::routes(dashboard.clone()));
    tasks.spawn(dashboard.serve());
    tracing::info!(member = %daemon.me(), network = %daemon.parts.network.name, "up");
    let told = notify::Notifier::from_env();
    let _telling = notify::keep_telling(told.clone(), layout.socket());
    // One signal ends the serving of new requests, and what is being answered a moment later.
    let signals = daemon.clone();
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
        .doing("listening for signals")?;
    tokio::spawn(async move {
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = terminate.recv() => {}
        }
        signals.stop();
    });
    let stopped =
        |mut stop: watch::Receiver<bool>| async move { drop(stop.wait_for(|stop| *stop).await) };
    let serving =
        axum::serve(listener, served).with_graceful_shutdown(stopped(daemon.stop.subscribe()));
    let closing = async {
        stopped(daemon.stop.subscribe()).await;
        tokio::time::sleep(CLOSING).await;
    };
    tokio::select! {
        served = serving.into_future() => served.doing("serving the control API")?,
        () = closing => {}
    }
    tracing::info!("stopping; guests run on");
    told.say("STOPPING=1");
    // While it still answers: nobody is led to a resolver that is not there.
    daemon.integration.end().await;
    drop(tasks);
    daemon.parts.connector.close().await;
    daemon.host.halt();
    daemon.subnets.close().await;
    if let Some(exporter) = &daemon.exporter {
        exporter.close().await;
    }
    let keeper = daemon.keeper.clone();
    // It waits for other programs (nft), which end soon or are ended.
    let _ = tokio::task::spawn_blocking(move || keeper.close()).await;
    changes::undo(layout);
    daemon.parts.plane.shutdown();
    daemon.parts.control.shutdown().await;
    // The socket goes with the daemon, so that the next command says that none runs.
    let _ = std::fs::remove_file(layout.socket());
    let _ = std::fs::remove_file(layout.dashboard_socket());
    match daemon
        .expelled
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take()
    {
        Some(failure) => Err(failure),
        None => Ok(daemon.again.load(Ordering::Acquire)),
    }
}

/// A way to a socket whose path may be longer than an address holds.
fn within(path: &Path) -> Outcome<SocketPath> {
    SocketPath::to(path).doing(format_args!("opening the directory of {}", path.display()))
}

fn listen(layout: &Layout) -> Outcome<UnixListener> {
    let path = layout.socket();
    // Ours alone by the lock: a socket that is there is a dead daemon's.
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(within(&path)?.path())
        .doing(format_args!("opening {}", path.display()))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))
        .doing("restricting the socket")?;
    Ok(listener)
}

impl Daemon {
    /// Starts the daemon's long-lived tasks; dropping the set ends them.
    fn spawn(
        self: &Arc<Self>,
        ports: Arc<Ports>,
        resolver: Resolver,
        control: broadcast::Receiver<ControlEvent>,
        plane: mpsc::Receiver<PlaneEvent>,
        autonomic: bool,
    ) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        let (want, wanted) = mpsc::channel(256);
        let reach = self.reach.clone();
        tasks.spawn(async move { reach.resolve_all(wanted).await });
        let reach = self.reach.clone();
        tasks.spawn(async move { reach.keep_address().await });
        let (reach, parts) = (self.reach.clone(), &self.parts);
        let host = HostResolver {
            resolver,
            names: parts.names.clone(),
            network: parts.network.id.to_string(),
            own_name: format!(
                "{}.{}",
                parts.certificate.name().to_ascii_lowercase(),
                parts.domain()
            ),
            keeper: self.integration.keeper(),
        };
        tasks.spawn(async move { reach.serve_names(host).await });
        let policies = self.policies.clone();
        tasks.spawn(async move { policies.run().await });
        let subnets = self.subnets.clone();
        tasks.spawn(async move { subnets.run().await });
        let ticking = ports.clone();
        tasks.spawn(async move { ticking.tick().await });
        let daemon = self.clone();
        tasks.spawn(async move { daemon.follow_plane(plane, ports, want).await });
        let daemon = self.clone();
        tasks.spawn(async move { daemon.follow_control(control).await });
        let daemon = self.clone();
        tasks.spawn(async move { daemon.time_address().await });
        let daemon = self.clone();
        tasks.spawn(async move { daemon.follow_ring().await });
        let manager = self.manager.clone();
        if autonomic {
            tasks.spawn(async move { manager.run().await });
        }
        let daemon = self.clone();
        tasks.spawn(async move { daemon.serve_members().await });
        tasks.spawn(self.clone().keep_proving());
        tasks.spawn(self.clone().watch_networks());
        tasks.spawn(self.clone().watch_control());
        tasks.spawn(self.absent.clone().run());
        tasks.spawn(clocks::watch(self.parts.clone()));
        tasks.spawn(interface::watch(self.parts.clone()));
        tasks.spawn(space::watch(self.clone()));
        tasks.spawn(twins::run(self.clone()));
        tasks
    }

    async fn follow_plane(
        self: Arc<Self>,
        mut events: mpsc::Receiver<PlaneEvent>,
        ports: Arc<Ports>,
        want: mpsc::Sender<IpAddr>,
    ) {
        while let Some(event) = events.recv().await {
            match event {
                // A full queue drops the wish; the packet's sender repeats it.
                PlaneEvent::Unresolved(ip) => drop(want.try_send(ip)),
                PlaneEvent::GuestFrame { vm, frame } => ports.frame(vm, &frame),
                PlaneEvent::PathChanged { member, path } => {
                    tracing::info!(
                        member = %self.name_of(member),
                        path = %path.as_ref().map_or("none".to_owned(), |p| self.path_text(p)),
                        "path"
                    )
                }
                PlaneEvent::StaleEpoch {
                    addr,
                    from,
                    sent,
                    known,
                } => {
                    tracing::warn!(%addr, from = %self.name_of(from), %sent, %known, "dropped \
                        packets of a fenced VM");
                    let reach = self.reach.clone();
                    tokio::spawn(async move { reach.tell_stale(addr, from, known).await });
                }
                PlaneEvent::MovedHint { addr, route } => {
                    tracing::debug!(
                        %addr, to = %self.name_of(route.member), epoch = %route.epoch, "moved"
                    )
                }
            }
        }
    }

    async fn follow_control(self: Arc<Self>, mut events: broadcast::Receiver<ControlEvent>) {
        loop {
            match events.recv().await {
                Ok(ControlEvent::Connected(member)) => {
                    self.note(|times, ms| times.connected = times.connected.or(Some(ms)));
                    self.parts.records.membership_changed();
                    let (reach, spread) = (self.reach.clone(), self.parts.spread.clone());
                    tokio::spawn(async move { reach.meet(member).await });
                    tokio::spawn(async move {
                        if let Err(error) = spread.meet(member).await {
                            tracing::debug!(?member, %error, "notices not exchanged");
                        }
                    });
                }
                Ok(ControlEvent::Disconnected(_)) => self.parts.records.membership_changed(),
                Ok(ControlEvent::Revoked(member)) => {
                    tracing::warn!(member = %self.name_of(member), "revoked");
                    self.parts.plane.remove_peer(member);
                    self.parts.notices.touch();
                }
                Ok(ControlEvent::ThisNodeRevoked) => {
                    let expelled = expelled::sentence(
                        &self.parts.trust,
                        &self.parts.certificate,
                        &Refusal::Revoked,
                    );
                    *self.expelled.lock().unwrap_or_else(PoisonError::into_inner) =
                        Some(Failure::refused(expelled));
                    self.stop();
                    return;
                }
                Err(broadcast::error::RecvError::Lagged(missed)) => {
                    tracing::warn!(missed, "events of the control plane were missed")
                }
                Err(broadcast::error::RecvError::Closed) => return,
            }
        }
    }

    async fn time_address(self: Arc<Self>) {
        // An address of before is there at once, its claim later.
        let mut claimed = self.reach.claimed();
        let millis = |took: Option<Duration>| took.map(|d| d.as_millis() as u64);
        if self.reach.lease().wait_for(Option::is_some).await.is_ok() {
            let claim = millis(*claimed.borrow());
            self.note(|times, ms| (times.address, times.claim) = (Some(ms), claim));
        }
        if let Ok(took) = claimed.wait_for(Option::is_some).await.map(|took| *took) {
            self.note(|times, _| times.claim = millis(took));
        }
    }

    fn note(&self, set: impl FnOnce(&mut api::types::StartTimes, u64)) {
        let elapsed = self.began.elapsed().as_millis() as u64;
        set(
            &mut self.times.lock().unwrap_or_else(PoisonError::into_inner),
            elapsed,
        );
    }

    /// Serves the VM part of the control API to other members, one connection a stream.
    async fn serve_members(self: Arc<Self>) {
        let mut streams = self.fabric().accept_streams(api::forward::SERVICE);
        let router = api::server::vms(self.clone());
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

    /// This member.
    pub fn me(&self) -> MemberId {
        self.parts.me()
    }

    /// What makes spans.
    pub fn traces(&self) -> &Traces {
        &self.traces
    }

    /// The control plane.
    pub fn fabric(&self) -> Arc<dyn Fabric> {
        self.parts.fabric()
    }

    /// Tells the daemon to end, and the program to start again after that.
    fn start_again(&self) {
        self.again.store(true, Ordering::Release);
        self.stop();
    }

    /// Tells the daemon to end.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }
}
