//! Changes to one interface, by its index: name, MTU, up, carrier, and the routes of its addresses;
//! and the interface by which packets to an address leave.

use crate::netlink::Netlink;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::{LinkAttribute, LinkFlags, LinkMessage},
    route::{
        RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
        RouteType,
    },
};
use std::{io, net::IpAddr};

/// NLM_F_EXCL and NLM_F_CREATE of netlink(7). The second alone adds an IPv4 route before others to
/// the same network.
const EXCLUSIVE: u16 = 0x200;
const CREATE: u16 = 0x400;
/// The metric of the routes that come with IPv6 addresses (IP6_RT_PRIO_ADDRCONF); those of IPv4
/// have none.
const METRIC_V6: u32 = 256;

fn change(index: u32, make: impl FnOnce(&mut LinkMessage)) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    make(&mut message);
    Netlink::open()?.change(RouteNetlinkMessage::SetLink(message), 0)
}

/// Renames an interface. Before Linux 6.2 an interface that is up is set down first and loses its
/// IPv6 addresses.
///
/// # Errors
/// The kernel's error, such as that another interface has the name.
pub fn set_name(index: u32, name: &str) -> io::Result<()> {
    let rename = || {
        change(index, |message| {
            message
                .attributes
                .push(LinkAttribute::IfName(name.to_owned()))
        })
    };
    match rename() {
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
            change(index, |message| message.header.change_mask = LinkFlags::Up)?;
            let renamed = rename();
            set_up(index).and(renamed)
        }
        renamed => renamed,
    }
}

/// Deletes an interface.
///
/// # Errors
/// The kernel's error.
pub fn delete(index: u32) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    Netlink::open()?.change(RouteNetlinkMessage::DelLink(message), 0)
}

/// Sets an interface's MTU in bytes.
///
/// # Errors
/// The kernel's error.
pub fn set_mtu(index: u32, mtu: u32) -> io::Result<()> {
    change(index, |message| {
        message.attributes.push(LinkAttribute::Mtu(mtu))
    })
}

/// Sets an interface up.
///
/// # Errors
/// The kernel's error.
pub fn set_up(index: u32) -> io::Result<()> {
    change(index, |message| {
        (message.header.flags, message.header.change_mask) = (LinkFlags::Up, LinkFlags::Up)
    })
}

/// Restores an interface's carrier. A TUN or TAP has one only while a program holds its other end.
///
/// # Errors
/// The kernel's error, such as EPERM for a TAP that no program holds.
pub fn set_carrier(index: u32) -> io::Result<()> {
    change(index, |message| {
        message.attributes.push(LinkAttribute::Carrier(1))
    })
}

fn family(ip: &IpAddr) -> AddressFamily {
    if ip.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    }
}

/// The index of the interface by which a packet of this machine to `ip` leaves; `None` if the
/// kernel drops it.
///
/// # Errors
/// The kernel's error, such as ENETUNREACH for no route.
pub fn way_to(ip: &IpAddr) -> io::Result<Option<u32>> {
    way_of_marked(ip, 0)
}

/// As [`way_to`], for a packet with a mark (SO_MARK); 0 is no mark.
///
/// # Errors
/// As [`way_to`].
pub fn way_of_marked(ip: &IpAddr, mark: u32) -> io::Result<Option<u32>> {
    let mut message = RouteMessage::default();
    message.header.address_family = family(ip);
    message.header.destination_prefix_length = if ip.is_ipv4() { 32 } else { 128 };
    message
        .attributes
        .push(RouteAttribute::Destination(RouteAddress::from(*ip)));
    if mark != 0 {
        message.attributes.push(RouteAttribute::Mark(mark));
    }
    let Some(RouteNetlinkMessage::NewRoute(route)) =
        Netlink::open()?.get(RouteNetlinkMessage::GetRoute(message))?
    else {
        return Ok(None);
    };
    Ok(route.attributes.iter().find_map(|a| {
        if let RouteAttribute::Oif(index) = a {
            Some(*index)
        } else {
            None
        }
    }))
}

/// Adds the route to an address's network that the kernel adds with the address itself.
///
/// # Errors
/// The kernel's error, such as `AlreadyExists`: this or another route to that very network is
/// there.
pub fn add_connected_route(index: u32, address: &IpAddr, prefix: u8) -> io::Result<()> {
    Netlink::open()?.change(connected_route(index, address, prefix), EXCLUSIVE | CREATE)
}

/// Adds that route before another program's route to the same network, which stays.
///
/// # Errors
/// The kernel's error.
pub fn put_connected_route_first(index: u32, address: &IpAddr, prefix: u8) -> io::Result<()> {
    Netlink::open()?.change(connected_route(index, address, prefix), CREATE)
}

fn connected_route(index: u32, address: &IpAddr, prefix: u8) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(address);
    message.header.destination_prefix_length = prefix;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    (message.header.protocol, message.header.kind) = (RouteProtocol::Kernel, RouteType::Unicast);
    message.header.scope = if address.is_ipv4() {
        RouteScope::Link
    } else {
        RouteScope::Universe
    };
    message
        .attributes
        .push(RouteAttribute::Destination(RouteAddress::from(network(
            address, prefix,
        ))));
    message.attributes.push(RouteAttribute::Oif(index));
    match address {
        IpAddr::V4(_) => message
            .attributes
            .push(RouteAttribute::PrefSource(RouteAddress::from(*address))),
        IpAddr::V6(_) => message.attributes.push(RouteAttribute::Priority(METRIC_V6)),
    }
    RouteNetlinkMessage::NewRoute(message)
}

/// The first address of the network that an address is in.
pub fn network(address: &IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX
                .checked_shl(32 - u32::from(prefix.min(32)))
                .unwrap_or(0);
            IpAddr::from((u32::from(*v4) & mask).to_be_bytes())
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX
                .checked_shl(128 - u32::from(prefix.min(128)))
                .unwrap_or(0);
            IpAddr::from((u128::from(*v6) & mask).to_be_bytes())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::links::links;
    use nix::sched::{CloneFlags, unshare};
    use std::{process::Command, thread};

    #[test]
    fn the_network_of_an_address_is_its_first_bits() {
        for (address, prefix, first) in [
            ("10.77.3.4", 16, "10.77.0.0"),
            ("10.77.3.4", 32, "10.77.3.4"),
            ("10.77.3.4", 0, "0.0.0.0"),
            ("fd77:1:2:3::4", 48, "fd77:1:2::"),
            ("fd77::4", 128, "fd77::4"),
            ("fd77::4", 0, "::"),
        ] {
            assert_eq!(
                network(&address.parse().unwrap(), prefix),
                first.parse::<IpAddr>().unwrap(),
                "{address}/{prefix}"
            );
        }
    }

    /// Runs `test` on a thread in a network namespace of its own, with an interface `d0`.
    fn in_a_namespace(test: impl FnOnce(u32) + Send) {
        thread::scope(|scope| {
            scope.spawn(|| {
                if unshare(CloneFlags::CLONE_NEWNET).is_err() {
                    println!("NOT RUN: makes a network namespace, which needs root");
                    return;
                }
                let made = "ip link add name d0 type veth peer name d1 && ip link set d1 up";
                assert!(
                    Command::new("sh")
                        .args(["-c", made])
                        .status()
                        .unwrap()
                        .success()
                );
                test(
                    links()
                        .unwrap()
                        .iter()
                        .find(|link| link.name == "d0")
                        .unwrap()
                        .index,
                );
            });
        });
    }

    fn ip(args: &str) {
        let status = Command::new("ip").args(args.split(' ')).status();
        assert!(status.unwrap().success(), "{args}");
    }

    #[test]
    fn an_interface_is_set_up_renamed_and_given_an_mtu() {
        in_a_namespace(|index| {
            set_up(index).unwrap();
            set_mtu(index, 1400).unwrap();
            set_name(index, "d2").unwrap();
            let link = links()
                .unwrap()
                .into_iter()
                .find(|link| link.index == index)
                .unwrap();
            assert_eq!((link.name.as_str(), link.mtu, link.up), ("d2", 1400, true));
        });
    }

    #[test]
    fn a_flushed_route_of_an_address_is_restored_and_leads_there() {
        in_a_namespace(|index| {
            set_up(index).unwrap();
            ip("addr add 10.77.0.3/16 dev d0");
            ip("-6 addr add fd77::3/48 dev d0 nodad");
            for (own, prefix, other) in [("10.77.0.3", 16, "10.77.0.1"), ("fd77::3", 48, "fd77::1")]
            {
                let (own, other): (IpAddr, IpAddr) = (own.parse().unwrap(), other.parse().unwrap());
                assert_eq!(way_to(&other).unwrap(), Some(index));
                ip(&format!(
                    "{} route flush dev d0",
                    if own.is_ipv4() { "-4" } else { "-6" }
                ));
                assert!(way_to(&other).is_err());
                add_connected_route(index, &own, prefix).unwrap();
                assert_eq!(way_to(&other).unwrap(), Some(index));
                let again = add_connected_route(index, &own, prefix);
                assert_eq!(again.unwrap_err().kind(), io::ErrorKind::AlreadyExists);
            }
        });
    }

    #[test]
    fn a_replaced_route_is_put_before_the_other_which_stays() {
        in_a_namespace(|index| {
            set_up(index).unwrap();
            ip("addr add 10.77.0.3/16 dev d0");
            ip("route replace 10.77.0.0/16 dev d1");
            let (own, other): (IpAddr, IpAddr) =
                ("10.77.0.3".parse().unwrap(), "10.77.0.1".parse().unwrap());
            assert_ne!(way_to(&other).unwrap(), Some(index));
            assert_eq!(
                add_connected_route(index, &own, 16).unwrap_err().kind(),
                io::ErrorKind::AlreadyExists
            );
            put_connected_route_first(index, &own, 16).unwrap();
            assert_eq!(way_to(&other).unwrap(), Some(index));
            ip("route del 10.77.0.0/16 dev d1");
        });
    }
}
