//! The network's policy: the present one, setting it, and its decision about a conversation.
//!
//! The policy itself is sent as its author's text. `p2pvm_overlay::membership::policy` parses it.

use serde::{Deserialize, Serialize};

/// `p2pvm acl show`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct AclShow {
    /// The version of the policy; none in a network without one.
    pub version: Option<u64>,
    /// The text as its author wrote it.
    pub text: Option<String>,
    /// "root", or the delegate that signed it.
    pub signed_by: Option<String>,
    /// When it was signed (RFC 3339).
    pub signed_at: Option<String>,
    /// How many packets it has kept out of this host and its guests since the daemon started.
    pub denied_here: u64,
}

/// The request of `p2pvm acl set`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct AclSet {
    /// The policy, as its author wrote it.
    pub text: String,
}

/// The answer to `p2pvm acl set`. The fields are in alphabetical order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct AclAnswer {
    /// The decision about traffic that no rule matches: "allow" or "deny".
    pub default: String,
    /// How many rules it has.
    pub rules: usize,
    /// How many connected members received it.
    pub told: usize,
    /// Its version, one more than the previous policy's.
    pub version: u64,
    /// Names in it that no member, group or VM has: most likely misspelt.
    pub warnings: Vec<String>,
}

/// The request of `p2pvm acl check`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct AclCheck {
    /// The sender: a member, a VM or an address.
    pub from: String,
    /// The receiver: a member, a VM or an address.
    pub to: String,
    /// The traffic, such as tcp/22.
    pub traffic: String,
}

/// The answer to `p2pvm acl check`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct AclVerdict {
    /// The sender in words.
    pub from: String,
    /// The receiver in words.
    pub to: String,
    /// The traffic.
    pub traffic: String,
    /// Whether it is allowed.
    pub allowed: bool,
    /// The rule that decides, from 1; none if it is the default, or there is no policy.
    pub rule: Option<usize>,
    /// The line of the policy that the rule begins on.
    pub line: Option<usize>,
    /// The policy's version.
    pub version: Option<u64>,
    /// The rule or default that decides, in words.
    pub why: String,
    /// The receiver's action, in words.
    pub effect: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assert_text;

    #[test]
    fn a_signed_policy_is_answered_with_the_same_text() {
        let set = AclAnswer {
            default: "deny".into(),
            rules: 2,
            told: 5,
            version: 3,
            warnings: vec!["no member known here is named 'atic'".into()],
        };
        let text = concat!(
            r#"{"default":"deny","rules":2,"told":5,"version":3,"#,
            r#""warnings":["no member known here is named 'atic'"]}"#
        );
        assert_text(&set, text);
        assert_text(
            &AclSet {
                text: "default allow\n".into(),
            },
            r#"{"text":"default allow\n"}"#,
        );
    }

    #[test]
    fn a_policys_answer_of_another_version_is_understood() {
        let set: AclAnswer = serde_json::from_str(
            r#"{"default":"allow","rules":1,"told":0,"version":1,"signed_by":"root"}"#,
        )
        .unwrap();
        assert_eq!(
            set,
            AclAnswer {
                default: "allow".into(),
                rules: 1,
                version: 1,
                ..AclAnswer::default()
            }
        );
    }
}
