//! The page's content as one answer: this node with its health in `p2pvm top`'s words, every member
//! with the links and decisions that it reports, and the VMs.

use p2pvm_api::{HealthView, Peer, Sight, Status, VmView};
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
