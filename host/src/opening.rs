//! Which passages other firewalls have to give, and how they are given and taken away.
//!
//! iptables-nft's chains get a rule by nft: iptables lists it as its own, with its comment. A table of somebody else's nft rules is
//! left alone, as nothing tells when its owner loads it anew: it becomes a [`Block`] to be shown.
//!
//! Who saves a firewall's rules and loads them again (`iptables-save`, netfilter-persistent, `nft list ruleset`) loads ours too:
//! beside those that are there, or when p2pvm has gone. They are known by their comment, wherever they are ([`copies`]).

pub(crate) mod copies;

use crate::{
    error::Error,
    firewall::{Block, Packet, blocks},
    net::Net,
    passage::{By, Passage, Way},
    ruleset::{Ruleset, iptables_comment},
    run::{RunError, run},
    wanted::Wanted,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

/// The kernel's list of iptables-legacy tables in use.
const LEGACY_TABLES: &str = "/proc/thread-self/net/ip_tables_names";
const DOCKER: &str = "DOCKER-USER";

/// What other firewalls do with packets of our interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// Passages that p2pvm can give and without which packets are dropped.
    pub passages: BTreeSet<Passage>,
    /// Passages of p2pvm's that are there.
    pub there: BTreeSet<Passage>,
    /// Those of them that have to be given anew: they do not help where they stand, are there twice, or are as `iptables-restore`
    /// made them, without the comment that nft saves.
    pub stale: BTreeSet<Passage>,
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

/// What programs other than nft say of firewalls.
#[derive(Clone, Debug, Default)]
pub struct Others {
    /// What `iptables-legacy -S` prints, where its tables are in use.
    pub legacy: Option<String>,
    /// Whether firewalld runs.
    pub firewalld: bool,
}

/// Looks at all other firewalls. `noted` is what the journal says was opened.
pub fn survey(wanted: &Wanted, lans: &BTreeSet<String>, ruleset: &Ruleset, programs: &Others, noted: &[Passage]) -> Survey {
    let mut survey = Survey::default();
    let legacy = programs.legacy.as_deref();
    let others = ruleset.without_ours();
    let mut useless = BTreeSet::new();
    for probe in probes(wanted, lans) {
        let now = blocks(ruleset, probe.hook, &probe.packet);
        for block in blocks(&others, probe.hook, &probe.packet) {
            let Some(passage) = passage(&block, &probe, ruleset, programs.firewalld) else { continue };
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
    let there = there(wanted, ruleset, legacy, noted);
    let loaded = there.iter().filter(|(_, found)| found.copies > 1 || found.untold).map(|(passage, _)| passage.clone());
    survey.stale = loaded.chain(useless).collect();
    survey.there = there.into_keys().collect();
    // A zone is left by its interface only: what was given stays wanted while firewalld has its table.
    let zoned = survey.there.iter().filter(|passage| passage.by == By::Firewalld).cloned().collect::<Vec<_>>();
    survey.passages.extend(zoned);
    survey
}

fn passage(block: &Block, probe: &Probe, ruleset: &Ruleset, firewalld: bool) -> Option<Passage> {
    let of = |by, family: &str, chain: &str, way| Some(Passage { by, family: family.into(), chain: chain.into(), way });
    match (block.table.as_str(), block.chain.as_str()) {
        ("filter", "INPUT") => of(By::Nft, &block.family, "INPUT", probe.way.clone()),
        ("filter", "FORWARD") => {
            // Docker keeps this one first in the chain and leaves what is in it alone.
            let jumps = |rule: &crate::ruleset::Rule| rule.expressions.iter().any(|e| e["jump"]["target"] == DOCKER);
            let docker = ruleset.chain(&block.family, "filter", "FORWARD").is_some_and(|chain| chain.rules.iter().any(jumps));
            of(By::Nft, &block.family, if docker { DOCKER } else { "FORWARD" }, probe.way.clone())
        }
        ("firewalld", _) if firewalld => of(By::Firewalld, "inet", "", Way::In),
        _ => None,
    }
    .filter(|passage| passage.by != By::Nft || matches!(block.family.as_str(), "ip" | "ip6"))
}

/// How a passage was found.
#[derive(Clone, Copy, Debug, Default)]
struct Found {
    copies: usize,
    /// See [`crate::ruleset::Rule::untold`].
    untold: bool,
}

/// The network's passages that are there.
fn there(wanted: &Wanted, ruleset: &Ruleset, legacy: Option<&str>, noted: &[Passage]) -> BTreeMap<Passage, Found> {
    let mut there: BTreeMap<Passage, Found> = BTreeMap::new();
    let mut find = |passage: Passage, untold: bool| {
        let found = there.entry(passage).or_default();
        *found = Found { copies: found.copies + 1, untold: found.untold || untold };
    };
    for ((family, table, chain), rules) in &ruleset.chains {
        if table != "filter" {
            continue;
        }
        for rule in &rules.rules {
            if let Some(way) = rule.comment.as_deref().and_then(|comment| Passage::way_of(comment, &wanted.device)) {
                find(Passage { by: By::Nft, family: family.clone(), chain: chain.clone(), way }, rule.untold);
            }
        }
    }
    if ruleset.tables.keys().any(|(_, name)| name == "firewalld") {
        noted.iter().filter(|passage| passage.by == By::Firewalld).for_each(|passage| find(passage.clone(), false));
    }
    for line in legacy.into_iter().flat_map(str::lines) {
        if let Some(comment) = iptables_comment(line)
            && let Some(way) = Passage::way_of(comment, &wanted.device)
            && let Some(chain) = line.strip_prefix("-A ").and_then(|rest| rest.split(' ').next())
        {
            find(Passage { by: By::Legacy, family: "ip".into(), chain: chain.to_owned(), way }, false);
        }
    }
    there
}

/// Whether a chain of iptables-legacy drops a packet, by its policy or a closing rule without conditions. With `device` p2pvm's
/// passages for it count.
fn legacy_drops(rules: &str, chain: &str, probe: &Probe, device: Option<&str>) -> bool {
    let mut drops = rules.lines().any(|line| line == format!("-P {chain} DROP"));
    let lets_in = format!("-A {chain} -i {} -j ACCEPT", probe.packet.iif);
    for line in rules.lines().filter(|line| line.starts_with(&format!("-A {chain} "))) {
        if let Some(way) = iptables_comment(line).zip(device).and_then(|(comment, device)| Passage::way_of(comment, device))
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
pub(crate) fn firewalld_runs() -> bool {
    run("firewall-cmd", &["--state"], "").is_ok()
}

/// Gives a passage.
pub(crate) fn open(passage: &Passage, device: &str) -> Result<(), Error> {
    let doing = || format!("open {passage} for {device}");
    let refused = |cause| Error::Program(doing(), cause);
    match passage.by {
        By::Nft => {
            let (family, chain) = (&passage.family, &passage.chain);
            let (matches, comment) = (passage.matches(device), passage.comment(device));
            let rule = format!("insert rule {family} filter {chain} {matches} counter accept comment \"{comment}\"\n");
            // One transaction: no packet meets the chain without it.
            copies::replace(&doing(), &rule, |f, c, found| f == family && c == chain && found == comment)
        }
        By::Legacy => {
            close(passage, device)?;
            let words = words("-I", passage, device);
            run("iptables-legacy", &words.iter().map(String::as_str).collect::<Vec<_>>(), "").map(drop).map_err(refused)
        }
        By::Firewalld if !firewalld_runs() => {
            Err(refused(RunError::Refused { program: "firewall-cmd", said: "firewalld does not run".into() }))
        }
        By::Firewalld => {
            close(passage, device)?;
            run("firewall-cmd", &["--zone=trusted", &format!("--add-interface={device}")], "").map(drop).map_err(refused)
        }
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
    let failed = |cause| Error::Program(format!("close {passage} for {device}"), cause);
    match passage.by {
        By::Nft | By::Legacy => {
            let (doing, comment) = (format!("close {passage} for {device}"), passage.comment(device));
            let same = |family: &str, chain: &str, found: &str| family == passage.family && chain == passage.chain && found == comment;
            copies::remove(passage.by, &doing, same).map(drop)
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
