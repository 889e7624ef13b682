//! Reports the daemon's state to the service manager (sd_notify(3)): READY=1 once the API answers,
//! STATUS= in a line, WATCHDOG=1 as long as the daemon really works. Without `NOTIFY_SOCKET` it
//! sends nothing.
//!
//! The watchdog is fed by a request to the daemon's own API, over its own socket: an answer proves
//! that the runtime works, that requests are accepted, and that the locks of a status are free. A
//! daemon that hangs is killed and restarted; its guests run on.

use p2pvm_api::{Health, Status, client::Client};
use std::{
    ffi::OsString,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixDatagram},
        },
    },
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

/// How often the line for `systemctl status` is refreshed without a watchdog.
const STATUS_EVERY: Duration = Duration::from_secs(10);

/// The way to the service manager, if there is one.
#[derive(Clone)]
pub struct Notifier {
    socket: Option<Arc<(UnixDatagram, SocketAddr)>>,
    /// How long the service manager waits for a sign of life.
    watchdog: Option<Duration>,
}

impl Notifier {
    /// From the environment; `WATCHDOG_PID` names the process it is meant for.
    pub fn from_env() -> Self {
        let mine =
            std::env::var("WATCHDOG_PID").map_or(true, |pid| pid == std::process::id().to_string());
        let micros = std::env::var("WATCHDOG_USEC")
            .ok()
            .and_then(|text| text.parse().ok())
            .filter(|us| mine && *us > 0);
        Self::new(
            std::env::var_os("NOTIFY_SOCKET"),
            micros.map(Duration::from_micros),
        )
    }

    fn new(path: Option<OsString>, watchdog: Option<Duration>) -> Self {
        let address = path.and_then(|path| match path.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name).ok(),
            [b'/', ..] => SocketAddr::from_pathname(&path).ok(),
            _ => None,
        });
        let socket =
            address.and_then(|address| Some(Arc::new((UnixDatagram::unbound().ok()?, address))));
        Self { socket, watchdog }
    }

    /// Sends one message. It does no harm if it is lost.
    pub fn say(&self, what: &str) {
        if let Some((socket, address)) = self.socket.as_deref()
            && let Err(error) = socket.send_to_addr(what.as_bytes(), address)
        {
            tracing::debug!(
                error = %p2pvm_host::chain(&error),
                "the service manager does not listen"
            );
        }
    }
}

/// Reports until the handle is dropped.
pub fn keep_telling(told: Notifier, api: PathBuf) -> ReportTask {
    let task = told.socket.is_some().then(|| {
        tokio::spawn(async move {
            // Twice as often as required, as sd_watchdog_enabled(3) recommends.
            let every = told.watchdog.map_or(STATUS_EVERY, |limit| limit / 2);
            let mut ready = false;
            let mut silent = p2pvm_host::Repeated::new();
            loop {
                match tokio::time::timeout(every, ask(&api)).await {
                    Ok(Some(status)) => {
                        let first = if ready { "" } else { "READY=1\n" };
                        let alive = if told.watchdog.is_some() {
                            "WATCHDOG=1\n"
                        } else {
                            ""
                        };
                        told.say(&format!("{first}{alive}STATUS={}", line(&status)));
                        ready = true;
                        silent.over();
                    }
                    _ => {
                        if let Some(times) = silent.again("silent") {
                            tracing::warn!(times, "the daemon's own API did not answer in time");
                        }
                    }
                }
                tokio::time::sleep(every).await;
            }
        })
    });
    ReportTask(task)
}

async fn ask(api: &std::path::Path) -> Option<Status> {
    Client::connect(api).await.ok()?.get("/status").await.ok()
}

fn line(status: &Status) -> String {
    let address = status.address.as_deref().unwrap_or("no address yet");
    let health = match status.health.word {
        // The health of a node that is alone or joining says so itself.
        Health::Degraded | Health::Offline => format!("{}; ", status.health),
        _ => String::new(),
    };
    format!(
        "{health}{} in {}: {address}, {} members connected, {} VMs",
        status.name, status.network, status.connected, status.running_vms
    )
}

/// Ends the reports when it is dropped.
pub struct ReportTask(Option<tokio::task::JoinHandle<()>>);

impl Drop for ReportTask {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_the_service_manager_says_what_is_wrong() {
        let mut status = Status {
            name: "attic".into(),
            network: "lab".into(),
            ..Status::default()
        };
        status.health = p2pvm_api::HealthView {
            word: Health::Ok,
            why: "all".into(),
        };
        assert!(
            line(&status).starts_with("attic in lab"),
            "{}",
            line(&status)
        );
        status.health = p2pvm_api::HealthView {
            word: Health::Degraded,
            why: "p2pvm0 is down".into(),
        };
        assert!(
            line(&status).starts_with("degraded: p2pvm0 is down; attic"),
            "{}",
            line(&status)
        );
    }

    #[test]
    fn what_is_said_arrives_at_a_path_and_at_an_abstract_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let name = format!("p2pvm-notify-{}", std::process::id());
        let by_name = SocketAddr::from_abstract_name(name.as_bytes()).unwrap();
        for (ear, said) in [
            (
                UnixDatagram::bind(&path).unwrap(),
                path.clone().into_os_string(),
            ),
            (
                UnixDatagram::bind_addr(&by_name).unwrap(),
                format!("@{name}").into(),
            ),
        ] {
            Notifier::new(Some(said), None).say("READY=1");
            let mut heard = [0; 64];
            let n = ear.recv(&mut heard).unwrap();
            assert_eq!(&heard[..n], b"READY=1");
        }
        Notifier::new(None, None).say("nobody hears it");
    }
}
