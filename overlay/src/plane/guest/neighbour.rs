//! The frames by which a router asks a guest for its Ethernet address, and the guest's answers: ARP
//! (RFC 826) and neighbour discovery (RFC 4861).

use super::config::{GATEWAY_V6, GuestPort};
use crate::plane::shape::packet::ETHERNET_LEN;
use etherparse::PacketBuilder;
use std::net::Ipv6Addr;

const BROADCAST: [u8; 6] = [0xff; 6];
const ARP: [u8; 2] = [0x08, 0x06];
const ARP_REPLY: [u8; 2] = [0, 2];
/// Ethernet, IPv4, and the lengths of their addresses (RFC 826).
const ARP_KIND: [u8; 6] = [0, 1, 0x08, 0, 6, 4];
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const HOPS: u8 = 255;

/// Whether a guest's frame says which Ethernet address it has.
pub(crate) fn is_answer(frame: &[u8], v4: [u8; 4], v6: &[Ipv6Addr]) -> bool {
    let Some(packet) = frame.get(ETHERNET_LEN..) else {
        return false;
    };
    match [frame[12], frame[13]] {
        ARP => packet.len() >= 28 && packet[6..8] == ARP_REPLY && packet[14..18] == v4,
        [0x86, 0xdd] => {
            let target = packet
                .get(48..64)
                .and_then(|bytes| <[u8; 16]>::try_from(bytes).ok());
            let is_advertisement =
                packet.len() >= 64 && packet[6] == 58 && packet[40] == NEIGHBOUR_ADVERTISEMENT;
            is_advertisement && target.is_some_and(|target| v6.contains(&Ipv6Addr::from(target)))
        }
        _ => false,
    }
}

/// An ARP request, sent to the guest alone or `widely` to all, and a solicitation for each IPv6
/// address.
pub(crate) fn questions(config: &GuestPort, widely: bool) -> Vec<Vec<u8>> {
    let mut arp = Vec::with_capacity(42);
    arp.extend_from_slice(if widely { &BROADCAST } else { &config.mac });
    arp.extend_from_slice(&config.gateway_mac);
    arp.extend_from_slice(&ARP);
    arp.extend_from_slice(&ARP_KIND);
    arp.extend_from_slice(&[0, 1]);
    arp.extend_from_slice(&config.gateway_mac);
    arp.extend_from_slice(&config.gateway.octets());
    arp.extend_from_slice(&[0; 6]);
    arp.extend_from_slice(&config.v4.octets());
    let solicitations = config
        .v6
        .iter()
        .filter_map(|addr| solicitation(config.gateway_mac, addr));
    std::iter::once(arp).chain(solicitations).collect()
}

fn solicitation(gateway_mac: [u8; 6], target: &Ipv6Addr) -> Option<Vec<u8>> {
    let last = target.octets();
    let group = Ipv6Addr::new(
        0xff02,
        0,
        0,
        0,
        0,
        1,
        0xff00 | u16::from(last[13]),
        u16::from_be_bytes([last[14], last[15]]),
    );
    let to = [0x33, 0x33, 0xff, last[13], last[14], last[15]];
    let mut body = last.to_vec();
    // The asker's Ethernet address (RFC 4861 §4.6.1).
    body.extend_from_slice(&[1, 1]);
    body.extend_from_slice(&gateway_mac);
    let mut frame = Vec::with_capacity(86);
    let builder =
        PacketBuilder::ethernet2(gateway_mac, to).ipv6(GATEWAY_V6.octets(), group.octets(), HOPS);
    builder
        .icmpv6_raw(NEIGHBOUR_SOLICITATION, 0, [0; 4])
        .write(&mut frame, &body)
        .ok()?;
    Some(frame)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const V4: [u8; 4] = [10, 77, 0, 9];

    fn v6() -> Ipv6Addr {
        "fd77::9".parse().unwrap()
    }

    fn arp(operation: u8, sender: [u8; 4]) -> Vec<u8> {
        let mut frame = vec![2; 12];
        frame.extend_from_slice(&ARP);
        frame.extend_from_slice(&ARP_KIND);
        frame.extend_from_slice(&[0, operation, 2, 2, 2, 2, 2, 2]);
        frame.extend_from_slice(&sender);
        frame.extend_from_slice(&[2, 2, 2, 2, 2, 2, 10, 77, 0, 1]);
        frame
    }

    fn discovery(kind: u8, target: Ipv6Addr) -> Vec<u8> {
        let mut frame = Vec::new();
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv6(
            target.octets(),
            GATEWAY_V6.octets(),
            HOPS,
        );
        builder
            .icmpv6_raw(kind, 0, [0; 4])
            .write(&mut frame, &target.octets())
            .unwrap();
        frame
    }

    #[test]
    fn only_the_guests_own_word_of_its_own_address_is_an_answer() {
        let answers = |frame: &[u8]| is_answer(frame, V4, &[v6()]);
        assert!(answers(&arp(2, V4)) && answers(&discovery(NEIGHBOUR_ADVERTISEMENT, v6())));
        assert!(!answers(&arp(1, V4)), "a question of its own");
        assert!(!answers(&arp(2, [10, 77, 0, 8])), "another's address");
        assert!(!answers(&discovery(NEIGHBOUR_SOLICITATION, v6())));
        assert!(!answers(&discovery(
            NEIGHBOUR_ADVERTISEMENT,
            "fd77::8".parse().unwrap()
        )));
    }

    #[test]
    fn a_solicitation_goes_to_its_targets_group_with_a_valid_sum() {
        let frame = solicitation([6; 6], &"fd77::1:0203:0405".parse().unwrap()).unwrap();
        assert_eq!(frame[..6], [0x33, 0x33, 0xff, 3, 4, 5]);
        let parsed = etherparse::PacketHeaders::from_ethernet_slice(&frame).unwrap();
        let Some(etherparse::TransportHeader::Icmpv6(icmp)) = parsed.transport else {
            panic!("{parsed:?}")
        };
        assert_eq!(frame[54], NEIGHBOUR_SOLICITATION);
        let Some(etherparse::NetHeaders::Ipv6(ip, _)) = parsed.net else {
            panic!("no IPv6")
        };
        let sum = icmp
            .icmp_type
            .calc_checksum(ip.source, ip.destination, parsed.payload.slice())
            .unwrap();
        assert_eq!((icmp.checksum, ip.hop_limit), (sum, HOPS));
    }

    proptest! {
        #[test]
        fn any_frame_of_a_guest_is_looked_at_without_panic(
            frame in proptest::collection::vec(any::<u8>(), 0..120)
        ) {
            let _ = is_answer(&frame, V4, &[v6()]);
        }
    }
}
