//! A daemon that is there and does not answer: stopped by a signal or a debugger, in a deadlock,
//! waiting for a dead disk. Whatever it was to be asked, a command says within seconds what is
//! wrong and what helps; `down --force` and `leave --force` end it.

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

/// A daemon that works answers within this, also on a busy machine. One that is just starting has
/// opened its socket by then.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// One whose process is stopped is known by that, and waited for no longer than this.
const STOPPED: Duration = Duration::from_secs(1);
/// How long a daemon that is told by a signal to end may take to put this machine in order.
const ORDERLY: Duration = Duration::from_secs(5);
/// A process that was killed is gone within this, unless the kernel waits for a disk.
const DYING: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(30);

/// Why there is no connection to a daemon.
pub enum Missing {
    /// None runs here.
    NotRunning(Failure),
    /// One runs, and does not answer.
    Silent(Failure),
    /// It cannot be asked.
    Closed(Failure),
}

impl From<Missing> for Failure {
    fn from(missing: Missing) -> Self {
        let (Missing::NotRunning(failure) | Missing::Silent(failure) | Missing::Closed(failure)) =
            missing;
        failure
    }
}

/// A connection to this directory's daemon, which has answered on it.
pub async fn connect(layout: &Layout) -> Result<Client, Missing> {
    limit::unheard(true);
    let connected = in_time(layout, hear(layout)).await;
    limit::unheard(false);
    connected.unwrap_or_else(|failure| Err(Missing::Silent(failure)))
}

/// Ends `work` with the daemon when that does not answer in time: what is wrong with it.
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

/// What is said of a daemon that does not answer.
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

async fn hear(layout: &Layout) -> Result<Client, Missing> {
    loop {
        let heard = async {
            let mut client = Client::connect(&layout.socket()).await?;
            client.hello().await?;
            Ok::<_, Failure>(client.with_on_data(super::limit::progressed))
        };
        let failure = match heard.await {
            Ok(client) => return Ok(client),
            Err(failure) if failure.kind == p2pvm_api::Kind::Refused => {
                return Err(Missing::Closed(failure));
            }
            Err(failure) => failure,
        };
        if lock::holder(layout).is_none() {
            return Err(Missing::NotRunning(failure));
        }
        // It is starting or ending, or its queue is full as it takes nobody in.
        tokio::time::sleep(LOOK).await;
    }
}

/// Asks the daemon something that it does at once; one that is silent then is named.
pub async fn at_once<T>(layout: &Layout, work: impl Future<Output = Outcome<T>>) -> Outcome<T> {
    in_time(layout, work).await?
}

/// Waits until the process that holds the directory is gone, for `limit` at most.
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
/// does not. What it leaves changed on this machine is the caller's to undo.
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
    // Else it would be started anew.
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
    // The number is still the daemon's as long as the lock is.
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
    async fn a_daemon_that_takes_a_connection_and_says_nothing_is_named_within_seconds() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::at(dir.path());
        assert!(matches!(
            connect(&layout).await,
            Err(Missing::NotRunning(failure)) if failure.message.contains("no p2pvm daemon is \
                running")
        ));
        let _lock = lock::DaemonLock::take(&layout).unwrap();
        let _socket = UnixListener::bind(layout.socket()).unwrap();
        let began = Instant::now();
        let Err(Missing::Silent(failure)) = connect(&layout).await else {
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
        // As where the lock's holder has written its number in another container.
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
