//! The daemon from its start to its end: the checks before it changes anything on this machine,
//! serving its control API, and the order in which it ends.

use crate::{
    config::Config,
    guardian::Guardian,
    http::caller,
    layout::Layout,
    lifecycle::Lifecycle,
    lock,
    machine::changes,
    membership::{self, Membership},
    notify::{self, Notifier},
    preflight, succession,
    wiring::{self, Daemon},
};
use p2pvm_api::{Doing, EventKind, Failure, Kind, Outcome};
use p2pvm_authority::Subject;
use p2pvm_host::{SocketPath, chain, reserve};
use std::{
    future::IntoFuture,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::Path,
    time::{Duration, Instant},
};
use tokio::{net::UnixListener, task::JoinSet};

/// How long requests under way may take when the daemon is told to stop.
const CLOSING: Duration = Duration::from_millis(500);
/// Settings from the command line for one run, which override node.toml's.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// The control plane's port.
    pub port: Option<u16>,
    /// The packet plane's port.
    pub link_port: Option<u16>,
    /// The accelerator of the guests, as `accel` in node.toml.
    pub accel: Option<String>,
}

/// Runs the daemon in the foreground until it is told to stop.
pub fn run(layout: &Layout, set: &Overrides) -> Outcome<()> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Failure::refused(
            "the daemon needs root for its network interface and its guests: run it as root",
        ));
    }
    let began = Instant::now();
    membership::require_member(layout)?;
    let mut config = Config::load(layout)?;
    config.port = set.port.unwrap_or(config.port);
    config.link_port = set.link_port.unwrap_or(config.link_port);
    config.accel = set.accel.clone().unwrap_or(config.accel);
    let lock = lock::DaemonLock::take(layout)?;
    // The control plane would go on without a port that it does not get, and no member would reach
    // it. Not a refusal: later the port may be free.
    preflight::free_ports(config.port, config.link_port)
        .map_err(|failure| Failure::new(Kind::Failed, failure.message))?;
    // Before anything is changed or opened, which the guardian must not inherit.
    let guardian = Guardian::start(layout)?;
    // This node's records for others must be written on a full disk too.
    let reserve = reserve::keep(&layout.reserve());
    let filter = tracing_subscriber::EnvFilter::try_from_env("P2PVM_LOG")
        .unwrap_or_else(|_| "info,libp2p=warn,libp2p_kad=error".into());
    // A log on a full disk loses lines; it must not end the daemon, as an error message to the same
    // file would.
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .log_internal_errors(false);
    log.with_writer(std::io::stderr).init();
    if let Some(renamed) = &config.renamed {
        tracing::warn!("{renamed}: rename it");
    }
    if let Err(error) = reserve {
        tracing::warn!(error = %chain(&error), "no room can be kept for a full disk");
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
    // After a failure the guardian undoes what is left, when the last thread of this process has
    // ended.
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
    let lifecycle = Lifecycle::new(began);
    let (daemon, tasks) = wiring::open(layout, &config, membership, lifecycle).await?;
    let listener = listen(layout)?;
    let served = caller::for_callers(daemon.services.routes(), daemon.services.owns());
    tracing::info!(
        member = %daemon.parts.me(),
        network = %daemon.parts.network.name,
        "the daemon is up"
    );
    let told = Notifier::from_env();
    let _telling = notify::keep_telling(told.clone(), layout.socket());
    // One signal ends the serving of new requests, and a moment later the answers under way.
    let signals = daemon.lifecycle.clone();
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
        .doing("listening for signals")?;
    tokio::spawn(async move {
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = terminate.recv() => {}
        }
        signals.stop();
    });
    let serving = axum::serve(listener, served).with_graceful_shutdown(daemon.lifecycle.stopped());
    let closing = async {
        daemon.lifecycle.stopped().await;
        tokio::time::sleep(CLOSING).await;
    };
    tokio::select! {
        served = serving.into_future() => served.doing("serving the control API")?,
        () = closing => {}
    }
    tracing::info!("stopping; guests run on");
    told.say("STOPPING=1");
    end(layout, &daemon, tasks).await;
    daemon.lifecycle.end()
}

/// Ends the daemon's tasks and undoes its changes, in an order in which nothing is missed.
async fn end(layout: &Layout, daemon: &Daemon, tasks: JoinSet<()>) {
    // While it still answers, so that no program is pointed to a resolver that is gone.
    daemon.integration.end().await;
    drop(tasks);
    let text = "The daemon was told to end; guests run on.";
    let events = &daemon.parts.events;
    events.record(EventKind::DaemonStopped, Subject::Host, &[], text);
    events.close().await;
    daemon.services.usage.close().await;
    daemon.parts.connector.close().await;
    daemon.host.halt();
    daemon.services.subnets.close().await;
    if let Some(exporter) = &daemon.exporter {
        exporter.close().await;
    }
    let keeper = daemon.keeper.clone();
    // It waits for other programs (nft), which end soon or are killed.
    let _ = tokio::task::spawn_blocking(move || keeper.close()).await;
    changes::undo(layout);
    daemon.parts.plane.shutdown();
    daemon.parts.control.shutdown().await;
    // The socket is removed with the daemon, so that the next command says that none runs.
    let _ = std::fs::remove_file(layout.socket());
    let _ = std::fs::remove_file(layout.dashboard_socket());
}

/// A usable path to a socket whose own path may be longer than an address holds.
fn within(path: &Path) -> Outcome<SocketPath> {
    SocketPath::to(path).doing(format_args!("opening the directory of {}", path.display()))
}

fn listen(layout: &Layout) -> Outcome<UnixListener> {
    let path = layout.socket();
    // The lock makes this daemon the only one, so an existing socket is a dead daemon's.
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(within(&path)?.path())
        .doing(format_args!("opening {}", path.display()))?;
    let mode = if is_for_group(&path) { 0o660 } else { 0o600 };
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))
        .doing("restricting the socket")?;
    Ok(listener)
}

/// Whether this machine has the group that may use the socket, and the socket is the group's now.
fn is_for_group(path: &Path) -> bool {
    let given = nix::unistd::Group::from_name(caller::GROUP).map(|group| {
        group.map(|group| std::os::unix::fs::chown(path, None, Some(group.gid.as_raw())))
    });
    let error = match given {
        Ok(None) => return false,
        Ok(Some(Ok(()))) => return true,
        Ok(Some(Err(error))) => error,
        Err(errno) => errno.into(),
    };
    let group = caller::GROUP;
    tracing::warn!(group, error = %chain(&error), "only root can use the control socket");
    false
}
