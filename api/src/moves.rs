//! Moving virtual machines: one of them, or all of a host that is drained.
//!
//! A move is answered by its figures or a failure; a drain reports each VM with its figures or the
//! reason why it stays. The host that moves a VM may have another version than the member that was
//! asked. Fields of answers are in alphabetical order.

use crate::MigrationIdText;
use serde::{Deserialize, Serialize};

/// The request of `p2pvm vm migrate`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct MigrateVm {
    /// The target: a name, id or address. None lets this host choose the least loaded peer it
    /// knows.
    pub to: Option<String>,
    /// Whether post-copy is allowed.
    #[serde(default)]
    pub post_copy: bool,
}

/// The answer to `p2pvm vm migrate` if the VM has moved.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct VmMoved {
    /// How long the guest was paused by the hypervisor's own figure, milliseconds.
    pub downtime_ms: u64,
    /// The epoch of its present holding.
    pub epoch: u64,
    /// The name of the member that it was on.
    pub from: String,
    /// The name of the member that it runs on.
    pub host: String,
    /// The migration's id, as in the logs of both hosts.
    pub migration: MigrationIdText,
    /// The VM's name.
    pub name: String,
    /// From the guest's pause to the target's report that it runs there, milliseconds: an upper
    /// bound of the downtime.
    pub pause_ms: Option<u64>,
    /// RAM transferred, bytes.
    pub ram_bytes: u64,
    /// From the request to the end, milliseconds.
    pub total_ms: u64,
    /// The id of its trace, if it is traced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace: Option<String>,
}

/// The answer to `p2pvm vm migrate --cancel`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct MoveCancelled {
    /// The name of the VM whose move is given up.
    pub cancelled: String,
    /// The name of the member that it stays on.
    pub host: String,
}

/// A VM that a drain left where it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct VmStayed {
    /// Its name.
    pub name: String,
    /// Why it stays.
    pub why: String,
}

/// The result of a drain for one VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(untagged)]
pub enum VmDrained {
    // Tried first: all fields of the other may be missing.
    /// It stays.
    Stayed(VmStayed),
    /// It has moved.
    Moved(VmMoved),
}

/// A result of `p2pvm drain`: one VM, as soon as it has moved or is known to stay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DrainItem {
    /// VMs that have moved or stay, this one among them.
    pub done: usize,
    /// VMs that the drain has found so far.
    pub of: usize,
    /// The VM.
    pub vm: VmDrained,
}

/// The answer at the end of `p2pvm drain`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct DrainAnswer {
    /// Whether it was stopped on request.
    pub cancelled: bool,
    /// VMs that have moved.
    pub moved: Vec<VmMoved>,
    /// VMs that still run here.
    pub stayed: Vec<VmStayed>,
    /// The names of VMs that did not run, and are therefore still here.
    pub stopped: Vec<String>,
}

/// The answer to Ctrl-C in `p2pvm drain`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DrainStopping {
    /// Whether a drain was under way.
    pub stopping: bool,
}

/// The answer of `p2pvm vm stop --for-shutdown`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct ShutdownAnswer {
    /// VMs that have moved to other members.
    pub moved: Vec<VmMoved>,
    /// The names of VMs whose guests have ended; they start again with this host.
    pub stopped: Vec<String>,
    /// VMs whose guests still run.
    pub stayed: Vec<VmStayed>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assert_text;

    fn moved() -> VmMoved {
        VmMoved {
            downtime_ms: 41,
            epoch: 2,
            from: "attic".into(),
            host: "cellar".into(),
            migration: "00ff".into(),
            name: "web".into(),
            pause_ms: None,
            ram_bytes: 134_217_728,
            total_ms: 2310,
            trace: None,
        }
    }

    const STAYED: &str = r#"{"name":"db","why":"no room"}"#;
    const MOVED: &str = concat!(
        r#"{"downtime_ms":41,"epoch":2,"from":"attic","host":"cellar","migration":"00ff","#,
        r#""name":"web","#,
        r#""pause_ms":null,"ram_bytes":134217728,"total_ms":2310}"#
    );

    #[test]
    fn a_move_is_answered_with_the_same_text() {
        assert_text(&moved(), MOVED);
        let traced = VmMoved {
            pause_ms: Some(57),
            trace: Some("4bf9".into()),
            ..moved()
        };
        let text = MOVED
            .replace("null", "57")
            .replace("2310}", r#"2310,"trace":"4bf9"}"#);
        assert_text(&traced, &text);
        assert_text(
            &MoveCancelled {
                cancelled: "web".into(),
                host: "attic".into(),
            },
            r#"{"cancelled":"web","host":"attic"}"#,
        );
    }

    #[test]
    fn a_drain_is_told_with_the_same_text() {
        let stayed = VmStayed {
            name: "db".into(),
            why: "no room".into(),
        };
        let item = DrainItem {
            done: 1,
            of: 2,
            vm: VmDrained::Moved(moved()),
        };
        assert_text(&item, &format!(r#"{{"done":1,"of":2,"vm":{MOVED}}}"#));
        let item = DrainItem {
            done: 2,
            of: 2,
            vm: VmDrained::Stayed(stayed.clone()),
        };
        assert_text(&item, &format!(r#"{{"done":2,"of":2,"vm":{STAYED}}}"#));
        let answer = DrainAnswer {
            cancelled: false,
            moved: vec![moved()],
            stayed: vec![stayed],
            stopped: vec!["old".into()],
        };
        let text = format!(
            r#"{{"cancelled":false,"moved":[{MOVED}],"stayed":[{STAYED}],"stopped":["old"]}}"#
        );
        assert_text(&answer, &text);
        assert_text(&DrainStopping { stopping: true }, r#"{"stopping":true}"#);
    }

    #[test]
    fn answers_about_moves_of_another_version_are_understood() {
        let old: VmMoved =
            serde_json::from_str(r#"{"name":"web","host":"cellar","total_ms":9,"later":[1]}"#)
                .unwrap();
        assert_eq!(
            old,
            VmMoved {
                name: "web".into(),
                host: "cellar".into(),
                total_ms: 9,
                ..VmMoved::default()
            }
        );
        let cancelled: MoveCancelled =
            serde_json::from_str(r#"{"cancelled":"web","later":1}"#).unwrap();
        assert_eq!(
            cancelled,
            MoveCancelled {
                cancelled: "web".into(),
                ..MoveCancelled::default()
            }
        );
        let item: DrainItem = serde_json::from_str(
            r#"{"done":1,"of":1,"vm":{"name":"db","why":"no room","later":1}}"#,
        )
        .unwrap();
        assert_eq!(
            item.vm,
            VmDrained::Stayed(VmStayed {
                name: "db".into(),
                why: "no room".into()
            })
        );
        let item: DrainItem = serde_json::from_str(
            r#"{"done":1,"of":1,"vm":{"name":"web","host":"cellar","later":1}}"#,
        )
        .unwrap();
        assert_eq!(
            item.vm,
            VmDrained::Moved(VmMoved {
                name: "web".into(),
                host: "cellar".into(),
                ..VmMoved::default()
            })
        );
        let answer: DrainAnswer =
            serde_json::from_str(r#"{"moved":[],"cancelled":true,"later":1}"#).unwrap();
        assert_eq!(
            answer,
            DrainAnswer {
                cancelled: true,
                ..DrainAnswer::default()
            }
        );
    }
}
