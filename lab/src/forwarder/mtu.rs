//! Links with a small MTU. A packet that is too large is fragmented if its sender allows that (RFC
//! 791 §3.2). Otherwise it is dropped and the sender gets an ICMP message, from which it learns the
//! path's MTU (RFC 1191, RFC 8201); a black hole sends none, as routers and firewalls that drop
//! ICMP (RFC 2923 §2.1).

use super::cut::{self, get, put, sum};
use std::time::Duration;
use tun_rs::{VIRTIO_NET_HDR_LEN, VirtioNetHdr};

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`: the transport's checksum is still to be completed.
const NEEDS_CHECKSUM: u8 = 1;
/// Bits of the IPv4 word of flags and fragment offset.
const DONT_FRAGMENT: u16 = 0x4000;
const MORE_FRAGMENTS: u16 = 0x2000;
/// The source addresses of "packet too big" messages: the core's own.
const CORE_V4: [u8; 4] = [198, 18, 0, 1];
const CORE_V6: [u8; 16] = [0x20, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
/// How many bytes of the packet an ICMP message quotes: RFC 1812 §4.3.2.3 wants 576 bytes in all,
/// RFC 4443 §3.2 as much as fits the least MTU.
const QUOTED_V4: usize = 576 - 28;
const QUOTED_V6: usize = 1280 - 48;

/// Whether any packet of the wire that `packet` (behind its offload header) stands for is larger
/// than `mtu`; 0 is no limit.
pub(super) fn is_too_large(packet: &[u8], mtu: u16) -> bool {
    let pieces = cut::pieces(packet);
    let largest = if pieces.count > 1 {
        pieces.header + pieces.payload
    } else {
        packet.len() - VIRTIO_NET_HDR_LEN
    };
    mtu > 0 && largest > usize::from(mtu)
}

/// The fragments of the packet, each behind an empty offload header; none if it must not be
/// fragmented.
pub(super) fn fragments(packet: &[u8], mtu: u16) -> Vec<Vec<u8>> {
    let mut fragments = Vec::new();
    let ip = &packet[VIRTIO_NET_HDR_LEN..];
    if ip.len() < 20 || ip[0] >> 4 != 4 || get(ip, 6) & DONT_FRAGMENT != 0 {
        return fragments;
    }
    if cut::pieces(packet).count <= 1 {
        fragment(packet, mtu, &mut fragments);
    } else {
        // Each piece has a time of its own, without bursts.
        let times: Vec<_> = (0..cut::pieces(packet).count as u64)
            .map(|n| Some(Duration::from_nanos(n)))
            .collect();
        cut::runs(
            packet,
            &times,
            Duration::ZERO,
            &mut Vec::new(),
            |_, piece| fragment(piece, mtu, &mut fragments),
        );
    }
    fragments
}

fn fragment(packet: &[u8], mtu: u16, out: &mut Vec<Vec<u8>>) {
    let Ok(offload) = VirtioNetHdr::decode(packet) else {
        return;
    };
    let mut whole = packet[VIRTIO_NET_HDR_LEN..].to_vec();
    if offload.flags & NEEDS_CHECKSUM != 0 {
        let (start, at) = (
            usize::from(offload.csum_start),
            usize::from(offload.csum_start) + usize::from(offload.csum_offset),
        );
        if at + 2 > whole.len() {
            return;
        }
        let mut summed = whole[start..].to_vec();
        summed.resize(summed.len().next_multiple_of(2), 0);
        put(&mut whole, at, !sum(&summed, 0));
    }
    let header = usize::from(whole[0] & 15) * 4;
    if header < 20 || whole.len() <= header {
        return;
    }
    let room = (usize::from(mtu) - header) & !7;
    let (flags, count) = (get(&whole, 6), (whole.len() - header).div_ceil(room));
    for (number, payload) in whole[header..].chunks(room).enumerate() {
        let mut fragment = vec![0; VIRTIO_NET_HDR_LEN];
        fragment.extend_from_slice(&whole[..header]);
        fragment.extend_from_slice(payload);
        let ip = &mut fragment[VIRTIO_NET_HDR_LEN..];
        let length = ip.len() as u16;
        put(ip, 2, length);
        let more = if number + 1 < count {
            MORE_FRAGMENTS
        } else {
            0
        };
        put(ip, 6, (flags | more) + (number * room / 8) as u16);
        put(ip, 10, 0);
        let checksum = !sum(&ip[..header], 0);
        put(ip, 10, checksum);
        out.push(fragment);
    }
}

/// The ICMP message to the packet's sender, behind an empty offload header; `None` if the packet is
/// not IP.
pub(super) fn icmp_error(packet: &[u8], mtu: u16) -> Option<Vec<u8>> {
    let offender = packet.get(VIRTIO_NET_HDR_LEN..)?;
    let mut message = vec![0; VIRTIO_NET_HDR_LEN];
    match offender.first()? >> 4 {
        4 if offender.len() >= 20 => {
            let quoted = &offender[..offender.len().min(QUOTED_V4)];
            // Destination unreachable, fragmentation needed (RFC 792, RFC 1191 §4).
            let mut icmp = vec![3, 4, 0, 0, 0, 0];
            icmp.extend(mtu.to_be_bytes());
            icmp.extend_from_slice(quoted);
            close(&mut icmp, 0);
            let mut ip = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 1, 0, 0];
            put(&mut ip, 2, (20 + icmp.len()) as u16);
            ip.extend(CORE_V4);
            ip.extend_from_slice(&offender[12..16]);
            let checksum = !sum(&ip, 0);
            put(&mut ip, 10, checksum);
            message.extend(ip);
            message.extend(icmp);
        }
        6 if offender.len() >= 40 => {
            let quoted = &offender[..offender.len().min(QUOTED_V6)];
            // Packet too big (RFC 4443 §3.2).
            let mut icmp = vec![2, 0, 0, 0, 0, 0];
            icmp.extend(mtu.to_be_bytes());
            icmp.extend_from_slice(quoted);
            let addresses = [CORE_V6.as_slice(), &offender[8..24]].concat();
            let pseudo = sum(&addresses, 58 + icmp.len() as u32);
            close(&mut icmp, u32::from(pseudo));
            message.extend([0x60, 0, 0, 0]);
            message.extend((icmp.len() as u16).to_be_bytes());
            message.extend([58, 64]);
            message.extend(addresses);
            message.extend(icmp);
        }
        _ => return None,
    }
    Some(message)
}

/// Writes the checksum of an ICMP message on top of `start`.
fn close(icmp: &mut [u8], start: u32) {
    let mut even = icmp.to_vec();
    even.resize(even.len().next_multiple_of(2), 0);
    put(icmp, 2, !sum(&even, start));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn packet(flags: u16, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; VIRTIO_NET_HDR_LEN + 20];
        let ip = &mut packet[VIRTIO_NET_HDR_LEN..];
        (ip[0], ip[8], ip[9]) = (0x45, 64, 17);
        put(ip, 2, 20 + payload.len() as u16);
        put(ip, 6, flags);
        packet.extend_from_slice(payload);
        packet
    }

    proptest! {
        #[test]
        fn fragments_are_small_enough_and_hold_every_byte_in_its_place(
            payload in prop::collection::vec(any::<u8>(), 1..4000), mtu in 576u16..1500
        ) {
            let whole = packet(0, &payload);
            prop_assume!(is_too_large(&whole, mtu));
            let parts = fragments(&whole, mtu);
            let mut joined = Vec::new();
            for (number, part) in parts.iter().enumerate() {
                let ip = &part[VIRTIO_NET_HDR_LEN..];
                prop_assert!(!is_too_large(part, mtu));
                prop_assert_eq!(usize::from(get(ip, 2)), ip.len());
                prop_assert_eq!(sum(&ip[..20], 0), 0xffff);
                prop_assert_eq!(usize::from(get(ip, 6) & 0x1fff) * 8, joined.len());
                prop_assert_eq!(get(ip, 6) & MORE_FRAGMENTS != 0, number + 1 < parts.len());
                joined.extend_from_slice(&ip[20..]);
            }
            prop_assert_eq!(joined, payload);
        }

        #[test]
        fn any_bytes_are_fragmented_and_refused_without_panic(
            bytes in prop::collection::vec(any::<u8>(), VIRTIO_NET_HDR_LEN..3000),
            mtu in 576u16..1500
        ) {
            let _ = (is_too_large(&bytes, mtu), fragments(&bytes, mtu), icmp_error(&bytes, mtu));
        }
    }

    #[test]
    fn what_must_not_be_fragmented_is_refused_with_the_mtu() {
        let whole = packet(DONT_FRAGMENT, &[0; 1400]);
        assert!(
            is_too_large(&whole, 1280) && !is_too_large(&whole, 1420) && !is_too_large(&whole, 0)
        );
        assert_eq!(fragments(&whole, 1280), Vec::<Vec<u8>>::new());
        let message = icmp_error(&whole, 1280).unwrap();
        let icmp = &message[VIRTIO_NET_HDR_LEN + 20..];
        assert_eq!(
            (icmp[0], icmp[1], get(icmp, 6), sum(icmp, 0)),
            (3, 4, 1280, 0xffff)
        );
        assert_eq!(icmp.len() + 20, 576);
    }
}
