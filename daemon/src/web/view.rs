//! The page's content as one answer: this node with its health in `p2pvm top`'s words, every member
//! with the links and decisions that it reports, and the VMs.

use p2pvm_api::{HealthView, Peer, Sight, Status, VmView};
use p2pvm_console::{Health, UNREACHABLE, Vitals, is_troubled, lost, udp_port};
use p2pvm_host::Level;
use serde::Serialize;

/// The whole answer.
#[derive(Clone, Debug, Serialize)]
pub struct View {
    /// This node.
    pub status: Status,
    /// Its health.
    pub health: HealthView,
    /// The other members that this node knows.
    pub peers: Vec<Peer>,
    /// Every member that answered.
    pub members: Vec<Sight>,
    /// The network's VMs.
    pub vms: Vec<VmView>,
    /// Members that did not answer which VMs they have.
    pub silent: Vec<String>,
}

/// The health, by the status screen's rules.
pub fn health(
    online: bool,
    status: &Status,
    peers: &[Peer],
    vms: &[VmView],
    silent: &[String],
) -> HealthView {
    let (gone, others): (Vec<_>, Vec<_>) = vms.iter().partition(|vm| vm.state == UNREACHABLE);
    let troubled = others
        .into_iter()
        .filter(|vm| is_troubled(&vm.state, vm.note.is_some()))
        .map(|vm| vm.name.as_str());
    let vitals = Vitals {
        online,
        joined_another: status.joined_another,
        has_address: status.address.is_some(),
        on_ring: status.ring.joined,
        was_on_ring: status.ring.was_joined,
        up_seconds: status.up_seconds,
        known: peers.len(),
        connected: peers.iter().filter(|peer| peer.connected).count(),
        linked: peers.iter().filter(|peer| peer.linked).count(),
        control_port: status.listen.iter().find_map(|address| udp_port(address)),
        lost: lost(
            gone.into_iter()
                .map(|vm| (vm.name.as_str(), vm.note.as_deref())),
        ),
        troubled: troubled.collect(),
        wanting: status.address_wanting.as_deref(),
        failing: status
            .findings
            .iter()
            .filter(|f| f.level == Level::Failed)
            .map(|f| f.found.as_str())
            .collect(),
        warnings: status
            .findings
            .iter()
            .filter(|f| f.level == Level::Warning)
            .count(),
        silent,
    };
    let (health, why) = vitals.health();
    let why = if health == Health::Alone {
        format!("{why}: 'p2pvm invite' makes an invite")
    } else {
        why
    };
    HealthView {
        word: health.word().to_owned(),
        why,
    }
}
