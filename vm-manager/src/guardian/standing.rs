//! What the guardian's process gets of the kernel, so that it runs when nothing else does. Each
//! thing that is refused makes a freeze later, or the guardian's end likelier, and none is fatal:
//! it is reported.

use super::kernel;
use nix::sys::{
    resource::{RLIM_INFINITY, Resource, setrlimit},
    signal::{SigHandler, Signal, signal},
};
use std::{fs, path::Path};

/// The real-time priority. Reason: above everything a host runs, below the kernel's own 99.
pub(super) const PRIORITY: i32 = 98;
/// The niceness where the real-time class is refused.
const NICE: i32 = -20;
/// The process's name in lists: not the daemon's, so that a kill by name spares it.
const NAME: &std::ffi::CStr = c"p2pvm-freezer";
/// Where hierarchies of control groups are mounted.
const GROUPS: &str = "/sys/fs/cgroup";

/// What was refused, a bit each. Bits are only added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Lacks(pub(super) u32);

impl Lacks {
    pub(super) const REAL_TIME: u32 = 1;
    const MEMORY: u32 = 2;
    const OOM: u32 = 4;
    const ROOT_GROUP: u32 = 8;

    /// A sentence for each.
    pub(super) fn sentences(self) -> impl Iterator<Item = &'static str> {
        let all = [
            (
                Self::REAL_TIME,
                "the real-time class is refused, so a guest may be frozen 0.5 s late",
            ),
            (
                Self::MEMORY,
                "its memory may be paged out, so a guest may be frozen late on a full disk",
            ),
            (
                Self::OOM,
                "the kernel may kill it when memory is short, which stops the guests",
            ),
            (
                Self::ROOT_GROUP,
                "it stays in its daemon's control group, and shares its limits",
            ),
        ];
        all.into_iter()
            .filter(move |(bit, _)| self.0 & bit != 0)
            .map(|(_, sentence)| sentence)
    }
}

/// Takes all that this process is given. It is its own session's leader and heeds no signal that
/// can be ignored.
pub(super) fn take() -> Lacks {
    let _ = nix::sys::prctl::set_name(NAME);
    // Fails only for a leader of a process group, which has left the daemon's already.
    let _ = nix::unistd::setsid();
    for ignored in [
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGTERM,
        Signal::SIGQUIT,
        Signal::SIGPIPE,
    ] {
        // SAFETY: ignoring a signal runs no code of ours.
        let _ = unsafe { signal(ignored, SigHandler::SigIgn) };
    }
    let mut lacks = 0;
    // First: a control group of version 1 without real-time quota refuses the real-time class.
    if !enter_root_groups(Path::new(GROUPS)) {
        lacks |= Lacks::ROOT_GROUP;
    }
    if fs::write("/proc/self/oom_score_adj", "-1000").is_err() {
        lacks |= Lacks::OOM;
    }
    if kernel::become_real_time(PRIORITY).is_err() {
        lacks |= Lacks::REAL_TIME;
        // SAFETY: takes numbers only. Refused, the process stays as nice as it was.
        let _ = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
    }
    // Locking memory needs a limit that is large enough, and raising it another right than that.
    let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
    if kernel::lock_memory().is_err() {
        lacks |= Lacks::MEMORY;
    }
    Lacks(lacks)
}

/// Leaves the daemon's groups, on either layout; false if one could not be left.
fn enter_root_groups(root: &Path) -> bool {
    let below = fs::read_dir(root).into_iter().flatten().flatten();
    let hierarchies = below.map(|entry| entry.path());
    let unified = root.join("cgroup.controllers").exists();
    let hierarchies: Vec<_> = match unified {
        true => vec![root.to_owned()],
        false => hierarchies.collect(),
    };
    let doors = hierarchies.iter().map(|dir| dir.join("cgroup.procs"));
    // "0" is the writing process.
    // All are tried, also after one that refuses.
    let refused = doors
        .filter(|door| door.exists() && fs::write(door, "0").is_err())
        .count();
    refused == 0 && root.is_dir()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_lack_has_a_sentence_and_unknown_ones_none() {
        assert_eq!(Lacks(0).sentences().count(), 0);
        assert_eq!(Lacks(15).sentences().count(), 4);
        assert_eq!(Lacks(1 << 20).sentences().count(), 0);
    }

    #[test]
    fn the_root_groups_of_both_layouts_are_entered() {
        let old = tempfile::tempdir().unwrap();
        for hierarchy in ["cpu", "unified"] {
            fs::create_dir(old.path().join(hierarchy)).unwrap();
            fs::write(old.path().join(hierarchy).join("cgroup.procs"), "").unwrap();
        }
        assert!(enter_root_groups(old.path()));
        let read = |name: &str| fs::read_to_string(old.path().join(name)).unwrap();
        assert_eq!(read("cpu/cgroup.procs"), "0");
        assert_eq!(read("unified/cgroup.procs"), "0");
        assert!(!enter_root_groups(&old.path().join("missing")));
        // One that refuses keeps it from no other, whichever comes first.
        for hierarchy in ["blkio", "rdma"] {
            fs::create_dir_all(old.path().join(hierarchy).join("cgroup.procs")).unwrap();
        }
        for hierarchy in ["cpu", "unified"] {
            fs::write(old.path().join(hierarchy).join("cgroup.procs"), "").unwrap();
        }
        assert!(!enter_root_groups(old.path()));
        assert_eq!(
            read("cpu/cgroup.procs") + &read("unified/cgroup.procs"),
            "00"
        );
    }
}
