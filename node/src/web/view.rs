//! What the page shows, as one answer: this node and its health in the word that `p2pvm top` has,
//! every member with its links and decisions as it tells them itself, and the VMs.

use crate::api::types::{ClusterMember, Decided, HealthView, Peer, Status, VmView};
use p2pvm_console::{Health, UNREACHABLE, Vitals, is_troubled, lost, udp_port};
use p2pvm_host::Level;
use serde::{Deserialize, Serialize};

/// Links that a member tells of itself; the page draws no more of one member.
pub const MAX_LINKS: usize = 32;
/// Decisions that a member tells of itself, the newest.
pub const MAX_DECISIONS: usize = 6;

/// A link as the member at its one end sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Link {
    /// The beginning of the other member's id.
    pub to: String,
    /// The path in words, without the address: "direct", "relayed via name", "over the ring",
    /// "stream".
    pub path: String,
    /// The last measured round trip, milliseconds.
    pub rtt_ms: Option<f64>,
}

/// A member as it describes itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sight {
    /// Who it is and how busy.
    #[serde(flatten)]
    pub member: ClusterMember,
    /// Its links.
    pub links: Vec<Link>,
    /// What it decided about VMs lately.
    pub decisions: Vec<Decided>,
}

impl Sight {
    /// As `member`, which told it, may tell it: about itself, and not at any length.
    pub fn of(mut self, member: String) -> Self {
        self.member.member = member;
        self.links.truncate(MAX_LINKS);
        self.decisions.truncate(MAX_DECISIONS);
        self
    }
}

/// Everything.
#[derive(Clone, Debug, Serialize)]
pub struct View {
    /// This node.
    pub status: Status,
    /// How it is.
    pub health: HealthView,
    /// The other members that this node knows.
    pub peers: Vec<Peer>,
    /// Every member that answered.
    pub members: Vec<Sight>,
    /// The network's VMs.
    pub vms: Vec<VmView>,
    /// Members that did not say which VMs they have.
    pub silent: Vec<String>,
}

/// The health, by the same rules as on the status screen.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_speaks_for_itself_only_and_not_at_any_length() {
        let link = Link {
            to: "00".into(),
            path: "direct".into(),
            rtt_ms: None,
        };
        let text = serde_json::json!({
            "member": "somebody \
                else", "name": "b", "address": null, "nat": "none", "position": "", "neighbours": 1, "cpu": 0.1,
            "running_vms": 0, "links": vec![link; 500], "decisions": [],
        });
        let told: Sight = serde_json::from_value(text).unwrap();
        let told = told.of("b's id".into());
        assert_eq!(
            (told.member.member.as_str(), told.links.len()),
            ("b's id", MAX_LINKS)
        );
    }
}
