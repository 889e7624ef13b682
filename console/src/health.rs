//! The node's health in one word, and why. The word is the same on every terminal, so that it can
//! be looked for in a log, and the same on the dashboard: both fill in [`Vitals`].

use crate::model::{Model, Reach};
use std::collections::BTreeMap;

/// Seconds after the start in which a node may still look for its place on the ring.
const SETTLING_S: u64 = 30;

/// The state of a VM whose host does not answer, dead or cut off.
pub const UNREACHABLE: &str = "unreachable";
/// The state of a copy that a stopped VM left behind when it went on elsewhere: nothing ran twice.
pub const LEFTOVER: &str = "leftover";
/// The state of a VM whose host left the network or was expelled: no host of that name will answer
/// for it.
pub const ORPHANED: &str = "orphaned";
/// VMs of one dead host that the line names.
const NAMED: usize = 6;

/// How the node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// A member with others, and nothing to complain of.
    Ok,
    /// No daemon answers.
    Down,
    /// The daemon is there and does not answer yet.
    Starting,
    /// The machine belongs to no network.
    Outside,
    /// A member, on its way to an address, to the first other member or to its place on the ring.
    Joining,
    /// The machine has no address on any network.
    Offline,
    /// A member of a network that has no other member yet.
    Alone,
    /// It works, but something is missing.
    Degraded,
}

impl Health {
    /// The word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Down => "down",
            Self::Starting => "starting",
            Self::Outside => "outside",
            Self::Joining => "joining",
            Self::Offline => "offline",
            Self::Alone => "alone",
            Self::Degraded => "degraded",
        }
    }
}

/// What the health of a node whose daemon answers follows from. Whoever shows it fills this in: the
/// status screen, the dashboard.
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
    /// Other members that it knows.
    pub known: usize,
    /// Those of them that it is connected with.
    pub connected: usize,
    /// Those of them to whom packets go and from whom they come.
    pub linked: usize,
    /// The port by which members connect to this node, UDP and TCP.
    pub control_port: Option<u16>,
    /// Why there is no address yet, where that is known.
    pub wanting: Option<&'a str>,
    /// What does not work on this machine, each a sentence with its cause.
    pub failing: Vec<&'a str>,
    /// How many things work less well than they could.
    pub warnings: usize,
    /// The hosts that are gone with their VMs, a sentence each ([`lost`]).
    pub lost: Vec<String>,
    /// The names of other VMs that somebody should look at ([`troubled`]).
    pub troubled: Vec<&'a str>,
    /// Members that did not answer.
    pub silent: &'a [String],
}

impl Vitals<'_> {
    /// The health and the reason, the gravest first. What to do about it is for the caller to add:
    /// a screen has keys, a page has not.
    pub fn health(&self) -> (Health, String) {
        let Self {
            known, connected, ..
        } = *self;
        if !self.online {
            return (
                Health::Offline,
                "this machine has no address on any network: look at its cable or Wi-Fi".to_owned(),
            );
        }
        if let Some(first) = self.failing.first() {
            let more = if self.failing.len() > 1 {
                format!(" (and {} more)", self.failing.len() - 1)
            } else {
                String::new()
            };
            return (
                Health::Degraded,
                format!("{first}{more}: see 'p2pvm doctor'"),
            );
        }
        if known == 0 && self.joined_another {
            return (
                Health::Joining,
                "looking for the members that the invite names".to_owned(),
            );
        }
        if !self.has_address {
            let why = self
                .wanting
                .map_or_else(String::new, |why| format!(": {why}"));
            return (Health::Joining, format!("no address is claimed yet{why}"));
        }
        if known == 0 {
            return (Health::Alone, "no other member yet".to_owned());
        }
        if connected == 0 {
            return (Health::Degraded, self.unconnected());
        }
        if !self.lost.is_empty() {
            return (Health::Degraded, self.lost.join("; "));
        }
        if !self.troubled.is_empty() {
            return (
                Health::Degraded,
                format!("look at VM {}", self.troubled.join(", ")),
            );
        }
        if !self.on_ring && self.was_on_ring {
            return (
                Health::Degraded,
                "its neighbours on the ring are gone: looking for others".to_owned(),
            );
        }
        if !self.on_ring && self.up_seconds < SETTLING_S {
            return (
                Health::Joining,
                "looking for its place on the ring".to_owned(),
            );
        }
        if !self.on_ring {
            return (
                Health::Degraded,
                "this node has no place on the ring yet".to_owned(),
            );
        }
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
}

impl Vitals<'_> {
    /// What goes and what does not while no member has a control connection.
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

/// The hosts that are gone, a sentence each, from the names and notes of VMs that are
/// [`UNREACHABLE`]. A note says why; VMs of one host have the same.
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

/// Whether a VM in this state, with or without a note of what happened to it, is one that somebody
/// should look at.
pub fn troubled(state: &str, noted: bool) -> bool {
    !matches!(state, LEFTOVER | ORPHANED)
        && (noted || !matches!(state, "running" | "stopped" | "leaving" | "arriving"))
}

impl Model {
    /// The health and the reason, with the key that helps where there is one.
    pub fn health(&self) -> (Health, String) {
        let node = match &self.reach {
            Reach::NoMembership => {
                return (
                    Health::Outside,
                    "this machine belongs to no network: j takes an invite".to_owned(),
                );
            }
            Reach::Away(why) => return (Health::Down, why.clone()),
            Reach::Starting => return (Health::Starting, "the daemon is starting".to_owned()),
            Reach::Up(node) => node,
        };
        let vitals = Vitals {
            online: self.online,
            joined_another: node.joined_another,
            has_address: node.address.is_some(),
            on_ring: node.on_ring,
            was_on_ring: node.was_on_ring,
            up_seconds: node.up_seconds,
            known: self.members.len(),
            connected: self.members.iter().filter(|m| m.connected).count(),
            linked: self.members.iter().filter(|m| m.linked).count(),
            control_port: node.control_port,
            wanting: node.wanting.as_deref(),
            failing: node.failing.iter().map(String::as_str).collect(),
            warnings: node.warnings,
            lost: lost(
                self.vms
                    .iter()
                    .filter(|vm| vm.state == UNREACHABLE)
                    .map(|vm| (vm.name.as_str(), vm.note.as_deref())),
            ),
            troubled: self
                .vms
                .iter()
                .filter(|vm| vm.state != UNREACHABLE && vm.troubled())
                .map(|vm| vm.name.as_str())
                .collect(),
            silent: &self.silent,
        };
        match vitals.health() {
            (Health::Alone, why) => (Health::Alone, format!("{why}: i makes an invite")),
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_that_packets_reach_are_not_called_unreachable_when_only_their_control_port_is_blocked()
     {
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
    fn a_dead_host_is_named_once_with_its_vms_and_no_health_is_ok_meanwhile() {
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

    #[test]
    fn a_vm_that_is_being_moved_is_no_trouble() {
        assert!(
            ["running", "stopped", "leaving", "arriving"]
                .iter()
                .all(|state| !troubled(state, false) && troubled(state, true))
        );
        assert!(
            ["paused", "doubtful", "branch"]
                .iter()
                .all(|state| troubled(state, false))
        );
        assert!(
            !troubled(LEFTOVER, true),
            "it says where the VM is, and nothing ran twice"
        );
        assert!(!troubled(ORPHANED, true), "a person has sent its host away");
    }
}
