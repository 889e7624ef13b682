//! Limits the TSO packets that the host gives the TUN to what leaves with one GSO send: a packet of 64 KiB would be cut into one
//! full batch and a rest of a few segments, and the rest costs as much as the batch.

use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket};
use std::{io, os::fd::AsRawFd};

/// From linux/netlink.h and linux/rtnetlink.h.
const RTM_NEWLINK: u16 = 16;
const NLM_F_REQUEST_ACK: u16 = 1 | 4;
const NLMSG_ERROR: u16 = 2;
const IFLA_GSO_MAX_SIZE: u16 = 41;
/// The kernel keeps so much of the limit for headers (MAX_TCP_HEADER); less is fine, more would make one segment too many.
const KEPT: usize = 250;
/// IPv4 and TCP headers with timestamps.
const HEADERS: usize = 52;

/// The largest TSO packet whose segments, of `mtu` bytes and `overhead` more each, are at most `bytes` together.
pub(super) fn largest_packet(mtu: usize, overhead: usize, bytes: usize) -> usize {
    let segments = bytes / (mtu + overhead);
    segments * mtu.saturating_sub(HEADERS) + HEADERS + KEPT
}

/// Sets the limit.
///
/// # Errors
/// What the kernel says; packets are then as large as it likes.
pub(super) fn limit_packets(index: u32, bytes: usize) -> io::Result<()> {
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
    let netlink = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
    sendto(netlink.as_raw_fd(), &message, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    let mut answer = [0; 256];
    let len = recv(netlink.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    let error = answer[..len].get(16..20).and_then(|b| b.try_into().ok()).map(i32::from_ne_bytes);
    match (u16::from_ne_bytes([answer[4], answer[5]]), error) {
        (NLMSG_ERROR, Some(0)) => Ok(()),
        (NLMSG_ERROR, Some(error)) => Err(io::Error::from_raw_os_error(-error)),
        _ => Err(io::ErrorKind::InvalidData.into()),
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
            assert!(segments * (mtu + 44) <= 65_400 && (segments + 1) * (mtu + 44) > 65_400, "{mtu}");
        }
    }
}
