//! The settings of a connector, for its driver and for the state that decides.

use crate::plane::RelayOffer;
use std::net::SocketAddr;

/// What a connector may use.
#[derive(Clone, Copy, Debug)]
pub struct ConnectOptions {
    /// Ask members by STUN for our address.
    pub stun: bool,
    /// Ask the router for a port mapping by PCP, NAT-PMP or UPnP.
    pub upnp: bool,
    /// Where others reach this node's plane, if a person has set up a port forwarding on the
    /// router.
    pub outside: Option<SocketAddr>,
    /// What this node relays for others.
    pub relay: RelayOffer,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self {
            stun: true,
            upnp: true,
            outside: None,
            relay: RelayOffer::default(),
        }
    }
}
