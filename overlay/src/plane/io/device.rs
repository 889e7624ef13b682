//! What `tun-rs` cannot do to a TUN.
//!
//! [`limit_packets`] limits the host's TSO packets to what leaves with one GSO send: a packet of
//! 64 KiB would be cut into one full batch and a rest of a few segments, which costs as much as the
//! batch.
//!
//! [`attach`] makes a deleted device again on the descriptor that the packet threads hold: once the
//! kernel has detached it (reads return EBADFD), TUNSETIFF accepts it again, so the threads keep
//! their descriptor.

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};
use std::{
    ffi::CString,
    io, mem,
    os::fd::{AsFd, AsRawFd, RawFd},
};

/// From linux/netlink.h and linux/rtnetlink.h.
const RTM_NEWLINK: u16 = 16;
const NLM_F_REQUEST_ACK: u16 = 1 | 4;
const NLMSG_ERROR: u16 = 2;
const IFLA_GSO_MAX_SIZE: u16 = 41;
/// How many bytes of the limit the kernel keeps for headers (MAX_TCP_HEADER). Fewer are harmless,
/// more would make one segment too many.
const KEPT: usize = 250;
/// IPv4 and TCP headers with timestamps.
const HEADERS: usize = 52;

/// The largest TSO packet whose segments, of `mtu` bytes and `overhead` more each, are at most
/// `bytes` together.
pub(crate) fn largest_packet(mtu: usize, overhead: usize, bytes: usize) -> usize {
    let segments = bytes / (mtu + overhead);
    segments * mtu.saturating_sub(HEADERS) + HEADERS + KEPT
}

/// Limits the TSO packets of an interface to `bytes`.
///
/// # Errors
/// What the kernel says; packets are then as large as it likes.
pub(crate) fn limit_packets(index: u32, bytes: usize) -> io::Result<()> {
    // nlmsghdr, ifinfomsg, one attribute of four bytes.
    let mut message = Vec::with_capacity(40);
    message.extend_from_slice(&40u32.to_ne_bytes());
    message.extend_from_slice(&RTM_NEWLINK.to_ne_bytes());
    message.extend_from_slice(&NLM_F_REQUEST_ACK.to_ne_bytes());
    message.extend_from_slice(&[0; 12]);
    message.extend_from_slice(&index.to_ne_bytes());
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(&8u16.to_ne_bytes());
    message.extend_from_slice(&IFLA_GSO_MAX_SIZE.to_ne_bytes());
    message.extend_from_slice(&u32::try_from(bytes).unwrap_or(u32::MAX).to_ne_bytes());
    let netlink = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    sendto(
        netlink.as_raw_fd(),
        &message,
        &NetlinkAddr::new(0, 0),
        MsgFlags::empty(),
    )?;
    let mut answer = [0; 256];
    let len = recv(netlink.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    let error = answer[..len]
        .get(16..20)
        .and_then(|b| b.try_into().ok())
        .map(i32::from_ne_bytes);
    match (u16::from_ne_bytes([answer[4], answer[5]]), error) {
        (NLMSG_ERROR, Some(0)) => Ok(()),
        (NLMSG_ERROR, Some(error)) => Err(io::Error::from_raw_os_error(-error)),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Makes the device `name` on a descriptor whose device is gone, in the network namespace in which
/// the descriptor was opened, with the previous offloads.
///
/// # Errors
/// What the kernel says, such as EEXIST for a descriptor whose device is there, or EBUSY for a name
/// in use.
pub(crate) fn attach(tun: &impl AsFd, name: &str, joins_datagrams: bool) -> io::Result<()> {
    let fd = tun.as_fd().as_raw_fd();
    set_interface(
        fd,
        name,
        libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR,
    )?;
    let mut offloads = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
    if joins_datagrams {
        offloads |= libc::TUN_F_USO4 | libc::TUN_F_USO6;
    }
    // SAFETY: the argument is a number.
    checked(unsafe { libc::ioctl(fd, libc::TUNSETOFFLOAD as _, libc::c_ulong::from(offloads)) })
}

/// Makes the interface `name` of these kinds (IFF_...) on a descriptor of /dev/net/tun
/// (TUNSETIFF).
///
/// # Errors
/// What the kernel says.
pub(super) fn set_interface(fd: RawFd, name: &str, kinds: libc::c_int) -> io::Result<()> {
    let name = CString::new(name).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: ifreq is a plain C structure for which all zeros is a value.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    let bytes = name.as_bytes_with_nul();
    if bytes.len() > request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    request
        .ifr_name
        .iter_mut()
        .zip(bytes)
        .for_each(|(to, from)| *to = *from as libc::c_char);
    request.ifr_ifru.ifru_flags = kinds as libc::c_short;
    // SAFETY: the request lives across the call, which reads and writes no more than it.
    checked(unsafe { libc::ioctl(fd, libc::TUNSETIFF as _, &raw mut request) })
}

/// Gives the device its carrier back.
///
/// # Errors
/// What the kernel says.
pub(crate) fn set_carrier(tun: &impl AsFd) -> io::Result<()> {
    let (fd, on): (RawFd, libc::c_int) = (tun.as_fd().as_raw_fd(), 1);
    // SAFETY: the pointer is to a c_int that lives across the call.
    checked(unsafe { libc::ioctl(fd, libc::TUNSETCARRIER as _, &raw const on) })
}

/// The result of a system call that reports an error by a negative number.
pub(super) fn checked(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_of_the_limit_is_one_send() {
        for mtu in [1280, 1340, 1420, 9000] {
            let packet = largest_packet(mtu, 44, 65_400) - KEPT;
            let segments = (packet - HEADERS).div_ceil(mtu - HEADERS);
            assert!(
                segments * (mtu + 44) <= 65_400 && (segments + 1) * (mtu + 44) > 65_400,
                "{mtu}"
            );
        }
    }
}
