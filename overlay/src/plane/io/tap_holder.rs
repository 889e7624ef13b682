//! The process behind a guest's TAP, QEMU, which alone holds the descriptor. When the interface is
//! deleted the kernel detaches that descriptor but leaves it open, and TUNSETIFF accepts it again:
//! the guest has only seen silence and goes on. The daemon borrows the descriptor for that
//! (pidfd_getfd(2)); it changes only TUN descriptors whose interface is gone or in another network
//! namespace.

use super::{device, moved_device};
use std::{
    fs, io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    process,
    time::{Duration, Instant},
};

pub(crate) struct TapHolder {
    /// A descriptor of the process, since its number may be reused.
    process: OwnedFd,
    fd: RawFd,
    /// Bytes of the virtio-net header, which the guest's driver chooses when it starts.
    header: Option<libc::c_int>,
    /// When the holder was found.
    since: Instant,
}

/// How many bytes the header of virtio 1.0 has (VIRTIO 1.1 §5.1.6, with num_buffers). Nearly every
/// guest's driver chooses it.
const HEADER_V1: libc::c_int = 12;
/// How long a guest may boot before its driver starts. Reason: until then QEMU uses the short
/// header of versions before 1.0.
const DRIVER_STARTS: Duration = Duration::from_secs(120);

impl TapHolder {
    /// The process that holds the TAP `ifname`, other than this one. Looks through all processes.
    pub fn find(ifname: &str) -> Option<Self> {
        let own = process::id().to_string();
        for entry in fs::read_dir("/proc").ok()?.flatten() {
            let name = entry.file_name();
            let Some(pid) = name
                .to_str()
                .filter(|pid| *pid != own)
                .and_then(|pid| pid.parse::<i32>().ok())
            else {
                continue;
            };
            if let Some(fd) = descriptor(pid, ifname) {
                let mut holder = Self {
                    process: pidfd_open(pid).ok()?,
                    fd,
                    header: None,
                    since: Instant::now(),
                };
                holder.look();
                return Some(holder);
            }
        }
        None
    }

    /// Remembers the interface's header length while it exists.
    pub fn look(&mut self) {
        let mut header: libc::c_int = 0;
        if let Ok(tun) = self.borrow() {
            // SAFETY: the pointer is to a c_int that lives across the call.
            let read = unsafe {
                libc::ioctl(tun.as_raw_fd(), libc::TUNGETVNETHDRSZ as _, &raw mut header)
            };
            if read == 0 && header > 0 {
                self.header = Some(header);
            }
        }
    }

    fn borrow(&self) -> io::Result<OwnedFd> {
        // SAFETY: the arguments are numbers.
        let fd =
            unsafe { libc::syscall(libc::SYS_pidfd_getfd, self.process.as_raw_fd(), self.fd, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made it for us.
        Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
    }

    /// Makes the interface again on the descriptor. True if it was in another network namespace,
    /// false if it was deleted.
    ///
    /// # Errors
    /// What the kernel says, such as ESRCH where the process has ended, or EPERM where it may not
    /// be looked into.
    pub fn attach(&self, ifname: &str) -> io::Result<bool> {
        let tun = self.borrow()?;
        let moved = moved_device::delete_elsewhere(&tun)?;
        let kinds = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        device::set_interface(tun.as_raw_fd(), ifname, kinds)?;
        // Offloads are left off: the guest is given whole packets with their checksums, which every
        // driver takes.
        let chosen = self
            .header
            .filter(|header| *header >= HEADER_V1 || self.since.elapsed() > DRIVER_STARTS);
        let header = chosen.unwrap_or(HEADER_V1);
        // SAFETY: the pointer is to a c_int that lives across the call.
        device::checked(unsafe {
            libc::ioctl(
                tun.as_raw_fd(),
                libc::TUNSETVNETHDRSZ as _,
                &raw const header,
            )
        })?;
        Ok(moved)
    }
}

/// The number of a process's descriptor of the TAP.
fn descriptor(pid: i32, ifname: &str) -> Option<RawFd> {
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten() {
        let is_tun = fs::read_link(entry.path()).is_ok_and(|to| to.as_os_str() == "/dev/net/tun");
        let Some(fd) = entry
            .file_name()
            .to_str()
            .and_then(|fd| fd.parse().ok())
            .filter(|_| is_tun)
        else {
            continue;
        };
        let Ok(info) = fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")) else {
            continue;
        };
        if info.lines().any(|line| {
            line.strip_prefix("iff:")
                .is_some_and(|name| name.trim() == ifname)
        }) {
            return Some(fd);
        }
    }
    None
}

fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: the arguments are numbers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}
