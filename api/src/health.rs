//! The node's health in one word, with the reason. The word is the same on every terminal and on
//! the dashboard, so that it can be searched for in a log: both fill in [`Vitals`].

use crate::words::words;
use std::collections::BTreeMap;

/// How many seconds after the start a node may look for its place on the ring before it is
/// degraded.
const SETTLING_S: u64 = 30;

/// How many VMs of one dead host are named before the rest is counted.
const NAMED: usize = 6;

words! {
    /// The state of a node.
    Health:
    /// A member with others, and nothing is wrong.
    Ok = "ok",
    /// No daemon answers.
    Down = "down",
    /// The daemon runs and does not answer yet.
    Starting = "starting",
    /// The machine belongs to no network.
    Outside = "outside",
    /// A member, on its way to an address, to the first other member or to its place on the ring.
    Joining = "joining",
    /// The machine has no address on any network.
    Offline = "offline",
    /// A member of a network that has no other member yet.
    Alone = "alone",
    /// It works, but something is missing.
    Degraded = "degraded",
}

/// What the health of a node with an answering daemon depends on. The status screen and the
/// dashboard fill it in.
#[derive(Clone, Debug, Default)]
pub struct Vitals<'a> {
    /// Whether the machine has an address on a network.
    pub online: bool,
    /// Whether it came into the network by an invite, so that others must be there.
    pub joined_another: bool,
    /// Whether its address in the network is claimed.
    pub has_address: bool,
    /// Whether it has its place on the ring.
    pub on_ring: bool,
    /// Whether it has had it since the daemon started.
    pub was_on_ring: bool,
    /// Seconds since the daemon started.
    pub up_seconds: u64,
    /// How many other members are known.
    pub known: usize,
    /// How many of them it is connected to.
    pub connected: usize,
    /// How many of them packets reach both ways.
    pub linked: usize,
    /// The port by which members connect to this node, UDP and TCP.
    pub control_port: Option<u16>,
    /// Why no address is claimed yet, if known.
    pub wanting: Option<&'a str>,
    /// The faults of this machine, each a sentence with its cause.
    pub failing: Vec<&'a str>,
    /// How many things work less well than they could.
    pub warnings: usize,
    /// A sentence for each host that does not answer, with its VMs ([`lost`]).
    pub lost: Vec<String>,
    /// The names of other VMs that a person should look at ([`crate::VmStateView::is_troubled`]).
    pub troubled: Vec<&'a str>,
    /// Members that did not answer.
    pub silent: &'a [String],
}

impl Vitals<'_> {
    /// The health and the gravest reason. The caller adds what to do about it: a screen has keys, a
    /// page has none.
    pub fn health(&self) -> (Health, String) {
        self.of_machine()
            .or_else(|| self.of_joining())
            .or_else(|| self.of_members())
            .or_else(|| self.of_ring())
            .unwrap_or_else(|| self.of_answers())
    }

    fn of_machine(&self) -> Option<(Health, String)> {
        if !self.online {
            return Some((
                Health::Offline,
                "this machine has no address on any network: look at its cable or Wi-Fi".to_owned(),
            ));
        }
        let first = self.failing.first()?;
        let more = if self.failing.len() > 1 {
            format!(" (and {} more)", self.failing.len() - 1)
        } else {
            String::new()
        };
        Some((
            Health::Degraded,
            format!("{first}{more}: see 'p2pvm doctor'"),
        ))
    }

    fn of_joining(&self) -> Option<(Health, String)> {
        if self.known == 0 && self.joined_another {
            return Some((
                Health::Joining,
                "looking for the members that the invite names".to_owned(),
            ));
        }
        if !self.has_address {
            let why = self
                .wanting
                .map_or_else(String::new, |why| format!(": {why}"));
            return Some((Health::Joining, format!("no address is claimed yet{why}")));
        }
        None
    }

    fn of_members(&self) -> Option<(Health, String)> {
        if self.known == 0 {
            Some((Health::Alone, "no other member yet".to_owned()))
        } else if self.connected == 0 {
            Some((Health::Degraded, self.unconnected()))
        } else if !self.lost.is_empty() {
            Some((Health::Degraded, self.lost.join("; ")))
        } else if !self.troubled.is_empty() {
            let names = self.troubled.join(", ");
            Some((Health::Degraded, format!("look at VM {names}")))
        } else {
            None
        }
    }

    fn of_ring(&self) -> Option<(Health, String)> {
        if self.on_ring {
            return None;
        }
        let (health, why) = if self.was_on_ring {
            (
                Health::Degraded,
                "its neighbours on the ring are gone: looking for others",
            )
        } else if self.up_seconds < SETTLING_S {
            (Health::Joining, "looking for its place on the ring")
        } else {
            (Health::Degraded, "this node has no place on the ring yet")
        };
        Some((health, why.to_owned()))
    }

    fn of_answers(&self) -> (Health, String) {
        let Self {
            known, connected, ..
        } = *self;
        if !self.silent.is_empty() {
            return (
                Health::Degraded,
                format!("no answer from {}", self.silent.join(", ")),
            );
        }
        let look = match self.warnings {
            0 => "",
            1 => "; 1 warning: see 'p2pvm doctor'",
            _ => "; some warnings: see 'p2pvm doctor'",
        };
        (
            Health::Ok,
            format!("{connected} of {known} known members connected{look}"),
        )
    }

    /// What works and what does not without a control connection to any member.
    fn unconnected(&self) -> String {
        let Self { known, linked, .. } = *self;
        if linked == 0 {
            return format!("none of the {known} known members can be reached");
        }
        let port = self.control_port.map_or_else(
            || "the control port".to_owned(),
            |port| format!("port {port}"),
        );
        format!(
            "packets go to {linked} of {known} known members, but none can be asked: UDP and TCP \
                {port} is blocked here or there; names, moves and joins wait"
        )
    }
}

/// The UDP port of a multiaddr, such as /ip4/192.0.2.1/udp/4001/quic-v1.
pub fn udp_port(multiaddr: &str) -> Option<u16> {
    multiaddr
        .split_once("/udp/")?
        .1
        .split('/')
        .next()?
        .parse()
        .ok()
}

/// A sentence for each host that does not answer, from the names and notes of the VMs that are
/// [`crate::VmStateView::Unreachable`]. A note gives the reason; VMs of one host have the same
/// note.
pub fn lost<'a>(vms: impl Iterator<Item = (&'a str, Option<&'a str>)>) -> Vec<String> {
    let mut hosts: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, note) in vms {
        hosts
            .entry(note.unwrap_or("a host does not answer"))
            .or_default()
            .push(name);
    }
    let sentence = |(why, mut names): (&str, Vec<&str>)| {
        names.sort_unstable();
        let more = names.len().saturating_sub(NAMED);
        let more = if more > 0 {
            format!(" and {more} more")
        } else {
            String::new()
        };
        let what = if names.len() == 1 { "VM" } else { "VMs" };
        format!(
            "{why}, with {what} {}{more}",
            names[..names.len().min(NAMED)].join(", ")
        )
    };
    hosts.into_iter().map(sentence).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_that_packets_reach_are_not_called_unreachable() {
        let vitals = |linked| Vitals {
            online: true,
            has_address: true,
            known: 3,
            linked,
            control_port: Some(4001),
            ..Vitals::default()
        };
        let (health, why) = vitals(2).health();
        assert!(
            health == Health::Degraded
                && why.contains("packets go to 2 of 3")
                && why.contains("UDP and TCP port 4001"),
            "{why}"
        );
        assert_eq!(
            vitals(0).health().1,
            "none of the 3 known members can be reached"
        );
        assert_eq!(udp_port("/ip4/192.0.2.1/udp/4001/quic-v1"), Some(4001));
        assert_eq!(udp_port("/ip4/192.0.2.1/tcp/4001"), None);
    }

    #[test]
    fn a_dead_host_is_named_once_and_health_is_degraded() {
        let why = Some("host lab3 is dead");
        let names = ["a", "b", "c", "d", "e", "f", "g", "h"];
        let said = lost(
            names
                .iter()
                .map(|name| (*name, why))
                .chain([("x", Some("host lab4 is dead"))]),
        );
        assert_eq!(
            said,
            [
                "host lab3 is dead, with VMs a, b, c, d, e, f and 2 more",
                "host lab4 is dead, with VM x"
            ]
        );
        let vitals = Vitals {
            online: true,
            has_address: true,
            on_ring: true,
            known: 2,
            connected: 1,
            ..Vitals::default()
        };
        assert_eq!(vitals.health().0, Health::Ok);
        assert_eq!(
            Vitals {
                lost: said,
                ..vitals
            }
            .health()
            .0,
            Health::Degraded
        );
    }
}
