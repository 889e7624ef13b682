//! What the control API says, as types: the same for the command line, a terminal UI and the web.
//!
//! Members of different versions pass requests on to each other, so a reader ignores fields that it
//! does not know, and fields that were added later have a default. The files below have the types
//! by resource. Structs there that say so have their fields in alphabetical order, as their answers
//! are printed with `--json`; [`Sorted`] puts the others into that order.

use crate::failure::Failure;
use p2pvm_host::Level;
use serde::{Deserialize, Serialize};

mod members;
mod moves;
mod policy;
mod routes;
mod sorted;
mod vms;

pub use {members::*, moves::*, policy::*, routes::*, sorted::*, vms::*};

/// One line of a streamed answer (newline-delimited JSON).
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Line {
    /// How far it has come.
    Progress(Step),
    /// One of several results, such as one pong.
    Item(serde_json::Value),
    /// The end, with the result.
    Done(serde_json::Value),
    /// The end, without.
    Error(Failure),
}

/// A step of something that takes long.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// What is being done, in a word or two.
    pub phase: String,
    /// Bytes done in this phase.
    #[serde(default)]
    pub done_bytes: u64,
    /// Bytes known to be needed, 0 if unknown.
    #[serde(default)]
    pub total_bytes: u64,
    /// More to show beside the bar: dirty rate, expected downtime.
    #[serde(default)]
    pub note: String,
}

/// `p2pvm status`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
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
pub struct HealthView {
    /// The word, as `p2pvm top` has it.
    pub word: String,
    /// Why.
    pub why: String,
}

/// One thing that is found wrong with this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FindingView {
    /// What part of the machine it concerns: "routes", "names", "path", ...
    pub area: String,
    /// How grave it is.
    pub level: Level,
    /// What was found, with its cause.
    pub found: String,
    /// What to do about it; empty if nothing is to be done.
    pub advice: String,
}

/// What became of tries to reach members directly where at least one side has a NAT or a firewall.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
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
pub struct StartTimes {
    /// First control connection to another member.
    pub connected: Option<u64>,
    /// Address claimed in the DHT.
    pub address: Option<u64>,
    /// Duration of the claim alone.
    pub claim: Option<u64>,
}

/// One row of `p2pvm peers`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Peer {
    /// The member's id.
    pub member: String,
    /// Its host name.
    pub name: String,
    /// Its address, if known.
    pub address: Option<String>,
    /// Whether a control connection is up.
    pub connected: bool,
    /// Whether packets go over the link and answers come back.
    #[serde(default)]
    pub linked: bool,
    /// The packet path, if there is a link.
    pub path: Option<String>,
    /// The link's last measured round trip, milliseconds.
    pub rtt_ms: Option<f64>,
    /// Bytes sent over the link.
    pub sent_bytes: u64,
    /// Bytes received over the link.
    pub received_bytes: u64,
    /// The largest IP packet that the path carries whole.
    #[serde(default)]
    pub packet_bytes: Option<usize>,
    /// What it is to this node on the ring, if it is a neighbour there.
    #[serde(default)]
    pub ring: Option<RingNeighbour>,
}

/// One row of `p2pvm traffic`: a pair of addresses, one of them at this node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Traffic {
    /// The address here, of the host or a guest.
    pub local: String,
    /// The address it talks with.
    pub remote: String,
    /// The id of the member behind that.
    pub member: String,
    /// Its name.
    pub name: String,
    /// The path to it, if there is a link.
    pub path: Option<String>,
    /// Bytes from `local` to `remote` since the pair is known.
    pub sent_bytes: u64,
    /// Bytes the other way.
    pub received_bytes: u64,
    /// Bytes a second, both ways, over the last second.
    pub bytes_per_second_1s: f64,
    /// Over the last 4 s.
    pub bytes_per_second_4s: f64,
    /// Over the last 16 s.
    pub bytes_per_second_16s: f64,
}

/// One answer to `p2pvm ping`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pong {
    /// Which probe, from 1.
    pub seq: u32,
    /// Round trip, milliseconds; none if lost.
    pub rtt_ms: Option<f64>,
    /// How the answer came: "direct 198.18.3.1:4242", "relayed via name", "over the ring, 2 hops"
    /// or "stream".
    pub path: String,
}

/// The ring as `p2pvm status` shows it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
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

/// A neighbour on the ring.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RingNeighbour {
    /// "near", "far", "shortcut", "leaf", or several joined by "+"; "link" if it only happens to be
    /// linked.
    pub role: String,
    /// The round trip that the ring measured, milliseconds.
    pub rtt_ms: Option<f64>,
    /// The round trip that both members' coordinates predict, milliseconds.
    pub distance_ms: Option<f64>,
    /// The expected relative error of its coordinate.
    pub error: Option<f32>,
}

/// One hop of `p2pvm trace`.
#[derive(Clone, Debug, Serialize, Deserialize)]
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

/// One row of `p2pvm peers --all`: a member as it describes itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ClusterMember {
    /// Its id.
    pub member: String,
    /// Its host name.
    pub name: String,
    /// Its address, once claimed.
    pub address: Option<String>,
    /// What kind of NAT it sits behind.
    pub nat: String,
    /// Its place on the ring.
    pub position: String,
    /// Its neighbours there.
    pub neighbours: usize,
    /// Load of its processors, 0 to 1.
    pub cpu: f64,
    /// Virtual machines running there.
    pub running_vms: usize,
}

/// The load of several members together.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct ClusterLoad {
    /// How many.
    pub members: u64,
    /// The sum of the loads of their processors, each 0 to 1.
    pub cpu_sum: f64,
    /// Virtual machines running there.
    pub running_vms: usize,
}

impl ClusterLoad {
    /// Both together.
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            members: self.members + other.members,
            cpu_sum: self.cpu_sum + other.cpu_sum,
            running_vms: self.running_vms + other.running_vms,
        }
    }
}

/// `p2pvm peers --all`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cluster {
    /// Those that answered, this one among them.
    pub members: Vec<ClusterMember>,
    /// Their load, added up on the way back.
    pub load: ClusterLoad,
    /// Members that were asked and answered.
    pub asked: u64,
    /// Levels that the question went down.
    pub depth: u8,
    /// Who did not answer.
    pub silent: Vec<String>,
}

/// All VMs of the network.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ClusterVms {
    /// By name.
    pub vms: Vec<VmView>,
    /// Members that did not say which they have.
    pub silent: Vec<String>,
}

/// What `p2pvm invite` asks for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InviteRequest {
    /// How many machines may join with it.
    pub uses: u32,
    /// Seconds until it expires.
    pub expires_seconds: u64,
    /// Whether those who join with it may invite others.
    pub delegate: bool,
    /// The groups that those who join with it are in.
    #[serde(default)]
    pub groups: Vec<String>,
    /// Name this member's QUIC address at each of its hosts only, so that the text is short enough
    /// for a QR code.
    #[serde(default)]
    pub short: bool,
}

/// What `p2pvm invite` gets.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InviteAnswer {
    /// The text to hand over.
    pub invite: String,
    /// Its id, by which it can be revoked.
    pub id: String,
    /// What the one who hands it over should know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// Checks the exact text of an answer: what is said, and that it is understood.
#[cfg(test)]
fn assert_text<T: Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug>(
    value: &T,
    text: &str,
) {
    assert_eq!(serde_json::to_string(value).unwrap(), text);
    assert_eq!(&serde_json::from_str::<T>(text).unwrap(), value);
}
