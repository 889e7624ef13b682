//! The network's policy: which members and VMs may talk to which, and which members may offer which
//! subnet. A person writes it as TOML, the root or a delegate signs it
//! ([`SignedPolicy`](super::SignedPolicy)), every receiver enforces it.
//!
//! ```toml
//! default = "deny"                # what holds where no rule fits
//!
//! [[rule]]                        # the first rule that fits decides
//! action = "allow"
//! from = ["admins", "vm:backup"]  # groups, member:NAME, vm:NAME, addresses, or "*"
//! to = "servers"
//! ports = ["tcp/22", "icmp"]      # tcp/N, udp/N-M, icmp, or "*" (the default)
//!
//! [[route]]                       # a subnet that these members may offer
//! subnet = "192.168.7.0/24"
//! by = "member:gateway"
//! ```
//!
//! A bare name is a group. Reason: only issuers put members into groups, while anyone may name a
//! VM. A guest is in no group of its host. Replies to allowed traffic need no rule of their own;
//! the receiver handles them (`plane/access.rs`).

mod read;

pub use read::PolicyError;

use super::{Cidr, Groups};
use crate::id::{MemberId, VmId};
use std::{fmt, net::IpAddr, ops::RangeInclusive};

/// The fate of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It is delivered.
    Allow,
    /// It is dropped without an error to the sender.
    Deny,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::Allow {
            "allow"
        } else {
            "deny"
        })
    }
}

/// The parties of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selector {
    /// Everyone.
    Any,
    /// The members of a group.
    Group(String),
    /// The member of this name.
    Member(String),
    /// The member of this id.
    MemberId(MemberId),
    /// The VM of this name, wherever it runs.
    Vm(String),
    /// The VM of this id.
    VmId(VmId),
    /// These addresses, such as those of a subnet that a member offers.
    Block(Cidr),
}

/// The traffic, as far as a rule distinguishes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// TCP to a port.
    Tcp(u16),
    /// UDP to a port.
    Udp(u16),
    /// ICMP of either version.
    Icmp,
    /// Another IP protocol, or a packet whose ports cannot be seen.
    Other,
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(port) => write!(f, "tcp/{port}"),
            Self::Udp(port) => write!(f, "udp/{port}"),
            Self::Icmp => f.write_str("icmp"),
            Self::Other => f.write_str("another protocol"),
        }
    }
}

impl std::str::FromStr for Traffic {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse::<Ports>()? {
            Ports::Tcp(ports) if ports.start() == ports.end() => Ok(Self::Tcp(*ports.start())),
            Ports::Udp(ports) if ports.start() == ports.end() => Ok(Self::Udp(*ports.start())),
            Ports::Icmp => Ok(Self::Icmp),
            _ => Err(format!(
                "'{text}' is more than one kind of traffic: write one, such as tcp/22, udp/53 or \
                    icmp"
            )),
        }
    }
}

/// The traffic of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ports {
    /// All.
    Any,
    /// TCP to these ports.
    Tcp(RangeInclusive<u16>),
    /// UDP to these ports.
    Udp(RangeInclusive<u16>),
    /// ICMP of either version.
    Icmp,
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Group(name) => f.write_str(name),
            Self::Member(name) => write!(f, "member:{name}"),
            Self::MemberId(id) => write!(f, "member:{id}"),
            Self::Vm(name) => write!(f, "vm:{name}"),
            Self::VmId(id) => write!(f, "vm:{id}"),
            Self::Block(block) => write!(f, "{block}"),
        }
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut range =
            |protocol: &str, ports: &RangeInclusive<u16>| match (ports.start(), ports.end()) {
                (first, last) if first == last => write!(f, "{protocol}/{first}"),
                (first, last) => write!(f, "{protocol}/{first}-{last}"),
            };
        match self {
            Self::Any => f.write_str("*"),
            Self::Icmp => f.write_str("icmp"),
            Self::Tcp(ports) => range("tcp", ports),
            Self::Udp(ports) => range("udp", ports),
        }
    }
}

impl Ports {
    fn fits(&self, traffic: Traffic) -> bool {
        match (self, traffic) {
            (Self::Any, _) | (Self::Icmp, Traffic::Icmp) => true,
            (Self::Tcp(ports), Traffic::Tcp(port)) | (Self::Udp(ports), Traffic::Udp(port)) => {
                ports.contains(&port)
            }
            _ => false,
        }
    }
}

/// One end of a conversation, as far as this node knows it. An unknown party fits no selector but
/// `*` and addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Party {
    /// Its overlay address.
    pub addr: IpAddr,
    /// The member or VM that has the address.
    pub owner: AddressOwner,
}

/// The owner of an address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AddressOwner {
    /// A member's own.
    Member {
        /// The member that the address follows from.
        id: MemberId,
        /// Its certified name.
        name: String,
        /// Its certified groups.
        groups: Groups,
    },
    /// A VM's.
    Vm {
        /// The VM.
        id: VmId,
        /// Its name, if it was found to hold it.
        name: Option<String>,
    },
    /// No known owner: an address of an offered subnet, or a stranger's.
    #[default]
    Unknown,
}

impl Selector {
    /// Whether it includes this party.
    pub fn fits(&self, party: &Party) -> bool {
        match (self, &party.owner) {
            (Self::Any, _) => true,
            (Self::Block(block), _) => block.contains(&party.addr),
            (Self::Group(group), AddressOwner::Member { groups, .. }) => groups.contains(group),
            (Self::Member(wanted), AddressOwner::Member { name, .. }) => wanted == name,
            (Self::MemberId(wanted), AddressOwner::Member { id, .. }) => wanted == id,
            (Self::Vm(wanted), AddressOwner::Vm { name, .. }) => Some(wanted) == name.as_ref(),
            (Self::VmId(wanted), AddressOwner::Vm { id, .. }) => wanted == id,
            _ => false,
        }
    }
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// What becomes of packets that it fits.
    pub action: Action,
    /// The sender fits one of these.
    pub from: Vec<Selector>,
    /// The receiver fits one of these.
    pub to: Vec<Selector>,
    /// The packet fits one of these.
    pub ports: Vec<Ports>,
    /// The line of the document that it begins on, from 1.
    pub line: usize,
}

/// As in "allow ops to vm:db on tcp/22, icmp".
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn list(items: &[impl fmt::Display]) -> String {
            items
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(", ")
        }
        write!(
            f,
            "{} {} to {} on {}",
            self.action,
            list(&self.from),
            list(&self.to),
            list(&self.ports)
        )
    }
}

impl Rule {
    fn fits(&self, from: &Party, to: &Party, traffic: Traffic) -> bool {
        // The cheapest check first.
        self.ports.iter().any(|p| p.fits(traffic))
            && self.to.iter().any(|s| s.fits(to))
            && self.from.iter().any(|s| s.fits(from))
    }
}

/// A permission to offer a subnet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteRule {
    /// The subnet, and all that lie within it.
    pub subnet: Cidr,
    /// The members that may offer it.
    pub by: Vec<Selector>,
    /// The line of the document that it begins on, from 1.
    pub line: usize,
}

/// The rule that decided about a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The rule at this place, from 0.
    Rule(usize),
    /// The default: no rule fitted.
    Default,
}

/// A decision and its reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The fate of the packet.
    pub action: Action,
    /// The reason.
    pub reason: Reason,
}

/// A parsed policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkPolicy {
    /// The default, if no rule fits.
    pub default: Action,
    /// The rules in their order.
    pub rules: Vec<Rule>,
    /// The subnets that may be offered, and by which members.
    pub routes: Vec<RouteRule>,
    /// Whether guests' multicast may be carried at all.
    pub multicast: bool,
}

impl NetworkPolicy {
    /// The decision about the first packet of a conversation from one party to another.
    pub fn decide(&self, from: &Party, to: &Party, traffic: Traffic) -> Verdict {
        match self
            .rules
            .iter()
            .position(|rule| rule.fits(from, to, traffic))
        {
            Some(at) => Verdict {
                action: self.rules[at].action,
                reason: Reason::Rule(at),
            },
            None => Verdict {
                action: self.default,
                reason: Reason::Default,
            },
        }
    }

    /// The permission by which `party` may offer `subnet`, if there is one.
    pub fn allows_route(&self, subnet: &Cidr, party: &Party) -> Option<&RouteRule> {
        self.routes.iter().find(|route| {
            let within =
                route.subnet.prefix() <= subnet.prefix() && route.subnet.contains(&subnet.addr());
            within && route.by.iter().any(|selector| selector.fits(party))
        })
    }

    /// The names of VMs in the document, which a receiver has to resolve to enforce it.
    pub fn vm_names(&self) -> impl Iterator<Item = &str> {
        let rules = self
            .rules
            .iter()
            .flat_map(|rule| rule.from.iter().chain(&rule.to));
        rules.filter_map(|selector| {
            if let Selector::Vm(name) = selector {
                Some(name.as_str())
            } else {
                None
            }
        })
    }
}

#[cfg(test)]
mod tests;
