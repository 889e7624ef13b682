//! Decisions of the autonomic manager about VMs: in words, and the figures behind them.

use crate::{MemberIdText, VmIdText, words::words};
use serde::{Deserialize, Serialize};

/// One line of `p2pvm explain`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Explained {
    /// When (RFC 3339).
    pub at: String,
    /// The member that decided; empty for the member that was asked, until it is shown.
    pub host: String,
    /// The decision and its reason.
    pub text: String,
    /// The figures behind it; a member's report about itself has none.
    pub details: Option<DecisionFigures>,
}

/// A decision of the autonomic manager here, of any VM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Decided {
    /// The VM's id; the VM may be elsewhere by now.
    pub vm: VmIdText,
    /// The decision and its reason.
    #[serde(flatten)]
    pub explained: Explained,
}

/// The figures of a decision about a VM. Loads are shares of a node's CPUs. The fields are in
/// alphabetical order.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct DecisionFigures {
    /// How much nearer the VM comes to the members it exchanges traffic with, from 1 (all of its
    /// traffic stays on that host) to -1.
    pub affinity: Option<f64>,
    /// When, by the deciding node's clock, milliseconds since 1970; with repetitions, the last
    /// time.
    pub at: u64,
    /// What was decided.
    pub decision: DecisionWord,
    /// `source_load - target_load`.
    pub gain: Option<f64>,
    /// The smallest gain that counts.
    pub min_gain: f64,
    /// The id of the peer: the target, or the source if the deciding node took the VM in. None if
    /// no peer was considered.
    pub peer: Option<MemberIdText>,
    /// The load of the node that the VM is on.
    pub source_load: f64,
    /// The load of the target with the VM.
    pub target_load: Option<f64>,
    /// How often in a row the same was decided about the same peer.
    pub times: u32,
    /// The VM's id.
    pub vm: VmIdText,
    /// How many CPUs the VM is expected to use.
    pub vm_cpu: f64,
}

/// What was decided about a VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum DecisionWord {
    /// The node is overloaded, but no peer that it knows is enough better.
    #[default]
    Kept,
    /// A peer was asked to take it.
    Offered,
    /// The peer refused it.
    Refused(RefusalWord),
    /// The peer did not answer.
    Unanswered,
    /// The peer takes it: the migration starts.
    Migrating,
    /// The migration succeeded.
    Moved,
    /// The migration failed; the VM stays.
    Failed,
    /// The migration was cancelled on request; the VM stays.
    Cancelled,
    /// The deciding node agreed to take it in.
    TakenIn,
    /// The source called it off.
    CalledOff,
    /// A word of a later version.
    #[serde(untagged)]
    Other(String),
}

words! {
    /// Why a peer does not take a VM.
    RefusalWord:
    /// Its CPUs would be too busy.
    Busy = "Busy",
    /// Its memory would not suffice.
    Memory = "Memory",
    /// The VM would gain too little, by what it knows of its own load.
    LittleGain = "LittleGain",
    /// It is taking others in, or giving one away itself.
    Occupied = "Occupied",
    /// It is being drained or has no measurement yet.
    Unavailable = "Unavailable",
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Sorted, assert_text};

    /// The text is a previous version's.
    #[test]
    fn the_figures_of_a_decision_keep_their_text() {
        let figures = DecisionFigures {
            affinity: Some(0.5),
            at: 1_795_953_720_000,
            decision: DecisionWord::Refused(RefusalWord::Memory),
            gain: Some(0.7),
            min_gain: 0.15,
            peer: Some("03".into()),
            source_load: 1.0,
            target_load: Some(0.3),
            times: 2,
            vm: "01".into(),
            vm_cpu: 0.25,
        };
        let text = concat!(
            r#"{"affinity":0.5,"at":1795953720000,"decision":{"refused":"Memory"},"gain":0.7,"#,
            r#""min_gain":0.15,"peer":"03","source_load":1.0,"target_load":0.3,"times":2,"#,
            r#""vm":"01","vm_cpu":0.25}"#
        );
        assert_text(&figures, text);
        let explained = |details| Explained {
            at: "2026-11-30T12:02:00.000Z".into(),
            host: "attic".into(),
            text: "refused by cellar".into(),
            details,
        };
        let begin =
            r#"{"at":"2026-11-30T12:02:00.000Z","host":"attic","text":"refused by cellar","#;
        assert_text(
            &explained(Some(figures)),
            &format!(r#"{begin}"details":{text}}}"#),
        );
        assert_text(&explained(None), &format!(r#"{begin}"details":null}}"#));
        let printed = serde_json::to_string(&Sorted([explained(None)])).unwrap();
        let text = concat!(
            r#"[{"at":"2026-11-30T12:02:00.000Z","details":null,"host":"attic","#,
            r#""text":"refused by cellar"}]"#
        );
        assert_eq!(printed, text);
    }

    #[test]
    fn a_decision_of_another_version_is_understood() {
        let figures: DecisionFigures =
            serde_json::from_str(r#"{"decision":"postponed","until":7}"#).unwrap();
        assert_eq!(
            figures,
            DecisionFigures {
                decision: DecisionWord::Other("postponed".into()),
                ..DecisionFigures::default()
            }
        );
    }
}
