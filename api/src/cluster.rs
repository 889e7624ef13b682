//! All members at once: questions over the ring, with the collected answers.

use crate::{MemberIdText, VmView};
use serde::{Deserialize, Serialize};

/// One row of `p2pvm peers --all`: a member as it describes itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ClusterMember {
    /// Its id.
    pub member: MemberIdText,
    /// Its host name.
    pub name: String,
    /// Its address, once claimed.
    pub address: Option<String>,
    /// The NAT or firewall in front of it.
    pub nat: String,
    /// Its place on the ring.
    pub position: String,
    /// Its neighbours there.
    pub neighbours: usize,
    /// Load of its processors, 0 to 1.
    pub cpu: f64,
    /// Virtual machines running there.
    pub running_vms: usize,
}

/// The load of several members together.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ClusterLoad {
    /// How many members.
    pub members: u64,
    /// The sum of the loads of their processors, each 0 to 1.
    pub cpu_sum: f64,
    /// Virtual machines running there.
    pub running_vms: usize,
}

impl ClusterLoad {
    /// The sum of both.
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            members: self.members + other.members,
            cpu_sum: self.cpu_sum + other.cpu_sum,
            running_vms: self.running_vms + other.running_vms,
        }
    }
}

/// `p2pvm peers --all`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Cluster {
    /// The members that answered, this one among them.
    pub members: Vec<ClusterMember>,
    /// Their load, added up on the way back.
    pub load: ClusterLoad,
    /// How many members answered.
    pub asked: u64,
    /// How many levels the question went down.
    pub depth: u8,
    /// The members that did not answer.
    pub silent: Vec<String>,
}

/// All VMs of the network.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ClusterVms {
    /// By name.
    pub vms: Vec<VmView>,
    /// Members that did not report their VMs.
    pub silent: Vec<String>,
}
