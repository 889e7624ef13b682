//! A passage through somebody else's firewall: one rule that lets packets of our interface through,
//! with a comment by which it is found again.

use crate::legacy;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Whose firewall it is, and so by which program the passage is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum By {
    /// Chains that iptables-nft keeps (Docker, ufw, libvirt, kube-proxy): a rule by nft, which
    /// iptables shows as its own.
    Nft,
    /// The tables of iptables-legacy.
    Legacy,
    /// A running firewalld: the interface in the zone "trusted", until firewalld ends.
    Firewalld,
}

/// Which packets pass.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// Those that came in by our interface.
    In,
    /// Answers from this interface that leave by ours; what else tries that way, our own chain
    /// drops.
    From(String),
}

/// A passage.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Passage {
    /// Whose firewall.
    pub by: By,
    /// `ip` or `ip6`; `inet` for firewalld.
    pub family: String,
    /// The chain in the table `filter`; firewalld has zones instead.
    pub chain: String,
    /// Which packets.
    pub way: Way,
}

impl Passage {
    /// The comment of its rule.
    pub fn comment(&self, device: &str) -> String {
        match &self.way {
            Way::In => format!("p2pvm {device} in"),
            Way::From(lan) => format!("p2pvm {device} from {lan}"),
        }
    }

    /// Reads a rule's comment as [`Passage::comment`] wrote it for this device.
    pub fn way_of(comment: &str, device: &str) -> Option<Way> {
        let rest = comment
            .strip_prefix("p2pvm ")?
            .strip_prefix(device)?
            .strip_prefix(' ')?;
        match rest.split_once(' ') {
            Some(("from", lan)) => Some(Way::From(lan.to_owned())),
            None if rest == "in" => Some(Way::In),
            _ => None,
        }
    }

    /// The interface that a passage with this comment is for.
    pub fn device_of(comment: &str) -> Option<&str> {
        let device = comment.strip_prefix("p2pvm ")?.split(' ').next()?;
        Self::way_of(comment, device).map(|_| device)
    }

    /// What nft is told to match.
    pub fn matches(&self, device: &str) -> String {
        match &self.way {
            Way::In => format!("iifname \"{device}\""),
            Way::From(lan) => format!("iifname \"{lan}\" oifname \"{device}\""),
        }
    }
}

impl fmt::Display for Passage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.by {
            By::Nft => write!(f, "chain {} of table {} filter", self.chain, self.family),
            By::Legacy => write!(
                f,
                "chain {} of {}",
                self.chain,
                legacy::program(&self.family)
            ),
            By::Firewalld => f.write_str("firewalld (zone trusted)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_passages_comment_tells_its_way_and_its_interface() {
        for way in [Way::In, Way::From("lan0".into())] {
            let passage = Passage {
                by: By::Nft,
                family: "ip".into(),
                chain: "FORWARD".into(),
                way: way.clone(),
            };
            assert_eq!(
                Passage::way_of(&passage.comment("p2pvm0"), "p2pvm0"),
                Some(way)
            );
            assert_eq!(Passage::way_of(&passage.comment("p2pvm0"), "p2pvm"), None);
            assert_eq!(
                Passage::device_of(&passage.comment("p2pvm0")),
                Some("p2pvm0")
            );
        }
        assert_eq!(
            Passage::way_of("p2pvm p2pvm0 in the cellar", "p2pvm0"),
            None
        );
        assert_eq!(Passage::device_of("p2pvm p2pvm0 in the cellar"), None);
    }
}
