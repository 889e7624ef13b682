//! The kernel's IPv4 routes, table by table.

use crate::{
    net::Net,
    netlink::Netlink,
    numbers::{PROTOCOL, SILENT},
};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType},
};
use std::{io, net::Ipv4Addr};

/// The main routing table.
pub const MAIN: u32 = 254;

/// A route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Its destination.
    pub net: Net,
    /// The interface's index; `None` if it leads nowhere. A route with several next hops is here
    /// once for each.
    pub device: Option<u32>,
    /// The router.
    pub gateway: Option<Ipv4Addr>,
    /// RTPROT_*.
    pub protocol: u8,
    /// Whether it is a `throw` route: the next rule decides.
    pub throw: bool,
}

fn table_of(message: &RouteMessage) -> u32 {
    let wide = message.attributes.iter().find_map(|a| {
        if let RouteAttribute::Table(t) = a {
            Some(*t)
        } else {
            None
        }
    });
    wide.unwrap_or_else(|| message.header.table.into())
}

fn v4(address: &RouteAddress) -> Option<Ipv4Addr> {
    if let RouteAddress::Inet(ip) = address {
        Some(*ip)
    } else {
        None
    }
}

fn read(message: &RouteMessage) -> Vec<Route> {
    let mut route = Route {
        net: Net::new(
            Ipv4Addr::UNSPECIFIED,
            message.header.destination_prefix_length,
        ),
        device: None,
        gateway: None,
        protocol: message.header.protocol.into(),
        throw: message.header.kind == RouteType::Throw,
    };
    let mut hops = Vec::new();
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(to) => {
                if let Some(to) = v4(to) {
                    route.net = Net::new(to, message.header.destination_prefix_length);
                }
            }
            RouteAttribute::Oif(index) => route.device = Some(*index),
            RouteAttribute::Gateway(gateway) => route.gateway = v4(gateway),
            RouteAttribute::MultiPath(several) => {
                for hop in several {
                    let by = |a: &RouteAttribute| {
                        if let RouteAttribute::Gateway(g) = a {
                            v4(g)
                        } else {
                            None
                        }
                    };
                    hops.push((hop.interface_index, hop.attributes.iter().find_map(by)));
                }
            }
            _ => {}
        }
    }
    if hops.is_empty() {
        return vec![route];
    }
    hops.into_iter()
        .map(|(device, gateway)| Route {
            device: Some(device),
            gateway,
            ..route.clone()
        })
        .collect()
}

/// The routes of a table, also `throw` ones, but no blackholes and the like.
///
/// # Errors
/// The kernel's error.
pub fn routes(netlink: &mut Netlink, table: u32) -> io::Result<Vec<Route>> {
    of_kinds(netlink, table, &[RouteType::Unicast, RouteType::Throw])
}

/// The routes of a table that are of these kinds.
pub(crate) fn of_kinds(
    netlink: &mut Netlink,
    table: u32,
    kinds: &[RouteType],
) -> io::Result<Vec<Route>> {
    let mut ask = RouteMessage::default();
    ask.header.address_family = AddressFamily::Inet;
    ask.attributes.push(RouteAttribute::Table(table));
    let answers = match netlink.dump(RouteNetlinkMessage::GetRoute(ask)) {
        // A table that never had a route does not exist.
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        answers => answers?,
    };
    let mut found = Vec::new();
    for answer in answers {
        if let RouteNetlinkMessage::NewRoute(message) = answer
            && table_of(&message) == table
            && kinds.contains(&message.header.kind)
        {
            found.extend(read(&message));
        }
    }
    Ok(found)
}

/// A route into an interface, or a `throw` route.
fn message(net: Net, table: u32, device: Option<u32>) -> RouteMessage {
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    header.address_family = AddressFamily::Inet;
    header.destination_prefix_length = net.prefix();
    header.protocol = RouteProtocol::Other(PROTOCOL);
    header.kind = if device.is_some() {
        RouteType::Unicast
    } else {
        RouteType::Throw
    };
    // Also a `throw` route: the look-up of a next hop skips routes of a wider scope, and would find
    // the accepted route around it. A route by the machine's own gateway would then lead into the
    // tunnel.
    header.scope = RouteScope::Link;
    message.attributes = vec![
        RouteAttribute::Table(table),
        RouteAttribute::Destination(RouteAddress::Inet(net.addr())),
    ];
    message.attributes.extend(device.map(RouteAttribute::Oif));
    message
}

/// Makes a route into an interface, or a `throw` route without one. `silent` marks it as having a
/// router that does not answer, for other networks of this machine.
///
/// # Errors
/// The kernel's error.
pub fn make(
    netlink: &mut Netlink,
    net: Net,
    table: u32,
    device: Option<u32>,
    silent: bool,
) -> io::Result<()> {
    let mut message = message(net, table, device);
    if silent {
        message.header.protocol = RouteProtocol::Other(SILENT);
    }
    netlink.change(
        RouteNetlinkMessage::NewRoute(message),
        NLM_F_CREATE | NLM_F_REPLACE,
    )
}

/// Removes such a route. A missing one is no failure.
///
/// # Errors
/// The kernel's error.
pub fn remove(netlink: &mut Netlink, net: Net, table: u32, device: Option<u32>) -> io::Result<()> {
    let mut message = message(net, table, device);
    // Of any scope: an earlier release made other ones.
    message.header.scope = RouteScope::NoWhere;
    // Of either of p2pvm's protocol numbers.
    message.header.protocol = RouteProtocol::Unspec;
    match netlink.change(RouteNetlinkMessage::DelRoute(message), 0) {
        // ESRCH, as rtnetlink says it.
        Err(e) if e.raw_os_error() == Some(nix::errno::Errno::ESRCH as i32) => Ok(()),
        done => done,
    }
}
