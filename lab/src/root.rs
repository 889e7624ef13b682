//! A root file system of a host's own, so that programs on it have their own `/etc`, `/run` and
//! packages.
//!
//! All hosts read one tree; an overlay keeps the writes of each host apart. A holder process, one
//! of the host's processes, keeps the mounts. If it is killed with them, the next command on the
//! host mounts all again, as after a reboot: `/run` and `/tmp` are empty, everything else is as it
//! was.

use crate::{namespace, plan::HostPlan, testbed::Error};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
    unistd::{chdir, pivot_root, sethostname},
};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File},
    io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// The parts of a host's root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootPlan {
    /// The lower layer, which several hosts read and none writes.
    pub tree: PathBuf,
    /// Files and directories of this machine that the root has under the same names.
    pub binds: Vec<PathBuf>,
    /// Where the host's own writes and the holder's process id are kept.
    pub keep: PathBuf,
}

impl RootPlan {
    fn pid_file(&self) -> PathBuf {
        self.keep.join("holder.pid")
    }

    /// The holder's process id, if it lives. Its network namespace proves that the id was not
    /// reused.
    fn holder(&self, host: &HostPlan) -> Option<u32> {
        let pid: u32 = fs::read_to_string(self.pid_file())
            .ok()?
            .trim()
            .parse()
            .ok()?;
        let inode = |path: &Path| {
            fs::metadata(path)
                .ok()
                .map(|found| (found.dev(), found.ino()))
        };
        let own = inode(&PathBuf::from(format!("/proc/{pid}/ns/net")))?;
        (Some(own) == inode(&namespace::path(&host.namespace))).then_some(pid)
    }

    /// Makes another process the holder: the first of a machine that was booted in this root.
    pub(crate) fn adopt(&self, pid: u32) -> Result<(), Error> {
        fs::write(self.pid_file(), pid.to_string()).map_err(failed("write the holder's process id"))
    }
}

/// The path of a host's root from outside: `etc` below it is the host's `/etc`.
pub(crate) fn view(host: &HostPlan) -> Result<PathBuf, Error> {
    match &host.root {
        Some(root) => Ok(PathBuf::from(format!("/proc/{}/root", hold(host, root)?))),
        None => Ok(PathBuf::from("/")),
    }
}

/// The process that keeps the host's mounts, started if there is none.
pub(crate) fn hold(host: &HostPlan, root: &RootPlan) -> Result<u32, Error> {
    if let Some(pid) = root.holder(host) {
        return Ok(pid);
    }
    let child = namespace::inside(&host.namespace, || raise(host, root))??;
    fs::write(root.pid_file(), child.to_string())
        .map_err(failed("write the holder's process id"))?;
    Ok(child)
}

/// Runs `action` in a thread that sees the host's own network, files and name.
pub(crate) fn inside<T: Send>(
    host: &HostPlan,
    root: &RootPlan,
    action: impl FnOnce() -> T + Send,
) -> Result<T, Error> {
    let holder = hold(host, root)?;
    namespace::inside(&host.namespace, || {
        let open = |kind: &str| {
            File::open(format!("/proc/{holder}/ns/{kind}"))
                .map_err(failed("open the holder's namespaces"))
        };
        let (mounts, name, processes) = (open("mnt")?, open("uts")?, open("pid")?);
        let enter = || -> nix::Result<()> {
            unshare(CloneFlags::CLONE_FS)?;
            setns(name, CloneFlags::CLONE_NEWUTS)?;
            // The process namespace of a booted machine; elsewhere this machine's.
            setns(processes, CloneFlags::CLONE_NEWPID)?;
            setns(mounts, CloneFlags::CLONE_NEWNS)
        };
        enter().map_err(|e| failed("enter the host's root")(e.into()))?;
        Ok(action())
    })?
}

fn failed(what: &'static str) -> impl Fn(io::Error) -> Error {
    move |e| Error::Io(what.into(), e)
}

/// Mounts the root in this thread, which is on the host's network, and starts the holder in it.
fn raise(host: &HostPlan, root: &RootPlan) -> Result<u32, Error> {
    mount_all(host, root)
        .map_err(|e| Error::Io(format!("mount the root of host {}", host.name), e))?;
    let mut holder = Command::new("sleep");
    holder
        .arg("infinity")
        .current_dir(&host.dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    #[allow(
        clippy::zombie_processes,
        reason = "it lives as long as the host; the testbed kills it with the host's processes"
    )]
    let child = holder
        .spawn()
        .map_err(failed("start the holder of a host's root"))?;
    Ok(child.id())
}

/// Mounts the tree, the host's own file systems and the binds, and makes them this thread's root.
fn mount_all(host: &HostPlan, root: &RootPlan) -> io::Result<()> {
    let none = None::<&str>;
    let at = root.keep.join("root");
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS)?;
    sethostname(&host.name)?;
    mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none)?;
    for part in ["root", "upper", "work"] {
        fs::create_dir_all(root.keep.join(part))?;
    }
    let kept = |part: &str| root.keep.join(part).display().to_string();
    let layers = format!(
        "lowerdir={},upperdir={},workdir={}",
        root.tree.display(),
        kept("upper"),
        kept("work")
    );
    let new = |from: &str, on: &Path, kind: &str, options: &str| {
        let options = Some(options).filter(|options| !options.is_empty());
        mount(Some(from), on, Some(kind), MsFlags::empty(), options)
    };
    new("overlay", &at, "overlay", &layers)?;
    for (kind, on, mode) in [
        ("proc", "proc", ""),
        ("sysfs", "sys", ""),
        ("tmpfs", "run", "mode=755"),
        ("tmpfs", "tmp", "mode=1777"),
    ] {
        new("p2pvm", &at.join(on), kind, mode)?;
    }
    let given = [Path::new("/dev"), Path::new("/sys/fs/cgroup"), &host.dir];
    for path in given
        .into_iter()
        .chain(root.binds.iter().map(PathBuf::as_path))
    {
        bind(path, &at)?;
    }
    chdir(&at)?;
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    chdir("/")?;
    // Debian makes them at boot.
    for directory in ["/run/lock", "/run/dbus"] {
        fs::create_dir_all(directory)?;
    }
    fs::set_permissions("/run/lock", fs::Permissions::from_mode(0o1777))
}

/// Shows a file or directory of this machine below `root`, under the same name.
fn bind(path: &Path, root: &Path) -> io::Result<()> {
    let at = root.join(path.strip_prefix("/").unwrap_or(path));
    if path.is_dir() {
        fs::create_dir_all(&at)?;
    } else {
        fs::create_dir_all(at.parent().unwrap_or(root))?;
        File::options().create(true).append(true).open(&at)?;
    }
    mount(
        Some(path),
        &at,
        None::<&str>,
        MsFlags::MS_BIND | MsFlags::MS_REC,
        None::<&str>,
    )?;
    Ok(())
}
