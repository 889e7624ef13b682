//! Tokens: rights on a VM or a host that its owner gives to another member, and that it may pass
//! on.
//!
//! A token travels as one line of text, by whatever way its owner chooses.

use serde::{Deserialize, Serialize};

/// What `p2pvm token create` asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct CreateToken {
    /// The VM's name or id; none for a token for this host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<String>,
    /// What is allowed: "see", "start", "stop", "console", "move", "snapshot", "restore", "delete";
    /// on this host "create" or, the same, "run".
    pub may: Vec<String>,
    /// For how long from now.
    pub seconds: u64,
    /// The member that may use it, or after "user:" a user's name or key.
    pub to: String,
    /// For this host: how many processors all VMs of that member here may have together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u32>,
    /// For this host: how much memory they may have together, MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u64>,
    /// For this host: how much disk they may have together, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_bytes: Option<u64>,
    /// For this host: how much each of them may send, and how much receive, bits a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bits_per_second: Option<u64>,
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

/// What `p2pvm token revoke` sends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RevokeToken {
    /// The token, or its id in the list.
    pub token: String,
}

/// Whether a token can be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum TokenState {
    /// It can, as far as this member knows.
    #[default]
    Valid,
    /// Its time has not begun.
    Early,
    /// Its time is over.
    Expired,
    /// It was revoked.
    Revoked,
}

impl TokenState {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Valid => "valid",
            Self::Early => "early",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
        }
    }
}

/// A token in words. The fields are in alphabetical order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct TokenView {
    /// The members that it went through, the owner first.
    pub from: Vec<String>,
    /// Whether this member gave it, or passed it on.
    pub given: bool,
    /// By which it is named here: the beginning of its serial number.
    pub id: String,
    /// What it allows.
    pub may: Vec<String>,
    /// Why it cannot be used now, if it cannot.
    pub note: Option<String>,
    /// What it is about, such as "vm web".
    pub on: String,
    /// Whether it can be used.
    pub state: TokenState,
    /// The member that may use it.
    pub to: String,
    /// Its text.
    pub token: String,
    /// When it expires (RFC 3339).
    pub until: String,
}

/// What `p2pvm token revoke` gets. The fields are in alphabetical order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct TokenRevoked {
    /// The host that knows it now and refuses the token, if it could be told.
    pub host: Option<String>,
    /// Why no host could be told yet; it is tried again until one is.
    pub note: Option<String>,
    /// What the token is about, such as "vm web".
    pub on: String,
    /// The token's id.
    pub revoked: String,
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
                vm: Some("web".into()),
                may: vec!["start".into()],
                seconds: 7200,
                to: "lab3".into(),
                cpus: None,
                memory_mib: None,
                disk_bytes: None,
                bits_per_second: None,
            },
            r#"{"vm":"web","may":["start"],"seconds":7200,"to":"lab3"}"#,
        );
        assert_text(
            &CreateToken {
                vm: None,
                may: vec!["run".into()],
                seconds: 60,
                to: "lab3".into(),
                cpus: Some(2),
                memory_mib: Some(1024),
                disk_bytes: None,
                bits_per_second: None,
            },
            r#"{"may":["run"],"seconds":60,"to":"lab3","cpus":2,"memory_mib":1024}"#,
        );
        let view = TokenView {
            from: vec!["lab1".into()],
            given: true,
            id: "09ab".into(),
            may: vec!["start".into()],
            note: None,
            on: "vm web".into(),
            state: TokenState::Revoked,
            to: "lab3".into(),
            token: "p2pvmtoken1abc".into(),
            until: "2026-11-30T22:00:00Z".into(),
        };
        assert_text(
            &view,
            concat!(
                r#"{"from":["lab1"],"given":true,"id":"09ab","may":["start"],"note":null,"#,
                r#""on":"vm web","state":"revoked","to":"lab3","token":"p2pvmtoken1abc","#,
                r#""until":"2026-11-30T22:00:00Z"}"#
            ),
        );
    }
}
