//! The plane's words: how it is configured, which paths there are, and what it reports.

use super::routes::Route;
use crate::id::{Epoch, MemberId, VmId};
use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};
use zeroize::Zeroizing;

/// How a plane is started.
pub struct PlaneConfig {
    /// This node.
    pub me: MemberId,
    /// The secret half of this node's link key.
    pub link_secret: Zeroizing<[u8; 32]>,
    /// The UDP port to bind; 0 for any.
    pub udp_port: u16,
    /// The TUN device to make, such as `p2pvm0`.
    pub device: String,
    /// The TUN's MTU in bytes. At 1340 a relayed packet still fits 1500 bytes of IPv6.
    pub mtu: u16,
    /// Whether to count the bytes between each pair of addresses
    /// ([`Plane::traffic`](super::Plane::traffic)).
    pub traffic: bool,
    /// The network's id as text: marks the interface, so that every daemon of this machine
    /// recognizes it ([`p2pvm_host::links::Mark`]).
    pub network: String,
    /// The port of the control plane, for the same mark; 0: not known yet
    /// ([`Plane::set_control_port`](super::Plane::set_control_port)).
    pub control_port: u16,
}

/// How datagrams reach a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Path {
    /// Directly to this address.
    Direct(SocketAddr),
    /// Through this member, sealed end to end.
    Relayed(MemberId),
    /// Over the ring, from neighbour to neighbour, sealed end to end.
    Ring,
    /// Over a stream of the control plane: UDP does not get through.
    Stream,
}

/// How long nothing may have come by a path before it is reported as silent.
const SILENT: Duration = Duration::from_secs(10);

/// The state of the link to a member.
#[derive(Clone, Copy, Debug)]
pub struct PathInfo {
    /// The path that data takes.
    pub path: Path,
    /// Its last measured round trip.
    pub rtt: Option<Duration>,
    /// When this path was selected.
    pub since: Instant,
    /// Bytes of IP packets sent to the member.
    pub tx_bytes: u64,
    /// Bytes of IP packets received from it.
    pub rx_bytes: u64,
    /// When the last handshake finished.
    pub last_handshake: Option<Instant>,
    /// The largest IP packet that this path carries whole, in bytes.
    pub packet_bytes: usize,
    /// When something last answered by this path; `None` if nothing has yet.
    pub heard: Option<Instant>,
}

impl PathInfo {
    /// How long nothing has answered by this path, if that is so long that the path may be dead.
    pub fn silent(&self, now: Instant) -> Option<Duration> {
        let since = self.heard.map_or(self.since, |heard| heard.max(self.since));
        Some(now.saturating_duration_since(since)).filter(|silence| *silence >= SILENT)
    }
}

/// A member's answer to [`Plane::ping`](super::Plane::ping).
#[derive(Clone, Copy, Debug)]
pub struct Pong {
    /// Round trip through the link.
    pub rtt: Duration,
    /// The path by which the answer came.
    pub path: Path,
    /// How many links the answer took over the ring; `None` for other paths.
    pub hops: Option<u8>,
}

/// What the plane reports to its owner.
#[derive(Clone, Debug)]
pub enum PlaneEvent {
    /// A packet goes to, or comes from, an address without a route: it waits a few seconds for
    /// [`Plane::set_route`](super::Plane::set_route).
    Unresolved(IpAddr),
    /// Data to a member takes another path from now on, or has none.
    PathChanged {
        /// The other end of the path.
        member: MemberId,
        /// The path; `None` if there is no link any more.
        path: Option<Path>,
    },
    /// A member sent a packet from an address under an epoch older than the known one. The packet
    /// was dropped.
    StaleEpoch {
        /// The address that it was sent from.
        addr: IpAddr,
        /// The member that sent it.
        from: MemberId,
        /// The epoch it claimed.
        sent: Epoch,
        /// The newest epoch known here.
        known: Epoch,
    },
    /// A guest's ARP, neighbour discovery or DHCP frame.
    GuestFrame {
        /// The guest that sent it.
        vm: VmId,
        /// The Ethernet frame.
        frame: Vec<u8>,
    },
    /// The former host of an address reported its new host. The routes already have it.
    MovedHint {
        /// The address that moved.
        addr: IpAddr,
        /// Its new host and epoch.
        route: Route,
    },
}
