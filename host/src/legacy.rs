//! The firewall of the kernel's older interface: iptables-legacy and ip6tables-legacy, whose rules nft does not show.

use crate::{
    firewall::Packet,
    passage::{Passage, Way},
    ruleset::iptables_comment,
    run::{RunError, run},
};
use std::{collections::BTreeMap, fs};

/// What `-S` prints, by family (`ip`, `ip6`); a family whose filter table is not in use has no entry.
pub type Rules = BTreeMap<String, String>;

/// A family with its program and the kernel's list of its tables in use.
const FAMILIES: [(&str, &str, &str); 2] = [
    ("ip", "iptables-legacy", "/proc/thread-self/net/ip_tables_names"),
    ("ip6", "ip6tables-legacy", "/proc/thread-self/net/ip6_tables_names"),
];

/// The program for a family's rules.
pub(crate) fn program(family: &str) -> &'static str {
    if family == "ip6" { FAMILIES[1].1 } else { FAMILIES[0].1 }
}

/// Lists the rules where a filter table is in use and the program is there.
pub(crate) fn list() -> Rules {
    let in_use = |tables: &str| fs::read_to_string(tables).is_ok_and(|tables| tables.lines().any(|table| table == "filter"));
    let printed = |program| Some(String::from_utf8_lossy(&run(program, &["-w", "5", "-S"], "").ok()?).into_owned());
    let families = FAMILIES.into_iter().filter(|(_, _, tables)| in_use(tables));
    families.filter_map(|(family, program, _)| Some((family.to_owned(), printed(program)?))).collect()
}

/// The passages of p2pvm's for this interface that are among a family's rules.
pub(crate) fn there<'a>(rules: &'a str, device: &'a str) -> impl Iterator<Item = (&'a str, Way)> {
    rules.lines().filter_map(move |line| {
        let way = Passage::way_of(iptables_comment(line)?, device)?;
        Some((line.strip_prefix("-A ")?.split(' ').next()?, way))
    })
}

/// Whether a chain drops a packet, by its policy or a closing rule without conditions. With `own`, p2pvm's passages for that
/// interface and way count.
pub(crate) fn drops(rules: &str, chain: &str, packet: &Packet, own: Option<(&str, &Way)>) -> bool {
    let mut drops = rules.lines().any(|line| line == format!("-P {chain} DROP"));
    let through = |conditions: &str| format!("-A {chain} {conditions} -j ACCEPT");
    let mut lets_in = vec![through(&format!("-i {}", packet.iif))];
    if let Some(oif) = &packet.oif {
        lets_in.extend([through(&format!("-i {} -o {oif}", packet.iif)), through(&format!("-o {oif}"))]);
    }
    for line in rules.lines().filter(|line| line.starts_with(&format!("-A {chain} "))) {
        let is_own =
            own.is_some_and(|(device, way)| iptables_comment(line).and_then(|said| Passage::way_of(said, device)).as_ref() == Some(way));
        if is_own || lets_in.iter().any(|rule| rule == line) {
            return false;
        }
        if line.starts_with(&format!("-A {chain} -j DROP")) || line.starts_with(&format!("-A {chain} -j REJECT")) {
            drops = true;
            break;
        }
    }
    drops
}

/// What tells the packets of a passage.
fn matches(way: &Way, device: &str) -> Vec<String> {
    match way {
        Way::In => ["-i", device].map(str::to_owned).into(),
        Way::From(lan) => ["-i", lan, "-o", device].map(str::to_owned).into(),
    }
}

/// A person's command for a passage; without p2pvm's comment, by which a rule would be p2pvm's to remove.
pub(crate) fn command(family: &str, chain: &str, way: &Way, device: &str) -> String {
    format!("{} -I {chain} {} -j ACCEPT", program(family), matches(way, device).join(" "))
}

fn tell(family: &str, words: &[String]) -> Result<(), RunError> {
    let words: Vec<&str> = ["-w", "5"].into_iter().chain(words.iter().map(String::as_str)).collect();
    run(program(family), &words, "").map(drop)
}

/// Gives a passage.
pub(crate) fn open(passage: &Passage, device: &str) -> Result<(), RunError> {
    let mut words = ["-I", &passage.chain].map(str::to_owned).to_vec();
    words.extend(matches(&passage.way, device));
    words.extend(["-m", "comment", "--comment", &passage.comment(device), "-j", "ACCEPT"].map(str::to_owned));
    tell(&passage.family, &words)
}

/// Removes the rules of which `which` (family, chain, comment) says so; how many.
pub(crate) fn remove(which: impl Fn(&str, &str, &str) -> bool) -> Result<usize, RunError> {
    let mut count = 0;
    for (family, rules) in &list() {
        let mut places: Vec<(&str, usize)> = Vec::new();
        let (mut current, mut number) = ("", 0);
        for line in rules.lines() {
            let Some((chain, rest)) = line.strip_prefix("-A ").and_then(|rest| rest.split_once(' ')) else { continue };
            number = if chain == current { number + 1 } else { 1 };
            current = chain;
            if iptables_comment(rest).is_some_and(|comment| which(family, chain, comment)) {
                places.push((chain, number));
            }
        }
        // From the end, as the numbers behind a removed rule change.
        for (chain, number) in places.iter().rev() {
            tell(family, &["-D", chain, &number.to_string()].map(str::to_owned))?;
        }
        count += places.len();
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(iif: &str, oif: Option<&str>) -> Packet {
        Packet { iif: iif.into(), oif: oif.map(str::to_owned), source: None, destination: None, established: false, v6: false }
    }

    #[test]
    fn a_persons_own_rule_lets_packets_in_and_the_advised_one_is_such_a_rule() {
        let chain = "-P FORWARD DROP\n-A FORWARD -i eth0 -j ACCEPT\n";
        for (way, packet) in [(Way::In, packet("p2pvm0", Some("lan0"))), (Way::From("lan0".into()), packet("lan0", Some("p2pvm0")))] {
            assert!(drops(chain, "FORWARD", &packet, None));
            let advised = command("ip", "FORWARD", &way, "p2pvm0").replace("iptables-legacy -I", "-A");
            assert!(!drops(&format!("{chain}{advised}\n"), "FORWARD", &packet, None), "{advised}");
            assert!(!drops(&format!("{advised}\n-A FORWARD -j REJECT\n"), "FORWARD", &packet, None));
            assert!(drops(&format!("-A FORWARD -j REJECT\n{advised}\n"), "FORWARD", &packet, None), "behind the reject");
        }
        assert_eq!(command("ip6", "INPUT", &Way::In, "p2pvm0"), "ip6tables-legacy -I INPUT -i p2pvm0 -j ACCEPT");
    }

    #[test]
    fn passages_of_ours_are_found_by_their_comments_and_count_only_if_asked() {
        let rules = "-P INPUT DROP\n-A INPUT -i p2pvm0 -m comment --comment \"p2pvm p2pvm0 in\" -j ACCEPT\n-A INPUT -i lo -j ACCEPT\n";
        assert_eq!(there(rules, "p2pvm0").collect::<Vec<_>>(), [("INPUT", Way::In)]);
        assert_eq!(there(rules, "p2pvm1").count(), 0);
        let packet = packet("p2pvm0", None);
        assert!(drops(rules, "INPUT", &packet, None));
        assert!(!drops(rules, "INPUT", &packet, Some(("p2pvm0", &Way::In))));
    }
}
