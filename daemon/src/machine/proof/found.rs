//! The results of the proofs, as findings with their remedies.

use p2pvm_host::Finding;
use p2pvm_overlay::plane::ProofFailure;

/// The results of one round for the other members.
#[derive(Default)]
pub(super) struct MemberResults {
    /// Members whose host answered, or whose packets arrived.
    pub proved: usize,
    /// Names of members whose host did not answer, and why.
    pub silent: Vec<(String, String)>,
    /// Names of members whose packets do not reach this host, and why.
    pub no_way_back: Vec<(String, String)>,
}

/// The findings of this host and the others.
pub(super) fn findings(host: Option<&ProofFailure>, others: &MemberResults) -> Vec<Finding> {
    if let Some(unproved) = host {
        return own_trouble(unproved).into_iter().collect();
    }
    let mut found = Vec::new();
    let list = |of: &[(String, String)]| {
        of.iter()
            .map(|(name, _)| name.as_str())
            .collect::<Vec<_>>()
            .join(", ")
    };
    if let Some((name, why)) = others.no_way_back.first() {
        let said = format!(
            "packets of {} do not reach this host: {name} says that {why}",
            list(&others.no_way_back)
        );
        let advice =
            "allow what comes in by p2pvm's interface: 'nft list ruleset' and 'iptables -L -v' \
                show which rule drops it"
                .to_owned();
        found.push(if others.proved == 0 {
            Finding::failed(said, advice)
        } else {
            Finding::warning(said, advice)
        });
    }
    if let Some((name, why)) = others.silent.first() {
        let said = format!(
            "no answer from the hosts of {}: {why}",
            list(&others.silent)
        );
        found.push(Finding::warning(
            said,
            format!("run 'p2pvm doctor' on {name}"),
        ));
    }
    found
}

/// The finding that this host is not reached through its own interface.
pub(crate) fn own_trouble(unproved: &ProofFailure) -> Option<Finding> {
    let firewall = |device: &str| {
        format!(
            "let in what comes by {device}: 'nft list ruleset' shows the rule that drops it; \
                firewalld: 'firewall-cmd --permanent \
             --zone=trusted --add-interface={device} && firewall-cmd --reload'; ufw: 'ufw allow \
             in on {device}'"
        )
    };
    let again = "the daemon puts it back within 10 s; if it does not, 'p2pvm doctor --fix', then \
        'p2pvm down && p2pvm up --detach'";
    let advice = match unproved {
        // A daemon without an address yet is reported elsewhere.
        ProofFailure::NoAddress => return None,
        ProofFailure::Cannot { .. } => return Some(Finding::warning(unproved.to_string(), "")),
        ProofFailure::Missing { .. }
        | ProofFailure::Down { .. }
        | ProofFailure::AddressLost { .. } => again.to_owned(),
        ProofFailure::Elsewhere { addr, .. } => format!(
            "'ip route get {addr}' and 'ip rule' show by which rule; take that route or rule away"
        ),
        ProofFailure::Refused { device } | ProofFailure::Silent { device } => firewall(device),
        ProofFailure::NoPath { .. } | ProofFailure::MemberSilent { .. } => return None,
    };
    Some(Finding::failed(
        format!("this host's address in the network cannot be reached: {unproved}"),
        advice,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2pvm_host::Level;
    use std::net::IpAddr;

    #[test]
    fn an_unreached_address_is_a_failure_with_its_causes_remedy() {
        let device = || "p2pvm0".to_owned();
        let addr = IpAddr::from([10, 83, 0, 9]);
        let cases = [
            (ProofFailure::Missing { device: device() }, "doctor --fix"),
            (ProofFailure::Down { device: device() }, "doctor --fix"),
            (
                ProofFailure::AddressLost {
                    device: device(),
                    addr,
                },
                "doctor --fix",
            ),
            (
                ProofFailure::Elsewhere {
                    device: device(),
                    addr,
                    through: "eth0".into(),
                },
                "ip route get 10.83.0.9",
            ),
            (
                ProofFailure::Refused { device: device() },
                "nft list ruleset",
            ),
            (
                ProofFailure::Silent { device: device() },
                "ufw allow in on p2pvm0",
            ),
        ];
        for (unproved, advice) in cases {
            let found = findings(Some(&unproved), &MemberResults::default());
            let [finding] = found.as_slice() else {
                panic!("{unproved:?}: {found:?}")
            };
            assert!(
                finding.level == Level::Failed && finding.advice.contains(advice),
                "{finding:?}"
            );
            assert!(finding.found.contains("cannot be reached"), "{finding:?}");
        }
        assert_eq!(
            findings(Some(&ProofFailure::NoAddress), &MemberResults::default()),
            []
        );
    }

    #[test]
    fn no_packet_here_is_a_failure_one_silent_member_a_warning() {
        let said = |name: &str| vec![(name.to_owned(), "no answer".to_owned())];
        let cut_off = findings(
            None,
            &MemberResults {
                no_way_back: said("lab2"),
                ..MemberResults::default()
            },
        );
        assert!(
            cut_off[0].level == Level::Failed && cut_off[0].found.contains("lab2"),
            "{cut_off:?}"
        );
        let partly = findings(
            None,
            &MemberResults {
                proved: 2,
                no_way_back: said("lab2"),
                silent: said("lab3"),
            },
        );
        assert!(
            partly.iter().all(|finding| finding.level == Level::Warning) && partly.len() == 2,
            "{partly:?}"
        );
        assert_eq!(
            findings(
                None,
                &MemberResults {
                    proved: 2,
                    ..MemberResults::default()
                }
            ),
            []
        );
    }
}
