//! The web dashboard: its switch, and each member's report for its page.

use crate::{
    ClusterMember, Decided, HealthView, MemberIdText, PathKind, Peer, Status, VmView, words::words,
};
use serde::{Deserialize, Serialize};

words! {
    /// What a token of the dashboard allows.
    Role:
        /// Sees everything, and starts, stops, moves, snapshots and restores VMs and uses their
        /// consoles.
        Operator = "operator",
        /// Sees everything and changes nothing.
        Reader = "reader",
}

/// `p2pvm dashboard`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DashboardView {
    /// Whether it is switched on for the network.
    pub on: bool,
    /// The link that opens it from any member, with the token; none while it is off or this node
    /// has no address.
    pub url: Option<String>,
    /// Why it is not served although it is on.
    pub trouble: Option<String>,
    /// The operator's token.
    pub token: String,
    /// Its port on this host's address in the network.
    pub port: u16,
    /// The unix socket that always serves it.
    pub socket: String,
    /// Whether the page was built into this program.
    pub has_page: bool,
    /// The link with the reader's token.
    #[serde(default)]
    pub reader_url: Option<String>,
    /// The reader's token.
    #[serde(default)]
    pub reader_token: String,
    /// The addresses of the page outside the network, without a token.
    #[serde(default)]
    pub lan: Vec<String>,
    /// Why the dashboard, although it is on, is not served on all of them.
    #[serde(default)]
    pub lan_trouble: Option<String>,
    /// The SHA-256 fingerprint of the certificate there.
    #[serde(default)]
    pub fingerprint: Option<String>,
}

/// The request of `p2pvm dashboard`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DashboardChange {
    /// Whether to switch it on or off; none leaves it.
    #[serde(default)]
    pub on: Option<bool>,
    /// Whether to make a new token.
    #[serde(default)]
    pub new_token: bool,
    /// The role whose token is replaced; the operator if left out.
    #[serde(default)]
    pub role: Option<Role>,
}

/// How many links a member reports; the page draws no more of one member.
pub const MAX_LINKS: usize = 32;
/// How many of its newest decisions a member reports.
pub const MAX_DECISIONS: usize = 6;

/// A link as one of its ends sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Link {
    /// The beginning of the other member's id.
    pub to: String,
    /// The path in words, without the address: "direct", "relayed via name", "over the ring",
    /// "stream".
    pub path: String,
    /// The kind of that path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_kind: Option<PathKind>,
    /// The last measured round trip, milliseconds.
    pub rtt_ms: Option<f64>,
}

/// A member's report about itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Sight {
    /// Its identity and load.
    #[serde(flatten)]
    pub member: ClusterMember,
    /// Its links.
    pub links: Vec<Link>,
    /// Its latest decisions about VMs.
    pub decisions: Vec<Decided>,
}

impl Sight {
    /// Restricts the report of `member` to itself and to the limits. A previous version tells a
    /// path in words only.
    pub fn of(mut self, member: MemberIdText) -> Self {
        self.member.member = member;
        self.links.truncate(MAX_LINKS);
        for link in &mut self.links {
            let told = link.path_kind.take();
            link.path_kind = told.or_else(|| PathKind::of_words(&link.path));
        }
        self.decisions.truncate(MAX_DECISIONS);
        self
    }
}

/// The page's content as one answer: this node with its health in `p2pvm top`'s words, every member
/// with the links and decisions that it reports, and the VMs.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct View {
    /// This node.
    pub status: Status,
    /// Its health.
    pub health: HealthView,
    /// The other members that this node knows.
    pub peers: Vec<Peer>,
    /// Every member that answered.
    pub members: Vec<Sight>,
    /// The network's VMs.
    pub vms: Vec<VmView>,
    /// Members that did not answer which VMs they have.
    pub silent: Vec<String>,
    /// What the token of the request allows.
    #[serde(default)]
    pub role: Role,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_speaks_for_itself_only_and_not_at_any_length() {
        let link = Link {
            to: "00".into(),
            path: "direct".into(),
            path_kind: None,
            rtt_ms: None,
        };
        let text = serde_json::json!({
            "member": "somebody else", "name": "b", "address": null, "nat": "none",
            "position": "", "neighbours": 1, "cpu": 0.1, "running_vms": 0,
            "links": vec![link; 500], "decisions": [],
        });
        let told: Sight = serde_json::from_value(text).unwrap();
        let told = told.of("b's id".into());
        assert_eq!(
            (told.member.member.as_str(), told.links.len()),
            ("b's id", MAX_LINKS)
        );
        let mut kinds = told.links.iter().map(|link| link.path_kind.as_ref());
        assert!(kinds.all(|kind| kind == Some(&PathKind::Direct)));
    }

    #[test]
    fn a_path_that_is_told_in_words_only_has_its_kind() {
        for (path, kind) in [
            ("direct", Some(PathKind::Direct)),
            ("relayed via b", Some(PathKind::Relayed)),
            ("over the ring, 2 hops", Some(PathKind::Ring)),
            ("stream", Some(PathKind::Stream)),
            ("pigeon", None),
            ("", None),
        ] {
            assert_eq!(PathKind::of_words(path), kind);
        }
    }
}
