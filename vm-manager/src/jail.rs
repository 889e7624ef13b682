//! The walls around a guest's process, for the day when a guest breaks out of QEMU.
//!
//! Where the daemon is root, each guest runs under a uid of its own (no other guest's files), with
//! no capability, no way to get one, in a network namespace with nothing in it (its TAP and its
//! sockets come as descriptors), in a mount namespace, in a cgroup with limits, and with QEMU's
//! seccomp filter. Disks, logs and sockets are opened by the daemon and passed in, so that neither
//! a file nor a directory belongs to that uid ([`crate::run_dir`]). An unprivileged daemon keeps
//! its own uid and what remains possible of this.
//!
//! The mount namespace also carries the one device a guest needs that a uid may not open:
//! `/dev/userfaultfd`, for post-copy and for checkpoints of a running guest.

use crate::{
    cgroup::{Cgroup, Limits},
    run_dir::RunDir,
};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::resource::{Resource, setrlimit},
    unistd::{Gid, Uid, fchown, setgid, setgroups, setsid, setuid},
};
use std::{
    fs::{self, File},
    io::{self, Write},
    os::{fd::RawFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    time::Duration,
};

/// The first of the guests' uids. Reason: Debian and systemd hand out none above
/// (systemd.io/UIDS-GIDS).
const UID_BASE: u32 = 0x7000_0000;
/// How many uids guests are spread over. Reason: two guests of a host hardly ever share one of so
/// many.
const UID_COUNT: u32 = 1 << 24;
/// The device of which each guest gets a node of its own: in its run directory, mounted over the
/// system's.
const USERFAULTFD: &str = "/dev/userfaultfd";
const USERFAULTFD_NODE: &str = "userfaultfd";

/// How many times the removal of a dead guest's cgroup is tried before it is left.
const REMOVE_TRIES: u32 = 50;
/// How long between two tries.
const REMOVE_PAUSE: Duration = Duration::from_millis(20);

/// QEMU's filter of system calls: none that are obsolete, no set-uid, no child processes, no change
/// of its own scheduling.
pub(crate) const SECCOMP: &str =
    "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/// One guest's walls.
#[derive(Debug)]
pub(crate) struct Jail {
    uid: Option<u32>,
    cgroup: Cgroup,
}

impl Jail {
    /// The jail of the guest with that tag and run directory: the same one at each call.
    pub(crate) fn of(tag: &str, run_dir: &Path) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("p2pvm 2026 jail of a guest");
        hasher.update(tag.as_bytes());
        hasher.update(run_dir.as_os_str().as_encoded_bytes());
        let hash = hasher.finalize();
        let number = u32::from_le_bytes([
            hash.as_bytes()[0],
            hash.as_bytes()[1],
            hash.as_bytes()[2],
            0,
        ]) % UID_COUNT;
        let uid = (nix::unistd::geteuid().is_root() && uid_is_mapped(UID_BASE + number))
            .then_some(UID_BASE + number);
        Self {
            uid,
            cgroup: Cgroup::named(&format!("{}-{number:06x}", &tag[..tag.len().min(20)])),
        }
    }

    /// Takes the run directory for the daemon's user, where guests have uids of their own: the
    /// guest may only walk through it. Earlier versions gave it to the guest.
    pub(crate) fn shut(&self, run_dir: &RunDir) -> io::Result<()> {
        self.uid.map_or(Ok(()), |uid| run_dir.seize(uid))
    }

    /// Makes a new run directory ready for the guest.
    pub(crate) fn furnish(&self, run_dir: &RunDir) -> io::Result<()> {
        self.shut(run_dir)?;
        if let (Some(uid), Ok(device)) = (self.uid, fs::metadata(USERFAULTFD)) {
            // Best effort: without it a checkpoint stops the guest longer, and post-copy is
            // refused.
            let _ = run_dir.device(USERFAULTFD_NODE, device.rdev(), uid);
        }
        Ok(())
    }

    /// Lets the guest's user write a file that it may not make.
    pub(crate) fn lend(&self, file: &File) -> io::Result<()> {
        let Some(uid) = self.uid else { return Ok(()) };
        Ok(fchown(file, Some(Uid::from_raw(uid)), None)?)
    }

    /// Makes `command` start inside, with `inherit` as the only descriptors beside its standard
    /// ones. Its process writes its number to `pid_file` before it becomes QEMU, so that the next
    /// daemon finds it even if this one is killed right after the fork.
    pub(crate) fn enter(
        &self,
        command: &mut tokio::process::Command,
        limits: &Limits,
        inherit: Vec<RawFd>,
        pid_file: Option<File>,
    ) {
        let uid = self.uid;
        let groups: Vec<File> = self.cgroup.create(limits);
        let child = move || {
            if let Some(file) = &pid_file {
                note_pid(file)?;
            }
            confine(uid, &groups, &inherit)
        };
        // SAFETY: `note_pid` and `confine` run between fork and exec: they make plain system calls
        // on data prepared here, and neither allocate nor take a lock.
        unsafe { command.pre_exec(child) };
    }

    /// The file that freezes the guest's process `pid`, where there is one.
    pub(crate) fn freezer_of(&self, pid: i32) -> Option<PathBuf> {
        self.cgroup.freezer_of(pid)
    }

    /// Removes what the kernel keeps of the jail, once the process has ended.
    pub(crate) async fn remove(&self) {
        // Threads leave one by one: for a moment the group of a dead process is still busy.
        for _ in 0..REMOVE_TRIES {
            if self.cgroup.remove() {
                return;
            }
            tokio::time::sleep(REMOVE_PAUSE).await;
        }
    }
}

fn note_pid(mut file: &File) -> io::Result<()> {
    let mut line = [0; 16];
    let mut rest = &mut line[..];
    writeln!(rest, "{}", std::process::id())?;
    let length = 16 - rest.len();
    file.write_all(&line[..length])
}

fn confine(uid: Option<u32>, groups: &[File], inherit: &[RawFd]) -> io::Result<()> {
    // A session of its own: the daemon's end, or a Ctrl-C meant for it, leaves the guest alone.
    setsid()?;
    for mut group in groups {
        // "0" is the writing process. A full or vanished cgroup does not keep the guest from
        // starting.
        let _ = group.write(b"0");
    }
    for &fd in inherit {
        // SAFETY: clears close-on-exec of a descriptor that the parent holds open for the child.
        if unsafe { libc::fcntl(fd, libc::F_SETFD, 0) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?; // A core would hold the guest's RAM.
    if let Some(uid) = uid {
        if unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC)
            .is_ok()
        {
            let none: Option<&str> = None;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
            let _ = mount(
                Some(USERFAULTFD_NODE),
                USERFAULTFD,
                none,
                MsFlags::MS_BIND,
                none,
            );
        }
        setgroups(&[])?;
        setgid(Gid::from_raw(uid))?;
        setuid(Uid::from_raw(uid))?;
    }
    nix::sys::prctl::set_no_new_privs()?;
    Ok(())
}

/// Whether this user namespace maps `uid` (a container's may not).
fn uid_is_mapped(uid: u32) -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.lines().any(|line| {
        let fields: Vec<u64> = line
            .split_ascii_whitespace()
            .filter_map(|f| f.parse().ok())
            .collect();
        matches!(fields[..], [first, _, count] if (first..first + count).contains(&u64::from(uid)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_finds_its_jail_again_and_shares_it_with_no_other() {
        let a = Jail::of("vm", Path::new("/a"));
        assert_eq!(
            format!("{a:?}"),
            format!("{:?}", Jail::of("vm", Path::new("/a")))
        );
        assert_ne!(a.cgroup, Jail::of("vm", Path::new("/b")).cgroup);
    }
}
