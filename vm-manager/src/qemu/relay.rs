//! Opens the target's disk in a process beside the guest's QEMU.
//!
//! QEMU opens an NBD node in its main loop, the one that also serves the guest's network card and
//! disk, and negotiating NBD takes some five round trips: on a path of 200 ms the guest's devices
//! would stand still for a second before the move has even begun. So QEMU's own storage daemon
//! opens the far disk, waits as long as it takes, and offers it again on a socket of this host,
//! which QEMU opens at once. Each write is still answered by the far side only.
//!
//! The storage daemon lives in the guest's jail and ends with the move, or with this process.

use super::{not_started, path_of_programs, qmp::connect_unix};
use crate::{Error, cgroup::Limits, error::io_at, jail::Jail, run_dir::RunDir};
use serde_json::json;
use std::{
    os::fd::{AsRawFd, RawFd},
    path::Path,
    process::Stdio,
    time::Duration,
};
use tokio::{net::UnixStream, process::Child};

const PROGRAM: &str = "qemu-storage-daemon";
/// Its files in the run directory. It writes its process id once all is open, and nothing else
/// there.
const SOCKET: &str = "relay.sock";
const READY: &str = "relay.pid";
const LOG: &str = "relay.log";
/// How long opening the disk may take. Reason: it may be on the other side of the world.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long between two looks whether it is open.
const LOOK: Duration = Duration::from_millis(10);
/// How much of its log is read, bytes.
const LOG_TAIL: u64 = 16 << 10;

/// The running storage daemon; dropping it ends it.
pub(super) struct Relay {
    _child: Child,
    run_dir: RunDir,
}

impl Relay {
    /// Opens the NBD export `export` behind the local socket `disk`, and offers it again.
    pub(super) async fn start(
        path: &Path,
        jail: &Jail,
        limits: &Limits,
        disk: &Path,
        export: &str,
    ) -> Result<Self, Error> {
        let at = |name: &str| io_at("make the relay's files", path.join(name));
        let run_dir = RunDir::open(path).map_err(at(""))?;
        let listener = run_dir.listen(SOCKET).map_err(at(SOCKET))?;
        let log = run_dir.create(LOG).map_err(at(LOG))?;
        let errors = log.try_clone().map_err(at(LOG))?;
        run_dir
            .create(READY)
            .and_then(|ready| jail.lend(&ready))
            .map_err(at(READY))?;
        // Its user may not be able to walk to the socket: the daemon connects, and hands the
        // connection over.
        let far = connect_unix(disk)
            .await
            .map_err(io_at("connect to the target's disk", disk))?;
        let fds = [far.as_raw_fd(), listener.as_raw_fd()];
        let mut command = command(path, fds, export);
        command.stdin(Stdio::null()).stdout(log).stderr(errors);
        jail.enter(&mut command, limits, fds.to_vec(), None);
        let end_with_us = || {
            // After the change of user, which would clear it.
            nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
            Ok(())
        };
        // SAFETY: one plain system call between fork and exec.
        unsafe { command.pre_exec(end_with_us) };
        let mut child = command
            .spawn()
            .map_err(not_started(PROGRAM, "start the disk's relay"))?;
        drop((far, listener));
        let limit = Error::TimedOut {
            step: "open the target's disk",
            seconds: PATIENCE.as_secs(),
        };
        tokio::time::timeout(PATIENCE, opened(&mut child, &run_dir, path))
            .await
            .map_err(|_| limit)??;
        Ok(Self {
            _child: child,
            run_dir,
        })
    }

    /// A connection to the disk.
    pub(super) async fn connect(&self) -> Result<UnixStream, Error> {
        self.run_dir
            .connect(SOCKET)
            .await
            .map_err(io_at("connect to the disk's relay", SOCKET))
    }
}

/// The storage daemon's command line: it opens the export behind the descriptor `far`, and offers
/// it on the bound socket `near`.
fn command(run_dir: &Path, [far, near]: [RawFd; 2], export: &str) -> tokio::process::Command {
    let server = json!({ "type": "fd", "str": far.to_string() });
    let node = json!({
        "driver": "nbd", "node-name": "far", "export": export, "discard": "unmap",
        "server": server,
    });
    let name = export.replace(',', ",,");
    let mut command = tokio::process::Command::new(PROGRAM);
    command
        .args(["--blockdev", &node.to_string()])
        .arg("--nbd-server")
        .arg(format!("addr.type=fd,addr.str={near}"))
        .arg("--export")
        .arg(format!(
            "type=nbd,id=far,node-name=far,name={name},writable=on"
        ))
        .args(["--pidfile", READY])
        .current_dir(run_dir)
        .env_clear()
        .env("PATH", path_of_programs())
        .kill_on_drop(true);
    command
}

/// Waits until the storage daemon has opened the disk.
async fn opened(child: &mut Child, run_dir: &RunDir, path: &Path) -> Result<(), Error> {
    let at = |name: &str| io_at("watch the disk's relay", path.join(name));
    while run_dir.length(READY).map_err(at(READY))? == 0 {
        if child.try_wait().map_err(at(LOG))?.is_some() {
            let printed = run_dir.tail(LOG, LOG_TAIL).unwrap_or_default();
            return Err(Error::Hypervisor {
                step: "open the target's disk",
                detail: String::from_utf8_lossy(&printed).trim().to_owned(),
            });
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}
