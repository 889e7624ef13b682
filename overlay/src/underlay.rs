//! Tells the networks of this machine that may carry our datagrams from those that must not:
//! addresses behind an interface of p2pvm's own, of any network, are reached through a tunnel, and
//! no tunnel may be built through a tunnel. Two networks on the same two machines would otherwise
//! carry each other in circles.
//!
//! p2pvm's interfaces are known by their marks ([`p2pvm_host::links::Mark`]), so that daemons need
//! not know each other. [`Underlay`] holds a snapshot, which the packet plane renews when the
//! kernel reports a change.

use crate::lock;
use crate::plane::packet::{is_site_local, is_unicast};
use arc_swap::ArcSwap;
use nix::sys::socket::{setsockopt, sockopt};
use p2pvm_host::links::{Link, links};
use std::{
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
    sync::{Arc, Mutex},
};

pub use p2pvm_host::rules::SOCKET_MARK;

/// Marks a socket with [`SOCKET_MARK`]. Without CAP_NET_ADMIN it stays unmarked: rules by port
/// still match it.
pub fn mark(socket: &impl AsFd) {
    if let Err(error) = setsockopt(socket, sockopt::Mark, &SOCKET_MARK) {
        tracing::debug!(error = %p2pvm_host::chain(&error), "a socket is not marked");
    }
}

/// The addresses of this machine that others may reach: of interfaces that are up, without
/// loopback, link-local and site-local ones, and without those of p2pvm's own interfaces or inside
/// the networks behind them.
pub fn local_addresses() -> Vec<IpAddr> {
    links()
        .map(|links| View::of(&links, None, &[]).local)
        .unwrap_or_default()
}

/// A network that this machine has an address in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Network {
    address: IpAddr,
    prefix: u8,
}

impl Network {
    fn contains(&self, ip: &IpAddr) -> bool {
        let same = |a: u128, b: u128, width: u8| {
            self.prefix == 0 || (a ^ b) >> (width - self.prefix.min(width)) == 0
        };
        match (self.address, ip) {
            // Link-local addresses are on every interface.
            (IpAddr::V6(a), _) if a.is_unicast_link_local() => false,
            (IpAddr::V4(a), IpAddr::V4(b)) => same(u32::from(a).into(), u32::from(*b).into(), 32),
            (IpAddr::V6(a), IpAddr::V6(b)) => same(u128::from(a), u128::from(*b), 128),
            _ => false,
        }
    }
}

/// The longest prefix of the networks with `ip` in them.
fn longest(networks: &[Network], ip: &IpAddr) -> Option<u8> {
    networks
        .iter()
        .filter(|network| network.contains(ip))
        .map(|network| network.prefix)
        .max()
}

/// A snapshot of the machine's networks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// See [`local_addresses`].
    pub local: Vec<IpAddr>,
    /// Every address of this machine but loopback ones.
    own: Vec<IpAddr>,
    /// The addresses of p2pvm's interfaces, link-local ones included.
    inner: Vec<IpAddr>,
    /// Behind p2pvm's interfaces.
    tunnels: Vec<Network>,
    /// All others.
    others: Vec<Network>,
    /// UDP ports of p2pvm's daemons.
    udp_ports: Vec<u16>,
    /// TCP ports of p2pvm's daemons.
    tcp_ports: Vec<u16>,
    /// The names of p2pvm's interfaces.
    devices: Vec<String>,
}

impl View {
    /// A view of these interfaces. `device` is one of p2pvm's even without its mark, and `given`
    /// the addresses that it will have.
    fn of(links: &[Link], device: Option<&str>, given: &[(IpAddr, u8)]) -> Self {
        let mut view = Self::default();
        view.tunnels
            .extend(given.iter().map(|(address, prefix)| Network {
                address: *address,
                prefix: *prefix,
            }));
        for link in links.iter().filter(|link| !link.loopback) {
            let mark = link.mark();
            let networks = link.addresses.iter().map(|(address, prefix)| Network {
                address: *address,
                prefix: *prefix,
            });
            view.own
                .extend(link.addresses.iter().map(|(address, _)| *address));
            if mark.is_none() && device != Some(link.name.as_str()) {
                view.others.extend(networks);
                continue;
            }
            view.tunnels.extend(networks);
            view.inner
                .extend(link.addresses.iter().map(|(address, _)| *address));
            view.devices.push(link.name.clone());
            if let Some(mark) = mark {
                view.udp_ports.extend([mark.link_port, mark.control_port]);
                view.tcp_ports.push(mark.control_port);
            }
        }
        view.udp_ports.retain(|port| *port != 0);
        view.tcp_ports.retain(|port| *port != 0);
        let reachable = links
            .iter()
            .filter(|l| l.up && !l.loopback && !view.devices.contains(&l.name))
            .flat_map(|l| &l.addresses);
        let usable = |ip: &IpAddr| is_unicast(ip) && !is_site_local(ip) && !view.is_inside(ip);
        view.local = reachable
            .map(|(address, _)| *address)
            .filter(usable)
            .collect();
        view.local.sort();
        view.local.dedup();
        view
    }

    /// Whether `ip` is behind an interface of p2pvm's: then no datagram of ours may go there or be
    /// believed from there. A longer prefix of another interface has precedence, as in the kernel.
    pub fn is_inside(&self, ip: &IpAddr) -> bool {
        if self.tunnels.is_empty() {
            return false;
        }
        let ip = ip.to_canonical();
        longest(&self.tunnels, &ip)
            .is_some_and(|tunnel| longest(&self.others, &ip).is_none_or(|other| other <= tunnel))
    }

    /// Whether no member can be reached by `ip`: it is behind an interface of p2pvm's, or is that
    /// interface's own, such as its link-local one.
    pub fn is_of_a_tunnel(&self, ip: &IpAddr) -> bool {
        self.inner.contains(ip) || self.is_inside(ip)
    }

    /// Whether an interface is one of p2pvm's.
    pub fn is_ours(&self, device: &str) -> bool {
        self.devices.iter().any(|name| name == device)
    }

    /// The destination of an IP packet that this machine sent into a tunnel, if the packet is a
    /// tunnel's own datagram or segment. `second` is a UDP port of the caller's that no mark has.
    /// Reads only a few bytes, because it is called for every packet.
    #[inline]
    pub fn loops(&self, packet: &[u8], second: Option<u16>) -> Option<SocketAddr> {
        let (protocol, transport) = match packet.first()? >> 4 {
            4 => (*packet.get(9)?, usize::from(packet[0] & 15) * 4),
            6 => (*packet.get(6)?, 40),
            _ => return None,
        };
        let header = packet.get(transport..)?.first_chunk::<4>()?;
        let port = u16::from_be_bytes([header[0], header[1]]);
        let is_ours = match protocol {
            17 => self.udp_ports.contains(&port) || second == Some(port),
            6 => self.tcp_ports.contains(&port),
            _ => false,
        };
        if !is_ours {
            return None;
        }
        self.own_sent(packet, u16::from_be_bytes([header[2], header[3]]))
    }

    /// The rest of [`View::loops`], for the few packets with one of our ports: a packet that this
    /// machine forwards is another's.
    #[cold]
    fn own_sent(&self, packet: &[u8], port: u16) -> Option<SocketAddr> {
        // Only the first fragment has a port.
        if packet[0] >> 4 == 4 && u16::from_be_bytes([packet[6], packet[7]]) & 0x1fff != 0 {
            return None;
        }
        let (src, dst) = crate::plane::packet::addresses(packet)?;
        self.own
            .contains(&src)
            .then_some(SocketAddr::new(dst, port))
    }
}

/// The interface of the calling daemon, and the addresses that it will have.
#[derive(Debug, Default)]
struct OwnInterface {
    device: Option<String>,
    addresses: Vec<(IpAddr, u8)>,
}

#[derive(Debug, Default)]
struct UnderlayState {
    view: ArcSwap<View>,
    own: Mutex<OwnInterface>,
}

/// The newest snapshot; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Underlay(Arc<UnderlayState>);

impl Underlay {
    /// Looks at the interfaces of the calling thread's network namespace. If the kernel gives an
    /// error, the view is empty.
    pub fn look() -> Self {
        let underlay = Self::default();
        underlay.renew();
        underlay
    }

    /// Sets the caller's own interface, and the addresses that it will have.
    pub(crate) fn set_device(&self, device: &str, addresses: &[(IpAddr, u8)]) {
        let own = OwnInterface {
            device: Some(device.to_owned()),
            addresses: addresses.to_vec(),
        };
        *lock(&self.0.own) = own;
        self.renew();
    }

    /// Looks again, in the calling thread's network namespace. Returns whether anything has
    /// changed.
    pub fn renew(&self) -> bool {
        match links() {
            Ok(links) => self.renew_from(&links),
            Err(error) => {
                tracing::debug!(
                    error = %p2pvm_host::chain(&error),
                    "the interfaces cannot be listed"
                );
                false
            }
        }
    }

    /// As [`Underlay::renew`], from links just read.
    pub(crate) fn renew_from(&self, links: &[Link]) -> bool {
        let view = {
            let own = lock(&self.0.own);
            View::of(links, own.device.as_deref(), &own.addresses)
        };
        let changed = **self.0.view.load() != view;
        if changed {
            self.0.view.store(Arc::new(view));
        }
        changed
    }

    /// The snapshot.
    pub fn view(&self) -> arc_swap::Guard<Arc<View>> {
        self.0.view.load()
    }

    /// See [`View::is_inside`].
    pub fn is_inside(&self, ip: &IpAddr) -> bool {
        self.view().is_inside(ip)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn link(name: &str, alias: Option<&str>, addresses: &[&str]) -> Link {
        let parse = |text: &&str| {
            let (address, prefix) = text.split_once('/').unwrap();
            (address.parse().unwrap(), prefix.parse().unwrap())
        };
        Link {
            index: 1,
            name: name.into(),
            up: true,
            carrier: true,
            loopback: name == "lo",
            mtu: 1500,
            alias: alias.map(str::to_owned),
            addresses: addresses.iter().map(parse).collect(),
        }
    }

    fn view() -> View {
        let links = [
            link("lo", None, &["127.0.0.1/8", "::1/128"]),
            link(
                "eth0",
                None,
                &[
                    "198.18.0.1/24",
                    "fe80::1/64",
                    "fec0::5/64",
                    "2001:db8::1/64",
                ],
            ),
            link("lan", None, &["10.77.200.1/24"]),
            link("p2pvm0", None, &["10.77.0.3/16", "fd77::3/48"]),
            link(
                "p2pvm1",
                Some("p2pvm/1 network=b link=5002 control=5001"),
                &["10.88.0.3/16", "fe80::9/64"],
            ),
        ];
        View::of(&links, Some("p2pvm0"), &[])
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn addresses_of_no_network_of_this_machine_are_told_to_others() {
        assert_eq!(
            view().local,
            [ip("10.77.200.1"), ip("198.18.0.1"), ip("2001:db8::1")]
        );
    }

    #[test]
    fn what_our_interfaces_lead_to_is_inside_unless_a_longer_prefix_differs() {
        let view = view();
        for inside in [
            "10.77.9.9",
            "10.88.1.1",
            "fd77:0:0:5::1",
            "::ffff:10.88.1.1",
        ] {
            assert!(view.is_inside(&ip(inside)), "{inside}");
        }
        for outside in [
            "10.77.200.9",
            "198.18.0.9",
            "fe80::7",
            "2001:db8::7",
            "10.89.0.1",
            "8.8.8.8",
        ] {
            assert!(!view.is_inside(&ip(outside)), "{outside}");
        }
        assert!(view.is_ours("p2pvm0") && view.is_ours("p2pvm1") && !view.is_ours("lan"));
    }

    #[test]
    fn a_tunnels_link_local_address_is_hidden_a_cables_is_shown() {
        let view = view();
        let shown = |text: &str| !view.is_of_a_tunnel(&ip(text));
        assert!(shown("fe80::1") && shown("198.18.0.1") && shown("::1"));
        assert!(!shown("fe80::9") && !shown("10.88.0.3") && !shown("fd77::3"));
    }

    #[test]
    fn an_address_that_our_interface_lost_is_still_inside() {
        let given = [(ip("10.77.0.3"), 16)];
        let view = View::of(&[link("p2pvm0", None, &[])], Some("p2pvm0"), &given);
        assert!(view.is_inside(&ip("10.77.5.5")));
    }

    fn packet(from: &str, to: &str, tcp: bool, port: u16) -> Vec<u8> {
        let (mut packet, to) = (Vec::new(), ip(to));
        let (IpAddr::V4(from), IpAddr::V4(v4)) = (ip(from), to) else {
            let (IpAddr::V6(from), IpAddr::V6(to)) = (ip(from), to) else {
                panic!("of one family")
            };
            let builder = etherparse::PacketBuilder::ipv6(from.octets(), to.octets(), 64);
            builder.udp(port, 7).write(&mut packet, &[0; 8]).unwrap();
            return packet;
        };
        let builder = etherparse::PacketBuilder::ipv4(from.octets(), v4.octets(), 64);
        if tcp {
            builder
                .tcp(port, 7, 0, 100)
                .write(&mut packet, &[0; 8])
                .unwrap();
        } else {
            builder.udp(port, 7).write(&mut packet, &[0; 8]).unwrap();
        }
        packet
    }

    #[test]
    fn a_tunnels_own_datagrams_are_told_from_all_others() {
        let view = view();
        let loops = |from, to, tcp, port| view.loops(&packet(from, to, tcp, port), Some(7007));
        let to = Some("10.77.0.9:7".parse().unwrap());
        assert_eq!(
            loops("10.77.0.3", "10.77.0.9", false, 5002),
            to,
            "another network's link"
        );
        assert_eq!(loops("198.18.0.1", "10.77.0.9", false, 5001), to, "QUIC");
        assert_eq!(loops("198.18.0.1", "10.77.0.9", true, 5001), to);
        let second = loops("10.77.0.3", "10.77.0.9", false, 7007);
        assert_eq!(second, to, "the caller's second port");
        assert_eq!(
            loops("fd77::3", "fd77::9", false, 5002),
            Some("[fd77::9]:7".parse().unwrap())
        );
        for (from, tcp, port) in [
            ("10.77.0.3", false, 53),
            ("10.77.0.3", true, 5002),
            ("10.77.0.3", true, 7007),
            ("192.168.7.7", false, 5002),
        ] {
            assert_eq!(
                loops(from, "10.77.0.9", tcp, port),
                None,
                "{from} {tcp} {port}"
            );
        }
        let mut fragment = packet("10.77.0.3", "10.77.0.9", false, 5002);
        fragment[7] = 5;
        assert_eq!(
            view.loops(&fragment, None),
            None,
            "what stands where a port would is none"
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_looked_at_without_panic(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..60), version in 0usize..3
        ) {
            if let Some(first) = bytes.first_mut() { *first = [0x45, 0x4f, 0x60][version]; }
            if bytes.len() > 9 { (bytes[9], bytes[6]) = (17, 17); }
            let _ = view().loops(&bytes, Some(9));
        }
    }
}
