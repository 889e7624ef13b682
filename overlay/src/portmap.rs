//! Asks the router for a port mapping by UPnP (Internet Gateway Device), where it offers that.

use igd_next::{PortMappingProtocol, SearchOptions, aio::tokio::search_gateway};
use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

/// How long a mapping is asked for; renewed at half of it.
pub const LEASE: Duration = Duration::from_secs(3600);
/// A router that offers UPnP answers a multicast in its own network at once.
const SEARCH: Duration = Duration::from_secs(3);

/// Maps a UDP port of this host and returns the outside address; `None` where no router offers it.
pub async fn map(local: &[IpAddr], port: u16) -> Option<SocketAddr> {
    let mut options = SearchOptions::default();
    options.timeout = Some(SEARCH);
    let gateway = search_gateway(options).await.ok()?;
    // The address of ours that shares the longest prefix with the router's.
    let IpAddr::V4(router) = gateway.addr.ip() else { return None };
    let closeness = |ip: &IpAddr| match ip {
        IpAddr::V4(v4) => (u32::from(*v4) ^ u32::from(router)).leading_zeros(),
        IpAddr::V6(_) => 0,
    };
    let ours = local.iter().filter(|ip| ip.is_ipv4()).max_by_key(|ip| closeness(ip))?;
    let seconds = u32::try_from(LEASE.as_secs()).unwrap_or(u32::MAX);
    let mapped = gateway.get_any_address(PortMappingProtocol::UDP, SocketAddr::new(*ours, port), seconds, "p2pvm").await;
    mapped.inspect_err(|error| tracing::debug!(%error, "the router maps no port")).ok()
}
