//! A TUN or TAP that another program has moved into another network namespace is deleted there. Its
//! descriptor stays open, detached, and can take a new device here, as after any deletion. Moved
//! back, the device would come without its addresses, and perhaps under a name in use here.

use nix::sched::{CloneFlags, setns};
use p2pvm_host::{device, links::links};
use std::{
    ffi::CStr,
    fs, io, mem,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    os::unix::fs::MetadataExt,
    thread,
};

/// From linux/if_tun.h; since Linux 5.4.
const TUNGETDEVNETNS: libc::c_ulong = 0x54e3;

/// Deletes the device of a descriptor if it is in another network namespace than the calling
/// thread. True if it was there.
///
/// # Errors
/// What the kernel says, such as EPERM for a namespace in which this process may not change
/// anything.
pub(crate) fn delete_elsewhere(tun: &impl AsFd) -> io::Result<bool> {
    // SAFETY: the request takes no argument.
    let namespace = unsafe { libc::ioctl(tun.as_fd().as_raw_fd(), TUNGETDEVNETNS as _) };
    if namespace < 0 {
        let error = io::Error::last_os_error();
        // Detached: it has no device.
        return if error.raw_os_error() == Some(libc::EBADFD) {
            Ok(false)
        } else {
            Err(error)
        };
    }
    // SAFETY: the kernel has just made it for us.
    let namespace = fs::File::from(unsafe { OwnedFd::from_raw_fd(namespace) });
    if namespace.metadata()?.ino() == fs::metadata("/proc/thread-self/ns/net")?.ino() {
        return Ok(false);
    }
    let name = name(tun)?;
    // On a thread of its own, which stays in that namespace until it ends.
    thread::scope(|scope| {
        let deleting = scope.spawn(|| {
            setns(&namespace, CloneFlags::CLONE_NEWNET)?;
            let link = links()?
                .into_iter()
                .find(|link| link.name == name)
                .ok_or(io::ErrorKind::NotFound)?;
            device::delete(link.index)
        });
        deleting
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread that deletes it has failed")))
    })?;
    Ok(true)
}

/// The name of a descriptor's device, in whichever network namespace.
fn name(tun: &impl AsFd) -> io::Result<String> {
    // SAFETY: ifreq is a plain C structure for which all zeros is a value.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    // SAFETY: the request lives across the call, which writes no more than it.
    if unsafe {
        libc::ioctl(
            tun.as_fd().as_raw_fd(),
            libc::TUNGETIFF as _,
            &raw mut request,
        )
    } < 0
    {
        return Err(io::Error::last_os_error());
    }
    let bytes = request.ifr_name.map(|byte| byte as u8);
    let name = CStr::from_bytes_until_nul(&bytes).map_err(|_| io::ErrorKind::InvalidData)?;
    Ok(name.to_string_lossy().into_owned())
}
