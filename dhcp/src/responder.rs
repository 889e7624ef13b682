//! What a guest sees of the network's edge: the daemon plays DHCP server, gateway and name server
//! at the guest's port. Sans-IO: frames in, frames out. Every host answers alike, with the same
//! gateway address and MAC, so that a guest that has moved notices nothing and its caches stay
//! valid.
//!
//! The guest is alone on its link, so every other address of the subnet is reached through the
//! gateway: ARP and neighbour discovery answer for all of them (proxy ARP, RFC 1027; RFC 4861
//! §7.2.8).
//!
//! The gateway has no TCP: a connection is refused at once, as by any host, so that a program which
//! tries DNS over TCP there does not wait.
//!
//! Checksums of what the guest sends are not verified: on a virtio port they may be left for the
//! device to fill in.

mod arp;
mod dhcp4;
mod frame;
mod ndp;
#[cfg(test)]
mod tests;

use crate::subnet::Subnet;
use etherparse::{Icmpv4Type, LinkSlice, NetSlice, SlicedPacket, TransportSlice};
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::{Duration, Instant},
};

/// The gateway's MAC as every guest sees it on every host: locally administered, "p2pvm" in ASCII.
pub const GATEWAY_MAC: [u8; 6] = [0x02, b'p', b'2', b'p', b'v', b'm'];

/// The gateway's IPv6 address at each guest port.
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// How often the router announces itself unsolicited (RFC 4861 §6.2.1, MaxRtrAdvInterval).
const ADVERTISE_EVERY: Duration = Duration::from_secs(600);

const DNS_PORT: u16 = 53;
const DHCP_SERVER_PORT: u16 = 67;

/// How long a query is at most: one name with EDNS options, with a margin.
const MAX_DNS_QUERY_BYTES: usize = 1232;

/// The settings of one port, as the guest gets them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortConfig {
    /// The guest's MAC; frames from any other are not answered.
    pub vm_mac: [u8; 6],
    /// The guest's address.
    pub v4: Ipv4Addr,
    /// The network's subnet; its first address is the guest's gateway and DHCP server.
    pub subnet: Subnet,
    /// The gateway's MAC: [`GATEWAY_MAC`].
    pub gateway_mac: [u8; 6],
    /// The name server. The gateway's address is right for a guest that may move: every host
    /// answers there.
    pub dns: Ipv4Addr,
    /// The overlay's MTU, told to the guest.
    pub mtu: u16,
    /// How long the guest may use its address before asking again.
    pub lease: Duration,
    /// The network's domain, `<network>.p2p`; the guest's own is `vm.<network>.p2p`.
    pub domain: String,
    /// The guest's host name.
    pub host_name: String,
    /// IPv6 at this port, if the network has it.
    pub v6: Option<PortV6>,
}

/// IPv6 at a guest port: the prefix is announced, and the guest makes its address from it and its
/// MAC (SLAAC, EUI-64).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortV6 {
    /// The /64 that is announced.
    pub prefix: Ipv6Addr,
    /// The guest's address within.
    pub addr: Ipv6Addr,
}

impl PortConfig {
    /// A port with this network's usual settings: gateway as name server, one hour's lease, no
    /// IPv6.
    pub fn new(
        vm_mac: [u8; 6],
        v4: Ipv4Addr,
        subnet: Subnet,
        host_name: &str,
        domain: &str,
        mtu: u16,
    ) -> Self {
        Self {
            vm_mac,
            v4,
            subnet,
            gateway_mac: GATEWAY_MAC,
            dns: subnet.gateway(),
            mtu,
            lease: Duration::from_secs(3600),
            domain: domain.to_owned(),
            host_name: host_name.to_owned(),
            v6: None,
        }
    }

    /// The same port with IPv6 out of `prefix`; the guest's address follows from its MAC.
    pub fn with_v6(mut self, prefix: Ipv6Addr) -> Self {
        self.v6 = Some(PortV6 {
            prefix,
            addr: eui64(prefix, self.vm_mac),
        });
        self
    }
}

/// The address that SLAAC makes of a /64 prefix and a MAC (RFC 4291 appendix A).
pub fn eui64(prefix: Ipv6Addr, mac: [u8; 6]) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac;
    let interface = u64::from_be_bytes([a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
    Ipv6Addr::from_bits(prefix.to_bits() >> 64 << 64 | u128::from(interface))
}

/// A guest's question to the name server at its gateway, to be answered by [`crate::Resolver`] and
/// [`Responder::dns_answer`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsQuestion {
    /// The DNS message.
    pub query: Vec<u8>,
    from: (IpAddr, u16),
    to: IpAddr,
}

/// The state of one guest port.
#[derive(Debug)]
pub struct Responder {
    config: PortConfig,
    advertise_at: Option<Instant>,
}

impl Responder {
    /// A responder for a guest that has just been attached.
    pub fn new(config: PortConfig) -> Self {
        Self {
            config,
            advertise_at: None,
        }
    }

    /// The settings that the guest gets.
    pub fn config(&self) -> &PortConfig {
        &self.config
    }

    /// Takes a frame from the guest and returns the frames to send it. Malformed frames, and those
    /// that ask nothing of the network's edge, get no answer.
    pub fn handle(&mut self, now: Instant, frame: &[u8]) -> Vec<Vec<u8>> {
        self.answer(now, frame).into_iter().collect()
    }

    /// The frames that are due unsolicited: a router advertisement right after attaching (which
    /// refreshes a guest that has moved here) and then every ten minutes. The caller calls it when
    /// [`Self::next_tick`] has come.
    pub fn tick(&mut self, now: Instant) -> Vec<Vec<u8>> {
        let Some(v6) = self.config.v6 else {
            return Vec::new();
        };
        if self.advertise_at.is_some_and(|at| now < at) {
            return Vec::new();
        }
        self.advertise_at = Some(now + ADVERTISE_EVERY);
        vec![ndp::advertisement(&self.config, &v6)]
    }

    /// When to call [`Self::tick`] next; `None` for never.
    pub fn next_tick(&self, now: Instant) -> Option<Instant> {
        self.config.v6.map(|_| self.advertise_at.unwrap_or(now))
    }

    /// The DNS question in a frame of the guest to its gateway, if it is one.
    pub fn dns_question(&self, frame: &[u8]) -> Option<DnsQuestion> {
        let packet = self.sent_by_guest(frame)?;
        let (source, to) = addresses(&packet)?;
        let Some(TransportSlice::Udp(udp)) = &packet.transport else {
            return None;
        };
        let fits = udp.destination_port() == DNS_PORT && udp.payload().len() <= MAX_DNS_QUERY_BYTES;
        (self.is_gateway(to) && fits).then(|| DnsQuestion {
            query: udp.payload().to_vec(),
            from: (source, udp.source_port()),
            to,
        })
    }

    fn is_gateway(&self, ip: IpAddr) -> bool {
        ip == IpAddr::V4(self.config.subnet.gateway())
            || (ip == IpAddr::V6(GATEWAY_V6) && self.config.v6.is_some())
    }

    /// The frame with `answer` for the guest.
    pub fn dns_answer(&self, question: &DnsQuestion, answer: &[u8]) -> Vec<u8> {
        let (to, port) = question.from;
        frame::udp(
            &self.config,
            self.config.vm_mac,
            (question.to, DNS_PORT),
            (to, port),
            answer,
        )
    }

    fn answer(&mut self, now: Instant, frame: &[u8]) -> Option<Vec<u8>> {
        let packet = self.sent_by_guest(frame)?;
        match (&packet.net, &packet.transport) {
            (Some(NetSlice::Arp(arp)), _) => arp::answer(&self.config, arp),
            (Some(NetSlice::Ipv4(_)), Some(TransportSlice::Udp(udp)))
                if udp.destination_port() == DHCP_SERVER_PORT =>
            {
                dhcp4::answer(&self.config, udp.payload())
            }
            (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Icmpv4(icmp)))
                if ip.header().destination_addr() == self.config.subnet.gateway() =>
            {
                let Icmpv4Type::EchoRequest(echo) = icmp.icmp_type() else {
                    return None;
                };
                Some(frame::echo_v4(
                    &self.config,
                    ip.header().source_addr(),
                    echo,
                    icmp.payload(),
                ))
            }
            (_, Some(TransportSlice::Tcp(segment))) => {
                let (source, to) = addresses(&packet).filter(|(_, to)| self.is_gateway(*to))?;
                frame::reset(&self.config, to, source, segment)
            }
            (Some(NetSlice::Ipv6(ip)), Some(TransportSlice::Icmpv6(icmp))) => {
                let v6 = self.config.v6?;
                let answer = ndp::answer(&self.config, &v6, &ip.header(), icmp)?;
                if answer.is_advertisement {
                    self.advertise_at = Some(now + ADVERTISE_EVERY);
                }
                Some(answer.frame)
            }
            _ => None,
        }
    }

    /// A well-formed frame with the guest's MAC as its source.
    fn sent_by_guest<'a>(&self, frame: &'a [u8]) -> Option<SlicedPacket<'a>> {
        let packet = SlicedPacket::from_ethernet(frame).ok()?;
        let Some(LinkSlice::Ethernet2(ethernet)) = &packet.link else {
            return None;
        };
        (ethernet.source() == self.config.vm_mac && packet.link_exts.is_empty()).then_some(packet)
    }
}

fn addresses(packet: &SlicedPacket<'_>) -> Option<(IpAddr, IpAddr)> {
    match &packet.net {
        Some(NetSlice::Ipv4(ip)) => Some((
            ip.header().source_addr().into(),
            ip.header().destination_addr().into(),
        )),
        Some(NetSlice::Ipv6(ip)) => Some((
            ip.header().source_addr().into(),
            ip.header().destination_addr().into(),
        )),
        _ => None,
    }
}
