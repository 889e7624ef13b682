//! What the web dashboard needs of the daemon: where it may listen, who may knock, and this member
//! as it tells of itself.

use crate::Daemon;
use p2pvm_api::{Link, MAX_DECISIONS, MAX_LINKS, Sight};
use p2pvm_dhcp::Lease;
use p2pvm_overlay::plane::Path;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use tokio::sync::watch;

impl Daemon {
    /// This host's address in the network, as it changes.
    pub fn lease(&self) -> watch::Receiver<Option<Lease>> {
        self.reach.lease()
    }

    /// This host's address in the network, once it has one.
    pub fn overlay_address(&self) -> Option<Ipv4Addr> {
        self.reach.lease().borrow().as_ref().map(|lease| lease.v4)
    }

    /// This host's IPv6 address in the network: it follows from its key.
    pub fn overlay_address_v6(&self) -> Ipv6Addr {
        self.parts.network.member_v6(self.me())
    }

    /// The names that this host goes by in the network.
    pub fn host_names(&self) -> Vec<String> {
        let name = self.parts.certificate.name();
        vec![name.to_owned(), format!("{name}.{}", self.parts.domain())]
    }

    /// Whether an address is one of the network's own.
    pub fn in_network(&self, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(v4) => self.parts.addresses.subnet().contains(v4),
            IpAddr::V6(v6) => v6.octets()[..6] == self.parts.network.ula_prefix().octets()[..6],
        }
    }

    /// This member as it tells of itself: the links that carry something, the nearest first, and
    /// its newest decisions.
    pub(crate) fn sight(&self) -> Sight {
        let links = self.parts.control.peers().into_iter().filter_map(|peer| {
            let link = self.parts.plane.path(peer.member)?;
            let path = match &link.path {
                // Where exactly is nobody else's business.
                Path::Direct(_) => "direct".to_owned(),
                other => self.path_text(other),
            };
            Some(Link {
                to: peer.member.short(),
                path,
                rtt_ms: link.rtt.map(|rtt| (rtt.as_secs_f64() * 1e4).round() / 10.0),
            })
        });
        let mut links: Vec<Link> = links.collect();
        links.sort_by(|a, b| {
            a.rtt_ms
                .unwrap_or(f64::MAX)
                .total_cmp(&b.rtt_ms.unwrap_or(f64::MAX))
        });
        links.truncate(MAX_LINKS);
        let mut decisions = self.manager.decisions(MAX_DECISIONS);
        for decision in &mut decisions {
            // The sentence has what a person reads.
            decision.explained.details = serde_json::Value::Null;
        }
        Sight {
            member: self.as_member(),
            links,
            decisions,
        }
    }
}
