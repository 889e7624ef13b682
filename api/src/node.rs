//! The node itself: its status and health, its way to the others, its place on the ring.

use p2pvm_host::Level;
use serde::{Deserialize, Serialize};

/// `p2pvm status`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Status {
    /// This member's id.
    pub member: String,
    /// Its host name in the network.
    pub name: String,
    /// The network's name.
    pub network: String,
    /// The network's id.
    pub network_id: String,
    /// Addresses are drawn from here.
    pub subnet: String,
    /// This host's address, once claimed.
    pub address: Option<String>,
    /// Its IPv6 address, derived from its key.
    pub address_v6: String,
    /// How others see this node's packet port.
    pub reflexive: Option<String>,
    /// What kind of NAT it sits behind.
    pub nat: String,
    /// The port that the router maps to this node, if it does.
    #[serde(default)]
    pub mapped: Option<String>,
    /// What became of tries to reach members directly.
    #[serde(default)]
    pub punches: PunchesView,
    /// Members with a live control connection.
    pub connected: usize,
    /// The other members that it knows.
    #[serde(default)]
    pub known: usize,
    /// Whether this member was told of others when it joined; the founder was not.
    #[serde(default)]
    pub joined_another: bool,
    /// How this member stands on the ring.
    #[serde(default)]
    pub ring: RingView,
    /// Virtual machines running here.
    pub running_vms: usize,
    /// Those of them whose guests answered through their interfaces when they were asked last.
    #[serde(default)]
    pub answering_vms: usize,
    /// Load of this host's processors, 0 to 1.
    pub cpu: f64,
    /// Where the daemon listens for members.
    pub listen: Vec<String>,
    /// Seconds since the daemon started.
    pub up_seconds: u64,
    /// How long this daemon's steps to a working address took, milliseconds.
    pub start_ms: StartTimes,
    /// Resident memory of the daemon, bytes.
    pub resident_bytes: u64,
    /// The program's version.
    pub version: String,
    /// How this node is, in one word, and why.
    #[serde(default)]
    pub health: HealthView,
    /// What is found wrong with this machine.
    #[serde(default)]
    pub findings: Vec<FindingView>,
    /// Why there is no address yet, as far as the daemon knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address_wanting: Option<String>,
}

/// The health in one word, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct HealthView {
    /// The word, as `p2pvm top` has it.
    pub word: String,
    /// Why.
    pub why: String,
}

/// One thing that is found wrong with this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct FindingView {
    /// What part of the machine it concerns: "routes", "names", "path", ...
    pub area: String,
    /// How grave it is.
    #[cfg_attr(test, schemars(schema_with = "crate::document::level"))]
    pub level: Level,
    /// What was found, with its cause.
    pub found: String,
    /// What to do about it; empty if nothing is to be done.
    pub advice: String,
}

/// What became of tries to reach members directly where at least one side has a NAT or a firewall.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PunchesView {
    /// Begun where the NATs allow it.
    pub tried: u64,
    /// Of these, came through.
    pub direct: u64,
    /// Of these, came through at the first try.
    pub first_try: u64,
    /// Begun although the NATs, as far as they are known, do not allow it.
    pub hopeless: u64,
    /// Median time to a direct path of those listed, milliseconds.
    pub median_ms: Option<f64>,
    /// The newest.
    pub list: Vec<PunchView>,
}

/// One of them.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PunchView {
    /// The other member's id.
    pub member: String,
    /// How often addresses were exchanged and tried.
    pub tries: u32,
    /// From the first try to the direct path, milliseconds; none: not yet.
    pub direct_ms: Option<f64>,
    /// Whether the two NATs, as far as they are known, allow a direct path.
    pub allowed: bool,
}

/// `p2pvm netcheck`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct NetCheckView {
    /// Whether the daemon runs; without it only what this machine itself shows is here.
    pub daemon: bool,
    /// What kind of NAT this machine sits behind.
    pub nat: Option<String>,
    /// How public ports are given out (RFC 4787).
    pub mapping: Option<String>,
    /// What is let in (RFC 4787).
    pub filtering: Option<String>,
    /// How others see the packet port.
    pub reflexive: Option<String>,
    /// The UDP port of the packet plane.
    pub udp_port: Option<u16>,
    /// A second port, while members are written to from it because nothing comes back to the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub second_port: Option<u16>,
    /// The port that the router maps to this node, and how it was asked.
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
    /// What stands before that.
    pub ipv6_nat: Option<String>,
    /// Members this node is connected with.
    pub members: Vec<ReachableView>,
    /// Members that pass on packets of ours now.
    pub relays: Vec<String>,
    /// What became of tries to reach members directly.
    pub punches: PunchesView,
}

/// A member, as `netcheck` sees it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ReachableView {
    /// Its name.
    pub name: String,
    /// What stands before it, if it said so.
    pub nat: Option<String>,
    /// Whether a direct path is possible by what is known of both NATs.
    pub may_be_direct: Option<bool>,
    /// The packet path, if there is a link.
    pub path: Option<String>,
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
    /// Members in the network, estimated from their spacing.
    pub size_estimate: f64,
    /// Nearest neighbours.
    pub near: usize,
    /// Neighbours drawn by the distance law.
    pub far: usize,
    /// Neighbours for much traffic.
    pub shortcuts: usize,
    /// Neighbours that have not joined yet.
    pub leaves: usize,
    /// Near neighbours replaced or found since the start.
    pub repairs: u64,
    /// Packets of other pairs handed on.
    pub carried: u64,
    /// Expected relative error of this member's network coordinate: 0.1 means 10 % off.
    pub coordinate_error: f32,
}

/// One hop of `p2pvm trace`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct TraceHop {
    /// The member's name, or the beginning of its id where that is not known.
    pub name: String,
    /// The first digits of its place on the ring; empty where the member is not known.
    pub position: String,
    /// The round trip between it and the hop before, milliseconds.
    pub rtt_ms: Option<f64>,
    /// What the hop is to this node on the ring: as [`RingNeighbour::role`]; empty for those
    /// further on.
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
    /// From the sending of the question to the answer, milliseconds.
    pub round_trip_ms: f64,
    /// The predicted round trip of the direct way, milliseconds, if it is known.
    pub direct_ms: Option<f64>,
}
