//! Protection of VMs against the loss of their host.

use serde::{Deserialize, Serialize};

/// Whether another member starts a VM whose host is lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum ReplaceWord {
    /// By itself.
    #[default]
    Auto,
    /// When a person says so.
    Ask,
    /// Never.
    Never,
}

/// What a host does with a guest whose lease it cannot renew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum PartitionWord {
    /// It holds the guest shortly before the lease ends.
    #[default]
    Freeze,
    /// It lets the guest run until the lease ends, then freezes it.
    RunUntilLeaseEnds,
    /// It ends the guest.
    Stop,
}

/// The request of `p2pvm vm protect`. What is none stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct ProtectVm {
    /// Whether it is to be protected.
    pub protect: Option<bool>,
    /// Whether another member starts it.
    pub replace: Option<ReplaceWord>,
    /// What its host does when it cannot renew the lease.
    pub on_partition: Option<PartitionWord>,
    /// How long its host is silent before it counts as lost, seconds: 5 to 86400.
    pub lost_after_s: Option<u64>,
    /// How long between two replicas of its disk, seconds: 1 to 3600.
    pub replicate_every_s: Option<u64>,
}

/// The request of `p2pvm vm takeover`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct TakeOverVm {
    /// The heir that starts it: a name, id or address. None is the member that was asked.
    #[serde(default)]
    pub on: Option<String>,
}

/// Whether a VM is protected against the loss of its host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct ProtectionView {
    /// In words: "protected, heirs attic, cellar", or "not protected" and why.
    pub text: String,
    /// Whether it runs under a lease.
    pub protected: bool,
    /// The members that start it if its host is lost.
    pub heirs: Vec<String>,
    /// Whether they do.
    pub replace: ReplaceWord,
    /// What its host does when it cannot renew the lease.
    pub on_partition: PartitionWord,
    /// How long its host is silent before it counts as lost, seconds.
    pub lost_after_s: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assert_text;

    #[test]
    fn a_request_for_protection_has_the_same_text() {
        let request = ProtectVm {
            protect: Some(true),
            replace: Some(ReplaceWord::Ask),
            on_partition: Some(PartitionWord::RunUntilLeaseEnds),
            lost_after_s: Some(90),
            replicate_every_s: None,
        };
        assert_text(
            &request,
            concat!(
                r#"{"protect":true,"replace":"ask","on_partition":"run-until-lease-ends","#,
                r#""lost_after_s":90,"replicate_every_s":null}"#
            ),
        );
        let off: ProtectVm = serde_json::from_str(r#"{"protect":false,"later":1}"#).unwrap();
        assert_eq!((off.protect, off.replace), (Some(false), None));
        assert_text(&TakeOverVm { on: None }, r#"{"on":null}"#);
        let view: ProtectionView = serde_json::from_str(r#"{"text":"protected"}"#).unwrap();
        assert_eq!((view.protected, view.lost_after_s), (false, 0));
    }
}
