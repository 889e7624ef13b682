//! Figures of this node or of all members, as JSON; the daemon writes the same in Prometheus' text
//! format.

use serde::{Deserialize, Serialize};

/// One figure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Sample {
    /// Its name, such as p2pvm_up_seconds.
    pub name: String,
    /// What tells it from others of its name: keys with their values.
    pub labels: Vec<(String, String)>,
    /// Its value.
    pub value: f64,
}

/// The figures of one member or several.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Metrics {
    /// By the member's name.
    pub members: Vec<(String, Vec<Sample>)>,
    /// Who is missing.
    pub remarks: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assert_text;

    #[test]
    fn figures_keep_their_text() {
        let sample = Sample {
            name: "p2pvm_vms".into(),
            labels: vec![("state".into(), "running".into())],
            value: 2.0,
        };
        let metrics = Metrics {
            members: vec![("attic".into(), vec![sample])],
            remarks: vec!["no answer from cellar".into()],
        };
        let text = concat!(
            r#"{"members":[["attic",[{"name":"p2pvm_vms","labels":[["state","running"]],"#,
            r#""value":2.0}]]],"remarks":["no answer from cellar"]}"#
        );
        assert_text(&metrics, text);
    }
}
