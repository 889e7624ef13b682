//! Replicas of running disks: what a loss of the host would cost.

use serde::{Deserialize, Serialize};

/// The request of `p2pvm vm replicate`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ReplicateVm {
    /// How long between two replicas, seconds: 1 to 3600. None ends them, and the
    /// newest one is released.
    pub every_s: Option<u64>,
    /// How many other members hold the newest: 1 to 4. None leaves it as it is.
    #[serde(default)]
    pub copies: Option<u32>,
}

/// How well a running VM's disk is replicated to other members.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct ReplicationView {
    /// In words: "RPO 38 s", or "not replicated" and why.
    pub text: String,
    /// How long between two replicas, seconds.
    pub every_s: u64,
    /// How old the newest whole replica is, seconds: what the guest wrote since is lost with its
    /// host. None without a replica.
    pub rpo_s: Option<u64>,
    /// How many other members hold it.
    pub copies: u32,
    /// How many should.
    pub wanted: u32,
    /// Whether it is older than twice the time between two replicas.
    pub late: bool,
    /// Why there is no newer one, if the last round did not succeed.
    pub why: Option<String>,
    /// How many rounds its host has made since it started or the VM came.
    pub rounds: u64,
    /// How many bytes of new chunks they made, which each holder fetches.
    pub new_bytes: u64,
    /// The same of the last round.
    pub last_new_bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assert_text;

    #[test]
    fn a_request_for_replicas_has_the_same_text() {
        let request = |every_s, copies| ReplicateVm { every_s, copies };
        assert_text(&request(Some(60), None), r#"{"every_s":60,"copies":null}"#);
        assert_text(&request(None, Some(3)), r#"{"every_s":null,"copies":3}"#);
        let bare: ReplicateVm = serde_json::from_str(r#"{"every_s":5,"later":1}"#).unwrap();
        assert_eq!(bare, request(Some(5), None));
        let view: ReplicationView = serde_json::from_str(r#"{"rpo_s":38}"#).unwrap();
        assert_eq!((view.rpo_s, view.late), (Some(38), false));
    }
}
