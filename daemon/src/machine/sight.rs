//! The network of this machine and its router, as they show it without any member.

use p2pvm_api::NetCheckView;
use p2pvm_overlay::portmap::Offers;
pub use p2pvm_overlay::underlay::local_addresses;
use std::net::IpAddr;

/// The part of the report that needs no daemon.
pub fn of_machine(local: &[IpAddr], router: &Offers) -> NetCheckView {
    NetCheckView {
        router: router.router.map(|ip| ip.to_string()),
        pcp: router.pcp,
        nat_pmp: router.nat_pmp,
        upnp: router.upnp,
        router_outside: router.outside.map(|ip| ip.to_string()),
        addresses: local.iter().map(ToString::to_string).collect(),
        ipv6: local
            .iter()
            .any(|ip| matches!(ip, IpAddr::V6(v6) if v6.segments()[0] & 0xe000 == 0x2000)),
        ..NetCheckView::default()
    }
}
