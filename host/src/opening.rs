//! The passages that p2pvm needs through other firewalls, and how they are opened and closed.
//!
//! iptables-nft's chains get a rule by nft: iptables lists it as its own, with its comment. Another
//! program's nft table is left alone, because nothing reports when its owner reloads it: it is
//! shown as a [`BlockingChain`].
//!
//! A program that saves a firewall's rules and loads them again (`iptables-save`,
//! netfilter-persistent, `nft list ruleset`) loads ours too: beside the existing ones, or after
//! p2pvm has ended. They are known by their comment, in any chain ([`copies`]).

pub(crate) mod copies;
pub mod hooks;

use crate::{
    error::Error,
    firewall::{BlockingChain, Packet, blocks},
    legacy,
    net::Net,
    passage::{FirewallKind, Passage, Traffic, legacy_program},
    ruleset::{Rule, Ruleset},
    run::{RunError, run},
    wanted::NetworkNeeds,
};
use std::collections::{BTreeMap, BTreeSet};

const DOCKER: &str = "DOCKER-USER";
/// The prefix of ufw's own chains; for IPv6 a 6 follows.
const UFW: &str = "ufw";

/// What other firewalls do with packets of our interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// Passages that p2pvm can open, and without which packets are dropped.
    pub passages: BTreeSet<Passage>,
    /// p2pvm's passages that are open.
    pub there: BTreeSet<Passage>,
    /// Those of them that have to be opened again: their place does not help, they are there twice,
    /// or they are as `iptables-restore` made them, without the comment that nft saves.
    pub stale: BTreeSet<Passage>,
    /// Chains that drop packets for this machine now, with the commands that help.
    pub input: BTreeMap<BlockingChain, Vec<String>>,
    /// Chains that drop packets into offered subnets or back now, with the commands that help.
    pub forward: BTreeMap<BlockingChain, Vec<String>>,
    /// Chains that drop packets at hooks where p2pvm opens nothing.
    pub elsewhere: BTreeSet<hooks::DroppingChain>,
}

impl Survey {
    fn add(&mut self, probe: &Probe, block: BlockingChain, command: String) {
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

    /// Adds what iptables-legacy does with a packet. Returns the passage if it is open and does not
    /// help.
    fn add_legacy(
        &mut self,
        device: &str,
        probe: &Probe,
        family: &str,
        rules: &str,
    ) -> Option<Passage> {
        let (chain, packet) = (probe.hook.to_uppercase(), &probe.packet);
        if !legacy::drops(rules, &chain, packet, None) {
            return None;
        }
        let passage = Passage {
            by: FirewallKind::Legacy,
            family: family.into(),
            chain: chain.clone(),
            way: probe.way.clone(),
        };
        self.passages.insert(passage.clone());
        if !legacy::drops(rules, &chain, packet, Some((device, &probe.way))) {
            return None;
        }
        let command = legacy::command(family, &chain, &probe.way, device);
        let block = BlockingChain {
            family: legacy_program(family).into(),
            table: "filter".into(),
            chain,
            by: "drops what it does not know".into(),
        };
        self.add(probe, block, command);
        Some(passage)
    }
}

/// A packet, the hook that it meets, and the traffic of the passage that would let it through.
struct Probe {
    hook: &'static str,
    packet: Packet,
    way: Traffic,
}

fn probes(wanted: &NetworkNeeds, lans: &BTreeSet<String>) -> Vec<Probe> {
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
        way: Traffic::In,
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
        probes.push(forward(device, lan, overlay, subnet, false, Traffic::In));
        probes.push(forward(
            lan,
            device,
            subnet,
            overlay,
            true,
            Traffic::From(lan.clone()),
        ));
    }
    probes
}

/// What programs other than nft tell of firewalls.
#[derive(Clone, Debug, Default)]
pub struct OtherFirewalls {
    /// The rules of iptables-legacy and ip6tables-legacy.
    pub legacy: legacy::LegacyRules,
    /// The rules of their other tables.
    pub tables: legacy::LegacyTables,
    /// Whether firewalld runs.
    pub firewalld: bool,
}

impl OtherFirewalls {
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
/// are the passages in the journal.
pub fn survey(
    wanted: &NetworkNeeds,
    (lans, uplinks): (&BTreeSet<String>, &BTreeSet<String>),
    ruleset: &Ruleset,
    programs: &OtherFirewalls,
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
        if let Some(rules) = programs.legacy.get(family) {
            useless.extend(survey.add_legacy(&wanted.device, &probe, family, rules));
        }
    }
    let there = there(wanted, ruleset, &programs.legacy, noted);
    let loaded = there
        .iter()
        .filter(|(_, found)| found.copies > 1 || found.untold)
        .map(|(passage, _)| passage.clone());
    survey.stale = loaded.chain(useless).collect();
    survey.there = there.into_keys().collect();
    // An interface stays in its zone: what was opened stays wanted while firewalld has its table.
    let zoned = survey
        .there
        .iter()
        .filter(|passage| passage.by == FirewallKind::Firewalld)
        .cloned()
        .collect::<Vec<_>>();
    survey.passages.extend(zoned);
    survey
}

fn passage(
    block: &BlockingChain,
    probe: &Probe,
    ruleset: &Ruleset,
    firewalld: bool,
) -> Option<Passage> {
    let of = |by, family: &str, chain: &str, way| {
        Some(Passage {
            by,
            family: family.into(),
            chain: chain.into(),
            way,
        })
    };
    match (block.table.as_str(), block.chain.as_str()) {
        ("filter", "INPUT") => of(FirewallKind::Nft, &block.family, "INPUT", probe.way.clone()),
        ("filter", "FORWARD") => {
            // Docker keeps this chain first and does not change its rules.
            let forward = ruleset.chain(&block.family, "filter", "FORWARD");
            let docker = forward.is_some_and(|chain| {
                chain
                    .rules
                    .iter()
                    .filter_map(Rule::target)
                    .any(|to| to == DOCKER)
            });
            of(
                FirewallKind::Nft,
                &block.family,
                if docker { DOCKER } else { "FORWARD" },
                probe.way.clone(),
            )
        }
        ("firewalld", _) if firewalld => of(FirewallKind::Firewalld, "inet", "", Traffic::In),
        _ => None,
    }
    .filter(|passage| {
        passage.by != FirewallKind::Nft || matches!(block.family.as_str(), "ip" | "ip6")
    })
}

/// How often a passage was found, and how.
#[derive(Clone, Copy, Debug, Default)]
struct FoundPassage {
    copies: usize,
    /// See [`crate::ruleset::Rule::untold`].
    untold: bool,
}

/// The network's passages that are open.
fn there(
    wanted: &NetworkNeeds,
    ruleset: &Ruleset,
    legacy: &legacy::LegacyRules,
    noted: &[Passage],
) -> BTreeMap<Passage, FoundPassage> {
    let mut there: BTreeMap<Passage, FoundPassage> = BTreeMap::new();
    let mut find = |passage: Passage, untold: bool| {
        let found = there.entry(passage).or_default();
        *found = FoundPassage {
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
                        by: FirewallKind::Nft,
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
            .filter(|passage| passage.by == FirewallKind::Firewalld)
            .for_each(|passage| find(passage.clone(), false));
    }
    for (family, rules) in legacy {
        for (chain, way) in legacy::there(rules, &wanted.device) {
            find(
                Passage {
                    by: FirewallKind::Legacy,
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

/// Whether firewalld answers. Its rules alone may be left over from one that has ended.
pub(crate) fn firewalld_runs() -> bool {
    run("firewall-cmd", &["--state"], "").is_ok()
}

/// Opens a passage.
pub(crate) fn open(passage: &Passage, device: &str) -> Result<(), Error> {
    let doing = || format!("open {passage} for {device}");
    let refused = |cause| Error::Program(doing(), cause);
    match passage.by {
        FirewallKind::Nft => {
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
        FirewallKind::Legacy => {
            close(passage, device)?;
            legacy::open(passage, device).map_err(refused)
        }
        FirewallKind::Firewalld if !firewalld_runs() => Err(refused(RunError::Refused {
            program: "firewall-cmd",
            said: "firewalld does not run".into(),
        })),
        FirewallKind::Firewalld => {
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

/// Closes a passage. A missing one is no failure.
pub(crate) fn close(passage: &Passage, device: &str) -> Result<(), Error> {
    let failed = |cause| Error::Program(format!("close {passage} for {device}"), cause);
    match passage.by {
        FirewallKind::Nft | FirewallKind::Legacy => {
            let (doing, comment) = (
                format!("close {passage} for {device}"),
                passage.comment(device),
            );
            let same = |family: &str, chain: &str, found: &str| {
                family == passage.family && chain == passage.chain && found == comment
            };
            copies::remove(passage.by, &doing, same).map(drop)
        }
        FirewallKind::Firewalld if !firewalld_runs() => Ok(()),
        FirewallKind::Firewalld => {
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

/// The command that helps if p2pvm cannot or may not open a passage. It is one of the firewall's
/// own program, if there is one, because that program refuses or forgets other programs' rules.
fn remedy(
    block: &BlockingChain,
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
            by: FirewallKind::Firewalld,
            ..
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
                by: FirewallKind::Nft,
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

fn ufw(way: &Traffic, forwarded: bool, device: &str) -> String {
    match way {
        Traffic::In if forwarded => format!("ufw route allow in on {device}"),
        Traffic::In => format!("ufw allow in on {device}"),
        Traffic::From(lan) => format!("ufw route allow in on {lan} out on {device}"),
    }
}
