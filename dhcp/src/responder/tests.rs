//! A guest's conversation with its port, frame by frame; the checksums are checked as a guest
//! would.

use super::*;
use dhcproto::{
    Decodable, Decoder, Encodable,
    v4::{DhcpOption, Flags, Message, MessageType, OptionCode},
};
use etherparse::{ArpHardwareId, ArpOperation, ArpPacket, EtherType, PacketBuilder};
use proptest::prelude::*;

const MAC: [u8; 6] = [2, 1, 2, 3, 4, 5];
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const MINE: Ipv4Addr = Ipv4Addr::new(10, 77, 3, 9);
const NONE: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

fn port() -> Responder {
    let config = PortConfig::new(
        MAC,
        MINE,
        "10.77.0.0/16".parse().unwrap(),
        "web",
        "lab.p2p",
        1340,
    );
    Responder::new(config.with_v6("fd77:1:2:3::".parse().unwrap()))
}

fn one(port: &mut Responder, frame: &[u8]) -> Vec<u8> {
    let mut out = port.handle(Instant::now(), frame);
    assert_eq!(out.len(), 1);
    out.remove(0)
}

fn dhcp(kind: MessageType, source: Ipv4Addr, edit: impl FnOnce(&mut Message)) -> Vec<u8> {
    let mut message = Message::new_with_id(7, source, NONE, NONE, NONE, &MAC);
    message.opts_mut().insert(DhcpOption::MessageType(kind));
    edit(&mut message);
    let builder = PacketBuilder::ethernet2(MAC, [0xff; 6])
        .ipv4(source.octets(), [255; 4], 64)
        .udp(68, 67);
    let mut frame = Vec::new();
    builder
        .write(&mut frame, &message.to_vec().unwrap())
        .unwrap();
    frame
}

/// Destination MAC and address, and the message.
fn parse_dhcp(frame: &[u8]) -> ([u8; 6], Ipv4Addr, Message) {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let (
        Some(LinkSlice::Ethernet2(link)),
        Some(NetSlice::Ipv4(ip)),
        Some(TransportSlice::Udp(udp)),
    ) = (packet.link, packet.net, packet.transport)
    else {
        panic!("no UDP over IPv4")
    };
    let sum = udp
        .to_header()
        .calc_checksum_ipv4(&ip.header().to_header(), udp.payload())
        .unwrap();
    assert_eq!(
        (udp.checksum(), udp.source_port(), udp.destination_port()),
        (sum, 67, 68)
    );
    assert_eq!(
        (link.source(), ip.header().source_addr()),
        (GATEWAY_MAC, GATEWAY)
    );
    (
        link.destination(),
        ip.header().destination_addr(),
        Message::decode(&mut Decoder::new(udp.payload())).unwrap(),
    )
}

fn arp(operation: ArpOperation, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let arp = ArpPacket::new(
        ArpHardwareId::ETHERNET,
        EtherType::IPV4,
        operation,
        &MAC,
        &sender.octets(),
        &[0; 6],
        &target.octets(),
    )
    .unwrap();
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(MAC, [0xff; 6])
        .arp(arp)
        .write(&mut frame)
        .unwrap();
    frame
}

fn icmpv6(source: &str, to: &str, hops: u8, kind: u8, payload: &[u8]) -> Vec<u8> {
    let (source, to): (Ipv6Addr, Ipv6Addr) = (source.parse().unwrap(), to.parse().unwrap());
    let builder = PacketBuilder::ethernet2(MAC, [0x33, 0x33, 0, 0, 0, 2])
        .ipv6(source.octets(), to.octets(), hops)
        .icmpv6_raw(kind, 0, [0; 4]);
    let mut frame = Vec::new();
    builder.write(&mut frame, payload).unwrap();
    frame
}

/// Destination, type, second word and payload of a valid ICMPv6 message.
fn parse_icmpv6(frame: &[u8]) -> (Ipv6Addr, u8, [u8; 4], Vec<u8>) {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let (Some(NetSlice::Ipv6(ip)), Some(TransportSlice::Icmpv6(icmp))) =
        (packet.net, packet.transport)
    else {
        panic!("no ICMPv6")
    };
    assert!(icmp.is_checksum_valid(ip.header().source(), ip.header().destination()));
    assert_eq!(
        (ip.header().hop_limit(), ip.header().source_addr()),
        (255, GATEWAY_V6)
    );
    (
        ip.header().destination_addr(),
        icmp.type_u8(),
        icmp.bytes5to8(),
        icmp.payload().to_vec(),
    )
}

#[test]
fn discover_offer_request_ack_gives_the_address_and_all_settings() {
    let mut port = port();
    let discover = dhcp(MessageType::Discover, NONE, |m| {
        m.set_flags(Flags::default().set_broadcast());
        m.opts_mut()
            .insert(DhcpOption::ClientIdentifier(vec![1, 2]));
    });
    let (mac, to, offer) = parse_dhcp(&one(&mut port, &discover));
    assert_eq!(
        (mac, to, offer.yiaddr(), offer.xid()),
        ([0xff; 6], Ipv4Addr::BROADCAST, MINE, 7)
    );
    assert!(offer.opts().has_msg_type(MessageType::Offer));
    let request = dhcp(MessageType::Request, NONE, |m| {
        m.opts_mut().insert(DhcpOption::RequestedIpAddress(MINE));
        m.opts_mut().insert(DhcpOption::ServerIdentifier(GATEWAY));
    });
    let (mac, to, ack) = parse_dhcp(&one(&mut port, &request));
    assert_eq!((mac, to, ack.yiaddr()), (MAC, MINE, MINE));
    let options = ack.opts();
    assert!(options.has_msg_type(MessageType::Ack));
    assert_eq!(
        options.get(OptionCode::SubnetMask),
        Some(&DhcpOption::SubnetMask(Ipv4Addr::new(255, 255, 0, 0)))
    );
    assert_eq!(
        options.get(OptionCode::Router),
        Some(&DhcpOption::Router(vec![GATEWAY]))
    );
    assert_eq!(
        options.get(OptionCode::DomainNameServer),
        Some(&DhcpOption::DomainNameServer(vec![GATEWAY]))
    );
    assert_eq!(
        options.get(OptionCode::InterfaceMtu),
        Some(&DhcpOption::InterfaceMtu(1340))
    );
    assert_eq!(
        options.get(OptionCode::AddressLeaseTime),
        Some(&DhcpOption::AddressLeaseTime(3600))
    );
    assert_eq!(
        options.get(OptionCode::Renewal),
        Some(&DhcpOption::Renewal(1800))
    );
    assert_eq!(
        options.get(OptionCode::Hostname),
        Some(&DhcpOption::Hostname("web".into()))
    );
    assert_eq!(
        options.get(OptionCode::DomainName),
        Some(&DhcpOption::DomainName("vm.lab.p2p".into()))
    );
    assert_eq!(
        offer.opts().get(OptionCode::ClientIdentifier),
        Some(&DhcpOption::ClientIdentifier(vec![1, 2]))
    );
}

#[test]
fn renewing_is_answered_by_unicast_and_another_address_is_refused() {
    let mut port = port();
    let (_, to, ack) = parse_dhcp(&one(&mut port, &dhcp(MessageType::Request, MINE, |_| {})));
    assert_eq!(
        (to, ack.opts().has_msg_type(MessageType::Ack)),
        (MINE, true)
    );
    let wrong = |m: &mut Message| {
        m.opts_mut()
            .insert(DhcpOption::RequestedIpAddress(Ipv4Addr::new(
                192, 168, 1, 5,
            )));
    };
    let (mac, to, nak) = parse_dhcp(&one(&mut port, &dhcp(MessageType::Request, NONE, wrong)));
    assert_eq!(
        (mac, to, nak.opts().has_msg_type(MessageType::Nak)),
        ([0xff; 6], Ipv4Addr::BROADCAST, true)
    );
    assert_eq!(nak.yiaddr(), NONE);
}

#[test]
fn inform_gets_settings_without_a_lease() {
    let (_, to, ack) = parse_dhcp(&one(&mut port(), &dhcp(MessageType::Inform, MINE, |_| {})));
    assert_eq!(
        (
            to,
            ack.yiaddr(),
            ack.opts().get(OptionCode::AddressLeaseTime)
        ),
        (MINE, NONE, None)
    );
    assert!(ack.opts().get(OptionCode::DomainNameServer).is_some());
}

#[test]
fn what_is_meant_for_others_or_needs_no_answer_gets_none() {
    let mut port = port();
    let other_server = |m: &mut Message| {
        m.opts_mut()
            .insert(DhcpOption::ServerIdentifier(Ipv4Addr::new(10, 77, 0, 2)));
        m.opts_mut().insert(DhcpOption::RequestedIpAddress(MINE));
    };
    let relayed = |m: &mut Message| {
        m.set_giaddr(Ipv4Addr::new(10, 77, 0, 2));
    };
    let other_client = |m: &mut Message| {
        m.set_chaddr(&[2, 9, 9, 9, 9, 9]);
    };
    for frame in [
        dhcp(MessageType::Request, NONE, other_server),
        dhcp(MessageType::Discover, NONE, relayed),
        dhcp(MessageType::Discover, NONE, other_client),
        dhcp(MessageType::Release, MINE, |_| {}),
        dhcp(MessageType::Decline, NONE, |_| {}),
        dhcp(MessageType::Offer, NONE, |_| {}),
    ] {
        assert!(port.handle(Instant::now(), &frame).is_empty());
    }
}

#[test]
fn a_hardware_address_length_beyond_the_field_is_no_request() {
    let mut frame = dhcp(MessageType::Discover, NONE, |_| {});
    let hlen = 14 + 20 + 8 + 2;
    frame[hlen] = 200;
    assert!(port().handle(Instant::now(), &frame).is_empty());
}

#[test]
fn arp_finds_the_gateway_and_every_neighbour_behind_its_mac() {
    let mut port = port();
    for wanted in [GATEWAY, Ipv4Addr::new(10, 77, 200, 200)] {
        let frame = one(&mut port, &arp(ArpOperation::REQUEST, MINE, wanted));
        let packet = SlicedPacket::from_ethernet(&frame).unwrap();
        let Some(NetSlice::Arp(reply)) = packet.net else {
            panic!("no ARP")
        };
        assert_eq!(reply.operation(), ArpOperation::REPLY);
        assert_eq!(
            (reply.sender_hw_addr(), reply.sender_protocol_addr()),
            (&GATEWAY_MAC[..], &wanted.octets()[..])
        );
        assert_eq!(
            (reply.target_hw_addr(), reply.target_protocol_addr()),
            (&MAC[..], &MINE.octets()[..])
        );
    }
}

#[test]
fn a_guest_finds_its_own_address_free() {
    let mut port = port();
    let outside = Ipv4Addr::new(10, 78, 0, 5);
    for frame in [
        arp(ArpOperation::REQUEST, NONE, MINE),
        arp(ArpOperation::REQUEST, MINE, MINE),
        arp(ArpOperation::REPLY, MINE, GATEWAY),
        arp(ArpOperation::REQUEST, MINE, outside),
        icmpv6(
            "::",
            "ff02::1:ff03:405",
            255,
            135,
            &port.config().v6.unwrap().addr.octets(),
        ),
    ] {
        assert!(port.handle(Instant::now(), &frame).is_empty());
    }
}

#[test]
fn a_router_solicitation_brings_prefix_mtu_and_name_server() {
    let mut port = port();
    let frame = one(&mut port, &icmpv6("fe80::9", "ff02::2", 255, 133, &[]));
    let (to, kind, word, body) = parse_icmpv6(&frame);
    assert_eq!(
        (to, kind, word),
        ("ff02::1".parse().unwrap(), 134, [64, 0, 7, 8])
    );
    let (mut rest, mut seen) = (&body[8..], Vec::new());
    while let [kind, units, ..] = rest {
        let (option, after) = rest.split_at(usize::from(*units) * 8);
        match kind {
            1 => assert_eq!(option[2..], GATEWAY_MAC),
            3 => {
                assert_eq!(option[2..4], [64, 0x40]);
                assert_eq!(
                    option[16..],
                    "fd77:1:2:3::".parse::<Ipv6Addr>().unwrap().octets()
                );
            }
            5 => assert_eq!(option[4..], 1340u32.to_be_bytes()),
            25 => assert_eq!(option[8..], GATEWAY_V6.octets()),
            other => panic!("option {other}"),
        }
        seen.push(*kind);
        rest = after;
    }
    assert_eq!(seen, [1, 5, 3, 25]);
    assert!(
        port.handle(Instant::now(), &icmpv6("fe80::9", "ff02::2", 64, 133, &[]))
            .is_empty(),
        "one that a router has forwarded is not believed"
    );
}

#[test]
fn neighbours_and_the_gateway_are_found_and_the_gateway_answers_pings() {
    let mut port = port();
    for (target, flags) in [("fe80::1", 0xe0), ("fd77:1:2:3::99", 0xc0)] {
        let octets = target.parse::<Ipv6Addr>().unwrap().octets();
        let (to, kind, word, body) = parse_icmpv6(&one(
            &mut port,
            &icmpv6("fe80::9", "ff02::1:ff00:1", 255, 135, &octets),
        ));
        assert_eq!(
            (to, kind, word[0]),
            ("fe80::9".parse().unwrap(), 136, flags)
        );
        assert_eq!((&body[..16], &body[18..]), (&octets[..], &GATEWAY_MAC[..]));
    }
    let (_, kind, _, body) = parse_icmpv6(&one(
        &mut port,
        &icmpv6("fe80::9", "fe80::1", 64, 128, b"hello"),
    ));
    assert_eq!((kind, body.as_slice()), (129, &b"hello"[..]));
    let mut ping = Vec::new();
    PacketBuilder::ethernet2(MAC, GATEWAY_MAC)
        .ipv4(MINE.octets(), GATEWAY.octets(), 64)
        .icmpv4_echo_request(3, 4)
        .write(&mut ping, b"hello")
        .unwrap();
    let frame = one(&mut port, &ping);
    let packet = SlicedPacket::from_ethernet(&frame).unwrap();
    let Some(TransportSlice::Icmpv4(icmp)) = packet.transport else {
        panic!("no ICMP")
    };
    assert_eq!((icmp.type_u8(), icmp.payload()), (0, &b"hello"[..]));
}

#[test]
fn a_guest_hears_of_its_router_at_once_and_every_ten_minutes() {
    let (mut port, start) = (port(), Instant::now());
    assert_eq!(port.next_tick(start), Some(start));
    assert_eq!(port.tick(start).len(), 1);
    assert!(port.tick(start + Duration::from_secs(599)).is_empty());
    assert_eq!(
        port.next_tick(start),
        Some(start + Duration::from_secs(600))
    );
    assert_eq!(port.tick(start + Duration::from_secs(600)).len(), 1);
    port.config.v6 = None;
    assert_eq!(port.next_tick(start), None);
}

#[test]
fn a_question_to_the_gateway_is_answered_from_there() {
    let port = port();
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(MAC, GATEWAY_MAC)
        .ipv4(MINE.octets(), GATEWAY.octets(), 64)
        .udp(5353, 53)
        .write(&mut frame, b"query")
        .unwrap();
    let question = port.dns_question(&frame).unwrap();
    assert_eq!(question.query, b"query");
    let answer = port.dns_answer(&question, b"answer");
    let packet = SlicedPacket::from_ethernet(&answer).unwrap();
    let (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Udp(udp))) = (packet.net, packet.transport)
    else {
        panic!("no UDP")
    };
    assert_eq!(
        (ip.header().source_addr(), ip.header().destination_addr()),
        (GATEWAY, MINE)
    );
    assert_eq!(
        (udp.source_port(), udp.destination_port(), udp.payload()),
        (53, 5353, &b"answer"[..])
    );
    let mut elsewhere = Vec::new();
    PacketBuilder::ethernet2(MAC, GATEWAY_MAC)
        .ipv4(MINE.octets(), [8, 8, 8, 8], 64)
        .udp(5353, 53)
        .write(&mut elsewhere, b"query")
        .unwrap();
    assert_eq!(port.dns_question(&elsewhere), None);
}

#[test]
fn the_address_of_prefix_and_mac_is_that_of_rfc_4291() {
    let prefix = "2001:db8::".parse().unwrap();
    assert_eq!(
        eui64(prefix, [0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde]),
        "2001:db8::3656:78ff:fe9a:bcde".parse::<Ipv6Addr>().unwrap()
    );
}

#[test]
fn a_connection_to_the_gateway_is_refused_a_refusal_ignored() {
    let mut port = port();
    let v6: Ipv6Addr = "fd77:1:2:3::9".parse().unwrap();
    let ends: [(IpAddr, IpAddr); 2] = [
        (MINE.into(), GATEWAY.into()),
        (v6.into(), GATEWAY_V6.into()),
    ];
    for (source, to) in ends {
        let segment = |to: IpAddr| {
            let ethernet = PacketBuilder::ethernet2(MAC, GATEWAY_MAC);
            match (source, to) {
                (IpAddr::V4(source), IpAddr::V4(to)) => {
                    ethernet.ipv4(source.octets(), to.octets(), 64)
                }
                (IpAddr::V6(source), IpAddr::V6(to)) => {
                    ethernet.ipv6(source.octets(), to.octets(), 64)
                }
                _ => panic!("of one family"),
            }
            .tcp(40_000, 53, u32::MAX, 1000)
        };
        let written = |builder: etherparse::PacketBuilderStep<etherparse::TcpHeader>,
                       payload: &[u8]| {
            let mut frame = Vec::new();
            builder.write(&mut frame, payload).unwrap();
            frame
        };
        // Acknowledges what was sent; or begins where the sender expects it.
        for (frame, sequence, acknowledged) in [
            (written(segment(to).syn(), &[]), 0, Some(0)),
            (written(segment(to), b"late"), 0, Some(3)),
            (written(segment(to).ack(77), b"late"), 77, None),
        ] {
            let answer = one(&mut port, &frame);
            let packet = SlicedPacket::from_ethernet(&answer).unwrap();
            assert_eq!(addresses(&packet), Some((to, source)));
            let Some(TransportSlice::Tcp(tcp)) = &packet.transport else {
                panic!("no TCP")
            };
            assert!(tcp.rst() && !tcp.syn());
            assert_eq!(
                (
                    tcp.source_port(),
                    tcp.destination_port(),
                    tcp.sequence_number()
                ),
                (53, 40_000, sequence)
            );
            assert_eq!(tcp.ack().then(|| tcp.acknowledgment_number()), acknowledged);
        }
        assert!(
            port.handle(Instant::now(), &written(segment(to).rst(), &[]))
                .is_empty()
        );
        let elsewhere = if source.is_ipv4() {
            IpAddr::from([10, 77, 3, 3])
        } else {
            "fd77:1:2:3::3".parse().unwrap()
        };
        assert!(
            port.handle(Instant::now(), &written(segment(elsewhere).syn(), &[]))
                .is_empty(),
            "not the gateway's"
        );
    }
}

proptest! {
    #[test]
    fn no_frame_makes_the_port_panic(bytes: Vec<u8>) {
        let mut port = port();
        port.handle(Instant::now(), &bytes);
        port.dns_question(&bytes);
    }

    #[test]
    fn no_damaged_frame_makes_the_port_panic(
        which in 0usize..5, at: prop::sample::Index, byte: u8, cut: prop::sample::Index
    ) {
        let mut port = port();
        let mut frame = [
            dhcp(MessageType::Discover, NONE, |_| {}),
            dhcp(MessageType::Request, MINE, |_| {}),
            arp(ArpOperation::REQUEST, MINE, GATEWAY),
            icmpv6("fe80::9", "ff02::1:ff00:1", 255, 135, &GATEWAY_V6.octets()),
            icmpv6("fe80::9", "ff02::2", 255, 133, &[]),
        ][which].clone();
        let at = at.index(frame.len());
        frame[at] = byte;
        port.handle(Instant::now(), &frame);
        frame.truncate(cut.index(frame.len()));
        port.handle(Instant::now(), &frame);
    }
}
