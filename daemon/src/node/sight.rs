//! This member's description of itself for others.

use super::service::Node;
use crate::lookup::path_kind;
use p2pvm_api::{ClusterLoad, ClusterMember, Link, MAX_DECISIONS, MAX_LINKS, Sight};
use p2pvm_overlay::plane::Path;

impl Node {
    /// This member as it describes itself.
    pub(crate) fn as_member(&self) -> ClusterMember {
        let ring = self.members.ring_view();
        let lease = self.reach.lease().borrow().clone();
        ClusterMember {
            member: self.parts.me().to_string().into(),
            name: self.parts.certificate.name().to_owned(),
            address: lease.map(|lease| lease.v4.to_string()),
            nat: self.parts.connector.nat_kind().to_string(),
            position: ring.position,
            neighbours: ring.near + ring.far + ring.shortcuts,
            cpu: self.vms.manager.cpu(),
            running_vms: self.vms.running(),
        }
    }

    /// The load of this member.
    pub(crate) fn load_here(&self) -> ClusterLoad {
        ClusterLoad {
            members: 1,
            cpu_sum: self.vms.manager.cpu(),
            running_vms: self.vms.running(),
        }
    }

    /// This member's description of itself: the links in use, the nearest first, and its newest
    /// decisions.
    pub(crate) fn sight(&self) -> Sight {
        let links = self.parts.control.peers().into_iter().filter_map(|peer| {
            let link = self.parts.plane.path(peer.member)?;
            let path = match &link.path {
                // The address is only for this member.
                Path::Direct(_) => "direct".to_owned(),
                other => self.parts.path_text(other),
            };
            Some(Link {
                to: peer.member.short(),
                path,
                path_kind: Some(path_kind(&link.path)),
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
        let mut decisions = self.vms.manager.decisions(MAX_DECISIONS);
        for decision in &mut decisions {
            // The sentence has the parts that a person reads.
            decision.explained.details = None;
        }
        Sight {
            member: self.as_member(),
            links,
            decisions,
        }
    }
}
