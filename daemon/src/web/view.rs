//! What the page shows, as one answer: this node and its health in the word that `p2pvm top` has,
//! every member with its links and decisions as it tells them itself, and the VMs.

use p2pvm_api::{HealthView, Peer, Sight, Status, VmView};
use serde::Serialize;

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
