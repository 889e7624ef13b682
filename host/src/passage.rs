//! A passage through another firewall: one rule that lets packets of our interface through, with a
//! comment by which it is found again.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The kind of firewall, which decides by which program the passage is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FirewallKind {
    /// Chains that iptables-nft keeps (Docker, ufw, libvirt, kube-proxy): a rule by nft, which
    /// iptables shows as its own.
    Nft,
    /// The tables of iptables-legacy.
    Legacy,
    /// A running firewalld: the interface in the zone "trusted", until firewalld ends.
    Firewalld,
}

/// The packets that pass.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Traffic {
    /// Packets that came in by our interface.
    In,
    /// Answers from this interface that leave by ours. Our own chain drops other packets that way.
    From(String),
}

/// A passage.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Passage {
    /// The kind of firewall.
    pub by: FirewallKind,
    /// `ip` or `ip6`; `inet` for firewalld.
    pub family: String,
    /// The chain in the table `filter`; firewalld has zones instead.
    pub chain: String,
    /// The packets that pass.
    pub way: Traffic,
}

impl Passage {
    /// The comment of its rule.
    pub fn comment(&self, device: &str) -> String {
        match &self.way {
            Traffic::In => format!("p2pvm {device} in"),
            Traffic::From(lan) => format!("p2pvm {device} from {lan}"),
        }
    }

    /// Parses a rule's comment that [`Passage::comment`] wrote for this device.
    pub fn way_of(comment: &str, device: &str) -> Option<Traffic> {
        let rest = comment
            .strip_prefix("p2pvm ")?
            .strip_prefix(device)?
            .strip_prefix(' ')?;
        match rest.split_once(' ') {
            Some(("from", lan)) => Some(Traffic::From(lan.to_owned())),
            None if rest == "in" => Some(Traffic::In),
            _ => None,
        }
    }

    /// The interface that a passage with this comment is for.
    pub fn device_of(comment: &str) -> Option<&str> {
        let device = comment.strip_prefix("p2pvm ")?.split(' ').next()?;
        Self::way_of(comment, device).map(|_| device)
    }

    /// The match in nft's syntax.
    pub fn matches(&self, device: &str) -> String {
        match &self.way {
            Traffic::In => format!("iifname \"{device}\""),
            Traffic::From(lan) => format!("iifname \"{lan}\" oifname \"{device}\""),
        }
    }
}

/// The program for a family's rules in the kernel's older interface.
pub(crate) fn legacy_program(family: &str) -> &'static str {
    if family == "ip6" {
        "ip6tables-legacy"
    } else {
        "iptables-legacy"
    }
}

impl fmt::Display for Passage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.by {
            FirewallKind::Nft => write!(f, "chain {} of table {} filter", self.chain, self.family),
            FirewallKind::Legacy => write!(
                f,
                "chain {} of {}",
                self.chain,
                legacy_program(&self.family)
            ),
            FirewallKind::Firewalld => f.write_str("firewalld (zone trusted)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_passages_comment_tells_its_way_and_its_interface() {
        for way in [Traffic::In, Traffic::From("lan0".into())] {
            let passage = Passage {
                by: FirewallKind::Nft,
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
