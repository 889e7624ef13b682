//! The node's health in one word, and why. The word is the same on every terminal, so that it can be looked for in a log.

use crate::model::{Model, Reach};

/// Seconds after the start in which a node may still look for its place on the ring.
const SETTLING_S: u64 = 30;

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

impl Model {
    /// The health and the reason, the gravest first.
    pub fn health(&self) -> (Health, String) {
        let node = match &self.reach {
            Reach::NoMembership => {
                return (Health::Outside, "this machine belongs to no network: j takes an invite".to_owned());
            }
            Reach::Away(why) => return (Health::Down, why.clone()),
            Reach::Starting => return (Health::Starting, "the daemon is starting".to_owned()),
            Reach::Up(node) => node,
        };
        if !self.online {
            return (Health::Offline, "this machine has no address on any network: look at its cable or Wi-Fi".to_owned());
        }
        let connected = self.members.iter().filter(|m| m.connected).count();
        let known = self.members.len();
        if known == 0 && node.joined_another {
            return (Health::Joining, "looking for the members that the invite names".to_owned());
        }
        if node.address.is_none() {
            return (Health::Joining, "no address is claimed yet".to_owned());
        }
        if known == 0 {
            return (Health::Alone, "no other member yet: i makes an invite".to_owned());
        }
        if connected == 0 {
            return (Health::Degraded, format!("none of the {known} known members can be reached"));
        }
        let troubled: Vec<&str> = self.vms.iter().filter(|vm| vm.troubled()).map(|vm| vm.name.as_str()).collect();
        if !troubled.is_empty() {
            return (Health::Degraded, format!("look at VM {}", troubled.join(", ")));
        }
        if !node.on_ring && node.up_seconds < SETTLING_S {
            return (Health::Joining, "looking for its place on the ring".to_owned());
        }
        if !node.on_ring {
            return (Health::Degraded, "this node has no place on the ring yet".to_owned());
        }
        if !self.silent.is_empty() {
            return (Health::Degraded, format!("no answer from {}", self.silent.join(", ")));
        }
        (Health::Ok, format!("{connected} of {known} known members connected"))
    }
}
