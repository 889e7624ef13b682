//! Network namespaces: creates and enters them, kills their processes, removes them.
//!
//! A namespace is entered by a thread that lives only for that; what the thread opens or starts
//! stays inside after the thread has ended, and the rest of the process never notices. Names are
//! those of `ip netns`, so `ip netns exec` works on them too.

use crate::testbed::Error;
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
    sys::signal::{Signal, kill},
    unistd::{Pid, sethostname},
};
use std::{
    fs::{self, File},
    io::Write,
    os::{
        fd::AsRawFd,
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// Where `ip netns` keeps names.
const NAMES_DIR: &str = "/run/netns";
/// How long killed processes may take to end before they are reported as an error.
const DEATH_LIMIT: Duration = Duration::from_secs(5);

pub(crate) fn path(name: &str) -> PathBuf {
    PathBuf::from(NAMES_DIR).join(name)
}

/// Makes a namespace with its loopback up.
pub(crate) fn create(name: &str) -> Result<(), Error> {
    run("ip", &["netns", "add", name], "")?;
    run("ip", &["-n", name, "link", "set", "lo", "up"], "")
}

/// Removes a namespace and, with it, all its interfaces.
pub(crate) fn delete(name: &str) -> Result<(), Error> {
    run("ip", &["netns", "del", name], "")
}

/// All namespaces whose name begins with `prefix`.
pub(crate) fn list(prefix: &str) -> Vec<String> {
    let entries = fs::read_dir(NAMES_DIR).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|e| e.file_name().into_string().ok())
        .filter(|name| name.starts_with(prefix))
        .collect();
    names.sort();
    names
}

/// Runs `action` in a thread on the namespace's network; its mounts and host name stay this
/// machine's.
pub(crate) fn inside<T: Send>(name: &str, action: impl FnOnce() -> T + Send) -> Result<T, Error> {
    in_thread(|| {
        let file =
            File::open(path(name)).map_err(|e| Error::Io(format!("open namespace {name}"), e))?;
        setns(file, CloneFlags::CLONE_NEWNET)
            .map_err(|e| Error::Io(format!("enter namespace {name}"), e.into()))?;
        Ok(action())
    })
}

/// Runs `action` in a thread that sees what a machine of its own would: the namespace's network,
/// its interfaces in /sys, its host name.
pub(crate) fn as_machine<T: Send>(
    name: &str,
    host: &str,
    action: impl FnOnce() -> T + Send,
) -> Result<T, Error> {
    inside(name, || {
        let failed = |what: &'static str| {
            move |e: nix::Error| Error::Io(format!("{what} for host {host}"), e.into())
        };
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS)
            .map_err(failed("unshare mounts"))?;
        sethostname(host).map_err(failed("set the host name"))?;
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_SLAVE | MsFlags::MS_REC, none)
            .map_err(failed("separate mounts"))?;
        // Copies of these mounts would keep other testbeds' namespaces alive as long as a process
        // of this one.
        let _ = umount2(NAMES_DIR, MntFlags::MNT_DETACH);
        // A new sysfs shows the namespace's interfaces but hides the control groups, which a daemon
        // needs: they are bound on it again.
        let groups = fs::OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_PATH)
            .open("/sys/fs/cgroup")
            .ok();
        mount(Some("p2pvm"), "/sys", Some("sysfs"), MsFlags::empty(), none)
            .map_err(failed("mount /sys"))?;
        if let Some(groups) = groups {
            let source = format!("/proc/self/fd/{}", groups.as_raw_fd());
            mount(
                Some(source.as_str()),
                "/sys/fs/cgroup",
                none,
                MsFlags::MS_BIND | MsFlags::MS_REC,
                none,
            )
            .map_err(failed("bind the control groups"))?;
        }
        Ok(action())
    })?
}

fn in_thread<T: Send>(action: impl FnOnce() -> Result<T, Error> + Send) -> Result<T, Error> {
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name("testbed-inside".into())
            .spawn_scoped(scope, action);
        let thread = thread.map_err(|e| Error::Io("start a thread".into(), e))?;
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Process ids of a host: those whose main thread is in its namespace, and those that work in its
/// state directory, such as guests that have a namespace of their own. Never the caller's own.
pub(crate) fn processes(name: &str, dir: &Path) -> Vec<i32> {
    let wanted = fs::metadata(path(name))
        .map(|found| (found.dev(), found.ino()))
        .ok();
    let own = std::process::id() as i32;
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        *pid != own && (wanted.is_some_and(|wanted| is_in(*pid, wanted)) || works_in(*pid, dir))
    })
    .collect()
}

/// Whether the process's working directory is, or was until it was removed, below `dir`.
fn works_in(pid: i32, dir: &Path) -> bool {
    fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(dir))
}

fn is_in(pid: i32, namespace: (u64, u64)) -> bool {
    fs::metadata(format!("/proc/{pid}/ns/net"))
        .is_ok_and(|found| (found.dev(), found.ino()) == namespace)
}

/// Kills every process of a host and waits until none is left; returns how many there were.
pub(crate) fn kill_processes(name: &str, dir: &Path) -> Result<usize, Error> {
    let started = Instant::now();
    let mut killed = std::collections::BTreeSet::new();
    loop {
        let found = processes(name, dir);
        if found.is_empty() {
            return Ok(killed.len());
        }
        if started.elapsed() > DEATH_LIMIT {
            return Err(Error::Undead {
                place: if name.is_empty() {
                    dir.display().to_string()
                } else {
                    name.into()
                },
                pids: found,
            });
        }
        for pid in found {
            // A process that has ended needs no signal.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            killed.insert(pid);
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Runs a program to its end with `input` as standard input; an error carries its standard error.
pub(crate) fn run(program: &str, arguments: &[&str], input: &str) -> Result<(), Error> {
    let line = || format!("{program} {}", arguments.join(" "));
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| Error::Io(format!("run {} (is it installed?)", line()), e))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that fails early closes its input; its exit status says more than an EPIPE.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child
        .wait_with_output()
        .map_err(|e| Error::Io(format!("run {}", line()), e))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(Error::Program {
            line: line(),
            said: String::from_utf8_lossy(&output.stderr).trim().to_string(),
        })
    }
}
