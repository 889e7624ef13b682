//! Which process a guest is, told apart from another one that happens to have its number.
//!
//! The process writes its own number before it becomes QEMU, so a daemon killed between fork and
//! its first note still finds the guest. The number alone proves nothing after a reboot or a
//! wrap-around: the process must also carry the VM's id in its arguments and stand in the guest's
//! run directory.

use crate::{Error, error::io_at, hypervisor::MachineStats, run_dir::RunDir};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{fs, os::unix::fs::MetadataExt, path::Path, time::Duration};

/// The name of the process's pid file within the run directory.
pub(crate) const PID_FILE: &str = "qemu.pid";
/// The longest text of a process's number.
const PID_BYTES: u64 = 16;
/// How long between two looks at a dying process.
const LOOK: Duration = Duration::from_millis(10);

/// A guest's process, by number and start time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    pid: i32,
    started: u64,
}

impl Process {
    /// The live process of the guest in `run_dir` whose arguments name `tag`, if there is one.
    pub(crate) fn find(run_dir: &Path, tag: &str) -> Option<Self> {
        let text = RunDir::open(run_dir)
            .and_then(|dir| dir.tail(PID_FILE, PID_BYTES))
            .ok()?;
        let pid = std::str::from_utf8(&text).ok()?.trim().parse().ok()?;
        let process = Self::of(pid)?;
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        if !String::from_utf8_lossy(&arguments).contains(tag) {
            return None;
        }
        let (there, here) = (
            fs::metadata(format!("/proc/{pid}/cwd")).ok()?,
            fs::metadata(run_dir).ok()?,
        );
        (there.ino() == here.ino() && there.dev() == here.dev()).then_some(process)
    }

    /// The process of that number, if it lives.
    pub(crate) fn of(pid: i32) -> Option<Self> {
        let fields = stat(pid)?;
        // A zombie is dead already.
        (fields.first()? != "Z").then_some(())?;
        Some(Self {
            pid,
            started: fields.get(19)?.parse().ok()?,
        })
    }

    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    /// When it started, clock ticks after boot.
    pub(crate) fn started(&self) -> u64 {
        self.started
    }

    pub(crate) fn is_alive(&self) -> bool {
        Self::of(self.pid) == Some(*self)
    }

    /// Ends it now, if it still is what it was.
    pub(crate) fn kill(&self) {
        if self.is_alive() {
            let _ = kill(Pid::from_raw(self.pid), Signal::SIGKILL);
        }
    }

    /// Waits until it has ended; false if it outlives `patience`.
    pub(crate) async fn ended(&self, patience: Duration) -> bool {
        let wait = async {
            while self.is_alive() {
                tokio::time::sleep(LOOK).await;
            }
        };
        tokio::time::timeout(patience, wait).await.is_ok()
    }

    /// What it has consumed.
    pub(crate) fn stats(&self) -> Result<MachineStats, Error> {
        let gone = || Error::Hypervisor {
            step: "read the guest's statistics",
            detail: "its process has ended".to_owned(),
        };
        let fields = stat(self.pid)
            .filter(|_| self.is_alive())
            .ok_or_else(gone)?;
        let ticks: u64 = [11, 12]
            .iter()
            .filter_map(|&i| fields.get(i)?.parse::<u64>().ok())
            .sum();
        let path = format!("/proc/{}/statm", self.pid);
        let statm =
            fs::read_to_string(&path).map_err(io_at("read the guest's statistics", path))?;
        let pages: u64 = statm
            .split(' ')
            .nth(1)
            .and_then(|f| f.parse().ok())
            .unwrap_or(0);
        Ok(MachineStats {
            cpu_time: Duration::from_millis(ticks * 1000 / per_second()),
            resident_bytes: pages * page_bytes(),
        })
    }
}

/// The fields of `/proc/<pid>/stat` from the state on; the name before it may hold anything.
fn stat(pid: i32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(") ")?;
    Some(rest.split_ascii_whitespace().map(str::to_owned).collect())
}

fn per_second() -> u64 {
    nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)
        .ok()
        .flatten()
        .and_then(|n| u64::try_from(n).ok())
        .unwrap_or(100)
}

fn page_bytes() -> u64 {
    nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)
        .ok()
        .flatten()
        .and_then(|n| u64::try_from(n).ok())
        .unwrap_or(4096)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_process_with_a_dead_guests_number_is_not_taken_for_it() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(
            dir.path().join(PID_FILE),
            format!("{}\n", std::process::id()),
        )
        .unwrap();
        assert_eq!(Process::find(dir.path(), "vm-of-nobody"), None);
        assert!(Process::of(std::process::id() as i32).is_some_and(|p| p.is_alive()));
    }

    #[test]
    fn a_process_has_statistics() {
        let me = Process::of(std::process::id() as i32).unwrap();
        assert!(me.stats().unwrap().resident_bytes > 100_000);
    }
}
