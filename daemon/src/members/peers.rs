//! The other members as this node sees them, and the traffic with them.

use super::service::Members;
use crate::lookup::link_kind;
use p2pvm_api::{Peer, Traffic};
use p2pvm_overlay::plane::{Flow, Path, TRAFFIC_NOISE};
use std::time::{Duration, Instant};

/// How long a silent member may take to answer before it is shown as silent.
const LOOK_LIMIT: Duration = Duration::from_millis(700);

impl Members {
    /// [`Members::peers`], after links that were silent lately were probed.
    pub async fn living_peers(&self) -> Vec<Peer> {
        self.parts.plane.look_at_silent(LOOK_LIMIT).await;
        self.peers()
    }

    /// The other members this node knows of.
    pub fn peers(&self) -> Vec<Peer> {
        let ring = self.ring_neighbours();
        let mut peers: Vec<_> = self
            .parts
            .control
            .peers()
            .into_iter()
            .filter(|p| p.member != self.parts.me())
            .map(|p| {
                let link = self.parts.plane.path(p.member);
                Peer {
                    member: p.member.to_string().into(),
                    name: p.name,
                    address: self.parts.address_of(p.member),
                    connected: p.connected,
                    linked: link.as_ref().is_some_and(|l| {
                        l.path != Path::Stream && l.silent(Instant::now()).is_none()
                    }),
                    path: link.as_ref().map(|l| self.parts.link_text(l)),
                    path_kind: link.as_ref().and_then(link_kind),
                    rtt_ms: link
                        .as_ref()
                        .and_then(|l| l.rtt)
                        .map(|rtt| rtt.as_secs_f64() * 1e3),
                    sent_bytes: link.as_ref().map_or(0, |l| l.tx_bytes),
                    received_bytes: link.as_ref().map_or(0, |l| l.rx_bytes),
                    packet_bytes: link.as_ref().map(|l| l.packet_bytes),
                    ring: ring.get(&p.member).cloned(),
                }
            })
            .collect();
        peers.sort_by(|a, b| a.name.cmp(&b.name));
        peers
    }

    /// The traffic between addresses through this node; without `all`, only what is not noise
    /// beside the largest.
    pub fn traffic(&self, all: bool) -> Vec<Traffic> {
        let matrix = self.parts.plane.traffic();
        let known: Vec<_> = if all {
            matrix.flows.iter().collect()
        } else {
            matrix.significant(TRAFFIC_NOISE).collect()
        };
        let row = |flow: &Flow| Traffic {
            local: flow.local.to_string(),
            remote: flow.remote.to_string(),
            member: flow.member.to_string().into(),
            name: self.parts.name_of(flow.member),
            path: self
                .parts
                .plane
                .path(flow.member)
                .map(|link| self.parts.path_text(&link.path)),
            sent_bytes: flow.sent,
            received_bytes: flow.received,
            bytes_per_second_1s: flow.rates[0],
            bytes_per_second_4s: flow.rates[1],
            bytes_per_second_16s: flow.rates[2],
        };
        known.into_iter().map(row).collect()
    }
}
