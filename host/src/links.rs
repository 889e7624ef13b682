//! The machine's interfaces, and which of them are p2pvm's own.
//!
//! A daemon writes a mark into its interface's alias (`ip link show` displays it). The kernel keeps
//! it exactly as long as the interface, and every daemon on the machine can read it. So nothing has
//! to be registered in a file, and nothing is left after a kill.

use crate::netlink::Netlink;
use netlink_packet_route::{
    RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{LinkAttribute, LinkFlags, LinkMessage},
};
use std::{fmt, io, net::IpAddr, str::FromStr};

/// The first word of every alias of ours; the number is the version of the rest.
const ALIAS: &str = "p2pvm/1";

/// What an interface's alias says of the p2pvm network behind it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// The network's id in text form.
    pub network: String,
    /// The UDP port of its packet plane.
    pub link_port: u16,
    /// The UDP and TCP port of its control plane; 0 if not known yet.
    pub control_port: u16,
    /// An address of one of its members that it cannot reach, because another p2pvm network of this
    /// machine holds it. That network reads it here.
    pub misses: Option<IpAddr>,
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{ALIAS} network={} link={} control={}",
            self.network, self.link_port, self.control_port
        )?;
        self.misses.map_or(Ok(()), |ip| write!(f, " misses={ip}"))
    }
}

/// The alias is not ours, or of a later version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForeignAlias;

impl FromStr for Mark {
    type Err = ForeignAlias;

    fn from_str(text: &str) -> Result<Self, ForeignAlias> {
        let mut words = text.split(' ');
        if words.next() != Some(ALIAS) {
            return Err(ForeignAlias);
        }
        let mut mark = Self::default();
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            match key {
                "network" => value.clone_into(&mut mark.network),
                "link" => mark.link_port = value.parse().map_err(|_| ForeignAlias)?,
                "control" => mark.control_port = value.parse().map_err(|_| ForeignAlias)?,
                "misses" => mark.misses = Some(value.parse().map_err(|_| ForeignAlias)?),
                // Later versions may have more.
                _ => {}
            }
        }
        Ok(mark)
    }
}

/// An interface of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The kernel's number of it.
    pub index: u32,
    /// Its name, such as eth0.
    pub name: String,
    /// Whether it is administratively up.
    pub up: bool,
    /// Whether it carries packets (IFF_LOWER_UP and up).
    pub carrier: bool,
    /// Whether it is the loopback.
    pub loopback: bool,
    /// Its MTU, bytes.
    pub mtu: u32,
    /// Its alias (ifalias), such as a [`Mark`].
    pub alias: Option<String>,
    /// Its addresses with their prefix lengths.
    pub addresses: Vec<(IpAddr, u8)>,
}

impl Link {
    /// What its alias says, if it is a p2pvm network's.
    pub fn mark(&self) -> Option<Mark> {
        self.alias.as_deref()?.parse().ok()
    }
}

/// All interfaces of the calling thread's network namespace, by index.
///
/// # Errors
/// The kernel's error.
pub fn links() -> io::Result<Vec<Link>> {
    let mut netlink = Netlink::open()?;
    let mut links: Vec<Link> = Vec::new();
    for answer in netlink.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))? {
        if let RouteNetlinkMessage::NewLink(message) = answer {
            links.push(link(&message));
        }
    }
    for answer in netlink.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()))? {
        if let RouteNetlinkMessage::NewAddress(message) = answer
            && let Some(address) = address(&message)
            && let Some(link) = links
                .iter_mut()
                .find(|link| link.index == message.header.index)
        {
            link.addresses.push((address, message.header.prefix_len));
        }
    }
    links.sort_by_key(|link| link.index);
    Ok(links)
}

fn link(message: &LinkMessage) -> Link {
    let flags = message.header.flags;
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        up: flags.contains(LinkFlags::Up),
        carrier: flags.contains(LinkFlags::Up | LinkFlags::LowerUp),
        loopback: flags.contains(LinkFlags::Loopback),
        mtu: 0,
        alias: None,
        addresses: Vec::new(),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => name.clone_into(&mut link.name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias.clone()),
            _ => {}
        }
    }
    link
}

/// The interface's own address: IFA_LOCAL if there is one, because IFA_ADDRESS is the far end's on
/// a point-to-point link.
fn address(message: &AddressMessage) -> Option<IpAddr> {
    let local = message.attributes.iter().find_map(|a| {
        if let AddressAttribute::Local(ip) = a {
            Some(*ip)
        } else {
            None
        }
    });
    local.or_else(|| {
        message.attributes.iter().find_map(|a| {
            if let AddressAttribute::Address(ip) = a {
                Some(*ip)
            } else {
                None
            }
        })
    })
}

/// Writes an interface's alias.
///
/// # Errors
/// The kernel's error.
pub fn set_alias(index: u32, alias: &str) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message
        .attributes
        .push(LinkAttribute::IfAlias(alias.to_owned()));
    Netlink::open()?.change(RouteNetlinkMessage::SetLink(message), 0)
}

/// Whether `ip` is in the network of one of p2pvm's interfaces, by their addresses: then it is
/// reached through a tunnel of ours, and no tunnel may be built to it.
pub fn is_inside(links: &[Link], ip: &IpAddr) -> bool {
    let own = links.iter().filter(|link| link.mark().is_some());
    own.flat_map(|link| &link.addresses)
        .any(|(address, prefix)| shares_prefix(address, ip, *prefix))
}

/// Whether two addresses of one family share their first `prefix` bits.
fn shares_prefix(a: &IpAddr, b: &IpAddr, prefix: u8) -> bool {
    let same =
        |a: u128, b: u128, width: u8| prefix == 0 || (a ^ b) >> (width - prefix.min(width)) == 0;
    match (a, b) {
        // Link-local addresses are on every interface.
        (IpAddr::V6(a), _) if a.is_unicast_link_local() => false,
        (IpAddr::V4(a), IpAddr::V4(b)) => same(u32::from(*a).into(), u32::from(*b).into(), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => same(u128::from(*a), u128::from(*b), 128),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_back_and_others_aliases_are_not_ours() {
        let mark = Mark {
            network: "abc".into(),
            link_port: 4002,
            control_port: 4001,
            misses: Some([10, 9, 0, 5].into()),
        };
        assert_eq!(mark.to_string().parse(), Ok(mark.clone()));
        assert_eq!(format!("{mark} later=thing").parse(), Ok(mark));
        for text in [
            "",
            "uplink to the lab",
            "p2pvm/2 network=x",
            "p2pvm/1 link=many",
        ] {
            assert_eq!(text.parse::<Mark>(), Err(ForeignAlias), "{text}");
        }
    }

    #[test]
    fn the_loopback_is_among_the_links_with_its_address() {
        let links = links().unwrap();
        let lo = links.iter().find(|link| link.loopback).unwrap();
        assert_eq!(lo.name, "lo");
        assert!(
            !is_inside(&links, &IpAddr::from([127, 0, 0, 1])),
            "no p2pvm interface has it"
        );
    }

    #[test]
    fn an_address_behind_an_interface_of_ours_is_told_from_all_others() {
        let link = |alias: Option<&str>, address: &str, prefix| Link {
            index: 1,
            name: "x".into(),
            up: true,
            carrier: true,
            loopback: false,
            mtu: 1340,
            alias: alias.map(str::to_owned),
            addresses: vec![
                (address.parse().unwrap(), prefix),
                ("fe80::1".parse().unwrap(), 64),
            ],
        };
        let links = [
            link(Some("p2pvm/1 network=n"), "10.9.3.4", 16),
            link(None, "192.168.1.9", 24),
        ];
        let inside = |ip: &str| is_inside(&links, &ip.parse().unwrap());
        assert!(
            inside("10.9.200.1")
                && !inside("10.10.0.1")
                && !inside("192.168.1.1")
                && !inside("fe80::9")
        );
    }
}
