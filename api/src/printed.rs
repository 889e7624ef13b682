//! What commands print with `--json` beside the daemon's own answers.

use crate::{DrainAnswer, Failure, MemberIdText, NetworkIdText, Status};
use p2pvm_host::Level;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What a command prints that fails, instead of its answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// Why.
    pub error: Failure,
}

/// What `p2pvm init` prints. The fields are in alphabetical order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkFounded {
    /// This member's id.
    pub member: MemberIdText,
    /// Its host name in the network.
    pub name: String,
    /// The network's name.
    pub network: String,
    /// The network's id.
    pub network_id: NetworkIdText,
    /// A note about this machine's name.
    pub note: Option<String>,
    /// The subnet of the network's addresses.
    pub subnet: String,
}

/// What `p2pvm join` prints: the status, and how long joining took.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Joined {
    /// The status when it has an address.
    #[serde(flatten)]
    pub status: Status,
    /// From the command to the admission, milliseconds.
    pub admitted_ms: u64,
    /// From the command to the address, milliseconds.
    pub joined_ms: u64,
    /// Notes about this machine's name and clock.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// What `p2pvm drain` prints if VMs stay: the answer of a successful drain, with the error.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Undrained {
    /// What moved and what stays.
    #[serde(flatten)]
    pub answer: DrainAnswer,
    /// Why it is no success.
    pub error: Failure,
}

/// What `p2pvm doctor` prints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DoctorPage {
    /// Whether no check failed.
    pub ok: bool,
    /// What `--fix` repaired; empty without it, or if there was nothing to repair.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fixed: Vec<String>,
    /// The checks.
    pub checks: Vec<Check>,
}

/// One line of the doctor's page.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// The area that was checked, in a word.
    pub check: String,
    /// The result.
    pub level: Level,
    /// What was found.
    pub found: String,
    /// The remedy; empty if none is needed.
    pub advice: String,
}

/// What `p2pvm iso customize` prints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IsoCustomized {
    /// The ISO that was written.
    pub iso: PathBuf,
    /// The network that machines booted from it join; none if the ISO has no invite.
    pub network: Option<String>,
}

/// What `p2pvm install` prints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApplianceInstalled {
    /// The disk that boots by itself now.
    pub disk: PathBuf,
    /// The partition of the machine's identity and VMs.
    pub state: PathBuf,
}

/// What `p2pvm appliance find-network` prints. The fields are in alphabetical order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InviteFound {
    /// The invite; none if no place has one.
    pub invite: Option<String>,
    /// This machine's name, if a place gives one.
    pub name: Option<String>,
    /// The place of the invite, in words.
    pub source: Option<String>,
}

/// What `p2pvm dashboard --listen` prints, on one line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DashboardServed {
    /// The link that opens it on this machine, with the token.
    pub url: String,
}

/// What `p2pvm bugreport` prints. The fields are in alphabetical order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportWritten {
    /// The length of the file.
    pub bytes: u64,
    /// The report.
    pub file: PathBuf,
}

/// A file of the bug report in place of an answer that the daemon did not give.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnswerMissing {
    /// Why there is none.
    pub missing: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Sorted, assert_text};

    #[test]
    fn what_commands_print_by_themselves_keeps_its_text() {
        assert_text(
            &Failed {
                error: Failure::not_found("there is no VM web"),
            },
            r#"{"error":{"kind":"not-found","message":"there is no VM web"}}"#,
        );
        assert_text(
            &NetworkFounded {
                member: "mfzwizltoq".into(),
                name: "attic".into(),
                network: "lab".into(),
                network_id: "nzsxi53pojvq".into(),
                note: None,
                subnet: "10.83.0.0/16".into(),
            },
            concat!(
                r#"{"member":"mfzwizltoq","name":"attic","network":"lab","#,
                r#""network_id":"nzsxi53pojvq","note":null,"subnet":"10.83.0.0/16"}"#
            ),
        );
        assert_text(
            &DoctorPage {
                ok: true,
                fixed: Vec::new(),
                checks: vec![Check {
                    check: "kvm".into(),
                    level: Level::Warning,
                    found: "there is none".into(),
                    advice: String::new(),
                }],
            },
            concat!(
                r#"{"ok":true,"checks":[{"check":"kvm","level":"warning","#,
                r#""found":"there is none","advice":""}]}"#
            ),
        );
    }

    #[test]
    fn the_answers_of_commands_without_a_daemon_keep_their_text() {
        assert_text(
            &NetworkFounded {
                member: "m1".into(),
                name: "attic".into(),
                network: "lab".into(),
                network_id: "n1".into(),
                note: None,
                subnet: "10.83.0.0/16".into(),
            },
            concat!(
                r#"{"member":"m1","name":"attic","network":"lab","network_id":"n1","note":null,"#,
                r#""subnet":"10.83.0.0/16"}"#
            ),
        );
        let iso = IsoCustomized {
            iso: "/tmp/own.iso".into(),
            network: Some("lab".into()),
        };
        assert_text(&iso, r#"{"iso":"/tmp/own.iso","network":"lab"}"#);
        let installed = ApplianceInstalled {
            disk: "/dev/sda".into(),
            state: "/dev/sda3".into(),
        };
        assert_text(&installed, r#"{"disk":"/dev/sda","state":"/dev/sda3"}"#);
        let nothing = InviteFound {
            invite: None,
            name: Some("attic".into()),
            source: None,
        };
        assert_text(&nothing, r#"{"invite":null,"name":"attic","source":null}"#);
        let url = "http://127.0.0.1:8470/#token=abc".to_owned();
        let text = format!(r#"{{"url":"{url}"}}"#);
        assert_text(&DashboardServed { url }, &text);
        let written = ReportWritten {
            bytes: 7,
            file: "report.tar.gz".into(),
        };
        assert_text(&written, r#"{"bytes":7,"file":"report.tar.gz"}"#);
        let missing = "no answer in time".to_owned();
        assert_text(
            &AnswerMissing { missing },
            r#"{"missing":"no answer in time"}"#,
        );
    }

    #[test]
    fn a_join_and_an_unfinished_drain_are_their_answers_with_more_beside() {
        let joined = Joined {
            status: Status {
                name: "attic".into(),
                ..Status::default()
            },
            admitted_ms: 20,
            joined_ms: 300,
            notes: vec!["a note".into()],
        };
        let text = serde_json::to_string(&Sorted(&joined)).unwrap();
        assert!(text.starts_with(r#"{"address":null,"#), "{text}");
        let read: Joined = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (read.status.name.as_str(), read.joined_ms, &read.notes[..]),
            ("attic", 300, &["a note".to_owned()][..])
        );
        let undrained = Undrained {
            answer: DrainAnswer {
                stopped: vec!["web".into()],
                ..DrainAnswer::default()
            },
            error: Failure::refused("VMs stay"),
        };
        let text = serde_json::to_string(&Sorted(&undrained)).unwrap();
        let read: Undrained = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (read.answer, read.error),
            (undrained.answer, undrained.error)
        );
    }
}
