//! The firewall of the kernel's older interface: iptables-legacy and ip6tables-legacy, whose rules
//! nft does not show.

use crate::{
    firewall::{Packet, Truth},
    net::Net,
    passage::{Passage, Traffic, legacy_program},
    ruleset::iptables_comment,
    run::{RunError, run},
};
use std::{collections::BTreeMap, fs, net::Ipv4Addr};

/// What `-S` prints, by family (`ip`, `ip6`). A family whose filter table is not in use has no
/// entry.
pub type LegacyRules = BTreeMap<String, String>;

/// A family and the kernel's list of its tables in use.
const FAMILIES: [(&str, &str); 2] = [
    ("ip", "/proc/thread-self/net/ip_tables_names"),
    ("ip6", "/proc/thread-self/net/ip6_tables_names"),
];

/// Lists the rules where a filter table is in use and the program is there.
pub(crate) fn list() -> LegacyRules {
    let in_use = |tables: &str| {
        fs::read_to_string(tables).is_ok_and(|tables| tables.lines().any(|table| table == "filter"))
    };
    let printed = |program| {
        Some(String::from_utf8_lossy(&run(program, &["-w", "5", "-S"], "").ok()?).into_owned())
    };
    let families = FAMILIES.into_iter().filter(|(_, tables)| in_use(tables));
    families
        .filter_map(|(family, _)| Some((family.to_owned(), printed(legacy_program(family))?)))
        .collect()
}

/// The rules of tables other than `filter`, by family and table.
pub type LegacyTables = BTreeMap<(String, String), String>;

/// Tables besides `filter` whose chains can drop packets.
const OTHER_TABLES: [&str; 3] = ["raw", "mangle", "security"];

/// Lists the rules of the other tables that are in use.
pub(crate) fn list_others() -> LegacyTables {
    let mut found = LegacyTables::new();
    for (family, in_use) in FAMILIES {
        let in_use = fs::read_to_string(in_use).unwrap_or_default();
        for table in OTHER_TABLES
            .into_iter()
            .filter(|table| in_use.lines().any(|line| line == *table))
        {
            if let Ok(printed) = run(legacy_program(family), &["-w", "5", "-t", table, "-S"], "") {
                let rules = String::from_utf8_lossy(&printed).into_owned();
                found.insert((family.to_owned(), table.to_owned()), rules);
            }
        }
    }
    found
}

/// p2pvm's passages for this interface among a family's rules.
pub(crate) fn there<'a>(
    rules: &'a str,
    device: &'a str,
) -> impl Iterator<Item = (&'a str, Traffic)> {
    rules.lines().filter_map(move |line| {
        let way = Passage::way_of(iptables_comment(line)?, device)?;
        Some((line.strip_prefix("-A ")?.split(' ').next()?, way))
    })
}

/// What a chain does with a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ChainVerdict {
    /// Whether it drops it.
    pub drops: bool,
    /// Whether an earlier rule that p2pvm understands only in part may let it through.
    pub is_doubtful: bool,
    /// What drops it.
    pub by: &'static str,
}

/// Whether a chain drops a packet, by its policy or by a rule. With `own`, p2pvm's passages for
/// that interface and traffic count; its other passages never do.
pub(crate) fn drops(
    rules: &str,
    chain: &str,
    packet: &Packet,
    own: Option<(&str, &Traffic)>,
) -> bool {
    judge(rules, chain, packet, own).drops
}

/// As [`drops`], with its doubts.
pub(crate) fn judge(
    rules: &str,
    chain: &str,
    packet: &Packet,
    own: Option<(&str, &Traffic)>,
) -> ChainVerdict {
    let mut judged = ChainVerdict {
        by: "policy drop",
        ..ChainVerdict::default()
    };
    for rule in rules
        .lines()
        .filter_map(|line| line.strip_prefix(&format!("-A {chain} ")))
    {
        if let Some(device) = iptables_comment(rule).and_then(Passage::device_of) {
            let way = iptables_comment(rule).and_then(|said| Passage::way_of(said, device));
            if own.is_some_and(|(own, wanted)| own == device && way.as_ref() == Some(wanted)) {
                return ChainVerdict::default();
            }
            continue;
        }
        let (conditions, target) = rule
            .rsplit_once("-j ")
            .or(rule.rsplit_once("-g "))
            .unwrap_or((rule, ""));
        let target = target.split(' ').next().unwrap_or_default();
        match (holds(conditions, packet), target) {
            (Truth::No, _)
            | (_, "" | "LOG" | "MARK" | "CT" | "TRACE" | "NFLOG" | "CONNMARK" | "TCPMSS") => {}
            (Truth::Yes, "ACCEPT") => return ChainVerdict::default(),
            (Truth::Yes, "DROP" | "REJECT") => {
                return ChainVerdict {
                    drops: true,
                    by: "a rule of it",
                    ..judged
                };
            }
            (Truth::Yes, "RETURN") => break,
            (Truth::Unknown, "DROP" | "REJECT") => {}
            // Other chains are not followed.
            _ => judged.is_doubtful = true,
        }
    }
    judged.drops = rules.lines().any(|line| line == format!("-P {chain} DROP"));
    judged
}

/// Whether a rule's conditions, as `-S` prints them, hold for a packet.
fn holds(conditions: &str, packet: &Packet) -> Truth {
    let mut truth = Truth::Yes;
    let mut words = conditions.split_whitespace();
    let mut is_denied = false;
    while let Some(word) = words.next() {
        let one = match word {
            "!" => {
                is_denied = true;
                continue;
            }
            "--comment" => {
                let first = words.next().unwrap_or_default();
                let is_open = first.starts_with('"') && !(first.len() > 1 && first.ends_with('"'));
                if is_open {
                    words.find(|word| word.ends_with('"'));
                }
                continue;
            }
            _ => condition(word, &mut words, packet),
        };
        let one = match (one, std::mem::take(&mut is_denied)) {
            (Truth::Yes, true) => Truth::No,
            (Truth::No, true) => Truth::Yes,
            (one, _) => one,
        };
        truth = match (truth, one) {
            (Truth::No, _) | (_, Truth::No) => Truth::No,
            (Truth::Unknown, _) | (_, Truth::Unknown) => Truth::Unknown,
            _ => Truth::Yes,
        };
    }
    truth
}

/// One condition with its value, which is taken from the words that follow.
fn condition<'a>(word: &str, words: &mut impl Iterator<Item = &'a str>, packet: &Packet) -> Truth {
    let (oif, udp) = (
        packet.oif.as_deref().unwrap_or_default(),
        packet.udp.as_ref(),
    );
    let Some(value) = words.next() else {
        return Truth::Unknown;
    };
    match word {
        "-m" => match value {
            "udp" | "state" | "conntrack" | "comment" => Truth::Yes,
            _ => Truth::Unknown,
        },
        "-i" => interface(&packet.iif, value),
        "-o" => interface(oif, value),
        "-s" => among(packet.source, value),
        "-d" => among(packet.destination, value),
        "-p" if udp.is_some() => Truth::from(matches!(value, "udp" | "17")),
        "--sport" => port(udp.and_then(|udp| udp.source), value),
        "--dport" => port(udp.and_then(|udp| udp.destination), value),
        "--state" | "--ctstate" => {
            let state = if packet.established {
                "ESTABLISHED"
            } else {
                "NEW"
            };
            Truth::from(value.split(',').any(|one| one == state))
        }
        _ => Truth::Unknown,
    }
}

fn interface(name: &str, wanted: &str) -> Truth {
    Truth::from(
        wanted
            .strip_suffix('+')
            .map_or(name == wanted, |begins| name.starts_with(begins)),
    )
}

fn among(address: Option<Ipv4Addr>, net: &str) -> Truth {
    address
        .zip(net.parse::<Net>().ok())
        .map_or(Truth::Unknown, |(address, net)| {
            Truth::from(net.contains(&address))
        })
}

fn port(port: Option<u16>, wanted: &str) -> Truth {
    let Some(port) = port else {
        return Truth::Unknown;
    };
    let (first, last) = wanted.split_once(':').unwrap_or((wanted, wanted));
    match (first.parse::<u16>(), last.parse::<u16>()) {
        (Ok(first), Ok(last)) => Truth::from((first..=last).contains(&port)),
        _ => Truth::Unknown,
    }
}

/// The words that match a passage's packets.
fn matches(way: &Traffic, device: &str) -> Vec<String> {
    match way {
        Traffic::In => ["-i", device].map(str::to_owned).into(),
        Traffic::From(lan) => ["-i", lan, "-o", device].map(str::to_owned).into(),
    }
}

/// The command by which a person adds a passage. It has no comment of p2pvm's, which would make the
/// rule p2pvm's to remove.
pub(crate) fn command(family: &str, chain: &str, way: &Traffic, device: &str) -> String {
    format!(
        "{} -I {chain} {} -j ACCEPT",
        legacy_program(family),
        matches(way, device).join(" ")
    )
}

fn tell(family: &str, words: &[String]) -> Result<(), RunError> {
    let words: Vec<&str> = ["-w", "5"]
        .into_iter()
        .chain(words.iter().map(String::as_str))
        .collect();
    run(legacy_program(family), &words, "").map(drop)
}

/// Adds a passage.
pub(crate) fn open(passage: &Passage, device: &str) -> Result<(), RunError> {
    let mut words = ["-I", &passage.chain].map(str::to_owned).to_vec();
    words.extend(matches(&passage.way, device));
    words.extend(
        [
            "-m",
            "comment",
            "--comment",
            &passage.comment(device),
            "-j",
            "ACCEPT",
        ]
        .map(str::to_owned),
    );
    tell(&passage.family, &words)
}

/// Removes the rules for which `which` (family, chain, comment) is true. Returns how many.
pub(crate) fn remove(which: impl Fn(&str, &str, &str) -> bool) -> Result<usize, RunError> {
    let mut count = 0;
    for (family, rules) in &list() {
        let mut places: Vec<(&str, usize)> = Vec::new();
        let (mut current, mut number) = ("", 0);
        for line in rules.lines() {
            let Some((chain, rest)) = line
                .strip_prefix("-A ")
                .and_then(|rest| rest.split_once(' '))
            else {
                continue;
            };
            number = if chain == current { number + 1 } else { 1 };
            current = chain;
            if iptables_comment(rest).is_some_and(|comment| which(family, chain, comment)) {
                places.push((chain, number));
            }
        }
        // From the end, as the numbers behind a removed rule change.
        for (chain, number) in places.iter().rev() {
            tell(
                family,
                &["-D", chain, &number.to_string()].map(str::to_owned),
            )?;
        }
        count += places.len();
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(iif: &str, oif: Option<&str>) -> Packet {
        Packet {
            iif: iif.into(),
            oif: oif.map(str::to_owned),
            ..Packet::default()
        }
    }

    #[test]
    fn the_advised_rule_lets_packets_in_as_a_persons_own_does() {
        let chain = "-P FORWARD DROP\n-A FORWARD -i eth0 -j ACCEPT\n";
        for (way, packet) in [
            (Traffic::In, packet("p2pvm0", Some("lan0"))),
            (Traffic::From("lan0".into()), packet("lan0", Some("p2pvm0"))),
        ] {
            assert!(drops(chain, "FORWARD", &packet, None));
            let advised =
                command("ip", "FORWARD", &way, "p2pvm0").replace("iptables-legacy -I", "-A");
            assert!(
                !drops(&format!("{chain}{advised}\n"), "FORWARD", &packet, None),
                "{advised}"
            );
            assert!(!drops(
                &format!("{advised}\n-A FORWARD -j REJECT\n"),
                "FORWARD",
                &packet,
                None
            ));
            assert!(
                drops(
                    &format!("-A FORWARD -j REJECT\n{advised}\n"),
                    "FORWARD",
                    &packet,
                    None
                ),
                "behind the reject"
            );
        }
        assert_eq!(
            command("ip6", "INPUT", &Traffic::In, "p2pvm0"),
            "ip6tables-legacy -I INPUT -i p2pvm0 -j ACCEPT"
        );
    }

    #[test]
    fn rules_with_conditions_drop_only_packets_that_meet_them() {
        let base = Packet {
            source: Some(Ipv4Addr::new(10, 9, 0, 0)),
            ..packet("p2pvm0", None)
        };
        let judged = |rules: &str| {
            let judged = judge(&format!("-P INPUT ACCEPT\n{rules}"), "INPUT", &base, None);
            (judged.drops, judged.is_doubtful)
        };
        assert_eq!(judged("-A INPUT -i p2pvm0 -j DROP"), (true, false));
        assert_eq!(
            judged("-A INPUT ! -i eth0 -m comment --comment \"not -j here\" -j REJECT"),
            (true, false)
        );
        assert_eq!(
            judged("-A INPUT -s 10.9.0.0/16 -m conntrack --ctstate NEW -j DROP"),
            (true, false)
        );
        assert_eq!(judged("-A INPUT ! -s 10.9.0.0/16 -j DROP"), (false, false));
        assert_eq!(
            judged("-A INPUT -m conntrack --ctstate INVALID -j DROP"),
            (false, false)
        );
        assert_eq!(
            judged("-A INPUT -m limit --limit 3/min -j DROP"),
            (false, false),
            "not known"
        );
        assert_eq!(
            judged("-A INPUT -j ufw\n-A INPUT -j DROP"),
            (true, true),
            "a chain that is not followed"
        );
        assert_eq!(
            judged("-A INPUT -i p2pvm+ -j ACCEPT\n-A INPUT -j DROP"),
            (false, false)
        );
    }

    #[test]
    fn our_passages_are_found_by_comment_and_count_if_asked() {
        let rules = "-P INPUT DROP\n-A INPUT -i p2pvm0 -m comment --comment \"p2pvm p2pvm0 in\" \
            -j ACCEPT\n-A INPUT -i lo -j ACCEPT\n";
        assert_eq!(
            there(rules, "p2pvm0").collect::<Vec<_>>(),
            [("INPUT", Traffic::In)]
        );
        assert_eq!(there(rules, "p2pvm1").count(), 0);
        let packet = packet("p2pvm0", None);
        assert!(drops(rules, "INPUT", &packet, None));
        assert!(!drops(
            rules,
            "INPUT",
            &packet,
            Some(("p2pvm0", &Traffic::In))
        ));
    }
}
