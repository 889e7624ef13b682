//! Whether a network's subnet can be used on this machine, or conflicts with what the machine
//! reaches elsewhere.

use crate::{
    links::{Link, links},
    names::file,
    net::Net,
    netlink::Netlink,
    reached::reached,
    routes::Route,
    rules::DEFAULT_LIKE,
};
use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr},
    path::Path,
};

const RESOLV_CONF: &str = "/etc/resolv.conf";

/// What a subnet conflicts with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConflictKind {
    /// A network that one of the machine's interfaces is in.
    Interface,
    /// A router of the machine's.
    Gateway,
    /// A network that the machine has a route to.
    Route,
    /// A name server that the machine asks.
    NameServer,
}

/// Why a subnet cannot be used here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// What it conflicts with.
    pub what: ConflictKind,
    /// A sentence without a full stop, such as "10.0.2.0/24 overlaps the network of eth0
    /// (10.0.2.15/24)".
    pub detail: String,
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

/// What the subnet `(address, prefix length)` conflicts with on this machine, by all interfaces.
///
/// # Errors
/// The kernel's error.
pub fn overlap(subnet: (Ipv4Addr, u8)) -> io::Result<Option<Conflict>> {
    overlap_except(subnet, None)
}

/// As [`overlap`], without one interface: the one that has the subnet already.
///
/// # Errors
/// The kernel's error.
pub fn overlap_except(
    subnet: (Ipv4Addr, u8),
    device: Option<&str>,
) -> io::Result<Option<Conflict>> {
    let routes = reached(&mut Netlink::open()?)?;
    let servers = name_servers(&String::from_utf8_lossy(&resolv_conf()));
    Ok(find(
        Net::new(subnet.0, subnet.1),
        device,
        &links()?,
        &routes,
        &servers,
    ))
}

/// The file's text; empty if it is no file, because reading a pipe would never end.
fn resolv_conf() -> Vec<u8> {
    file::read(Path::new(RESOLV_CONF))
        .ok()
        .flatten()
        .unwrap_or_default()
}

fn name_servers(text: &str) -> Vec<Ipv4Addr> {
    let named = text.lines().filter_map(|line| {
        line.strip_prefix("nameserver")?
            .split_whitespace()
            .next()?
            .parse()
            .ok()
    });
    named.filter(|ip: &Ipv4Addr| !ip.is_loopback()).collect()
}

pub(crate) fn find(
    subnet: Net,
    device: Option<&str>,
    links: &[Link],
    routes: &[Route],
    servers: &[Ipv4Addr],
) -> Option<Conflict> {
    let conflict = |what, detail| Some(Conflict { what, detail });
    let own = device.and_then(|device| links.iter().find(|link| link.name == device));
    let others = || {
        links
            .iter()
            .filter(|link| own.is_none_or(|own| own.index != link.index))
    };
    for link in others().filter(|link| !link.loopback) {
        for (address, prefix) in &link.addresses {
            if let IpAddr::V4(ip) = address
                && Net::new(*ip, *prefix).overlaps(&subnet)
            {
                let detail = format!(
                    "{subnet} overlaps the network of {} ({ip}/{prefix})",
                    link.name
                );
                return conflict(ConflictKind::Interface, detail);
            }
        }
    }
    let name = |index: Option<u32>| {
        let link = links.iter().find(|link| Some(link.index) == index);
        match (link, index) {
            (Some(link), _) => format!("by {}", link.name),
            (None, Some(_)) => "by an interface that went".to_owned(),
            (None, None) => "which leads nowhere".to_owned(),
        }
    };
    let elsewhere = || {
        routes
            .iter()
            .filter(|route| own.is_none() || route.device != own.map(|own| own.index))
    };
    for route in elsewhere() {
        if let Some(gateway) = route.gateway.filter(|gateway| subnet.contains(gateway)) {
            let detail = format!(
                "{subnet} holds this machine's gateway {gateway} ({})",
                name(route.device)
            );
            return conflict(ConflictKind::Gateway, detail);
        }
    }
    if let Some(route) = elsewhere()
        .find(|route| route.net.prefix() > 0 && route.net.overlaps(&subnet) && !is_half(route))
    {
        let detail = format!(
            "{subnet} overlaps this machine's route to {} ({})",
            route.net,
            name(route.device)
        );
        return conflict(ConflictKind::Route, detail);
    }
    let server = servers
        .iter()
        .find(|server| subnet.contains(server) && !reached_inside(server, own));
    server.and_then(|server| {
        conflict(
            ConflictKind::NameServer,
            format!("{subnet} holds the name server {server} of this machine"),
        )
    })
}

/// Whether a route is part of a default route in pieces, such as a VPN's 0.0.0.0/1 and 128.0.0.0/1.
fn is_half(route: &Route) -> bool {
    u32::from(route.net.prefix()) <= DEFAULT_LIKE
}

/// Whether the network's own interface has the address: then it is the network's name server.
fn reached_inside(server: &Ipv4Addr, own: Option<&Link>) -> bool {
    own.is_some_and(|own| {
        own.addresses
            .iter()
            .any(|(ip, _)| *ip == IpAddr::V4(*server))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str, address: &str, prefix: u8) -> Link {
        Link {
            index,
            name: name.into(),
            up: true,
            carrier: true,
            loopback: name == "lo",
            mtu: 1500,
            alias: None,
            addresses: vec![(address.parse().unwrap(), prefix)],
        }
    }

    fn route(net: &str, device: u32, gateway: Option<&str>) -> Route {
        Route {
            net: net.parse().unwrap(),
            device: Some(device),
            gateway: gateway.map(|g| g.parse().unwrap()),
            protocol: 4,
            throw: false,
        }
    }

    #[test]
    fn a_subnet_in_the_way_is_named_with_what_it_hides() {
        let links = [
            link(1, "lo", "127.0.0.1", 8),
            link(2, "eth0", "10.0.2.15", 24),
            link(3, "p2pvm0", "10.9.0.1", 16),
        ];
        let routes = [
            route("0.0.0.0/0", 2, Some("192.168.9.1")),
            route("172.16.0.0/12", 2, None),
            route("0.0.0.0/1", 2, None),
            route("10.9.0.0/16", 3, None),
        ];
        let servers = ["192.0.2.53".parse().unwrap(), "10.9.0.1".parse().unwrap()];
        let found = |subnet: &str, device| {
            find(subnet.parse().unwrap(), device, &links, &routes, &servers)
                .map(|c| (c.what, c.to_string()))
        };
        let (what, said) = found("10.0.0.0/16", None).unwrap();
        assert_eq!(
            (what, said.as_str()),
            (
                ConflictKind::Interface,
                "10.0.0.0/16 overlaps the network of eth0 (10.0.2.15/24)"
            )
        );
        assert_eq!(
            found("192.168.0.0/16", None).unwrap().0,
            ConflictKind::Gateway
        );
        assert_eq!(found("172.20.0.0/16", None).unwrap().0, ConflictKind::Route);
        assert_eq!(
            found("192.0.2.0/24", None).unwrap().0,
            ConflictKind::NameServer
        );
        assert_eq!(
            found("10.77.0.0/16", None),
            None,
            "the default route and a VPN's halves of it hide nothing"
        );
        assert_eq!(
            found("10.9.0.0/16", None).unwrap().0,
            ConflictKind::Interface,
            "another p2pvm network counts"
        );
        assert_eq!(
            found("10.9.0.0/16", Some("p2pvm0")),
            None,
            "the network's own interface and name server do not"
        );
    }
}
