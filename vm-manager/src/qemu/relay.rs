//! Opens the target's disk in a process beside the guest's QEMU.
//!
//! QEMU opens an NBD node in its main loop, the one that also serves the guest's network card and
//! disk, and negotiating NBD takes some five round trips: on a path of 200 ms the guest's devices
//! would stand still for a second before the move has even begun. So QEMU's own storage daemon
//! opens the far disk, waits as long as it takes, and offers it again on a socket of this host,
//! which QEMU opens in no time. Each write is still answered by the far side only.
//!
//! The storage daemon lives in the guest's jail and ends with the move, or with this process.

use super::{not_started, path_of_programs, qmp::connect_unix};
use crate::{Error, cgroup::Limits, error::io_at, jail::Jail};
use serde_json::json;
use std::{
    fs, io,
    os::fd::{AsRawFd, RawFd},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tokio::{net::UnixStream, process::Child};

const PROGRAM: &str = "qemu-storage-daemon";
/// Its files in the run directory. It writes its process id once all is open.
const SOCKET: &str = "relay.sock";
const READY: &str = "relay.pid";
const LOG: &str = "relay.log";
/// How long opening the disk may take. Reason: it may be on the other side of the world.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(10);

/// The running storage daemon; dropping it ends it.
pub(super) struct Relay {
    _child: Child,
    socket: PathBuf,
}

impl Relay {
    /// Opens the NBD export `export` behind the local socket `disk`, and offers it again.
    pub(super) async fn start(
        run_dir: &Path,
        jail: &Jail,
        limits: &Limits,
        disk: &Path,
        export: &str,
    ) -> Result<Self, Error> {
        let (socket, ready, log) = (run_dir.join(SOCKET), run_dir.join(READY), run_dir.join(LOG));
        for left in [&socket, &ready] {
            match fs::remove_file(left) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(io_at("clear an earlier relay away", left)(e));
                }
                _ => {}
            }
        }
        // Its user may not be able to walk to the socket: the daemon connects, and hands the
        // connection over.
        let far = connect_unix(disk)
            .await
            .map_err(io_at("connect to the target's disk", disk))?;
        let mut command = command(run_dir, &log, far.as_raw_fd(), export)?;
        jail.enter(&mut command, limits, vec![far.as_raw_fd()]);
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
        drop(far);
        let limit = Error::TimedOut {
            step: "open the target's disk",
            seconds: PATIENCE.as_secs(),
        };
        tokio::time::timeout(PATIENCE, opened(&mut child, &ready, &log))
            .await
            .map_err(|_| limit)??;
        Ok(Self {
            _child: child,
            socket,
        })
    }

    /// A connection to the disk.
    pub(super) async fn connect(&self) -> Result<UnixStream, Error> {
        connect_unix(&self.socket)
            .await
            .map_err(io_at("connect to the disk's relay", &self.socket))
    }
}

/// The storage daemon's command line: it opens the export behind the descriptor `far`.
fn command(
    run_dir: &Path,
    log: &Path,
    far: RawFd,
    export: &str,
) -> Result<tokio::process::Command, Error> {
    let output = fs::File::create(log).map_err(io_at("open the relay's log", log))?;
    let errors = output
        .try_clone()
        .map_err(io_at("open the relay's log", log))?;
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
        .arg(format!("addr.type=unix,addr.path={SOCKET}"))
        .arg("--export")
        .arg(format!(
            "type=nbd,id=far,node-name=far,name={name},writable=on"
        ))
        .args(["--pidfile", READY])
        .current_dir(run_dir)
        .env_clear()
        .env("PATH", path_of_programs())
        .kill_on_drop(true)
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors);
    Ok(command)
}

/// Waits until the storage daemon has opened the disk.
async fn opened(child: &mut Child, ready: &Path, log: &Path) -> Result<(), Error> {
    while !ready.exists() {
        let ended = child
            .try_wait()
            .map_err(io_at("watch the disk's relay", log))?;
        if ended.is_some() {
            let printed = fs::read_to_string(log).unwrap_or_default();
            return Err(Error::Hypervisor {
                step: "open the target's disk",
                detail: printed.trim().to_owned(),
            });
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}
