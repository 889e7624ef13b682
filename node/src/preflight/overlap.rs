//! What of this machine a subnet would hide: a network it stands in or has a route to, its gateway, its name servers.

use p2pvm_dhcp::Subnet;
use std::{fs, io, net::Ipv4Addr};

/// What is in the way, in words that go on from "the subnet ...": "overlaps this machine's route to 10.0.2.0/24".
pub fn overlap(subnet: Subnet) -> io::Result<Option<String>> {
    let routes = fs::read_to_string("/proc/net/route")?;
    let servers = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    Ok(conflict(subnet, &routes, &servers))
}

fn conflict(subnet: Subnet, routes: &str, servers: &str) -> Option<String> {
    if let Some((gateway, interface)) = gateways(routes).find(|(gateway, _)| subnet.contains(*gateway)) {
        return Some(format!("holds this machine's gateway {gateway} (by {interface})"));
    }
    let local = p2pvm_dhcp::subnet::parse_routes(routes);
    if let Some(route) = subnet.overlapped_route(&local) {
        return Some(format!("overlaps this machine's route to {route}"));
    }
    let named = servers.lines().filter_map(|line| line.trim().strip_prefix("nameserver")?.trim().parse::<Ipv4Addr>().ok());
    named.into_iter().find(|server| subnet.contains(*server)).map(|server| format!("holds this machine's name server {server}"))
}

fn gateways(routes: &str) -> impl Iterator<Item = (Ipv4Addr, &str)> {
    routes.lines().skip(1).filter_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let gateway = Ipv4Addr::from_bits(u32::from_str_radix(columns.get(2)?, 16).ok()?.swap_bytes());
        (!gateway.is_unspecified()).then_some((gateway, *columns.first()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTES: &str = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT
eth0 00000000 0202000A 0003 0 0 0 00000000 0 0 0
eth0 0002000A 00000000 0001 0 0 0 00FFFFFF 0 0 0
";

    #[test]
    fn a_subnet_that_holds_a_route_a_gateway_or_a_name_server_is_in_the_way() {
        let found = |subnet: &str| conflict(subnet.parse().unwrap(), ROUTES, "nameserver 10.9.9.9\nnameserver ::1\n");
        assert!(found("10.0.0.0/8").unwrap().contains("gateway 10.0.2.2 (by eth0)"));
        assert!(found("10.0.2.128/25").unwrap().contains("route to 10.0.2.0/24"));
        assert!(found("10.9.0.0/16").unwrap().contains("name server 10.9.9.9"));
        assert_eq!(found("10.83.0.0/16"), None);
    }
}
