//! The few fields of an IP packet or an Ethernet frame that the plane reads. Checked accessors, no
//! copies.

use super::checksum;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Source and destination of an IP packet; `None` if it is too short or of an unknown version.
pub fn addresses(packet: &[u8]) -> Option<(IpAddr, IpAddr)> {
    match packet.first()? >> 4 {
        4 => {
            let bytes: &[u8; 20] = packet.first_chunk()?;
            let at = |i: usize| {
                IpAddr::V4(Ipv4Addr::new(
                    bytes[i],
                    bytes[i + 1],
                    bytes[i + 2],
                    bytes[i + 3],
                ))
            };
            Some((at(12), at(16)))
        }
        6 => {
            let bytes: &[u8; 40] = packet.first_chunk()?;
            let at = |i: usize| {
                IpAddr::V6(Ipv6Addr::from(
                    <[u8; 16]>::try_from(&bytes[i..i + 16]).unwrap_or_default(),
                ))
            };
            Some((at(8), at(24)))
        }
        _ => None,
    }
}

/// Whether the overlay carries packets to this address: no multicast, broadcast, link-local,
/// loopback or unspecified one.
pub fn is_unicast(addr: &IpAddr) -> bool {
    match addr {
        IpAddr::V4(a) => {
            !(a.is_multicast()
                || a.is_broadcast()
                || a.is_link_local()
                || a.is_loopback()
                || a.is_unspecified())
        }
        IpAddr::V6(a) => {
            !(a.is_multicast()
                || a.is_unicast_link_local()
                || a.is_loopback()
                || a.is_unspecified())
        }
    }
}

/// Whether this is an IPv6 site-local address: deprecated (RFC 3879), but QEMU's own NAT still
/// gives the same one to every machine behind it.
pub fn is_site_local(addr: &IpAddr) -> bool {
    matches!(addr, IpAddr::V6(a) if a.segments()[0] & 0xffc0 == 0xfec0)
}

/// Bytes of an Ethernet header without tag.
pub const ETHERNET_LEN: usize = 14;

/// What the plane does with a guest's frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guest {
    /// ARP, neighbour discovery or DHCP: the daemon answers.
    ForDaemon,
    /// An IP packet for the overlay.
    Ip,
    /// Neither: it is dropped.
    Drop,
}

/// Sorts a frame that a guest sent.
pub fn sort_guest_frame(frame: &[u8]) -> Guest {
    let Some(header) = frame.first_chunk::<ETHERNET_LEN>() else {
        return Guest::Drop;
    };
    let packet = &frame[ETHERNET_LEN..];
    match (header[12], header[13]) {
        (0x08, 0x06) => Guest::ForDaemon,
        (0x08, 0x00) => {
            let Some(ip) = packet.first_chunk::<20>() else {
                return Guest::Drop;
            };
            let transport = usize::from(ip[0] & 15) * 4;
            let first_fragment = u16::from_be_bytes([ip[6], ip[7]]) & 0x1fff == 0;
            if ip[9] == 17 && first_fragment && port(packet, transport) == Some(67) {
                Guest::ForDaemon
            } else {
                Guest::Ip
            }
        }
        (0x86, 0xdd) => {
            let Some(ip) = packet.first_chunk::<40>() else {
                return Guest::Drop;
            };
            match (ip[6], packet.get(40)) {
                // Router and neighbour solicitation and advertisement (RFC 4861), and multicast
                // listener reports behind hop-by-hop.
                (58, Some(133..=136)) => Guest::ForDaemon,
                (17, _) if port(packet, 40) == Some(547) => Guest::ForDaemon,
                _ => Guest::Ip,
            }
        }
        _ => Guest::Drop,
    }
}

fn port(packet: &[u8], transport: usize) -> Option<u16> {
    packet
        .get(transport + 2..transport + 4)
        .map(|b| u16::from_be_bytes([b[0], b[1]]))
}

/// Completes the checksum that a device left to us: the ones' complement sum from `start` on, at
/// `start + offset`. False if the offsets lie outside.
pub fn complete_checksum(packet: &mut [u8], start: usize, offset: usize) -> bool {
    if start + offset + 2 > packet.len() {
        return false;
    }
    let sum = match checksum::finish(checksum::add(&packet[start..], 0)) {
        // A computed zero is sent as all ones: in UDP zero says "no checksum" (RFC 768).
        [0, 0] => [0xff, 0xff],
        sum => sum,
    };
    packet[start + offset..start + offset + 2].copy_from_slice(&sum);
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_sort_without_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..120), a: u8, b: u8,
            start in 0usize..200, offset in 0usize..40
        ) {
            let _ = (addresses(&bytes), sort_guest_frame(&bytes));
            let mut bytes = bytes;
            if bytes.len() > 14 {
                (bytes[12], bytes[13]) = [(8, 6), (8, 0), (0x86, 0xdd), (a, b)][usize::from(a) % 4];
            }
            let _ = sort_guest_frame(&bytes);
            let _ = complete_checksum(&mut bytes, start, offset);
        }
    }

    #[test]
    fn dhcp_arp_and_neighbour_discovery_are_for_the_daemon() {
        let builder = etherparse::PacketBuilder::ethernet2([2; 6], [0xff; 6])
            .ipv4([0; 4], [255; 4], 64)
            .udp(68, 67);
        let mut frame = Vec::new();
        builder.write(&mut frame, &[0; 10]).unwrap();
        assert_eq!(sort_guest_frame(&frame), Guest::ForDaemon);
        let mut frame = Vec::new();
        etherparse::PacketBuilder::ethernet2([2; 6], [3; 6])
            .ipv4([10, 0, 0, 2], [10, 0, 0, 3], 64)
            .udp(68, 53)
            .write(&mut frame, &[])
            .unwrap();
        assert_eq!(sort_guest_frame(&frame), Guest::Ip);
        assert_eq!(
            addresses(&frame[ETHERNET_LEN..]),
            Some((IpAddr::from([10, 0, 0, 2]), IpAddr::from([10, 0, 0, 3])))
        );
    }
}
