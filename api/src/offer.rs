//! What a host's owner offers to the VMs of other members: what is promised, what is used and by
//! whom, and why nothing is accepted at the moment.
//!
//! This machine's root asks, and the dashboard's page: its readers look, its operators change.
//! Fields of answers are in alphabetical order.

use crate::{VmMoved, VmStayed};
use serde::{Deserialize, Serialize};

/// What `p2pvm offer set` and `on` change; fields that are left out stay. The daemon keeps all
/// changes in its state directory; they override `[offer]` in `node.toml`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct OfferChange {
    /// Processors for all guests together, those of this host's own root too; 0 for no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub all_cpus: Option<u32>,
    /// Memory for all guests together, MiB; 0 for all but a reserve.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub all_memory_mib: Option<u64>,
    /// How much each VM of other members may send, and how much receive, bits a second; 0 for no
    /// limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bits_per_second: Option<u64>,
    /// Virtual processors for other members' VMs; 0 for no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u32>,
    /// Disk for other members' VMs, GiB; 0 for no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_gib: Option<u64>,
    /// The hours in which other members' VMs run here, such as "18:00-08:00"; none for always.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hours: Option<Vec<String>>,
    /// How long after the last input this machine counts as idle, seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_after_s: Option<u64>,
    /// Whether other members' VMs run here only while this machine is idle.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_only: Option<bool>,
    /// Memory for other members' VMs, MiB; 0 for no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u64>,
    /// Whether nothing is offered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub off: Option<bool>,
    /// Whether earlier changes are forgotten first, so that `node.toml` counts again.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub reset: bool,
    /// The members that it is for: groups, "member:NAME", or "*" for all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run: Option<Vec<String>>,
    /// How many VMs of other members may be here; 0 for no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vms: Option<u32>,
}

/// A part of a host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct OfferShare {
    /// Virtual processors of running VMs.
    pub cpus: u64,
    /// Disks, as large as they may grow, MiB.
    pub disk_mib: u64,
    /// Memory of running VMs, MiB.
    pub memory_mib: u64,
    /// VMs, running or not.
    pub vms: u64,
}

/// What other members' VMs may have together; null for no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct OfferLimits {
    /// Virtual processors of running VMs.
    pub cpus: Option<u64>,
    /// Disks, as large as they may grow, MiB.
    pub disk_mib: Option<u64>,
    /// Memory of running VMs, MiB.
    pub memory_mib: Option<u64>,
    /// VMs, running or not.
    pub vms: Option<u64>,
}

/// What the VMs of one member have here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct OfferTenant {
    /// The member's name.
    pub member: String,
    /// What its VMs have together.
    pub share: OfferShare,
}

/// The answer to `p2pvm offer show`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct OfferView {
    /// Processors for all guests together; null for no limit.
    pub all_cpus: Option<u64>,
    /// Memory for all guests together, MiB.
    pub all_memory_mib: u64,
    /// How much each VM of other members may send, and how much receive, bits a second; null for
    /// no limit.
    pub bits_per_second: Option<u64>,
    /// Whether changes by `p2pvm offer` count more than `node.toml`.
    pub changed: bool,
    /// Why no VM of another member is accepted now, whatever its size; null if one may be.
    pub closed: Option<String>,
    /// Whether VMs of other members are being moved away because the offer has ended.
    pub evacuating: bool,
    /// This host's name.
    pub host: String,
    /// The hours in which other members' VMs run here; none for always.
    pub hours: Vec<String>,
    /// How long after the last input this machine counts as idle, seconds.
    pub idle_after_s: u64,
    /// Whether other members' VMs run here only while this machine is idle.
    pub idle_only: bool,
    /// The directories whose files other members may name as images.
    pub images: Vec<String>,
    /// What is offered.
    pub limits: OfferLimits,
    /// Whether it is switched off.
    pub off: bool,
    /// The members that it is for.
    pub run: Vec<String>,
    /// Which member uses what.
    pub tenants: Vec<OfferTenant>,
    /// What is used by all of them.
    pub used: OfferShare,
}

/// The request of `p2pvm offer off`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct OfferOff {
    /// Whether VMs that cannot be moved run on.
    pub keep: bool,
}

/// The answer to `p2pvm offer off`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct OfferEnded {
    /// Whether its moves were stopped on request.
    pub cancelled: bool,
    /// VMs of other members that still run here, with the reason.
    pub kept: Vec<VmStayed>,
    /// VMs that have moved.
    pub moved: Vec<VmMoved>,
    /// VMs that could not be moved, with the reason, and were stopped.
    pub stopped: Vec<VmStayed>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assert_text;

    #[test]
    fn a_change_says_only_what_changes() {
        assert_text(&OfferChange::default(), "{}");
        let change = OfferChange {
            hours: Some(vec!["18:00-08:00".into()]),
            memory_mib: Some(2048),
            reset: true,
            ..OfferChange::default()
        };
        assert_text(
            &change,
            r#"{"hours":["18:00-08:00"],"memory_mib":2048,"reset":true}"#,
        );
        assert!(serde_json::from_str::<OfferChange>(r#"{"memroy_mib":1}"#).is_err());
    }

    #[test]
    fn an_offer_is_shown_with_the_same_text() {
        let view = OfferView {
            closed: Some("its offer is off".into()),
            host: "attic".into(),
            limits: OfferLimits {
                vms: Some(2),
                ..OfferLimits::default()
            },
            off: true,
            run: vec!["*".into()],
            tenants: vec![OfferTenant {
                member: "cellar".into(),
                share: OfferShare::default(),
            }],
            ..OfferView::default()
        };
        let none = r#"{"cpus":0,"disk_mib":0,"memory_mib":0,"vms":0}"#;
        let text = format!(
            concat!(
                r#"{{"all_cpus":null,"all_memory_mib":0,"bits_per_second":null,"changed":false,"#,
                r#""closed":"its offer is off","evacuating":false,"host":"attic","hours":[],"#,
                r#""idle_after_s":0,"idle_only":false,"images":[],"#,
                r#""limits":{{"cpus":null,"disk_mib":null,"memory_mib":null,"vms":2}},"#,
                r#""off":true,"run":["*"],"tenants":[{{"member":"cellar","share":{none}}}],"#,
                r#""used":{none}}}"#
            ),
            none = none
        );
        assert_text(&view, &text);
        assert_text(
            &OfferEnded::default(),
            r#"{"cancelled":false,"kept":[],"moved":[],"stopped":[]}"#,
        );
    }
}
