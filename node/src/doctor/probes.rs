//! The doctor's examination of the machine. It changes nothing, except that it stores the KVM
//! probe's result, as the daemon would.

use nix::{
    sys::{
        statfs::{TMPFS_MAGIC, statfs},
        statvfs::{FsFlags, statvfs},
    },
    unistd::AccessFlags,
};
use p2pvm_daemon::{
    HOST_FACTS, config::Config, layout::Layout, membership, preflight, sight::local_addresses,
};
use p2pvm_overlay::UnixTime;
use p2pvm_vm_manager::{
    hypervisor::{Accel, Hypervisor},
    qemu::Qemu,
};
use std::{
    fs::OpenOptions,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, SystemTime},
};
use tokio::process::Command;

/// How long a program may take to print its version.
const PROGRAM_LIMIT: Duration = Duration::from_secs(5);
/// The magic number of ramfs (linux/magic.h); nix has no name for it.
const RAMFS_MAGIC: i64 = 0x8584_58f6;
/// QEMU's tools that p2pvm runs.
const TOOLS: [&str; 2] = ["qemu-img", "qemu-storage-daemon"];

/// The state of KVM.
#[derive(Debug)]
pub enum Kvm {
    /// A probe guest ran on it.
    Works,
    /// There is no device.
    Missing,
    /// The device exists, but no guest is known to run on it.
    Broken,
    /// The settings name an accelerator.
    Forced(String),
    /// The state could not be determined.
    Unknown(String),
}

pub(super) async fn kvm(config: Option<&Config>) -> Kvm {
    let Some(config) = config else {
        return Kvm::Unknown("the settings cannot be read".to_owned());
    };
    if config.accel().is_some() {
        return Kvm::Forced(config.accel.clone());
    }
    if !Path::new("/dev/kvm").exists() {
        return Kvm::Missing;
    }
    match Qemu::new(HOST_FACTS, None, config.probe()).accel().await {
        Ok(Accel::Kvm) => Kvm::Works,
        Ok(Accel::Tcg) => Kvm::Broken,
        Err(error) => Kvm::Unknown(p2pvm_host::chain(&error)),
    }
}

/// QEMU and its tools.
#[derive(Debug)]
pub struct Programs {
    /// QEMU's version, major and minor.
    pub version: Option<(u32, u32)>,
    pub missing: Vec<&'static str>,
}

/// The first line of `PROGRAM --version`, if the program exists.
async fn version_of(program: &str) -> Option<String> {
    let output = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(PROGRAM_LIMIT, output)
        .await
        .ok()?
        .ok()?;
    output.status.success().then(|| {
        String::from_utf8_lossy(&output.stdout)
            .lines()
            .next()
            .unwrap_or_default()
            .to_owned()
    })
}

/// "QEMU emulator version 10.0.2 (Debian ...)" as (10, 0).
fn version_in(line: &str) -> Option<(u32, u32)> {
    let mut numbers = line
        .split_once("version ")?
        .1
        .split(|c: char| !c.is_ascii_digit())
        .map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

pub(super) async fn qemu() -> Programs {
    let version = version_of("qemu-system-x86_64")
        .await
        .and_then(|line| version_in(&line));
    let mut missing = Vec::new();
    for tool in TOOLS {
        if version_of(tool).await.is_none() {
            missing.push(tool);
        }
    }
    Programs { version, missing }
}

/// This machine's clock.
#[derive(Debug)]
pub struct Clock {
    /// How many seconds the clock is before the network's founding, if it is.
    pub before_network: Option<u64>,
    /// Whether the clock is synchronized; `None` if no program says.
    pub synchronized: Option<bool>,
    /// The time that it shows.
    pub now: String,
}

pub(super) async fn clock(layout: &Layout) -> Clock {
    let founded = membership::network(layout)
        .ok()
        .flatten()
        .map(|network| network.created);
    let before = founded.map_or(0, |founded| founded.0.saturating_sub(UnixTime::wall().0));
    let asked = Command::new("timedatectl")
        .args(["show", "-p", "NTPSynchronized", "--value"])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let synchronized = match tokio::time::timeout(PROGRAM_LIMIT, asked).await {
        Ok(Ok(output)) if output.status.success() => {
            match String::from_utf8_lossy(&output.stdout).trim() {
                "yes" => Some(true),
                "no" => Some(false),
                _ => None,
            }
        }
        _ => None,
    };
    let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    Clock {
        before_network: (before > 0).then_some(before),
        synchronized,
        now,
    }
}

/// The file system of the state directory.
#[derive(Debug)]
pub struct Disk {
    /// The directory, or its nearest existing ancestor.
    pub path: PathBuf,
    /// Free bytes for root.
    pub free_bytes: u64,
    /// Whether its content is lost at power-off.
    pub in_ram: bool,
    /// Whether it is read-only.
    pub read_only: bool,
    /// Free inodes; `None` if the file system has no inodes.
    pub free_files: Option<u64>,
}

pub(super) fn disk(layout: &Layout) -> Result<Disk, String> {
    let path = layout
        .dir()
        .ancestors()
        .find(|dir| dir.is_dir())
        .ok_or_else(|| format!("no part of {} is there", layout.dir().display()))?;
    let room =
        statvfs(path).map_err(|e| format!("{}: {}", path.display(), p2pvm_host::chain(&e)))?;
    Ok(Disk {
        path: path.to_owned(),
        free_bytes: room.blocks_available() * room.fragment_size(),
        in_ram: in_ram(path),
        read_only: room.flags().contains(FsFlags::ST_RDONLY),
        free_files: (room.files() > 0).then(|| room.files_available()),
    })
}

/// Whether a directory is on a file system in memory.
pub fn in_ram(path: &Path) -> bool {
    statfs(path).is_ok_and(|fs| {
        fs.filesystem_type() == TMPFS_MAGIC || fs.filesystem_type().0 == RAMFS_MAGIC
    })
}

pub(super) fn memory_mib() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .unwrap_or_default();
    line.split_ascii_whitespace()
        .next()
        .and_then(|kib| kib.parse::<u64>().ok())
        .unwrap_or(0)
        >> 10
}

/// UDP's needs on this machine.
#[derive(Debug)]
pub struct Udp {
    /// Addresses on networks.
    pub addresses: usize,
    /// Why a port cannot be bound: which port, the process that uses it, the kernel's error.
    pub busy: Option<String>,
}

/// `running`: the daemon has the ports, which is as it should be.
pub(super) fn udp((port, link_port): (u16, u16), running: bool) -> Udp {
    let busy = if running {
        None
    } else {
        preflight::ports(port, link_port)
            .err()
            .map(|failure| failure.message)
    };
    Udp {
        addresses: local_addresses().len(),
        busy,
    }
}

/// Checks that nft exists and that the kernel lets this process use it.
pub(super) async fn nft() -> Result<(), String> {
    let asked = Command::new("nft")
        .args(["list", "tables"])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    match tokio::time::timeout(PROGRAM_LIMIT, asked).await {
        Ok(Ok(output)) if output.status.success() => Ok(()),
        Ok(Ok(output)) => {
            let said = String::from_utf8_lossy(&output.stderr);
            Err(said
                .lines()
                .find(|line| !line.trim().is_empty())
                .unwrap_or("it failed without a message")
                .trim()
                .to_owned())
        }
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => {
            Err("nft is not installed".to_owned())
        }
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!(
            "nft has not answered for {} s",
            PROGRAM_LIMIT.as_secs()
        )),
    }
}

/// Checks that the kernel's network settings can be written. Opening one for writing changes none.
pub(super) fn sysctl() -> Result<(), String> {
    let path = "/proc/sys/net/ipv4/ip_forward";
    OpenOptions::new()
        .write(true)
        .open(path)
        .map(drop)
        .map_err(|e| format!("{path}: {}", p2pvm_host::chain(&e)))
}

/// The control groups that can limit guests here.
#[derive(Debug, PartialEq, Eq)]
pub enum Cgroups {
    /// Version 2, writable.
    Unified,
    /// Version 1, alone or with version 2, writable.
    Legacy,
    /// Mounted but not writable, and why.
    Closed(String),
    /// Not mounted.
    None,
}

pub(super) fn cgroups() -> Cgroups {
    let root = Path::new("/sys/fs/cgroup");
    let writable =
        |dir: &Path| nix::unistd::access(dir, AccessFlags::W_OK).map_err(std::io::Error::from);
    let (found, dir) = if root.join("cgroup.controllers").exists() {
        (Cgroups::Unified, root.to_owned())
    } else if root.join("memory").is_dir() {
        (Cgroups::Legacy, root.join("memory"))
    } else {
        return Cgroups::None;
    };
    match writable(&dir) {
        Ok(()) => found,
        Err(error) => Cgroups::Closed(format!("{}: {}", dir.display(), p2pvm_host::chain(&error))),
    }
}

/// Whether IPv6 is on at all.
pub(super) fn has_ipv6() -> bool {
    let off = std::fs::read_to_string("/proc/sys/net/ipv6/conf/all/disable_ipv6")
        .is_ok_and(|text| text.trim() == "1");
    !off && std::fs::read_to_string("/proc/net/if_inet6")
        .is_ok_and(|text| text.lines().any(|line| !line.ends_with(" lo")))
}

/// The network's interface, if IPv6 is off on it but not on the whole machine.
pub(super) fn v6_off_on(device: &str) -> Option<&str> {
    let is_off = |name: &str| {
        std::fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"))
            .is_ok_and(|text| text.trim() == "1")
    };
    (is_off(device) && !is_off("all")).then_some(device)
}

/// The interfaces of the default routes, with their MTUs.
pub(super) fn uplinks() -> Vec<(String, u32)> {
    let routes = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
    let mut names: Vec<String> = routes
        .lines()
        .skip(1)
        .filter_map(|line| {
            let columns: Vec<&str> = line.split_whitespace().collect();
            let is_default =
                columns.get(1) == Some(&"00000000") && columns.get(7) == Some(&"00000000");
            is_default.then(|| columns[0].to_owned())
        })
        .collect();
    names.sort();
    names.dedup();
    // From the kernel, not from /sys, which may show another network namespace in a container.
    let links = p2pvm_host::links::links().unwrap_or_default();
    let mtu = |name: &str| {
        links
            .iter()
            .find(|link| link.name == name)
            .map(|link| link.mtu)
    };
    names
        .into_iter()
        .filter_map(|name| Some((name.clone(), mtu(&name)?)))
        .collect()
}

/// This machine's name servers, or why they are unknown.
pub(super) fn name_servers() -> Result<Vec<String>, String> {
    // Not by fs::read, which would wait for a pipe.
    let text = p2pvm_host::names::file::read(Path::new("/etc/resolv.conf"))
        .and_then(|text| text.ok_or_else(|| std::io::ErrorKind::NotFound.into()))
        .map_err(|e| format!("/etc/resolv.conf: {}", p2pvm_host::chain(&e)))?;
    Ok(String::from_utf8_lossy(&text)
        .lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .map(|server| server.trim().to_owned())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, UdpSocket};

    #[test]
    fn qemu_says_its_version_in_its_first_line() {
        assert_eq!(
            version_in("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2~bpo12+1)"),
            Some((10, 0))
        );
        assert_eq!(version_in("QEMU emulator version 7.2"), Some((7, 2)));
        assert_eq!(version_in("something else"), None);
    }

    #[test]
    fn a_port_that_somebody_has_is_named() {
        let held = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let port = held.local_addr().unwrap().port();
        assert!(
            udp((port, 0), false)
                .busy
                .unwrap()
                .contains(&port.to_string())
        );
        assert!(udp((port, 0), true).busy.is_none());
    }

    #[test]
    fn a_directory_in_ram_is_told_from_one_on_a_disk() {
        assert!(in_ram(Path::new("/dev/shm")) || !Path::new("/dev/shm").is_dir());
        assert!(!in_ram(Path::new("/proc")));
    }
}
