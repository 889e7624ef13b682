//! The notes and findings about a LAN that another p2pvm network of this machine accepts too: which
//! of the two leads there, why, and the command that decides it for good.

use p2pvm_host::{Finding, Net, observed::HoldState, sharing::SharedLan};
use std::path::Path;

/// The addition to a used offer's note, or its replacement; `None` if no other network accepts it.
/// The boolean tells whether packets of this machine go into this network.
pub(super) fn note(net: &Net, shared: &[SharedLan]) -> Option<(bool, String)> {
    let of_it = |found: &&SharedLan| found.net == *net || found.within == Some(*net);
    let found = shared
        .iter()
        .filter(of_it)
        .max_by_key(|found| found.net == *net)?;
    let device = &found.device;
    Some(match (found.is_here, found.within) {
        (true, _) => (
            true,
            format!(
                "used; the p2pvm network behind {device} accepts it too, and leaves it to this one"
            ),
        ),
        (false, None) => {
            let why = why_there(found);
            (
                false,
                format!(
                    "not used on this machine: the p2pvm network behind {device} leads there, {why}"
                ),
            )
        }
        (false, Some(_)) => (
            true,
            format!(
                "used, except for {}, to which the p2pvm network behind {device} leads",
                found.net
            ),
        ),
    })
}

fn why_there(found: &SharedLan) -> &'static str {
    if found.answers {
        "as it did before and its router answers"
    } else {
        "as no router of this one answers"
    }
}

/// The board's findings about them; `dir` is this network's state directory.
pub(super) fn findings(shared: &[SharedLan], dir: &Path) -> Vec<Finding> {
    shared.iter().map(|found| finding(found, dir)).collect()
}

fn finding(found: &SharedLan, dir: &Path) -> Finding {
    let SharedLan { net, device, .. } = found;
    let refuse = format!(
        "p2pvm --dir {} route accept --off {}",
        dir.display(),
        found.within.unwrap_or(*net)
    );
    let there = format!("the p2pvm network behind {device}");
    if let Some(around) = found.within {
        // As among all routes, and no fault as long as both answer.
        let carried = if found.is_here {
            "this network, as no router of that one answers"
        } else {
            "that one"
        };
        let said = format!(
            "{net}, a part of {around}, is accepted by {there} too: packets for it go into \
                {carried}"
        );
        return Finding::note(
            said,
            format!("to refuse {around} in this network: {refuse}"),
        );
    }
    let carried = match (found.is_here, found.other, found.answers) {
        (false, ..) => format!("packets for it go into that one, {}", why_there(found)),
        (true, HoldState::Silent, false) => {
            "packets for it go into one of them, and no router answers in either".to_owned()
        }
        (true, HoldState::Silent, true) => {
            "packets for it go into this one, as no router of that one answers".to_owned()
        }
        (true, _, _) => "packets for it go into this one, whose router answers".to_owned(),
    };
    Finding::warning(
        format!("{net} is accepted by this network and by {there}: {carried}"),
        format!(
            "the two share it as long as both accept it; to decide it for good, refuse it in one: \
                {refuse} (this one), or the same \
             with the other network's --dir"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared(is_here: bool, answers: bool, other: HoldState) -> SharedLan {
        let net = "192.168.50.0/24".parse().unwrap();
        SharedLan {
            net,
            within: None,
            device: "p2pvm1".into(),
            is_here,
            answers,
            other,
        }
    }

    #[test]
    fn a_lan_of_two_networks_is_named_with_reason_and_command() {
        let cases = [
            (
                shared(false, false, HoldState::Answering),
                "go into that one, as no router of this one answers",
            ),
            (
                shared(false, true, HoldState::Answering),
                "go into that one, as it did before",
            ),
            (
                shared(true, true, HoldState::Away),
                "go into this one, whose router answers",
            ),
            (
                shared(true, true, HoldState::Silent),
                "go into this one, as no router of that one answers",
            ),
            (
                shared(true, false, HoldState::Silent),
                "no router answers in either",
            ),
        ];
        for (found, said) in cases {
            let finding = finding(&found, Path::new("/var/lib/a"));
            assert!(
                finding.found.contains("192.168.50.0/24") && finding.found.contains("p2pvm1"),
                "{finding:?}"
            );
            assert!(finding.found.contains(said), "{finding:?}");
            assert!(
                finding
                    .advice
                    .contains("p2pvm --dir /var/lib/a route accept --off 192.168.50.0/24"),
                "{finding:?}"
            );
        }
    }

    #[test]
    fn a_shared_offers_note_says_whether_it_is_used_here() {
        let lan: Net = "192.168.50.0/24".parse().unwrap();
        let around: Net = "192.168.0.0/16".parse().unwrap();
        assert_eq!(note(&lan, &[]), None);
        let (used, said) = note(&lan, &[shared(false, false, HoldState::Answering)]).unwrap();
        assert!(
            !used && said.starts_with("not used on this machine") && said.contains("p2pvm1"),
            "{said}"
        );
        assert!(
            note(&lan, &[shared(true, true, HoldState::Away)])
                .unwrap()
                .0
        );
        let part = SharedLan {
            within: Some(around),
            ..shared(false, true, HoldState::Answering)
        };
        let (used, said) = note(&around, &[part]).unwrap();
        assert!(
            used && said.contains("except for 192.168.50.0/24"),
            "{said}"
        );
    }
}
