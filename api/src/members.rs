//! Members: listing, inviting, probing and expelling them, and leaving.
//!
//! `p2pvm leave` and `p2pvm down` are answered by null, that is `()`, or by a failure.

use crate::{InviteIdText, MemberIdText, words::words};
use serde::{Deserialize, Serialize};

/// Whether to go on although something is destroyed: `p2pvm leave`, `vm stop`, `vm delete`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Force {
    /// Whether to go on.
    #[serde(default)]
    pub force: bool,
}

/// The request of `p2pvm ping`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PingRequest {
    /// How many probes.
    pub count: u32,
    /// The interval between probes, milliseconds.
    pub interval_ms: u64,
    /// The target: a member, or a VM, whose host is probed.
    pub member: String,
}

/// The answer to `p2pvm ping` after the last probe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PingSummary {
    /// Probes that were answered.
    pub received: u32,
    /// Probes that were sent.
    pub sent: u32,
}

/// The request of `p2pvm revoke`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RevokeRequest {
    /// A member or an invite, by its id; a member also by its name or address.
    pub what: String,
}

/// The answer to `p2pvm revoke`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RevokeAnswer {
    /// A note for the person who revoked it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// The member or invite revoked, as named in the request.
    pub revoked: String,
    /// How many connected members received the revocation.
    #[serde(default)]
    pub told: usize,
    /// The names of the other members that are revoked with it, as far as known.
    #[serde(default)]
    pub with: Vec<String>,
}

/// One row of `p2pvm peers`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Peer {
    /// The member's id.
    pub member: MemberIdText,
    /// Its host name.
    pub name: String,
    /// Its address, if known.
    pub address: Option<String>,
    /// Whether a control connection is up.
    pub connected: bool,
    /// Whether packets go over the link and answers come back.
    #[serde(default)]
    pub linked: bool,
    /// The packet path, if there is a link.
    pub path: Option<String>,
    /// The kind of that path; missing while no answers come by it.
    #[serde(default)]
    pub path_kind: Option<PathKind>,
    /// The link's last measured round trip, milliseconds.
    pub rtt_ms: Option<f64>,
    /// Bytes sent over the link.
    pub sent_bytes: u64,
    /// Bytes received over the link.
    pub received_bytes: u64,
    /// The largest IP packet that the path carries whole.
    #[serde(default)]
    pub packet_bytes: Option<usize>,
    /// Its role on the ring for this node, if it is a neighbour there.
    #[serde(default)]
    pub ring: Option<RingNeighbour>,
}

/// One row of `p2pvm traffic`: a pair of addresses, one of them at this node.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Traffic {
    /// The address here, of the host or a guest.
    pub local: String,
    /// The other address.
    pub remote: String,
    /// The id of the member that has the other address.
    pub member: MemberIdText,
    /// That member's name.
    pub name: String,
    /// The path to it, if there is a link.
    pub path: Option<String>,
    /// Bytes from `local` to `remote` since the pair is known.
    pub sent_bytes: u64,
    /// Bytes the other way.
    pub received_bytes: u64,
    /// Bytes a second, both ways, over the last second.
    pub bytes_per_second_1s: f64,
    /// Over the last 4 s.
    pub bytes_per_second_4s: f64,
    /// Over the last 16 s.
    pub bytes_per_second_16s: f64,
}

/// One answer to `p2pvm ping`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Pong {
    /// The number of the probe, from 1.
    pub seq: u32,
    /// Round trip, milliseconds; none if lost.
    pub rtt_ms: Option<f64>,
    /// The path of the answer: "direct 198.18.3.1:4242", "relayed via name", "over the ring, 2
    /// hops" or "stream".
    pub path: String,
    /// The kind of that path; missing if there was no answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_kind: Option<PathKind>,
}

words! {
    /// The kind of a path that packets take to a member.
    PathKind:
    /// Directly to one of its addresses.
    Direct = "direct",
    /// Through another member.
    Relayed = "relayed",
    /// Over the ring, from neighbour to neighbour.
    Ring = "ring",
    /// Over a stream of the control connection: UDP does not get through.
    Stream = "stream",
}

impl PathKind {
    /// The kind of a path from the words of a member whose version tells no kind.
    pub(crate) fn of_words(path: &str) -> Option<Self> {
        let begins = [
            ("direct", Self::Direct),
            ("relayed", Self::Relayed),
            ("over the ring", Self::Ring),
            ("stream", Self::Stream),
        ];
        let known = begins.into_iter().find(|(word, _)| path.starts_with(word));
        known.map(|(_, kind)| kind)
    }
}

/// A neighbour on the ring.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RingNeighbour {
    /// "near", "far", "shortcut", "leaf", or several joined by "+"; "link" if it only happens to be
    /// linked.
    pub role: String,
    /// The round trip that the ring measured, milliseconds.
    pub rtt_ms: Option<f64>,
    /// The round trip that both members' coordinates predict, milliseconds.
    pub distance_ms: Option<f64>,
    /// The expected relative error of its coordinate.
    pub error: Option<f32>,
}

/// The request of `p2pvm invite`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct InviteRequest {
    /// How many machines may join with it.
    pub uses: u32,
    /// Seconds until it expires.
    pub expires_seconds: u64,
    /// Whether the members that join with it may invite others.
    pub delegate: bool,
    /// The groups of the members that join with it.
    #[serde(default)]
    pub groups: Vec<String>,
    /// Whether to include only this member's QUIC address at each of its hosts, so that the text is
    /// short enough for a QR code.
    #[serde(default)]
    pub short: bool,
}

/// The answer to `p2pvm invite`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct InviteAnswer {
    /// The text to hand over.
    pub invite: String,
    /// Its id, by which it can be revoked.
    pub id: InviteIdText,
    /// A note for the person who hands it over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Pong, Sorted, assert_text};

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
    fn a_pings_end_and_requests_to_members_keep_their_text() {
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
            path_kind: None,
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
    fn a_paths_kind_is_its_word() {
        for (kind, word) in PathKind::KNOWN {
            assert_text(kind, &format!("{word:?}"));
        }
        assert_text(&PathKind::Other("pigeon".into()), "\"pigeon\"");
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
