//! `p2pvm up --detach`: starts the daemon and waits until it has an address, or says why it has
//! none. `p2pvm join` ends with the same.

use super::{
    Context,
    args::Up,
    print::{self, or_dash},
    progress::Progress,
    silent,
};
use p2pvm_api::{Doing, Failure, Kind, Outcome, Status, Step, client::Client};
use p2pvm_daemon::{layout::Layout, lock, membership, preflight, service};
use std::{
    fs,
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

/// How long a daemon may take to open its socket. Reason: on a disk that takes seconds for a sync
/// it needs 20 s.
const DAEMON_START_LIMIT: Duration = Duration::from_secs(60);
/// How long a service's daemon may be silent before it counts as ended.
const DYING_LIMIT: Duration = Duration::from_secs(2);
/// How long a starting daemon may take to end when told to.
const ENDING_LIMIT: Duration = Duration::from_secs(10);
/// How long a member may take to admit or reject this one.
const WELCOME_LIMIT: Duration = Duration::from_secs(4);
/// How long claiming an address may take before the command reports why there is none.
const ADDRESS_LIMIT: Duration = Duration::from_secs(60);

pub(crate) async fn detached(context: &Context, up: &Up) -> Outcome<()> {
    membership::require_member(&context.layout)?;
    // A daemon that is being killed may answer once and then never again.
    if let Some(mut client) = context.daemon_if_any().await?
        && let Ok(status) = client.get::<Status>("/status").await
    {
        return show_up(context, &status, "already running");
    }
    let look = || preflight::for_daemon(&context.layout, "the daemon", (up.port, up.link_port));
    match look() {
        // Another 'up' may be running, or a daemon be ending.
        _ if lock::holder(&context.layout).is_some() => {
            let starting = || match lock::holder(&context.layout) {
                Some(_) => Ok(()),
                None => Err(Failure::new(
                    Kind::Failed,
                    "the daemon that held the state directory has ended",
                )),
            };
            match until_up(&context.layout, starting).await {
                Ok(status) => return show_up(context, &status, "already starting, and up now"),
                Err(_) if lock::holder(&context.layout).is_none() => look()?,
                Err(failure) => return Err(failure),
            }
        }
        looked => looked?,
    }
    let status = start_daemon(context, up).await?;
    show_up(context, &status, "up")
}

fn show_up(context: &Context, status: &Status, how: &str) -> Outcome<()> {
    if context.json {
        return print::json(status);
    }
    println!(
        "{how}: {} in {}, address {}",
        status.name,
        status.network,
        or_dash(status.address.as_ref())
    );
    if status.connected == 0 && status.known > 0 {
        eprintln!(
            "note: none of the {} known members answers yet; 'p2pvm status' shows when one does",
            status.known
        );
    }
    Ok(())
}

/// Starts the daemon, as a service or in a session of its own, and waits until it has an address.
pub(super) async fn start_daemon(context: &Context, up: &Up) -> Outcome<Status> {
    let layout = &context.layout;
    if service::manages(layout) && up.port.is_none() && up.link_port.is_none() && up.accel.is_none()
    {
        service::start().await?;
        return tokio::select! {
            up = until_up(layout, || Ok(())) => up,
            _ = tokio::signal::ctrl_c() => {
                Err(Failure::cancelled("stopped waiting: the service goes on starting; 'p2pvm \
                    down' ends it"))
            }
        };
    }
    let log = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(layout.log())
        .doing(format_args!("cannot open {}", layout.log().display()))?;
    let written = log.metadata().map_or(0, |about| about.len());
    let errors = log.try_clone().doing("cannot share the log file")?;
    let mut command = Command::new(std::env::current_exe().doing("finding this program")?);
    command.arg("--dir").arg(layout.dir()).arg("up");
    for (flag, port) in [("--port", up.port), ("--link-port", up.link_port)] {
        if let Some(port) = port {
            command.arg(flag).arg(port.to_string());
        }
    }
    if let Some(accel) = &up.accel {
        command.args(["--accel", accel]);
    }
    command
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        .process_group(0);
    let mut child = command.spawn().doing("starting the daemon")?;
    let alive = || match child.try_wait().doing("watching the daemon")? {
        // The daemon of another 'up' was first.
        Some(_) if lock::holder(layout).is_some() => Ok(()),
        Some(status) => Err(ended(status, &said_since(&layout.log(), written))),
        None => Ok(()),
    };
    let waited = tokio::select! {
        up = until_up(layout, alive) => Some(up),
        _ = tokio::signal::ctrl_c() => None,
    };
    match waited {
        Some(up) => up,
        None => Err(call_off(child).await),
    }
}

/// Ends the daemon after Ctrl-C, so that the command leaves nothing behind.
async fn call_off(mut daemon: Child) -> Failure {
    let pid = nix::unistd::Pid::from_raw(daemon.id().cast_signed());
    let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
    let told = Instant::now();
    while told.elapsed() < ENDING_LIMIT {
        if !matches!(daemon.try_wait(), Ok(None)) {
            return Failure::cancelled(
                "stopped: the daemon was ended before it was up; 'p2pvm up --detach' starts it \
                    again",
            );
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    Failure::cancelled(
        "stopped, but the daemon, which was told to end, still runs: 'p2pvm down --force' ends it",
    )
}

/// The failure of a daemon that ended at once: its own message and exit code.
fn ended(status: ExitStatus, said: &str) -> Failure {
    let kind = status
        .code()
        .and_then(Kind::of_exit_code)
        .unwrap_or(Kind::Failed);
    let last = said.lines().rev().find(|line| !line.trim().is_empty());
    Failure::new(
        kind,
        match last.and_then(|line| line.strip_prefix("p2pvm: ")) {
            Some(sentence) => format!("the daemon did not start: {sentence}"),
            None if status.success() => {
                "the daemon was stopped while it started, by 'p2pvm down' or by a signal".to_owned()
            }
            None => format!(
                "the daemon ended at once ({status}): {}",
                last.unwrap_or("its log is empty")
            ),
        },
    )
}

/// The lines added to a log after its first `written` bytes.
fn said_since(log: &Path, written: u64) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    String::from_utf8_lossy(
        bytes
            .get(usize::try_from(written).unwrap_or(usize::MAX)..)
            .unwrap_or_default(),
    )
    .into_owned()
}

/// Waits until the daemon has an address; `alive` says whether the daemon still runs.
async fn until_up(layout: &Layout, mut alive: impl FnMut() -> Outcome<()>) -> Outcome<Status> {
    let mut progress = Progress::new("starting");
    let (began, mut seen) = (Instant::now(), None::<Instant>);
    loop {
        alive()?;
        let ask = async {
            Client::connect(&layout.socket())
                .await
                .ok()?
                .get::<Status>("/status")
                .await
                .ok()
        };
        let status = tokio::time::timeout(silent::PATIENCE, ask)
            .await
            .ok()
            .flatten();
        if status.is_some() {
            seen = Some(Instant::now());
        }
        match status {
            Some(status) if status.address.is_some() && is_welcome(&status, began.elapsed()) => {
                return Ok(status);
            }
            Some(status) if status.address.is_some() => {
                progress.step(&Step {
                    phase: "waiting for a member".to_owned(),
                    ..Step::default()
                });
            }
            Some(status) if began.elapsed() > ADDRESS_LIMIT => return Err(no_address(&status)),
            // Only its silence shows that a service has ended.
            None if seen.is_some_and(|at| at.elapsed() > DYING_LIMIT) => {
                let ended = || {
                    Failure::new(
                        Kind::Failed,
                        format!("the daemon has ended: see {}", layout.log().display()),
                    )
                };
                return Err(service::ended(layout).await.unwrap_or_else(ended));
            }
            None if began.elapsed() > DAEMON_START_LIMIT => {
                return Err(Failure::timed_out(format!(
                    "the daemon does not answer: see {}",
                    layout.log().display()
                )));
            }
            Some(_) => progress.step(&Step {
                phase: "waiting for an address".to_owned(),
                ..Step::default()
            }),
            None => progress.step(&Step {
                phase: "waiting for the daemon".to_owned(),
                ..Step::default()
            }),
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
}

/// Whether a member has admitted this one, or no other member answers. Reason: a member that was
/// revoked while it was down learns so only from another member.
fn is_welcome(status: &Status, waited: Duration) -> bool {
    status.connected > 0 || status.known == 0 || waited >= WELCOME_LIMIT
}

/// The failure of a daemon without an address, with the reason that it gives.
fn no_address(status: &Status) -> Failure {
    let why = status
        .address_wanting
        .as_deref()
        .unwrap_or("the members that it asked have not agreed yet");
    Failure::timed_out(format!(
        "the daemon runs but has no address after {} s: {why}. It keeps trying; see 'p2pvm \
            status' and 'p2pvm doctor'",
        ADDRESS_LIMIT.as_secs()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn a_daemon_that_ends_at_once_is_reported_with_code_and_sentence() {
        let said = "2026-01-01T00:00:00Z  INFO starting\np2pvm: starting the packet plane: cannot \
            bind UDP port 4002: Address in use\n";
        let failure = ended(ExitStatus::from_raw(5 << 8), said);
        assert_eq!(failure.kind, Kind::Refused);
        assert!(
            failure
                .message
                .ends_with("cannot bind UDP port 4002: Address in use"),
            "{failure}"
        );
        let stopped = ended(
            ExitStatus::from_raw(0),
            "2026-01-01T00:00:00Z  INFO p2pvm: connected\n",
        );
        assert!(
            stopped.message.contains("was stopped while it started")
                && !stopped.message.contains("INFO"),
            "{stopped}"
        );
        let killed = ended(ExitStatus::from_raw(9), "");
        assert!(
            killed.kind == Kind::Failed && killed.message.contains("signal: 9"),
            "{killed}"
        );
    }

    #[test]
    fn a_node_is_up_only_once_a_reachable_member_admitted_it() {
        let status = |known, connected| Status {
            known,
            connected,
            ..Status::default()
        };
        assert!(!is_welcome(&status(2, 0), Duration::ZERO));
        assert!(
            is_welcome(&status(2, 1), Duration::ZERO) && is_welcome(&status(0, 0), Duration::ZERO)
        );
        assert!(
            is_welcome(&status(2, 0), WELCOME_LIMIT),
            "all others may be off"
        );
    }

    #[test]
    fn a_missing_address_is_explained_by_the_daemons_own_reason() {
        let wanting = Status {
            address_wanting: Some("cannot put fd00::1 on p2pvm0: Permission denied".into()),
            ..Status::default()
        };
        let failure = no_address(&wanting);
        assert!(
            failure.message.contains("Permission denied")
                && !failure.message.contains("no other member"),
            "{failure}"
        );
    }
}
