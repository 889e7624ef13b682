//! Figures about what is kept here and who vouches for it: events, snapshots, voters, room.

use super::{metrics::sample, service::Node};
use p2pvm_api::Sample;
use p2pvm_host::reserve;
use p2pvm_overlay::MemberId;
use p2pvm_vm_manager::vault::Durability;
use std::collections::BTreeSet;

impl Node {
    /// These figures of this member.
    pub(super) fn kept(&self) -> Vec<Sample> {
        let counts = self.parts.events.counts();
        let events = counts
            .iter()
            .map(|(kind, count)| sample("p2pvm_events_total", &[("kind", kind)], *count as f64));
        let mut samples: Vec<_> = events.collect();
        let me = self.parts.me();
        let connected: BTreeSet<MemberId> = self.parts.fabric().connected().into_iter().collect();
        let is_silent = |member: &&MemberId| **member != me && !connected.contains(*member);
        let (mut durable, mut degraded) = (0u32, 0u32);
        for vm in self.vms.host.list() {
            for snapshot in &vm.snapshots {
                match snapshot.durability {
                    Durability::Durable => durable += 1,
                    Durability::Local | Durability::Replicating { .. } => degraded += 1,
                }
            }
            let silent = vm.definition.voters.iter().filter(is_silent).count();
            let labels = [("vm", vm.name.as_str())];
            samples.push(sample("p2pvm_voters_silent", &labels, silent as f64));
        }
        for (state, count) in [("durable", durable), ("degraded", degraded)] {
            let labels = [("state", state)];
            samples.push(sample("p2pvm_snapshots", &labels, f64::from(count)));
        }
        if let Ok(room) = reserve::room(self.layout.dir()) {
            samples.push(sample("p2pvm_disk_free_bytes", &[], room.free as f64));
        }
        samples
    }
}
