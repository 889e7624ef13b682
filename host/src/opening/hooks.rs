//! What other firewalls drop at hooks where p2pvm opens nothing: `prerouting`, `output`,
//! `postrouting`, the family netdev's `ingress` and `egress`, and `input` for p2pvm's own UDP. Such
//! a chain is a person's: it is named with its hook and the command that helps, and not changed.
//!
//! Packets of the network's interface are judged like those of `input`. For the UDP between members
//! much is unknown here, such as the other's address: a chain is named only if none of its rules
//! may let the packets through.

use super::OtherFirewalls;
use crate::{
    firewall::{BlockingChain, Packet, Ports, drops},
    legacy,
    passage::legacy_program,
    ruleset::Ruleset,
    wanted::NetworkNeeds,
};
use std::collections::BTreeSet;

/// The hooks that a packet meets on its way in, and on its way out.
const IN: [&str; 2] = ["ingress", "prerouting"];
const OUT: [&str; 3] = ["output", "postrouting", "egress"];

/// A base chain that drops packets of p2pvm's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DroppingChain {
    /// The chain in which the packet is lost.
    pub block: BlockingChain,
    /// The hook that it is attached to.
    pub hook: &'static str,
    /// Which packets, in words.
    pub what: String,
    /// The command that helps.
    pub command: String,
    /// Whether it is about offered subnets.
    pub offered: bool,
}

/// A packet and the hook that it meets.
struct Probe {
    hook: &'static str,
    packet: Packet,
    what: String,
    /// The match of such packets in nft's syntax, and in iptables'.
    matches: String,
    legacy: String,
    /// Whether a chain counts only if no rule may let the packet through.
    surely: bool,
    offered: bool,
}

impl Probe {
    /// A packet that `what` describes, and how nft and iptables match such packets. A chain counts
    /// although one of its rules may let the packet through, and the packet is not about offered
    /// subnets.
    fn new(hook: &'static str, packet: Packet, what: String, matches: [String; 2]) -> Self {
        let [matches, legacy] = matches;
        Self {
            hook,
            packet,
            what,
            matches,
            legacy,
            surely: false,
            offered: false,
        }
    }
}

/// Packets of the network's interface.
fn of_device(wanted: &NetworkNeeds, probes: &mut Vec<Probe>) {
    let device = &wanted.device;
    for v6 in [false, true] {
        let overlay = wanted.overlay.map(|net| net.addr()).filter(|_| !v6);
        let base = Packet {
            source: overlay,
            destination: overlay,
            v6,
            ..Packet::default()
        };
        for hook in IN {
            let packet = Packet {
                iif: device.clone(),
                ..base.clone()
            };
            let matches = [format!("iifname \"{device}\""), format!("-i {device}")];
            let what = format!("what comes in by {device}");
            probes.push(Probe::new(hook, packet, what, matches));
        }
        for hook in OUT {
            let packet = Packet {
                oif: Some(device.clone()),
                ..base.clone()
            };
            let matches = [format!("oifname \"{device}\""), format!("-o {device}")];
            let what = format!("what goes out by {device}");
            probes.push(Probe::new(hook, packet, what, matches));
        }
    }
}

/// Packets into offered subnets, and their answers, at the LAN's interface.
fn of_lans(wanted: &NetworkNeeds, lans: &BTreeSet<String>, probes: &mut Vec<Probe>) {
    let device = &wanted.device;
    let Some(net) = wanted.offered.first() else {
        return;
    };
    let mut add = |hook, packet, what, matches| {
        probes.push(Probe {
            offered: true,
            ..Probe::new(hook, packet, what, matches)
        });
    };
    for lan in lans {
        for hook in IN {
            let packet = Packet {
                iif: lan.clone(),
                source: Some(net.addr()),
                established: true,
                ..Packet::default()
            };
            let what = format!("answers from the offered subnets that come in by {lan}");
            let matches = [
                format!("iifname \"{lan}\" ip saddr {net}"),
                format!("-i {lan} -s {net}"),
            ];
            add(hook, packet, what, matches);
        }
        for hook in ["postrouting", "egress"] {
            let packet = Packet {
                iif: device.clone(),
                oif: Some(lan.clone()),
                destination: Some(net.addr()),
                ..Packet::default()
            };
            let what = format!("what {device} forwards into the offered subnets by {lan}");
            let matches = [
                format!("oifname \"{lan}\" ip daddr {net}"),
                format!("-o {lan} -d {net}"),
            ];
            add(hook, packet, what, matches);
        }
    }
}

/// UDP between members, on the interfaces that lead to them.
fn of_udp(wanted: &NetworkNeeds, uplinks: &BTreeSet<String>, probes: &mut Vec<Probe>) {
    let ports = [wanted.link_port, wanted.control_port]
        .into_iter()
        .filter(|port| *port != 0);
    for (port, uplink) in ports.flat_map(|port| uplinks.iter().map(move |uplink| (port, uplink))) {
        let mut add = |hook, packet, way: &str, field: &str| {
            let what = format!("members' packets {way} UDP port {port} by {uplink}");
            let matches = [
                format!("udp {field} {port}"),
                format!("-p udp --{field} {port}"),
            ];
            probes.push(Probe {
                surely: true,
                ..Probe::new(hook, packet, what, matches)
            });
        };
        let inward = Packet {
            iif: uplink.clone(),
            // Answers only: firewalls usually drop packets of new flows, and members get around
            // that.
            established: true,
            udp: Some(Ports {
                source: None,
                destination: Some(port),
            }),
            ..Packet::default()
        };
        for hook in IN.into_iter().chain(["input"]) {
            add(hook, inward.clone(), "to", "dport");
        }
        let udp = Some(Ports {
            source: Some(port),
            destination: None,
        });
        let outward = Packet {
            oif: Some(uplink.clone()),
            udp,
            ..Packet::default()
        };
        for hook in OUT {
            add(hook, outward.clone(), "from", "sport");
        }
    }
}

/// Looks at all these hooks. `uplinks` are the interfaces by which members are reached.
pub(super) fn survey(
    wanted: &NetworkNeeds,
    (lans, uplinks): (&BTreeSet<String>, &BTreeSet<String>),
    ruleset: &Ruleset,
    programs: &OtherFirewalls,
) -> BTreeSet<DroppingChain> {
    let mut probes = Vec::new();
    of_device(wanted, &mut probes);
    of_lans(wanted, lans, &mut probes);
    of_udp(wanted, uplinks, &mut probes);
    let mut found: BTreeSet<DroppingChain> = BTreeSet::new();
    for probe in probes {
        let mut add = |block: BlockingChain, command: String| {
            let Probe {
                hook,
                ref what,
                offered,
                ..
            } = probe;
            found.insert(DroppingChain {
                block,
                hook,
                what: what.clone(),
                command,
                offered,
            });
        };
        for dropped in drops(ruleset, probe.hook, &probe.packet) {
            if dropped.is_doubtful && probe.surely {
                continue;
            }
            let BlockingChain {
                family,
                table,
                chain,
                ..
            } = &dropped.block;
            let command = format!(
                "nft insert rule {family} {table} {chain} {} accept",
                probe.matches
            );
            add(dropped.block, command);
        }
        let family = if probe.packet.v6 { "ip6" } else { "ip" };
        for (table, rules) in programs.legacy_tables(family) {
            let chain = probe.hook.to_uppercase();
            let judged = legacy::judge(rules, &chain, &probe.packet, None);
            if !judged.drops || (judged.is_doubtful && probe.surely) {
                continue;
            }
            let program = legacy_program(family);
            let command = format!("{program} -t {table} -I {chain} {} -j ACCEPT", probe.legacy);
            let by = judged.by.to_owned();
            add(
                BlockingChain {
                    family: program.into(),
                    table: table.into(),
                    chain,
                    by,
                },
                command,
            );
        }
    }
    found
}

#[cfg(test)]
#[path = "hooks_tests.rs"]
mod tests;
