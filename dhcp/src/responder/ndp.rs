//! Neighbour discovery at a guest port (RFC 4861): router advertisements with the prefix for SLAAC
//! (RFC 4862), MTU and name server (RFC 8106), and the gateway's MAC for every neighbour but the
//! guest itself. The prefix is announced as not on-link, so that a guest sends all its traffic to
//! the gateway.

use super::{GATEWAY_V6, PortConfig, PortV6, frame};
use etherparse::{Icmpv6Slice, Ipv6HeaderSlice};
use std::net::Ipv6Addr;

const ECHO_REQUEST: u8 = 128;
const ECHO_REPLY: u8 = 129;
const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;

const OPTION_TARGET_MAC: u8 = 2;
const OPTION_SOURCE_MAC: u8 = 1;
const OPTION_PREFIX: u8 = 3;
const OPTION_MTU: u8 = 5;
const OPTION_RDNSS: u8 = 25;

const HOP_LIMIT_FOR_GUEST: u8 = 64;
/// Three times the advertisement interval (RFC 4861 §6.2.1).
const ROUTER_LIFETIME_SECONDS: u16 = 1800;
const PREFIX_VALID_SECONDS: u32 = 30 * 24 * 3600;
const PREFIX_PREFERRED_SECONDS: u32 = 7 * 24 * 3600;
/// Autonomous address configuration (A), not on-link (L).
const PREFIX_FLAGS: u8 = 0x40;

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];

pub(super) struct Answer {
    pub(super) frame: Vec<u8>,
    /// Whether it was a router advertisement to all, so that the next unasked one can wait.
    pub(super) is_advertisement: bool,
}

pub(super) fn answer(
    config: &PortConfig,
    v6: &PortV6,
    ip: &Ipv6HeaderSlice<'_>,
    icmp: &Icmpv6Slice<'_>,
) -> Option<Answer> {
    let is_nd = ip.hop_limit() == frame::ND_HOP_LIMIT && icmp.code_u8() == 0;
    match icmp.type_u8() {
        ROUTER_SOLICITATION if is_nd => Some(Answer {
            frame: advertisement(config, v6),
            is_advertisement: true,
        }),
        NEIGHBOUR_SOLICITATION if is_nd => neighbour(config, v6, ip.source_addr(), icmp.payload())
            .map(|frame| Answer {
                frame,
                is_advertisement: false,
            }),
        ECHO_REQUEST if ip.destination_addr() == GATEWAY_V6 => {
            let frame = frame::icmpv6(
                config,
                ip.source_addr(),
                config.vm_mac,
                ECHO_REPLY,
                icmp.bytes5to8(),
                icmp.payload(),
            );
            Some(Answer {
                frame,
                is_advertisement: false,
            })
        }
        _ => None,
    }
}

/// The router advertisement to all on the link, which is the guest alone.
pub(super) fn advertisement(config: &PortConfig, v6: &PortV6) -> Vec<u8> {
    let [lifetime_high, lifetime_low] = ROUTER_LIFETIME_SECONDS.to_be_bytes();
    // After the first word: reachable and retransmission time, both unspecified, then the options.
    let mut body = vec![0; 8];
    body.extend([OPTION_SOURCE_MAC, 1]);
    body.extend(config.gateway_mac);
    body.extend([OPTION_MTU, 1, 0, 0]);
    body.extend(u32::from(config.mtu).to_be_bytes());
    body.extend([OPTION_PREFIX, 4, 64, PREFIX_FLAGS]);
    body.extend(PREFIX_VALID_SECONDS.to_be_bytes());
    body.extend(PREFIX_PREFERRED_SECONDS.to_be_bytes());
    body.extend([0; 4]);
    body.extend((v6.prefix.to_bits() >> 64 << 64).to_be_bytes());
    body.extend([OPTION_RDNSS, 3, 0, 0]);
    body.extend(u32::from(ROUTER_LIFETIME_SECONDS).to_be_bytes());
    body.extend(GATEWAY_V6.octets());
    frame::icmpv6(
        config,
        ALL_NODES,
        ALL_NODES_MAC,
        ROUTER_ADVERTISEMENT,
        [HOP_LIMIT_FOR_GUEST, 0, lifetime_high, lifetime_low],
        &body,
    )
}

fn neighbour(
    config: &PortConfig,
    v6: &PortV6,
    source: Ipv6Addr,
    payload: &[u8],
) -> Option<Vec<u8>> {
    let target = Ipv6Addr::from(<[u8; 16]>::try_from(payload.get(..16)?).ok()?);
    let is_gateway = target == GATEWAY_V6;
    let in_prefix = target.to_bits() >> 64 == v6.prefix.to_bits() >> 64;
    // An unspecified source asks whether an address of its own is free (RFC 4862 §5.4.3): all but
    // the gateway's are.
    let probing = source.is_unspecified();
    if !is_gateway && (probing || !in_prefix || target == v6.addr || target == source) {
        return None;
    }
    // Router, solicited (not to a probe), override (not where we speak for another, §7.2.8).
    let flags = 0x80 | if probing { 0 } else { 0x40 } | if is_gateway { 0x20 } else { 0 };
    let mut body = target.octets().to_vec();
    body.extend([OPTION_TARGET_MAC, 1]);
    body.extend(config.gateway_mac);
    let (to, mac) = if probing {
        (ALL_NODES, ALL_NODES_MAC)
    } else {
        (source, config.vm_mac)
    };
    Some(frame::icmpv6(
        config,
        to,
        mac,
        NEIGHBOUR_ADVERTISEMENT,
        [flags, 0, 0, 0],
        &body,
    ))
}
