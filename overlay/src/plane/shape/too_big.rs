//! A router's answers to packets that do not fit: ICMP "fragmentation needed" (RFC 1191) and ICMPv6
//! "packet too big" (RFC 4443 §3.2). The sender's TCP then sends smaller segments. Only packets
//! that may be refused are: IPv4 with "don't fragment" set, and IPv6 above 1280 bytes.

use super::packet::complete_checksum;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The smallest MTU that may be reported for IPv6 (RFC 8200 §5).
const V6_MIN: usize = 1280;
/// The smallest MTU that IPv4 hosts accept (RFC 1191 §3; Linux: 552).
const V4_MIN: usize = 576;
/// How many bytes of a refused IPv4 packet are sent back (RFC 1812 §4.3.2.3: as many as fit into
/// 576).
const V4_QUOTE: usize = 548;
/// How many bytes of a refused IPv6 packet are sent back (RFC 4443 §2.4: as many as fit into 1280).
const V6_QUOTE: usize = 1232;

/// The answer to `packet`, which is longer than `room` bytes, as if from `router` (of the packet's
/// family). `None`: the packet may not be refused.
pub fn refusal(packet: &[u8], room: usize, router: IpAddr) -> Option<Vec<u8>> {
    match (packet.first()? >> 4, router) {
        (4, IpAddr::V4(router)) => refuse_v4(packet, room, router),
        (6, IpAddr::V6(router)) => refuse_v6(packet, room, router),
        _ => None,
    }
}

fn refuse_v4(packet: &[u8], room: usize, router: Ipv4Addr) -> Option<Vec<u8>> {
    let header: &[u8; 20] = packet.first_chunk()?;
    let flags = u16::from_be_bytes([header[6], header[7]]);
    let (dont_fragment, offset) = (flags & 0x4000 != 0, flags & 0x1fff);
    // No answer to fragments but the first, and none to ICMP errors (RFC 1122 §3.2.2).
    let error = header[9] == 1
        && packet
            .get(usize::from(header[0] & 15) * 4)
            .is_none_or(|kind| ![0, 8, 13, 15, 17].contains(kind));
    if !dont_fragment || offset != 0 || error || packet.len() <= room.max(V4_MIN) {
        return None;
    }
    let quote = &packet[..packet.len().min(V4_QUOTE)];
    let mut out = vec![0; 28 + quote.len()];
    let total = u16::try_from(out.len()).ok()?;
    out[0] = 0x45;
    out[2..4].copy_from_slice(&total.to_be_bytes());
    (out[8], out[9]) = (64, 1);
    out[12..16].copy_from_slice(&router.octets());
    out[16..20].copy_from_slice(&header[12..16]);
    (out[20], out[21]) = (3, 4);
    out[26..28].copy_from_slice(&u16::try_from(room.max(V4_MIN)).ok()?.to_be_bytes());
    out[28..].copy_from_slice(quote);
    complete_checksum(&mut out[..20], 0, 10);
    complete_checksum(&mut out, 20, 2);
    Some(out)
}

fn refuse_v6(packet: &[u8], room: usize, router: Ipv6Addr) -> Option<Vec<u8>> {
    let header: &[u8; 40] = packet.first_chunk()?;
    // ICMPv6 errors have types below 128 (RFC 4443 §2.4 e.1).
    let error = header[6] == 58 && packet.get(40).is_none_or(|kind| *kind < 128);
    if error || packet.len() <= room.max(V6_MIN) {
        return None;
    }
    let quote = &packet[..packet.len().min(V6_QUOTE)];
    let mut out = vec![0; 48 + quote.len()];
    let payload = u16::try_from(8 + quote.len()).ok()?;
    out[0] = 0x60;
    out[4..6].copy_from_slice(&payload.to_be_bytes());
    (out[6], out[7]) = (58, 64);
    out[8..24].copy_from_slice(&router.octets());
    out[24..40].copy_from_slice(&header[8..24]);
    (out[40], out[41]) = (2, 0);
    out[44..48].copy_from_slice(&u32::try_from(room.max(V6_MIN)).ok()?.to_be_bytes());
    out[48..].copy_from_slice(quote);
    // The pseudo-header's sum stands in the checksum field while the rest is summed (RFC 8200
    // §8.1).
    let mut pseudo = out[8..40].to_vec();
    pseudo.extend_from_slice(&u32::from(payload).to_be_bytes());
    pseudo.extend_from_slice(&[0, 0, 0, 58]);
    let sum = pseudo
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum::<u32>();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    out[42..44].copy_from_slice(&(folded as u16).to_be_bytes());
    complete_checksum(&mut out, 40, 2);
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn v4(len: usize, dont_fragment: bool) -> Vec<u8> {
        let mut ip = etherparse::Ipv4Header::new(
            0,
            64,
            etherparse::IpNumber::TCP,
            [10, 0, 0, 1],
            [10, 0, 0, 2],
        )
        .unwrap();
        ip.dont_fragment = dont_fragment;
        ip.set_payload_len(len - 20).unwrap();
        let mut packet = ip.to_bytes().to_vec();
        packet.resize(len, 7);
        packet
    }

    fn v6(len: usize) -> Vec<u8> {
        let mut packet = Vec::new();
        let builder = etherparse::PacketBuilder::ipv6([1; 16], [2; 16], 64).udp(1, 2);
        builder.write(&mut packet, &vec![9; len - 48]).unwrap();
        packet
    }

    #[test]
    fn the_answer_goes_to_the_sender_and_names_the_size() {
        let answer = refusal(&v4(1340, true), 1208, "10.0.0.9".parse().unwrap()).unwrap();
        let parsed = etherparse::SlicedPacket::from_ip(&answer).unwrap();
        let Some(etherparse::TransportSlice::Icmpv4(icmp)) = parsed.transport else {
            panic!("no ICMP")
        };
        let wanted =
            etherparse::icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 1208 };
        assert_eq!(
            icmp.icmp_type(),
            etherparse::Icmpv4Type::DestinationUnreachable(wanted)
        );
        assert_eq!(answer[16..20], [10, 0, 0, 1]);
        assert_eq!(
            etherparse::checksum::Sum16BitWords::new()
                .add_slice(&answer[..20])
                .ones_complement(),
            0,
            "the header's checksum"
        );
        assert_eq!(
            etherparse::checksum::Sum16BitWords::new()
                .add_slice(&answer[20..])
                .ones_complement(),
            0,
            "the checksum"
        );
    }

    #[test]
    fn ipv6_is_refused_above_1280_only_and_with_a_right_checksum() {
        let router: IpAddr = "fd00::9".parse().unwrap();
        assert_eq!(refusal(&v6(1280), 1188, router), None);
        let answer = refusal(&v6(1340), 1188, router).unwrap();
        let parsed = etherparse::SlicedPacket::from_ip(&answer).unwrap();
        let Some(etherparse::TransportSlice::Icmpv6(icmp)) = parsed.transport else {
            panic!("no ICMPv6")
        };
        assert_eq!(
            icmp.icmp_type(),
            etherparse::Icmpv6Type::PacketTooBig { mtu: 1280 }
        );
        let (from, to) = (
            answer[8..24].try_into().unwrap(),
            answer[24..40].try_into().unwrap(),
        );
        assert!(icmp.is_checksum_valid(from, to));
        assert_eq!(answer[24..40], [1; 16]);
    }

    #[test]
    fn what_may_be_fragmented_is_not_refused() {
        assert_eq!(
            refusal(&v4(1340, false), 1208, "10.0.0.9".parse().unwrap()),
            None
        );
        assert_eq!(
            refusal(&v4(1208, true), 1208, "10.0.0.9".parse().unwrap()),
            None
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_looked_at_without_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..1500), room in 0usize..1400, v6: bool
        ) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() { *first = if v6 { 0x60 } else { 0x45 }; }
            let _ = refusal(&bytes, room, "10.0.0.9".parse().unwrap());
            let _ = refusal(&bytes, room, "fd00::9".parse().unwrap());
        }
    }
}
