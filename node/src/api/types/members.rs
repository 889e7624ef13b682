//! Members: probing them, expelling them, and leaving.
//!
//! `p2pvm leave` and `p2pvm down` are answered by null, that is `()`: they have succeeded or
//! failed, and there is nothing else to say. Fields are in alphabetical order.

use serde::{Deserialize, Serialize};

/// Whether something is to be done although it destroys something: `p2pvm leave`, `vm stop`, `vm
/// delete`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Force {
    /// It is.
    #[serde(default)]
    pub force: bool,
}

/// What `p2pvm ping` asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PingRequest {
    /// How many probes.
    pub count: u32,
    /// From one to the next, milliseconds.
    pub interval_ms: u64,
    /// Whom: a member, or a VM, whose host is probed.
    pub member: String,
}

/// What `p2pvm ping` gets after the last probe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PingSummary {
    /// Probes that were answered.
    pub received: u32,
    /// Probes that were sent.
    pub sent: u32,
}

/// What `p2pvm revoke` asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevokeRequest {
    /// A member or an invite, by its id; a member also by its name or address.
    pub what: String,
}

/// What `p2pvm revoke` gets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevokeAnswer {
    /// What the one who revoked it should know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// What is revoked, as it was named in the request.
    pub revoked: String,
    /// Connected members that were told.
    #[serde(default)]
    pub told: usize,
    /// The names of the other members that fall with it, as far as they are known.
    #[serde(default)]
    pub with: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::{Pong, Sorted, assert_text};

    #[test]
    fn a_revocation_is_answered_with_the_same_text() {
        let revoked = RevokeAnswer {
            note: None,
            revoked: "cellar".into(),
            told: 3,
            with: vec!["attic".into(), "den".into()],
        };
        assert_text(
            &revoked,
            r#"{"revoked":"cellar","told":3,"with":["attic","den"]}"#,
        );
        let noted = RevokeAnswer {
            note: Some("nobody knows it".into()),
            with: Vec::new(),
            ..revoked
        };
        assert_text(
            &noted,
            r#"{"note":"nobody knows it","revoked":"cellar","told":3,"with":[]}"#,
        );
    }

    #[test]
    fn the_end_of_a_ping_and_what_members_are_asked_keep_their_text() {
        assert_text(
            &PingSummary {
                received: 2,
                sent: 3,
            },
            r#"{"received":2,"sent":3}"#,
        );
        let ping = PingRequest {
            count: 3,
            interval_ms: 1000,
            member: "cellar".into(),
        };
        assert_text(&ping, r#"{"count":3,"interval_ms":1000,"member":"cellar"}"#);
        let pong = Pong {
            seq: 1,
            rtt_ms: None,
            path: String::new(),
        };
        assert_eq!(
            serde_json::to_string(&Sorted(pong)).unwrap(),
            r#"{"path":"","rtt_ms":null,"seq":1}"#
        );
        assert_text(
            &RevokeRequest {
                what: "cellar".into(),
            },
            r#"{"what":"cellar"}"#,
        );
        assert_text(&Force { force: true }, r#"{"force":true}"#);
        assert_text(&(), "null");
    }

    #[test]
    fn members_answers_of_another_version_are_understood() {
        let revoked: RevokeAnswer =
            serde_json::from_str(r#"{"revoked":"cellar","told":3,"when":"now"}"#).unwrap();
        assert_eq!(
            revoked,
            RevokeAnswer {
                revoked: "cellar".into(),
                told: 3,
                ..RevokeAnswer::default()
            }
        );
        let summary: PingSummary =
            serde_json::from_str(r#"{"lost":1,"received":2,"sent":3}"#).unwrap();
        assert_eq!(
            summary,
            PingSummary {
                received: 2,
                sent: 3
            }
        );
        assert_eq!(
            serde_json::from_str::<Force>(r#"{"dry":true}"#).unwrap(),
            Force::default()
        );
    }
}
