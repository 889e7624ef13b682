//! Which passages other firewalls have to give, and how they are given and taken away.
//!
//! iptables-nft's chains get a rule by nft: iptables lists it as its own, with its comment. A table of somebody else's nft rules is
//! left alone, as nothing tells when its owner loads it anew: it becomes a [`Block`] to be shown.

use crate::{
    error::Error,
    firewall::{Block, Packet, blocks},
    kernel,
    net::Net,
    passage::{By, Passage, Way},
    ruleset::Ruleset,
    run::{RunError, run},
    wanted::Wanted,
};
use std::{collections::BTreeSet, fs};

/// The kernel's list of iptables-legacy tables in use.
const LEGACY_TABLES: &str = "/proc/net/ip_tables_names";
const DOCKER: &str = "DOCKER-USER";

/// What other firewalls do with packets of our interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// Passages that p2pvm can give and without which packets are dropped.
    pub passages: BTreeSet<Passage>,
    /// Passages of p2pvm's that are there and work.
    pub there: BTreeSet<Passage>,
    /// What drops packets as it is now, for this machine.
    pub input: BTreeSet<Block>,
    /// What drops packets as it is now, into offered subnets or back.
    pub forward: BTreeSet<Block>,
}

/// A packet and the hook that it meets; the way of the passage that would let it through.
struct Probe {
    hook: &'static str,
    packet: Packet,
    way: Way,
}

fn probes(wanted: &Wanted, lans: &BTreeSet<String>) -> Vec<Probe> {
    let device = &wanted.device;
    let overlay = wanted.overlay.map(|net| net.addr());
    let input = |v6: bool| Probe {
        hook: "input",
        packet: Packet { iif: device.clone(), oif: None, source: overlay.filter(|_| !v6), destination: None, established: false, v6 },
        way: Way::In,
    };
    let mut probes = vec![input(false), input(true)];
    for lan in lans {
        let subnet = wanted.offered.first().map(Net::addr);
        let forward = |iif: &str, oif: &str, source, destination, established, way| Probe {
            hook: "forward",
            packet: Packet { iif: iif.into(), oif: Some(oif.into()), source, destination, established, v6: false },
            way,
        };
        probes.push(forward(device, lan, overlay, subnet, false, Way::In));
        probes.push(forward(lan, device, subnet, overlay, true, Way::From(lan.clone())));
    }
    probes
}

/// Looks at all other firewalls. `legacy` is what `iptables-legacy -S` prints where its tables are in use, `noted` what was opened.
pub fn survey(wanted: &Wanted, lans: &BTreeSet<String>, ruleset: &Ruleset, legacy: Option<&str>, noted: &[Passage]) -> Survey {
    let mut survey = Survey::default();
    let others = ruleset.without_ours();
    let mut useless = BTreeSet::new();
    for probe in probes(wanted, lans) {
        let now = blocks(ruleset, probe.hook, &probe.packet);
        for block in blocks(&others, probe.hook, &probe.packet) {
            let Some(passage) = passage(&block, &probe, ruleset) else { continue };
            if now.contains(&block) {
                useless.insert(passage.clone());
            }
            survey.passages.insert(passage);
        }
        let found = if probe.hook == "input" { &mut survey.input } else { &mut survey.forward };
        found.extend(now);
        if let Some(rules) = legacy.filter(|_| !probe.packet.v6) {
            let chain = probe.hook.to_uppercase();
            if legacy_drops(rules, &chain, &probe, None) {
                let passage = Passage { by: By::Legacy, family: "ip".into(), chain: chain.clone(), way: probe.way.clone() };
                if legacy_drops(rules, &chain, &probe, Some(&wanted.device)) {
                    useless.insert(passage.clone());
                    found.insert(Block {
                        family: "iptables-legacy".into(),
                        table: "filter".into(),
                        chain,
                        by: "drops what it does not know".into(),
                    });
                }
                survey.passages.insert(passage);
            }
        }
    }
    survey.there = there(wanted, ruleset, legacy, noted);
    // A zone is left by its interface only: what was given stays wanted while firewalld has its table.
    let zoned = survey.there.iter().filter(|passage| passage.by == By::Firewalld).cloned().collect::<Vec<_>>();
    survey.passages.extend(zoned);
    survey.there.retain(|passage| !useless.contains(passage));
    survey
}

fn passage(block: &Block, probe: &Probe, ruleset: &Ruleset) -> Option<Passage> {
    let of = |by, family: &str, chain: &str, way| Some(Passage { by, family: family.into(), chain: chain.into(), way });
    match (block.table.as_str(), block.chain.as_str()) {
        ("filter", "INPUT") => of(By::Nft, &block.family, "INPUT", probe.way.clone()),
        ("filter", "FORWARD") => {
            // Docker keeps this one first in the chain and leaves what is in it alone.
            let jumps = |rule: &crate::ruleset::Rule| rule.expressions.iter().any(|e| e["jump"]["target"] == DOCKER);
            let docker = ruleset.chain(&block.family, "filter", "FORWARD").is_some_and(|chain| chain.rules.iter().any(jumps));
            of(By::Nft, &block.family, if docker { DOCKER } else { "FORWARD" }, probe.way.clone())
        }
        ("firewalld", _) => of(By::Firewalld, "inet", "", Way::In),
        _ => None,
    }
    .filter(|passage| passage.by != By::Nft || matches!(block.family.as_str(), "ip" | "ip6"))
}

fn there(wanted: &Wanted, ruleset: &Ruleset, legacy: Option<&str>, noted: &[Passage]) -> BTreeSet<Passage> {
    let mut there = BTreeSet::new();
    for ((family, table, chain), rules) in &ruleset.chains {
        if table != "filter" {
            continue;
        }
        for comment in rules.rules.iter().filter_map(|rule| rule.comment.as_deref()) {
            if let Some(way) = Passage::way_of(comment, &wanted.device) {
                there.insert(Passage { by: By::Nft, family: family.clone(), chain: chain.clone(), way });
            }
        }
    }
    if ruleset.tables.keys().any(|(_, name)| name == "firewalld") {
        there.extend(noted.iter().filter(|passage| passage.by == By::Firewalld).cloned());
    }
    for line in legacy.into_iter().flat_map(str::lines) {
        if let Some(comment) = legacy_comment(line)
            && let Some(way) = Passage::way_of(comment, &wanted.device)
            && let Some(chain) = line.strip_prefix("-A ").and_then(|rest| rest.split(' ').next())
        {
            there.insert(Passage { by: By::Legacy, family: "ip".into(), chain: chain.to_owned(), way });
        }
    }
    there
}

fn legacy_comment(line: &str) -> Option<&str> {
    line.split_once("--comment \"")?.1.split('"').next()
}

/// Whether a chain of iptables-legacy drops a packet, by its policy or a closing rule without conditions. With `device` p2pvm's
/// passages for it count.
fn legacy_drops(rules: &str, chain: &str, probe: &Probe, device: Option<&str>) -> bool {
    let mut drops = rules.lines().any(|line| line == format!("-P {chain} DROP"));
    let lets_in = format!("-A {chain} -i {} -j ACCEPT", probe.packet.iif);
    for line in rules.lines().filter(|line| line.starts_with(&format!("-A {chain} "))) {
        if let Some(way) = legacy_comment(line).zip(device).and_then(|(comment, device)| Passage::way_of(comment, device))
            && way == probe.way
        {
            return false;
        }
        if line == lets_in {
            return false;
        }
        if line.starts_with(&format!("-A {chain} -j DROP")) || line.starts_with(&format!("-A {chain} -j REJECT")) {
            drops = true;
            break;
        }
    }
    drops
}

/// What `iptables-legacy -S` prints, where its filter table is in use and the program is there.
pub(crate) fn legacy() -> Option<String> {
    let tables = fs::read_to_string(LEGACY_TABLES).ok()?;
    tables.lines().any(|table| table == "filter").then_some(())?;
    let printed = run("iptables-legacy", &["-w", "5", "-S"], "").ok()?;
    Some(String::from_utf8_lossy(&printed).into_owned())
}

/// Whether firewalld answers: its rules alone may be left by one that ended.
fn firewalld_runs() -> bool {
    run("firewall-cmd", &["--state"], "").is_ok()
}

/// Gives a passage.
pub(crate) fn open(passage: &Passage, device: &str) -> Result<(), Error> {
    close(passage, device)?;
    let doing = || format!("open {passage} for {device}");
    let refused = |cause| Error::Program(doing(), cause);
    match passage.by {
        By::Nft => {
            let (family, chain) = (&passage.family, &passage.chain);
            let (matches, comment) = (passage.matches(device), passage.comment(device));
            kernel::nft(&doing(), &format!("insert rule {family} filter {chain} {matches} counter accept comment \"{comment}\"\n"))
        }
        By::Legacy => {
            let words = words("-I", passage, device);
            run("iptables-legacy", &words.iter().map(String::as_str).collect::<Vec<_>>(), "").map(drop).map_err(refused)
        }
        By::Firewalld if !firewalld_runs() => {
            Err(refused(RunError::Refused { program: "firewall-cmd", said: "firewalld does not run".into() }))
        }
        By::Firewalld => run("firewall-cmd", &["--zone=trusted", &format!("--add-interface={device}")], "").map(drop).map_err(refused),
    }
}

fn words(what: &str, passage: &Passage, device: &str) -> Vec<String> {
    let mut words: Vec<String> = ["-w", "5", what, &passage.chain].map(str::to_owned).into();
    match &passage.way {
        Way::In => words.extend(["-i", device].map(str::to_owned)),
        Way::From(lan) => words.extend(["-i", lan, "-o", device].map(str::to_owned)),
    }
    words.extend(["-m", "comment", "--comment", &passage.comment(device), "-j", "ACCEPT"].map(str::to_owned));
    words
}

/// Takes a passage away; one that is not there is no failure.
pub(crate) fn close(passage: &Passage, device: &str) -> Result<(), Error> {
    let doing = || format!("close {passage} for {device}");
    let failed = |cause| Error::Program(doing(), cause);
    match passage.by {
        By::Nft => {
            let ruleset = match kernel::ruleset() {
                Err(RunError::Missing { .. }) => return Ok(()),
                ruleset => ruleset.map_err(failed)?,
            };
            let Some(chain) = ruleset.chain(&passage.family, "filter", &passage.chain) else { return Ok(()) };
            let comment = passage.comment(device);
            let ours = chain.rules.iter().filter(|rule| rule.comment.as_deref() == Some(comment.as_str()));
            let text: String =
                ours.map(|rule| format!("delete rule {} filter {} handle {}\n", passage.family, passage.chain, rule.handle)).collect();
            if text.is_empty() { Ok(()) } else { kernel::nft(&doing(), &text) }
        }
        By::Legacy => {
            let Some(rules) = legacy() else { return Ok(()) };
            let comment = passage.comment(device);
            for _ in rules.lines().filter(|line| legacy_comment(line) == Some(comment.as_str())) {
                run("iptables-legacy", &words("-D", passage, device).iter().map(String::as_str).collect::<Vec<_>>(), "").map_err(failed)?;
            }
            Ok(())
        }
        By::Firewalld if !firewalld_runs() => Ok(()),
        By::Firewalld => {
            let zone = run("firewall-cmd", &[&format!("--get-zone-of-interface={device}")], "");
            if zone.is_ok_and(|zone| String::from_utf8_lossy(&zone).trim() == "trusted") {
                run("firewall-cmd", &["--zone=trusted", &format!("--remove-interface={device}")], "").map_err(failed)?;
            }
            Ok(())
        }
    }
}

/// The command that helps where p2pvm cannot.
pub fn remedy(block: &Block, way: &Way, device: &str) -> String {
    let passage = Passage { by: By::Nft, family: String::new(), chain: String::new(), way: way.clone() };
    match block.family.as_str() {
        "iptables-legacy" => {
            format!("iptables-legacy {}", words("-I", &Passage { chain: block.chain.clone(), ..passage }, device).join(" "))
        }
        family => format!("nft insert rule {family} {} {} {} accept", block.table, block.chain, passage.matches(device)),
    }
}
