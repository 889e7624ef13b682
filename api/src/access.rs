//! The network's policy: what stands, what is signed, and what it does to a conversation.
//!
//! The policy itself travels as the text that its author wrote. What the text means is
//! `p2pvm_overlay::membership::policy`'s.

use serde::{Deserialize, Serialize};

/// `p2pvm acl show`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct AclShow {
    /// The version of the policy that stands; none in a network without one.
    pub version: Option<u64>,
    /// What its author wrote.
    pub text: Option<String>,
    /// "root", or the delegate who signed it.
    pub signed_by: Option<String>,
    /// When it was signed (RFC 3339).
    pub signed_at: Option<String>,
    /// Packets that it has kept out of this host and its guests since the daemon started.
    pub denied_here: u64,
}

/// What `p2pvm acl set` asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct AclSet {
    /// The policy, as its author wrote it.
    pub text: String,
}

/// What `p2pvm acl set` gets. The fields are in alphabetical order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct AclAnswer {
    /// What happens to traffic that no rule is about: "allow" or "deny".
    pub default: String,
    /// How many rules it has.
    pub rules: usize,
    /// Connected members that were told.
    pub told: usize,
    /// Its version, one more than that of the policy before.
    pub version: u64,
    /// What it names and nobody has: most likely misspelt.
    pub warnings: Vec<String>,
}

/// What `p2pvm acl check` asks.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct AclCheck {
    /// Who would begin: a member, a VM or an address.
    pub from: String,
    /// To whom.
    pub to: String,
    /// With what, such as tcp/22.
    pub traffic: String,
}

/// What `p2pvm acl check` gets.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct AclVerdict {
    /// Who would begin, in words.
    pub from: String,
    /// To whom, in words.
    pub to: String,
    /// With what.
    pub traffic: String,
    /// Whether it is let through.
    pub allowed: bool,
    /// The rule that decides, from 1; none if it is the default, or there is no policy.
    pub rule: Option<usize>,
    /// The line of the policy that the rule begins on.
    pub line: Option<usize>,
    /// The policy's version.
    pub version: Option<u64>,
    /// What decides, in words.
    pub why: String,
    /// What the receiver does, in words.
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
