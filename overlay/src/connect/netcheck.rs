//! What this machine's way to the others is like, on one page: for a person who wonders why a path
//! is not direct.

use super::{Connector, NatKind, Punches, examine::Filtering};
use crate::{
    id::MemberId,
    plane::{Path, PathInfo},
    portmap::{self, Offers, Protocol},
};
use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

/// A member that is asked whether it lives answers within this.
const LOOK_LIMIT: Duration = Duration::from_secs(1);

/// The page.
#[derive(Clone, Debug)]
pub struct NetCheck {
    /// What stands between this node and the others, by IPv4 where it has that.
    pub nat: NatKind,
    /// How public ports are given out (RFC 4787 §4.1).
    pub mapping: &'static str,
    /// What is let in (RFC 4787 §5).
    pub filtering: &'static str,
    /// What stands before its IPv6 addresses, if it has public ones.
    pub nat6: Option<NatKind>,
    /// Our address as others see it, where a NAT changes it.
    pub reflexive: Option<SocketAddr>,
    /// The port mapping that is held, and what it was made with.
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
    pub members: Vec<Reachable>,
    /// Members that pass on packets of ours now.
    pub relays: Vec<MemberId>,
    /// What became of tries to reach members directly.
    pub punches: Punches,
}

/// A member, seen from here.
#[derive(Clone, Debug)]
pub struct Reachable {
    /// Which one.
    pub member: MemberId,
    /// What stands before it, if it said so.
    pub nat: Option<NatKind>,
    /// Whether a direct path is possible by what is known of both; none: nothing is known of it
    /// yet.
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
    /// Looks at everything. Takes up to three seconds where the router answers nothing.
    pub async fn netcheck(&self) -> NetCheck {
        let shared = &self.shared;
        let local = shared.plane.local_addresses();
        // Whoever has said nothing lately is asked whether it lives, so that the page is true when
        // it is read.
        let (router, ()) = tokio::join!(
            portmap::offers(&local),
            shared.plane.look_at_silent(LOOK_LIMIT)
        );
        let (links, connected) = (shared.plane.peers(), shared.fabric.connected());
        let mut relays: Vec<MemberId> = links
            .iter()
            .filter_map(|(_, info)| {
                if let Path::Relayed(relay) = info.path {
                    Some(relay)
                } else {
                    None
                }
            })
            .collect();
        relays.sort();
        relays.dedup();
        let mut members: Vec<MemberId> = connected
            .into_iter()
            .chain(links.iter().map(|(member, _)| *member))
            .collect();
        members.sort();
        members.dedup();
        let members = members
            .into_iter()
            .map(|member| {
                let link = links
                    .iter()
                    .find(|(m, _)| *m == member)
                    .map(|(_, info)| info);
                let known = shared
                    .state()
                    .known
                    .get(&member)
                    .map(|(_, whereabouts)| whereabouts.clone());
                Reachable {
                    member,
                    nat: known
                        .as_ref()
                        .map(|w| w.nat)
                        .filter(|nat| *nat != NatKind::Unknown),
                    may_be_direct: known.as_ref().map(|w| shared.may_reach(w)),
                    link: link.copied(),
                    rtt: link
                        .and_then(|l| l.rtt)
                        .or_else(|| shared.fabric.rtt_of_open(member)),
                }
            })
            .collect();
        let udp_port = shared.plane.udp_port();
        let second_port = shared.plane.second_port();
        let punches = self.punches();
        let state = shared.state();
        let has_public6 = local
            .iter()
            .any(|ip| ip.is_ipv6() && !super::nat::is_private(ip));
        NetCheck {
            nat: state.nat,
            mapping: mapping(state.nat),
            filtering: filtering(
                state.nat,
                if state.found.is_some() {
                    state.finding.filtering
                } else {
                    state.finding6.filtering
                },
            ),
            nat6: has_public6.then_some(state.nat6),
            reflexive: state.reflexive,
            mapped: state.mapped.zip(state.mapped_by),
            router,
            local,
            udp_port,
            second_port,
            members,
            relays,
            punches,
        }
    }
}
