//! Builds the frames that go to the guest, checksums included.

use super::{GATEWAY_V6, PortConfig};
use etherparse::{IcmpEchoHeader, PacketBuilder, PacketBuilderStep, TcpSlice, UdpHeader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const TTL: u8 = 64;

/// Neighbour discovery is only believed with a hop limit that no router has lowered (RFC 4861
/// §6.1.2).
pub(super) const ND_HOP_LIMIT: u8 = 255;

/// A UDP datagram from one of the gateway's addresses.
pub(super) fn udp(
    config: &PortConfig,
    to_mac: [u8; 6],
    from: (IpAddr, u16),
    to: (IpAddr, u16),
    payload: &[u8],
) -> Vec<u8> {
    let ethernet = PacketBuilder::ethernet2(config.gateway_mac, to_mac);
    let builder: PacketBuilderStep<UdpHeader> = match (from.0, to.0) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => ethernet
            .ipv4(source.octets(), destination.octets(), TTL)
            .udp(from.1, to.1),
        (source, destination) => ethernet
            .ipv6(v6_octets(source), v6_octets(destination), TTL)
            .udp(from.1, to.1),
    };
    let mut frame = Vec::with_capacity(builder.size(payload.len()));
    builder
        .write(&mut frame, payload)
        .expect("writing to memory, and the payload is far below 64 KiB");
    frame
}

/// The gateway's answer to a segment of a connection that it does not have (RFC 9293 §3.10.7.1);
/// none to another such answer.
pub(super) fn reset(
    config: &PortConfig,
    from: IpAddr,
    to: IpAddr,
    segment: &TcpSlice<'_>,
) -> Option<Vec<u8>> {
    if segment.rst() {
        return None;
    }
    let ethernet = PacketBuilder::ethernet2(config.gateway_mac, config.vm_mac);
    let ip = match (from, to) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            ethernet.ipv4(source.octets(), destination.octets(), TTL)
        }
        (source, destination) => ethernet.ipv6(v6_octets(source), v6_octets(destination), TTL),
    };
    let sequence = if segment.ack() {
        segment.acknowledgment_number()
    } else {
        0
    };
    let builder = ip
        .tcp(
            segment.destination_port(),
            segment.source_port(),
            sequence,
            0,
        )
        .rst();
    let length =
        segment.payload().len() as u32 + u32::from(segment.syn()) + u32::from(segment.fin());
    let builder = if segment.ack() {
        builder
    } else {
        builder.ack(segment.sequence_number().wrapping_add(length))
    };
    let mut frame = Vec::with_capacity(builder.size(0));
    builder.write(&mut frame, &[]).expect("writing to memory");
    Some(frame)
}

/// The gateway's answer to a ping.
pub(super) fn echo_v4(
    config: &PortConfig,
    to: Ipv4Addr,
    echo: IcmpEchoHeader,
    payload: &[u8],
) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(config.gateway_mac, config.vm_mac)
        .ipv4(config.subnet.gateway().octets(), to.octets(), TTL)
        .icmpv4_echo_reply(echo.id, echo.seq);
    let mut frame = Vec::with_capacity(builder.size(payload.len()));
    builder
        .write(&mut frame, payload)
        .expect("writing to memory, and the payload fitted into a frame before");
    frame
}

/// An ICMPv6 message from the gateway's link-local address.
pub(super) fn icmpv6(
    config: &PortConfig,
    to: Ipv6Addr,
    to_mac: [u8; 6],
    kind: u8,
    second_word: [u8; 4],
    payload: &[u8],
) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(config.gateway_mac, to_mac)
        .ipv6(GATEWAY_V6.octets(), to.octets(), ND_HOP_LIMIT)
        .icmpv6_raw(kind, 0, second_word);
    let mut frame = Vec::with_capacity(builder.size(payload.len()));
    builder
        .write(&mut frame, payload)
        .expect("writing to memory, and the payload fitted into a frame before");
    frame
}

fn v6_octets(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}
