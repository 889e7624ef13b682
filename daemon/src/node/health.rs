//! The health of a node in one word, by the same rules as on the status screen.

use p2pvm_api::{Health, HealthView, Peer, Status, Vitals, VmStateView, VmView, lost, udp_port};
use p2pvm_host::Level;

/// The health of the node with this status, of its peers and of the known VMs. `silent` are the
/// members that did not report their VMs.
pub(crate) fn health(
    online: bool,
    status: &Status,
    peers: &[Peer],
    vms: &[VmView],
    silent: &[String],
) -> HealthView {
    let (gone, others): (Vec<_>, Vec<_>) = vms
        .iter()
        .partition(|vm| vm.state == VmStateView::Unreachable);
    let troubled = others
        .into_iter()
        .filter(|vm| vm.state.is_troubled(vm.note.is_some()))
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
    let (word, why) = vitals.health();
    let why = if word == Health::Alone {
        format!("{why}: 'p2pvm invite' makes an invite")
    } else {
        why
    };
    HealthView { word, why }
}
