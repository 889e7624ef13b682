//! A daemon that runs and does not answer: it is stopped by a signal or a debugger, in a deadlock,
//! or waits for a dead disk. Every command says within seconds what is wrong and what helps;
//! `down --force` and `leave --force` end the daemon.

use super::limit;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use p2pvm_api::{Doing, Failure, Outcome, client::Client};
use p2pvm_daemon::{layout::Layout, lock, service};
use std::{
    future::Future,
    time::{Duration, Instant},
};

/// How long a daemon may take to answer before it counts as silent. Reason: a working daemon needs
/// less also on a busy machine, and a starting one has opened its socket by then.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// How long a daemon whose process is stopped is waited for.
const STOPPED: Duration = Duration::from_secs(1);
/// How long a daemon may take after SIGTERM to undo its changes to this machine.
const ORDERLY: Duration = Duration::from_secs(5);
/// How long a killed process may take to be gone. Reason: only a kernel that waits for a disk takes
/// longer.
const DYING: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(30);

/// Why there is no connection to a daemon.
pub enum ConnectFailure {
    /// No daemon runs here.
    NotRunning(Failure),
    /// A daemon runs and does not answer.
    Silent(Failure),
    /// The daemon's socket cannot be used.
    Closed(Failure),
}

impl From<ConnectFailure> for Failure {
    fn from(missing: ConnectFailure) -> Self {
        let (ConnectFailure::NotRunning(failure)
        | ConnectFailure::Silent(failure)
        | ConnectFailure::Closed(failure)) = missing;
        failure
    }
}

/// A connection to this directory's daemon, on which it has answered.
pub async fn connect(layout: &Layout) -> Result<Client, ConnectFailure> {
    limit::unheard(true);
    let connected = in_time(layout, hear(layout)).await;
    limit::unheard(false);
    connected.unwrap_or_else(|failure| Err(ConnectFailure::Silent(failure)))
}

/// Runs `work` with the daemon; if the daemon does not answer in time, fails with the cause.
async fn in_time<T>(layout: &Layout, work: impl Future<Output = T>) -> Outcome<T> {
    tokio::pin!(work);
    if let Ok(done) = tokio::time::timeout(STOPPED, &mut work).await {
        return Ok(done);
    }
    if !lock::is_held_still(layout)
        && let Ok(done) = tokio::time::timeout(PATIENCE - STOPPED, work).await
    {
        return Ok(done);
    }
    Err(failure(layout))
}

/// The failure of a daemon that does not answer.
pub fn failure(layout: &Layout) -> Failure {
    let (found, advice) = lock::silence(layout).unwrap_or_else(|| {
        let log = layout.log();
        (
            "the daemon does not answer".to_owned(),
            format!("see {}", log.display()),
        )
    });
    Failure::timed_out(format!("{found}, so nothing was done: {advice}"))
}

async fn hear(layout: &Layout) -> Result<Client, ConnectFailure> {
    loop {
        let heard = async {
            let mut client = Client::connect(&layout.socket()).await?;
            client.hello().await?;
            Ok::<_, Failure>(client.with_on_data(super::limit::progressed))
        };
        let failure = match heard.await {
            Ok(client) => return Ok(client),
            Err(failure) if failure.kind == p2pvm_api::Kind::Refused => {
                return Err(ConnectFailure::Closed(failure));
            }
            Err(failure) => failure,
        };
        if lock::holder(layout).is_none() {
            return Err(ConnectFailure::NotRunning(failure));
        }
        // The daemon is starting or ending, or its queue is full because it accepts nobody.
        tokio::time::sleep(LOOK).await;
    }
}

/// Sends the daemon a request that it answers at once; a silent daemon is named.
pub async fn at_once<T>(layout: &Layout, work: impl Future<Output = Outcome<T>>) -> Outcome<T> {
    in_time(layout, work).await?
}

/// Waits at most `limit` until the process that holds the directory is gone.
pub async fn gone(layout: &Layout, pid: u32, limit: Duration) -> bool {
    let began = Instant::now();
    while lock::holder(layout) == Some(pid) || lock::lives(pid) {
        if began.elapsed() > limit {
            return false;
        }
        tokio::time::sleep(LOOK).await;
    }
    true
}

/// Ends the daemon of this directory, if one runs: tells its process to end, and kills it if it
/// does not. The caller undoes the daemon's changes to this machine.
pub async fn end(layout: &Layout) -> Outcome<()> {
    let Some(pid) = lock::holder(layout) else {
        return Ok(());
    };
    if !lock::is_process_here(layout, pid) {
        return Err(Failure::refused(format!(
            "the process that holds {} is not one of this machine's or container's own: end it \
                where it runs",
            layout.lock().display()
        )));
    }
    // Otherwise systemd would restart it.
    service::stop_soon(layout).await;
    let signal = |signal| {
        let number = i32::try_from(pid).doing("the number of the daemon's process")?;
        match kill(Pid::from_raw(number), signal) {
            Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
            Err(error) => Err(error).doing(format_args!("ending the daemon (process {pid})")),
        }
    };
    signal(Signal::SIGTERM)?;
    if !lock::is_held_still(layout) && gone(layout, pid, ORDERLY).await {
        return Ok(());
    }
    // The process id is the daemon's as long as the daemon holds the lock.
    if lock::holder(layout) == Some(pid) {
        signal(Signal::SIGKILL)?;
    }
    if gone(layout, pid, DYING).await {
        return Ok(());
    }
    Err(Failure::timed_out(format!(
        "the daemon (process {pid}) was killed and is not gone after {} s: the kernel waits for \
            something, mostly a disk or a network file system; when that is back, or after a \
            restart of this machine, run this again",
        DYING.as_secs()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2pvm_api::Kind;
    use std::{os::unix::net::UnixListener, process::Command};

    #[tokio::test]
    async fn a_daemon_that_accepts_in_silence_is_named_within_seconds() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::at(dir.path());
        assert!(matches!(
            connect(&layout).await,
            Err(ConnectFailure::NotRunning(failure))
                if failure.message.contains("no p2pvm daemon is running")
        ));
        let _lock = lock::DaemonLock::take(&layout).unwrap();
        let _socket = UnixListener::bind(layout.socket()).unwrap();
        let began = Instant::now();
        let Err(ConnectFailure::Silent(failure)) = connect(&layout).await else {
            panic!("something answered")
        };
        assert!(
            began.elapsed() < PATIENCE * 2 && failure.kind == Kind::TimedOut,
            "{failure}"
        );
        let process = format!("(process {})", std::process::id());
        for said in ["does not answer", "p2pvm down --force", &process] {
            assert!(failure.message.contains(said), "{failure}");
        }
    }

    #[tokio::test]
    async fn a_process_of_elsewhere_is_not_ended_for_its_number() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::at(dir.path());
        let mut bystander = Command::new("sleep").arg("60").spawn().unwrap();
        let lock = lock::DaemonLock::take(&layout).unwrap();
        // As if the lock's holder had written its process id in another container.
        std::fs::write(layout.lock(), format!("{}\n", bystander.id())).unwrap();
        let refused = end(&layout).await.unwrap_err();
        assert!(
            refused.kind == Kind::Refused && bystander.try_wait().unwrap().is_none(),
            "{refused}"
        );
        drop(lock);
        end(&layout).await.unwrap();
        assert!(
            bystander.try_wait().unwrap().is_none(),
            "nobody holds the directory"
        );
        bystander.kill().unwrap();
        bystander.wait().unwrap();
    }
}
