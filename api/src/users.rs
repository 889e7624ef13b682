//! Users: keys of persons, apart from those of machines, with the names that a member's root gives
//! them.

use serde::{Deserialize, Serialize};

/// What `p2pvm user create` and `p2pvm user add` send.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct AddUser {
    /// What the user is called on this member.
    pub name: String,
    /// The user's public key, as the user's own 'p2pvm user create' printed it.
    pub key: String,
    /// The number of the user's account on this machine: in the group `p2pvm` it may manage the
    /// VMs that are for the user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
}

/// A user that this member knows. The fields are in alphabetical order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct UserView {
    /// The user's public key.
    pub key: String,
    /// What the user is called here.
    pub name: String,
    /// The number of the user's account on this machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
}
