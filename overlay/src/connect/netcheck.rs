//! A report of this machine's connectivity, for an operator that asks why a path is not direct.

use super::{
    Connector, NatKind, Punches, Shared,
    state::{State, examine::Filtering, nat::is_private},
};
use crate::{
    id::MemberId,
    plane::{Path, PathInfo},
    portmap::{self, Offers, Protocol},
};
use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

/// How long a member may take to answer whether it lives.
const LOOK_LIMIT: Duration = Duration::from_secs(1);

/// What `p2pvm netcheck` reports.
#[derive(Clone, Debug)]
pub struct NetCheck {
    /// The NAT or firewall in front of this node, by IPv4 if it has that.
    pub nat: NatKind,
    /// How the NAT assigns public ports (RFC 4787 §4.1).
    pub mapping: &'static str,
    /// Which packets it lets in (RFC 4787 §5).
    pub filtering: &'static str,
    /// The firewall in front of its IPv6 addresses, if it has public ones.
    pub nat6: Option<NatKind>,
    /// Our address as others see it, where a NAT changes it.
    pub reflexive: Option<SocketAddr>,
    /// The port mapping that is held, and the protocol that made it.
    pub mapped: Option<(SocketAddr, Protocol)>,
    /// What the router offers.
    pub router: Offers,
    /// This host's addresses.
    pub local: Vec<IpAddr>,
    /// The UDP port of the packet plane.
    pub udp_port: u16,
    /// The second port, while it is used.
    pub second_port: Option<u16>,
    /// The members this node is connected with.
    pub members: Vec<MemberReach>,
    /// Members that relay packets of ours now.
    pub relays: Vec<MemberId>,
    /// The results of tries to reach members directly.
    pub punches: Punches,
}

/// A member, seen from here.
#[derive(Clone, Debug)]
pub struct MemberReach {
    /// The member's id.
    pub member: MemberId,
    /// The NAT or firewall in front of it, if it said so.
    pub nat: Option<NatKind>,
    /// Whether a direct path is possible, by what is known of both NATs; `None` if nothing is known
    /// of its NAT yet.
    pub may_be_direct: Option<bool>,
    /// The link, if there is one.
    pub link: Option<PathInfo>,
    /// Its round trip, by the link or by the control connection.
    pub rtt: Option<Duration>,
}

/// How a NAT of this kind maps, in RFC 4787's words.
fn mapping(kind: NatKind) -> &'static str {
    match kind {
        NatKind::Unknown | NatKind::Blocked => "not known",
        NatKind::Open | NatKind::Firewalled => "none: own address",
        NatKind::Cone | NatKind::FullCone | NatKind::AddressCone => "endpoint-independent",
        NatKind::Symmetric => "address- and port-dependent",
        NatKind::Counting => "address- and port-dependent, ports count up",
    }
}

fn filtering(kind: NatKind, found: Filtering) -> &'static str {
    match (kind, found) {
        (NatKind::Blocked, _) => "everything",
        (_, Filtering::Unknown) => "not known",
        (_, Filtering::Independent) => "endpoint-independent",
        (_, Filtering::Address) => "address-dependent at most",
        (_, Filtering::Port) => "address- and port-dependent",
    }
}

impl Connector {
    /// Makes the report. Takes up to three seconds if the router does not answer.
    pub async fn netcheck(&self) -> NetCheck {
        let shared = &self.shared;
        let local = shared.plane.local_addresses();
        // A member that has sent nothing lately is asked whether it lives, so that the report is
        // true when it is read.
        let (router, ()) = tokio::join!(
            portmap::offers(&local),
            shared.plane.look_at_silent(LOOK_LIMIT)
        );
        let (links, connected) = (shared.plane.peers(), shared.fabric.connected());
        let members = members(shared, &links, connected);
        let udp_port = shared.plane.udp_port();
        let second_port = shared.plane.second_port();
        let punches = self.punches();
        let state = shared.state();
        let has_public6 = local.iter().any(|ip| ip.is_ipv6() && !is_private(ip));
        let nat = &state.nat;
        NetCheck {
            nat: nat.kind,
            mapping: mapping(nat.kind),
            filtering: filtering(nat.kind, found_filtering(&state)),
            nat6: has_public6.then_some(nat.kind6),
            reflexive: nat.reflexive,
            mapped: nat.mapped.zip(nat.mapped_by),
            router,
            local,
            udp_port,
            second_port,
            members,
            relays: relays(&links),
            punches,
        }
    }
}

fn found_filtering(state: &State) -> Filtering {
    let (four, six) = (&state.nat.four, &state.nat.six);
    if four.found.is_some() {
        four.finding.filtering
    } else {
        six.finding.filtering
    }
}

/// The members that relay packets.
fn relays(links: &[(MemberId, PathInfo)]) -> Vec<MemberId> {
    let relay = |(_, info): &(MemberId, PathInfo)| match info.path {
        Path::Relayed(relay) => Some(relay),
        _ => None,
    };
    let relays: BTreeSet<MemberId> = links.iter().filter_map(relay).collect();
    relays.into_iter().collect()
}

fn members(
    shared: &Shared,
    links: &[(MemberId, PathInfo)],
    connected: Vec<MemberId>,
) -> Vec<MemberReach> {
    let linked = links.iter().map(|(member, _)| *member);
    let members: BTreeSet<MemberId> = connected.into_iter().chain(linked).collect();
    let reachable = |member: MemberId| {
        let link = links.iter().find(|(m, _)| *m == member).map(|(_, i)| i);
        let known = shared.state().known.get(&member).map(|(_, w)| w.clone());
        let nat = known.as_ref().map(|w| w.nat);
        let rtt = link.and_then(|l| l.rtt);
        MemberReach {
            member,
            nat: nat.filter(|nat| *nat != NatKind::Unknown),
            may_be_direct: known.as_ref().map(|w| shared.may_reach(w)),
            link: link.copied(),
            rtt: rtt.or_else(|| shared.fabric.rtt_of_open(member)),
        }
    };
    members.into_iter().map(reachable).collect()
}
