//! Which passages other firewalls have to give, and how they are given and taken away.
//!
//! iptables-nft's chains get a rule by nft: iptables lists it as its own, with its comment. A table
//! of somebody else's nft rules is left alone, as nothing tells when its owner loads it anew: it
//! becomes a [`Block`] to be shown.
//!
//! Who saves a firewall's rules and loads them again (`iptables-save`, netfilter-persistent, `nft
//! list ruleset`) loads ours too: beside those that are there, or when p2pvm has gone. They are
//! known by their comment, wherever they are ([`copies`]).

pub(crate) mod copies;
pub mod hooks;

use crate::{
    error::Error,
    firewall::{Block, Packet, blocks},
    legacy,
    net::Net,
    passage::{By, Passage, Way},
    ruleset::{Rule, Ruleset},
    run::{RunError, run},
    wanted::Wanted,
};
use std::collections::{BTreeMap, BTreeSet};

const DOCKER: &str = "DOCKER-USER";
/// How ufw's own chains begin; those of IPv6 with a 6 behind.
const UFW: &str = "ufw";

/// What other firewalls do with packets of our interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// Passages that p2pvm can give and without which packets are dropped.
    pub passages: BTreeSet<Passage>,
    /// Passages of p2pvm's that are there.
    pub there: BTreeSet<Passage>,
    /// Those of them that have to be given anew: they do not help where they stand, are there
    /// twice, or are as `iptables-restore` made them, without the comment that nft saves.
    pub stale: BTreeSet<Passage>,
    /// What drops packets as it is now, for this machine, with the commands that help.
    pub input: BTreeMap<Block, Vec<String>>,
    /// What drops packets as it is now, into offered subnets or back, with the commands that help.
    pub forward: BTreeMap<Block, Vec<String>>,
    /// What drops packets at hooks where p2pvm opens nothing.
    pub elsewhere: BTreeSet<hooks::Dropped>,
}

impl Survey {
    fn add(&mut self, probe: &Probe, block: Block, command: String) {
        let found = if probe.hook == "input" {
            &mut self.input
        } else {
            &mut self.forward
        };
        let commands = found.entry(block).or_default();
        if !commands.contains(&command) {
            commands.push(command);
        }
    }
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
        packet: Packet {
            iif: device.clone(),
            source: overlay.filter(|_| !v6),
            v6,
            ..Packet::default()
        },
        way: Way::In,
    };
    let mut probes = vec![input(false), input(true)];
    for lan in lans {
        let subnet = wanted.offered.first().map(Net::addr);
        let forward = |iif: &str, oif: &str, source, destination, established, way| Probe {
            hook: "forward",
            packet: Packet {
                iif: iif.into(),
                oif: Some(oif.into()),
                source,
                destination,
                established,
                ..Packet::default()
            },
            way,
        };
        probes.push(forward(device, lan, overlay, subnet, false, Way::In));
        probes.push(forward(
            lan,
            device,
            subnet,
            overlay,
            true,
            Way::From(lan.clone()),
        ));
    }
    probes
}

/// What programs other than nft say of firewalls.
#[derive(Clone, Debug, Default)]
pub struct Others {
    /// The rules of iptables-legacy and ip6tables-legacy.
    pub legacy: legacy::Rules,
    /// Those of their other tables.
    pub tables: legacy::Tables,
    /// Whether firewalld runs.
    pub firewalld: bool,
}

impl Others {
    /// The tables of a family of iptables-legacy, by name.
    fn legacy_tables<'a>(&'a self, family: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        let filter = self
            .legacy
            .get(family)
            .map(|rules| ("filter", rules.as_str()));
        let others = self.tables.iter().filter(move |((of, _), _)| of == family);
        filter
            .into_iter()
            .chain(others.map(|((_, table), rules)| (table.as_str(), rules.as_str())))
    }
}

/// Looks at all other firewalls. `uplinks` are the interfaces by which members are reached. `noted`
/// is what the journal says was opened.
pub fn survey(
    wanted: &Wanted,
    (lans, uplinks): (&BTreeSet<String>, &BTreeSet<String>),
    ruleset: &Ruleset,
    programs: &Others,
    noted: &[Passage],
) -> Survey {
    let elsewhere = hooks::survey(wanted, (lans, uplinks), ruleset, programs);
    let mut survey = Survey {
        elsewhere,
        ..Survey::default()
    };
    let others = ruleset.without_ours();
    let mut useless = BTreeSet::new();
    for probe in probes(wanted, lans) {
        let now = blocks(ruleset, probe.hook, &probe.packet);
        for block in blocks(&others, probe.hook, &probe.packet) {
            let Some(passage) = passage(&block, &probe, ruleset, programs.firewalld) else {
                continue;
            };
            if now.contains(&block) {
                useless.insert(passage.clone());
            }
            survey.passages.insert(passage);
        }
        for block in now {
            let command = remedy(&block, &probe, ruleset, programs.firewalld, &wanted.device);
            survey.add(&probe, block, command);
        }
        let family = if probe.packet.v6 { "ip6" } else { "ip" };
        let Some(rules) = programs.legacy.get(family) else {
            continue;
        };
        let chain = probe.hook.to_uppercase();
        if legacy::drops(rules, &chain, &probe.packet, None) {
            let passage = Passage {
                by: By::Legacy,
                family: family.into(),
                chain: chain.clone(),
                way: probe.way.clone(),
            };
            if legacy::drops(
                rules,
                &chain,
                &probe.packet,
                Some((&wanted.device, &probe.way)),
            ) {
                useless.insert(passage.clone());
                let command = legacy::command(family, &chain, &probe.way, &wanted.device);
                let family = legacy::program(family).into();
                survey.add(
                    &probe,
                    Block {
                        family,
                        table: "filter".into(),
                        chain,
                        by: "drops what it does not know".into(),
                    },
                    command,
                );
            }
            survey.passages.insert(passage);
        }
    }
    let there = there(wanted, ruleset, &programs.legacy, noted);
    let loaded = there
        .iter()
        .filter(|(_, found)| found.copies > 1 || found.untold)
        .map(|(passage, _)| passage.clone());
    survey.stale = loaded.chain(useless).collect();
    survey.there = there.into_keys().collect();
    // A zone is left by its interface only: what was given stays wanted while firewalld has its
    // table.
    let zoned = survey
        .there
        .iter()
        .filter(|passage| passage.by == By::Firewalld)
        .cloned()
        .collect::<Vec<_>>();
    survey.passages.extend(zoned);
    survey
}

fn passage(block: &Block, probe: &Probe, ruleset: &Ruleset, firewalld: bool) -> Option<Passage> {
    let of = |by, family: &str, chain: &str, way| {
        Some(Passage {
            by,
            family: family.into(),
            chain: chain.into(),
            way,
        })
    };
    match (block.table.as_str(), block.chain.as_str()) {
        ("filter", "INPUT") => of(By::Nft, &block.family, "INPUT", probe.way.clone()),
        ("filter", "FORWARD") => {
            // Docker keeps this one first in the chain and leaves what is in it alone.
            let forward = ruleset.chain(&block.family, "filter", "FORWARD");
            let docker = forward.is_some_and(|chain| {
                chain
                    .rules
                    .iter()
                    .filter_map(Rule::target)
                    .any(|to| to == DOCKER)
            });
            of(
                By::Nft,
                &block.family,
                if docker { DOCKER } else { "FORWARD" },
                probe.way.clone(),
            )
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
fn there(
    wanted: &Wanted,
    ruleset: &Ruleset,
    legacy: &legacy::Rules,
    noted: &[Passage],
) -> BTreeMap<Passage, Found> {
    let mut there: BTreeMap<Passage, Found> = BTreeMap::new();
    let mut find = |passage: Passage, untold: bool| {
        let found = there.entry(passage).or_default();
        *found = Found {
            copies: found.copies + 1,
            untold: found.untold || untold,
        };
    };
    for ((family, table, chain), rules) in &ruleset.chains {
        if table != "filter" {
            continue;
        }
        for rule in &rules.rules {
            if let Some(way) = rule
                .comment
                .as_deref()
                .and_then(|comment| Passage::way_of(comment, &wanted.device))
            {
                find(
                    Passage {
                        by: By::Nft,
                        family: family.clone(),
                        chain: chain.clone(),
                        way,
                    },
                    rule.untold,
                );
            }
        }
    }
    if ruleset.tables.keys().any(|(_, name)| name == "firewalld") {
        noted
            .iter()
            .filter(|passage| passage.by == By::Firewalld)
            .for_each(|passage| find(passage.clone(), false));
    }
    for (family, rules) in legacy {
        for (chain, way) in legacy::there(rules, &wanted.device) {
            find(
                Passage {
                    by: By::Legacy,
                    family: family.clone(),
                    chain: chain.to_owned(),
                    way,
                },
                false,
            );
        }
    }
    there
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
            let rule = format!(
                "insert rule {family} filter {chain} {matches} counter accept \
                    comment \"{comment}\"\n"
            );
            // One transaction: no packet meets the chain without it.
            copies::replace(&doing(), &rule, |f, c, found| {
                f == family && c == chain && found == comment
            })
        }
        By::Legacy => {
            close(passage, device)?;
            legacy::open(passage, device).map_err(refused)
        }
        By::Firewalld if !firewalld_runs() => Err(refused(RunError::Refused {
            program: "firewall-cmd",
            said: "firewalld does not run".into(),
        })),
        By::Firewalld => {
            close(passage, device)?;
            run(
                "firewall-cmd",
                &["--zone=trusted", &format!("--add-interface={device}")],
                "",
            )
            .map(drop)
            .map_err(refused)
        }
    }
}

/// Takes a passage away; one that is not there is no failure.
pub(crate) fn close(passage: &Passage, device: &str) -> Result<(), Error> {
    let failed = |cause| Error::Program(format!("close {passage} for {device}"), cause);
    match passage.by {
        By::Nft | By::Legacy => {
            let (doing, comment) = (
                format!("close {passage} for {device}"),
                passage.comment(device),
            );
            let same = |family: &str, chain: &str, found: &str| {
                family == passage.family && chain == passage.chain && found == comment
            };
            copies::remove(passage.by, &doing, same).map(drop)
        }
        By::Firewalld if !firewalld_runs() => Ok(()),
        By::Firewalld => {
            let zone = run(
                "firewall-cmd",
                &[&format!("--get-zone-of-interface={device}")],
                "",
            );
            if zone.is_ok_and(|zone| String::from_utf8_lossy(&zone).trim() == "trusted") {
                run(
                    "firewall-cmd",
                    &["--zone=trusted", &format!("--remove-interface={device}")],
                    "",
                )
                .map_err(failed)?;
            }
            Ok(())
        }
    }
}

/// The command that helps where p2pvm cannot or may not: in the words of the firewall's own program
/// where it has such, as what others put between its rules it refuses or forgets.
fn remedy(
    block: &Block,
    probe: &Probe,
    ruleset: &Ruleset,
    firewalld: bool,
    device: &str,
) -> String {
    let passage = passage(block, probe, ruleset, firewalld);
    let chain = ruleset.chain(&block.family, &block.table, &block.chain);
    let jumps_to = |name: &str| {
        chain.is_some_and(|chain| {
            chain
                .rules
                .iter()
                .filter_map(Rule::target)
                .any(|to| to.starts_with(name))
        })
    };
    match passage {
        Some(Passage {
            by: By::Firewalld, ..
        }) => format!("firewall-cmd --zone=trusted --add-interface={device}"),
        Some(passage) if passage.chain != DOCKER && jumps_to(UFW) => {
            ufw(&passage.way, passage.chain == "FORWARD", device)
        }
        Some(passage) => format!(
            "nft insert rule {} filter {} {} accept",
            passage.family,
            passage.chain,
            passage.matches(device)
        ),
        None => {
            let passage = Passage {
                by: By::Nft,
                family: String::new(),
                chain: String::new(),
                way: probe.way.clone(),
            };
            format!(
                "nft insert rule {} {} {} {} accept",
                block.family,
                block.table,
                block.chain,
                passage.matches(device)
            )
        }
    }
}

fn ufw(way: &Way, forwarded: bool, device: &str) -> String {
    match way {
        Way::In if forwarded => format!("ufw route allow in on {device}"),
        Way::In => format!("ufw allow in on {device}"),
        Way::From(lan) => format!("ufw route allow in on {lan} out on {device}"),
    }
}
