//! A host on which a whole Debian has booted, with its own systemd, in a container of
//! systemd-nspawn.
//!
//! It is on the emulated host's network; commands on the host then run in the container.

use crate::{Error, lab::Lab, namespace, plan::HostPlan};
use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

/// How long a container may take to boot before it counts as failed.
/// Reason: it takes seconds, but the machine may be busy.
const BOOT: Duration = Duration::from_secs(90);
/// How long a container may take to power off before it is killed.
const HALT: Duration = Duration::from_secs(20);

/// A running container; dropping it powers it off.
pub struct BootedHost {
    container: Child,
    init: String,
}

/// Why no container runs.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// systemd-nspawn is missing.
    #[error("systemd-nspawn is not installed here")]
    NoProgram,
    /// The container does not come up.
    #[error("the container does not come up: {0}")]
    NotUp(String),
    /// An operation on the testbed failed.
    #[error(transparent)]
    Testbed(#[from] Error),
}

impl BootedHost {
    /// Boots a copy of `tree` on a host of the lab, after the script `prepare` has run in the copy.
    ///
    /// # Errors
    /// If there is no systemd-nspawn, or the container does not come up.
    pub fn start(lab: &mut Lab, host: &str, tree: &Path, prepare: &str) -> Result<Self, BootError> {
        if !Command::new("systemd-nspawn")
            .arg("--version")
            .output()
            .is_ok_and(|said| said.status.success())
        {
            return Err(BootError::NoProgram);
        }
        lab.give_root(host, tree, &[])?;
        let (program, planned) = (lab.program().to_owned(), lab.testbed().host(host)?.clone());
        let root = planned.root.as_ref().expect("it was given one");
        // The container writes to its root: it gets a copy.
        let copy = root.keep.join("booted");
        fs::create_dir_all(&root.keep)
            .map_err(|e| Error::Io(format!("make {}", root.keep.display()), e))?;
        let (from, to) = (tree.to_string_lossy(), copy.to_string_lossy());
        namespace::run("cp", &["-a", "--reflink=auto", &from, &to], "")?;
        namespace::run("chroot", &[&to, "sh", "-euc", prepare], "")?;
        let container = boot_command(&planned, &copy, &program)
            .spawn()
            .map_err(|e| Error::Io("start systemd-nspawn".into(), e))?;
        let mut booted = Self {
            container,
            init: String::new(),
        };
        booted.wait()?;
        root.adopt(
            booted
                .init
                .parse()
                .map_err(|_| BootError::NotUp(booted.init.clone()))?,
        )?;
        Ok(booted)
    }

    fn wait(&mut self) -> Result<(), BootError> {
        let began = Instant::now();
        let children = format!("/proc/{0}/task/{0}/children", self.container.id());
        loop {
            self.init = fs::read_to_string(&children)
                .unwrap_or_default()
                .trim()
                .to_owned();
            let asked = Command::new("nsenter")
                .args([
                    "--target",
                    &self.init,
                    "--all",
                    "--",
                    "systemctl",
                    "is-system-running",
                ])
                .output();
            if !self.init.is_empty()
                && asked.is_ok_and(|o| {
                    o.stdout.starts_with(b"running") || o.stdout.starts_with(b"degraded")
                })
            {
                return Ok(());
            }
            if let Ok(Some(status)) = self.container.try_wait() {
                let mut said = String::new();
                if let Some(mut stderr) = self.container.stderr.take() {
                    let _ = std::io::Read::read_to_string(&mut stderr, &mut said);
                }
                return Err(BootError::NotUp(format!("{status}: {}", said.trim())));
            }
            if began.elapsed() > BOOT {
                return Err(BootError::NotUp(format!("not within {} s", BOOT.as_secs())));
            }
            sleep(Duration::from_millis(300));
        }
    }
}

/// The command that boots `directory` on the host's network.
fn boot_command(host: &HostPlan, directory: &Path, program: &Path) -> Command {
    let mut command = Command::new("systemd-nspawn");
    command
        .args([
            "--quiet",
            "--boot",
            "--register=no",
            "--keep-unit",
            "--console=pipe",
            "--capability=all",
        ])
        .args(["--resolv-conf=off", "--timezone=off"])
        .env("SYSTEMD_NSPAWN_API_VFS_WRITABLE", "network")
        .arg(format!(
            "--machine=p2pvm-{}-{}",
            host.name,
            std::process::id()
        ))
        .arg(format!("--hostname={}", host.name))
        .arg(format!(
            "--network-namespace-path=/run/netns/{}",
            host.namespace
        ))
        .arg("--directory")
        .arg(directory);
    for path in [Path::new("/dev/net/tun"), &host.dir, program] {
        command.arg(format!("--bind={}", path.display()));
    }
    // Where the host still has version 1 of the control groups, the container gets version 2 all
    // the same.
    command
        .env("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

impl Drop for BootedHost {
    fn drop(&mut self) {
        // systemd's signal for power-off (systemd(1)). A container that ignores it is killed.
        if !self.init.is_empty() {
            let _ = Command::new("kill")
                .args(["-s", "RTMIN+4", &self.init])
                .status();
        }
        let began = Instant::now();
        while began.elapsed() < HALT {
            if let Ok(Some(_)) = self.container.try_wait() {
                return;
            }
            sleep(Duration::from_millis(100));
        }
        let _ = self.container.kill();
        let _ = self.container.wait();
    }
}
