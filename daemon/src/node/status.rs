//! `p2pvm status`: this node and its health.

use super::{health::health, service::Node};
use crate::{machine::sight, members::netcheck, placement::load};
use p2pvm_api::{HealthView, Status};
use p2pvm_overlay::{Fabric, connect::CandidateKind};

impl Node {
    /// This node.
    pub fn status(&self) -> Status {
        let lease = self.reach.lease().borrow().clone();
        let parts = &self.parts;
        let mut status = Status {
            health: HealthView::default(),
            findings: self.machine.findings(),
            address_wanting: if lease.is_none() {
                self.reach.wanting()
            } else {
                None
            },
            member: self.parts.me().to_string().into(),
            name: parts.certificate.name().to_owned(),
            network: parts.network.name.clone(),
            network_id: parts.network.id.to_string().into(),
            subnet: parts.network.subnet.to_string(),
            address: lease.map(|l| l.v4.to_string()),
            address_v6: parts.network.member_v6(self.parts.me()).to_string(),
            reflexive: self.parts.connector.reflexive().map(|a| a.to_string()),
            nat: self.parts.connector.nat_kind().to_string(),
            mapped: self
                .parts
                .connector
                .candidates()
                .iter()
                .find(|c| c.kind == CandidateKind::Mapped)
                .map(|c| c.addr.to_string()),
            punches: netcheck::punches(&self.parts.connector.punches()),
            connected: parts.control.connected().len(),
            known: parts
                .control
                .peers()
                .iter()
                .filter(|peer| peer.member != self.parts.me())
                .count(),
            joined_another: parts.has_bootstrap,
            ring: self.members.ring_view(),
            running_vms: self.vms.running(),
            answering_vms: self.vms.guests.answering(),
            cpu: self.vms.manager.cpu(),
            listen: parts.control.listen_addrs(),
            up_seconds: self.lifecycle.uptime().as_secs(),
            start_ms: self.lifecycle.times(),
            resident_bytes: load::resident_bytes(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        status.health = self.health_of(&status);
        status
    }

    /// The health by the rules of the status screen, as far as this node knows it without asking
    /// others: of the VMs here, and of those of dead hosts whose records it holds.
    fn health_of(&self, status: &Status) -> HealthView {
        let vms = [self.vms.here(), self.vms.gone_here()].concat();
        health(
            !sight::local_addresses().is_empty(),
            status,
            &self.members.peers(),
            &vms,
            &[],
        )
    }
}
