//! The node itself: its status and health, its connectivity, its place on the ring.

use crate::{Health, MemberIdText, NetworkIdText, PathKind};
use p2pvm_host::Level;
use serde::{Deserialize, Serialize};
use std::fmt;

/// `p2pvm status`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Status {
    /// This member's id.
    pub member: MemberIdText,
    /// Its host name in the network.
    pub name: String,
    /// The network's name.
    pub network: String,
    /// The network's id.
    pub network_id: NetworkIdText,
    /// The subnet of the network's addresses.
    pub subnet: String,
    /// This host's address, once claimed.
    pub address: Option<String>,
    /// Its IPv6 address, derived from its key.
    pub address_v6: String,
    /// The address at which others see this node's packet port.
    pub reflexive: Option<String>,
    /// The NAT or firewall in front of it.
    pub nat: String,
    /// The port that the router maps to this node, if it does.
    #[serde(default)]
    pub mapped: Option<String>,
    /// The results of tries to reach members directly.
    #[serde(default)]
    pub punches: PunchesView,
    /// Members with a live control connection.
    pub connected: usize,
    /// The other members that it knows.
    #[serde(default)]
    pub known: usize,
    /// Whether this member received contacts of others when it joined; the founder did not.
    #[serde(default)]
    pub joined_another: bool,
    /// The state of this member on the ring.
    #[serde(default)]
    pub ring: RingView,
    /// Virtual machines running here.
    pub running_vms: usize,
    /// How many of them had a guest that answered through its interface when last asked.
    #[serde(default)]
    pub answering_vms: usize,
    /// Load of this host's processors, 0 to 1.
    pub cpu: f64,
    /// The addresses on which the daemon listens for members.
    pub listen: Vec<String>,
    /// Seconds since the daemon started.
    pub up_seconds: u64,
    /// How long this daemon's steps to a working address took, milliseconds.
    pub start_ms: StartTimes,
    /// Resident memory of the daemon, bytes.
    pub resident_bytes: u64,
    /// The program's version.
    pub version: String,
    /// The health of this node in one word, and the reason.
    #[serde(default)]
    pub health: HealthView,
    /// The findings about this machine.
    #[serde(default)]
    pub findings: Vec<FindingView>,
    /// Why there is no address yet, as far as the daemon knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address_wanting: Option<String>,
}

/// The health in one word, and the reason.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct HealthView {
    /// The word, as `p2pvm top` has it.
    pub word: Health,
    /// The reason.
    pub why: String,
}

impl fmt::Display for HealthView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.why.as_str() {
            "" => write!(f, "{}", self.word),
            why => write!(f, "{}: {why}", self.word),
        }
    }
}

/// A finding about this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct FindingView {
    /// The part of the machine that it is about: "routes", "names", "path", ...
    pub area: String,
    /// How grave it is.
    #[cfg_attr(test, schemars(schema_with = "crate::document::level"))]
    pub level: Level,
    /// The fault, with its cause.
    pub found: String,
    /// The remedy; empty if nothing is to be done.
    pub advice: String,
}

/// The results of tries to reach members directly if at least one side has a NAT or a firewall.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PunchesView {
    /// How many were begun where the NATs allow it.
    pub tried: u64,
    /// How many of these succeeded.
    pub direct: u64,
    /// How many of these succeeded at the first try.
    pub first_try: u64,
    /// How many were begun although the NATs, as far as known, do not allow it.
    pub hopeless: u64,
    /// The median time to a direct path of those listed, milliseconds.
    pub median_ms: Option<f64>,
    /// The newest tries.
    pub list: Vec<PunchView>,
}

/// One try to reach a member directly.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PunchView {
    /// The other member's id.
    pub member: MemberIdText,
    /// How many times addresses were exchanged and tried.
    pub tries: u32,
    /// From the first try to the direct path, milliseconds; none if there is none yet.
    pub direct_ms: Option<f64>,
    /// Whether the two NATs, as far as known, allow a direct path.
    pub allowed: bool,
}

/// `p2pvm netcheck`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct NetCheckView {
    /// Whether the daemon runs; without it only this machine's own data are here.
    pub daemon: bool,
    /// The NAT or firewall in front of this machine.
    pub nat: Option<String>,
    /// How the NAT assigns public ports (RFC 4787).
    pub mapping: Option<String>,
    /// Which packets the NAT lets in (RFC 4787).
    pub filtering: Option<String>,
    /// The address at which others see the packet port.
    pub reflexive: Option<String>,
    /// The UDP port of the packet plane.
    pub udp_port: Option<u16>,
    /// The second port, while members are written to from it because the first one gets no answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub second_port: Option<u16>,
    /// The port that the router maps to this node, and the protocol that asked for it.
    pub mapped: Option<String>,
    /// The router of the default route.
    pub router: Option<String>,
    /// Whether the router speaks PCP.
    pub pcp: bool,
    /// Whether it speaks NAT-PMP.
    pub nat_pmp: bool,
    /// Whether it speaks UPnP.
    pub upnp: bool,
    /// The outside address that the router claims.
    pub router_outside: Option<String>,
    /// This machine's addresses.
    pub addresses: Vec<String>,
    /// Whether it has a public IPv6 address.
    pub ipv6: bool,
    /// The firewall in front of it.
    pub ipv6_nat: Option<String>,
    /// Members that this node is connected to.
    pub members: Vec<ReachableView>,
    /// Members that relay packets of ours now.
    pub relays: Vec<String>,
    /// The results of tries to reach members directly.
    pub punches: PunchesView,
}

/// A member, as `netcheck` sees it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ReachableView {
    /// Its name.
    pub name: String,
    /// The NAT or firewall in front of it, if it said so.
    pub nat: Option<String>,
    /// Whether a direct path is possible, by what is known of both NATs.
    pub may_be_direct: Option<bool>,
    /// The packet path, if there is a link.
    pub path: Option<String>,
    /// The kind of that path; missing while no answers come by it.
    #[serde(default)]
    pub path_kind: Option<PathKind>,
    /// Round trip of the link or the control connection, milliseconds.
    pub rtt_ms: Option<f64>,
}

/// When, after the daemon began, each step of joining was done (milliseconds).
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct StartTimes {
    /// First control connection to another member.
    pub connected: Option<u64>,
    /// Address claimed in the DHT.
    pub address: Option<u64>,
    /// Duration of the claim alone.
    pub claim: Option<u64>,
}

/// The ring as `p2pvm status` shows it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RingView {
    /// Whether this member has its place and carries packets of others.
    pub joined: bool,
    /// Whether it has had its place since the daemon started.
    #[serde(default)]
    pub was_joined: bool,
    /// Its place, 16 hexadecimal digits.
    pub position: String,
    /// The estimated number of members in the network.
    pub size_estimate: f64,
    /// Nearest neighbours.
    pub near: usize,
    /// Far neighbours, drawn by the distance law.
    pub far: usize,
    /// Neighbours by shortcut, for much traffic.
    pub shortcuts: usize,
    /// Neighbours that have not joined yet.
    pub leaves: usize,
    /// Near neighbours replaced or found since the start.
    pub repairs: u64,
    /// How many packets of other members this one has passed on.
    pub carried: u64,
    /// The expected relative error of this member's network coordinate: 0.1 means 10 % off.
    pub coordinate_error: f32,
}

/// One hop of `p2pvm trace`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct TraceHop {
    /// The member's name, or the beginning of its id if the name is unknown.
    pub name: String,
    /// The first digits of its place on the ring; empty if the member is unknown.
    pub position: String,
    /// The round trip between it and the previous hop, milliseconds.
    pub rtt_ms: Option<f64>,
    /// The hop's role on the ring for this node, as [`RingNeighbour::role`]; empty for hops further
    /// on.
    pub edge: String,
}

/// `p2pvm trace`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Traced {
    /// Whether the last hop is the member asked for.
    pub reached: bool,
    /// The members on the way, the first one after this node.
    pub hops: Vec<TraceHop>,
    /// From the question to the answer, milliseconds.
    pub round_trip_ms: f64,
    /// The predicted round trip of the direct path, milliseconds, if known.
    pub direct_ms: Option<f64>,
}
