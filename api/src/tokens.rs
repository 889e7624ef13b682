//! Tokens: rights on a VM that its owner gives to another member, and that it may pass on.
//!
//! A token travels as one line of text, by whatever way its owner chooses.

use serde::{Deserialize, Serialize};

/// What `p2pvm token create` asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct CreateToken {
    /// The VM's name or id.
    pub vm: String,
    /// What is allowed: "see", "start", "stop", "console", "move", "snapshot", "restore", "delete".
    pub may: Vec<String>,
    /// For how long from now.
    pub seconds: u64,
    /// The member that may use it.
    pub to: String,
}

/// What `p2pvm token attenuate` asks for: the token for another member, with the same rights or
/// less.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PassToken {
    /// The token, which was given to this member.
    pub token: String,
    /// What is allowed of it; all of it if empty.
    #[serde(default)]
    pub may: Vec<String>,
    /// For how long from now; as long as the token itself if left out.
    #[serde(default)]
    pub seconds: Option<u64>,
    /// The member that may use the new one.
    pub to: String,
}

/// What `p2pvm token show` and `p2pvm token add` send.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct TokenText {
    /// The token.
    pub token: String,
}

/// A token in words. The fields are in alphabetical order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct TokenView {
    /// The members that it went through, the owner first.
    pub from: Vec<String>,
    /// By which it is named here: the beginning of its serial number.
    pub id: String,
    /// What it allows.
    pub may: Vec<String>,
    /// Why it cannot be used now, if it cannot.
    pub note: Option<String>,
    /// What it is about, such as "vm web".
    pub on: String,
    /// The member that may use it.
    pub to: String,
    /// Its text.
    pub token: String,
    /// When it expires (RFC 3339).
    pub until: String,
}

/// What `p2pvm token remove` gets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct TokenRemoved {
    /// The token's id.
    pub removed: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assert_text;

    #[test]
    fn tokens_are_asked_for_and_answered_with_the_same_text() {
        assert_text(
            &CreateToken {
                vm: "web".into(),
                may: vec!["start".into()],
                seconds: 7200,
                to: "lab3".into(),
            },
            r#"{"vm":"web","may":["start"],"seconds":7200,"to":"lab3"}"#,
        );
        let view = TokenView {
            from: vec!["lab1".into()],
            id: "09ab".into(),
            may: vec!["start".into()],
            note: None,
            on: "vm web".into(),
            to: "lab3".into(),
            token: "p2pvmtoken1abc".into(),
            until: "2026-11-30T22:00:00Z".into(),
        };
        assert_text(
            &view,
            concat!(
                r#"{"from":["lab1"],"id":"09ab","may":["start"],"note":null,"on":"vm web","#,
                r#""to":"lab3","token":"p2pvmtoken1abc","until":"2026-11-30T22:00:00Z"}"#
            ),
        );
    }
}
