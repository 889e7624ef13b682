//! What this machine reaches, or refuses to reach, by itself.

use crate::{
    netlink::Netlink,
    routes::{MAIN, Route, of_kinds},
    rules::tables_of_all,
};
use netlink_packet_route::route::RouteType;
use std::io;

/// The routes of the main table and of the tables through which other programs, such as VPNs, lead
/// all packets. Blackholes and the like are routes without an interface.
///
/// # Errors
/// The kernel's error.
pub fn reached(netlink: &mut Netlink) -> io::Result<Vec<Route>> {
    let mut tables = tables_of_all(netlink)?;
    tables.insert(MAIN);
    let kinds = [
        RouteType::Unicast,
        RouteType::BlackHole,
        RouteType::Unreachable,
        RouteType::Prohibit,
    ];
    let mut found = Vec::new();
    for table in tables {
        found.extend(of_kinds(netlink, table, &kinds)?);
    }
    Ok(found)
}
