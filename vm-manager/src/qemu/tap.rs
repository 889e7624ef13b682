//! The TAP interface that a guest's port ends in.
//!
//! It is not persistent: QEMU holds its only descriptor, so the interface goes with the guest,
//! however that ends. The kernel must not send on it (the daemon answers the guest), so it gets no
//! address, IPv6 autoconfiguration included.

use crate::{Error, error::io_at};
use std::{
    fs::{self, OpenOptions},
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
};

const TUN: &str = "/dev/net/tun";

nix::ioctl_write_int!(tunsetiff, b'T', 202);
nix::ioctl_write_ptr_bad!(set_mtu, libc::SIOCSIFMTU, libc::ifreq);
nix::ioctl_write_ptr_bad!(set_flags, libc::SIOCSIFFLAGS, libc::ifreq);
nix::ioctl_read_bad!(get_flags, libc::SIOCGIFFLAGS, libc::ifreq);

/// Creates or takes up the interface `name`, up, and returns the descriptor that QEMU reads and
/// writes frames by.
pub(crate) fn open(name: &str, mtu: u16) -> Result<OwnedFd, Error> {
    let mut request = request(name)?;
    let tun = OpenOptions::new()
        .read(true)
        .write(true)
        .open(TUN)
        .map_err(io_at("open the TUN device", TUN))?;
    let at = |step| {
        move |e: nix::Error| Error::Io {
            step,
            path: name.into(),
            source: io::Error::from(e),
        }
    };
    request.ifr_ifru.ifru_flags =
        (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: TUNSETIFF reads one ifreq, which `request` is and which outlives the call.
    unsafe {
        tunsetiff(
            tun.as_raw_fd(),
            &raw const request as nix::sys::ioctl::ioctl_param_type,
        )
    }
    .map_err(at("create the guest's TAP"))?;
    // Before it goes up, or the kernel already sends router solicitations into the guest.
    let sysctl = Path::new("/proc/sys/net/ipv6/conf")
        .join(name)
        .join("disable_ipv6");
    if sysctl.exists() {
        fs::write(&sysctl, "1")
            .map_err(io_at("keep the kernel's IPv6 off the guest's TAP", &sysctl))?;
    }
    // Nor may it receive what a guest sends before its port is attached, which installs the filter
    // again.
    if let Err(error) = p2pvm_overlay::keep_apart(name) {
        tracing::debug!(
            name,
            error = %p2pvm_overlay::chain(&error),
            "the kernel has no filter for a guest's TAP"
        );
    }
    let control =
        std::net::UdpSocket::bind("127.0.0.1:0").or_else(|_| std::net::UdpSocket::bind("[::1]:0"));
    let control = control.map_err(io_at("set up the guest's TAP", name))?;
    request.ifr_ifru.ifru_mtu = i32::from(mtu);
    // SAFETY: each of these reads or fills the one ifreq given, with the union member that its
    // number names.
    unsafe {
        set_mtu(control.as_raw_fd(), &raw const request)
            .map_err(at("set the MTU of the guest's TAP"))?;
        get_flags(control.as_raw_fd(), &raw mut request)
            .map_err(at("read the flags of the guest's TAP"))?;
        request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short;
        set_flags(control.as_raw_fd(), &raw const request)
            .map_err(at("bring the guest's TAP up"))?;
    }
    Ok(tun.into())
}

fn request(name: &str) -> Result<libc::ifreq, Error> {
    // SAFETY: ifreq is plain data, of which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let fits =
        !name.is_empty() && name.len() < request.ifr_name.len() && !name.contains(['/', '\0', ' ']);
    if !fits {
        return Err(Error::Refused(format!(
            "'{name}' is no interface name: 1 to 15 characters without spaces and slashes"
        )));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invalid_interface_name_is_refused_before_the_kernel_sees_it() {
        for name in ["", "sixteen-letters-", "a/b", "a b"] {
            assert!(matches!(open(name, 1340), Err(Error::Refused(_))), "{name}");
        }
    }
}
