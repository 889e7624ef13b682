//! What this host could do for a guarded guest, found without starting one: for `p2pvm doctor`.

use super::{kernel, place, standing::PRIORITY};
use crate::cgroup;
use std::{fs, path::Path};

/// How well guests can be frozen here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outlook {
    /// The number of the guardian that runs.
    pub running: Option<i32>,
    /// It has the real-time class or, if none runs, would get it when started from here.
    pub real_time: bool,
    /// There is a version 2 tree of control groups to freeze in.
    pub freezer: bool,
}

/// The outlook of the state directory `dir`.
pub fn outlook(dir: &Path) -> Outlook {
    let is_guardian = |pid: &i32| {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        words
            .split(|byte| *byte == 0)
            .any(|word| word == b"guest-guardian")
    };
    let running = place::noted_pid(dir)
        .filter(|pid| kernel::start_of(*pid).is_some())
        .filter(is_guardian);
    // In a thread of its own, which alone gets the class.
    let probe = || kernel::become_real_time(PRIORITY).is_ok();
    let real_time = match running {
        Some(pid) => is_real_time(pid),
        None => std::thread::spawn(probe).join().unwrap_or(false),
    };
    Outlook {
        running,
        real_time,
        freezer: cgroup::has_freezer(),
    }
}

/// Whether the process is of the class SCHED_FIFO (field 41 of `/proc/<pid>/stat`).
fn is_real_time(pid: i32) -> bool {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let rest = text.rsplit_once(") ").map_or("", |(_, rest)| rest);
    // The state, the first of the rest, is field 3.
    rest.split_ascii_whitespace().nth(38) == Some("1")
}
