//! Questions about this machine's networks that keeping the TUN asks.

use p2pvm_host::{
    device,
    links::{Link, links},
};
use std::{fs, net::IpAddr};

/// Whether IPv6 is switched off for an interface, or altogether.
pub(crate) fn is_v6_off(device: &str) -> bool {
    // `conf/all` alone does not count: it is written through to each interface.
    let read = fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{device}/disable_ipv6"));
    match read {
        Ok(text) => text.trim() != "0",
        Err(_) => !fs::exists("/proc/sys/net/ipv6").unwrap_or(true),
    }
}

/// An address of the network of `address` that is not this host's: the gateway's, which no host
/// holds, or the next.
pub(crate) fn other_address(address: &IpAddr, prefix: u8) -> Option<IpAddr> {
    let first = device::network(address, prefix);
    let nth = |n: u8| match first {
        IpAddr::V4(v4) => IpAddr::from((u32::from(v4) | u32::from(n)).to_be_bytes()),
        IpAddr::V6(v6) => IpAddr::from((u128::from(v6) | u128::from(n)).to_be_bytes()),
    };
    let width = if address.is_ipv4() { 32 } else { 128 };
    (prefix + 2 <= width).then(|| if nth(1) == *address { nth(2) } else { nth(1) })
}

/// Whether an interface other than `index` has an address in this network, so that it has a route
/// to it of its own.
pub(crate) fn has_other_interface(index: u32, network: &IpAddr, prefix: u8) -> bool {
    let stands = |link: &Link| {
        link.index != index
            && link
                .addresses
                .iter()
                .any(|(ip, _)| device::network(ip, prefix) == *network)
    };
    links().is_ok_and(|links| links.iter().any(stands))
}

/// By which interface a packet to `ip` leaves, in words.
pub(crate) fn outgoing_interface(ip: &IpAddr) -> String {
    match device::way_to(ip) {
        Ok(Some(index)) => nix::net::if_::if_indextoname(index).map_or_else(
            |_| format!("interface {index}"),
            |n| n.to_string_lossy().into(),
        ),
        Ok(None) => "no interface".into(),
        Err(error) => format!("no interface: {}", p2pvm_host::chain(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_address_stands_for_a_network_of_more_than_one() {
        for (address, prefix, other) in [
            ("10.77.0.3", 16, Some("10.77.0.1")),
            ("10.77.0.1", 16, Some("10.77.0.2")),
            ("10.77.0.2", 31, None),
            ("10.77.0.2", 32, None),
            ("fd77::9", 48, Some("fd77::1")),
            ("fd77::9", 127, None),
        ] {
            let other: Option<IpAddr> = other.map(|text| text.parse().unwrap());
            assert_eq!(
                other_address(&address.parse().unwrap(), prefix),
                other,
                "{address}/{prefix}"
            );
        }
    }
}
