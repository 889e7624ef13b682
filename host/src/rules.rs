//! Policy routing rules: accepted routes in tables of their own, and own sockets around them.
//!
//! | preference | rule | for |
//! |---|---|---|
//! | base | `ipproto udp\|tcp sport PORT goto base+2`, `fwmark MARK …` | all own sockets |
//! | base + 1 | `lookup TABLE` | the accepted routes of one network |
//! | base + 2 | `nop` | where own sockets continue: main, or what others (a VPN) put after it |
//! | base + 3 | the same matches, `lookup main` | own sockets, past a carried VPN |
//!
//! The base is [`BASE`], or less if another program's earlier rule takes everything: wg-quick,
//! started later, puts its rule before all others. The tables hold only accepted routes, so no
//! other packets are affected at any base. Our rules have our own protocol number ([`PROTOCOL`]),
//! so that no other rule is taken for ours.

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    AddressFamily, IpProtocol, RouteNetlinkMessage,
    route::RouteProtocol,
    rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage, RulePortRange},
};

use crate::{
    netlink::Netlink,
    routes::{MAIN, Route, routes},
};
use std::{collections::BTreeSet, io};

pub use crate::numbers::{DEFAULT_LIKE, PROTOCOL, SILENT, SOCKET_MARK};

/// The usual base: after Tailscale's rules (5210 to 5270), before main (32766).
pub const BASE: u32 = 5300;
/// How far the base is before a rule that takes everything.
const BEFORE: u32 = 10;
/// The offset from the base of the rules that lead own sockets past a VPN.
const PAST: u32 = 3;
/// The kernel's own table of local addresses; its rule is always first.
const LOCAL_TABLE: u32 = 255;

/// Some of p2pvm's own sockets, by what identifies their packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Sockets {
    /// UDP from this local port.
    Udp(u16),
    /// TCP from this local port.
    Tcp(u16),
    /// All sockets with the mark.
    Marked,
}

/// A rule of p2pvm's. They are made in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// Where own sockets continue.
    End,
    /// These sockets go around the accepted routes.
    Around(Sockets),
    /// These sockets use the main table, past a VPN.
    Past(Sockets),
    /// The accepted routes of a network.
    Table(u32),
}

/// A rule and its base.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PlacedRule {
    /// The preference of the first of p2pvm's rules.
    pub base: u32,
    /// What it does.
    pub rule: Rule,
}

impl Sockets {
    /// The match of a rule for these sockets.
    fn select(self) -> [RuleAttribute; 2] {
        let (protocol, port) = match self {
            Self::Udp(port) => (IpProtocol::Udp, port),
            Self::Tcp(port) => (IpProtocol::Tcp, port),
            Self::Marked => {
                return [
                    RuleAttribute::FwMark(SOCKET_MARK),
                    RuleAttribute::FwMask(u32::MAX),
                ];
            }
        };
        let ports = RulePortRange {
            start: port,
            end: port,
        };
        [
            RuleAttribute::IpProtocol(protocol),
            RuleAttribute::SourcePortRange(ports),
        ]
    }

    /// The sockets that a rule of p2pvm's matches.
    fn selected_by(message: &RuleMessage) -> Self {
        let udp = RuleAttribute::IpProtocol(IpProtocol::Udp);
        let port = message.attributes.iter().find_map(|a| match a {
            RuleAttribute::SourcePortRange(range) => Some(range.start),
            _ => None,
        });
        match port {
            Some(port) if message.attributes.contains(&udp) => Self::Udp(port),
            Some(port) => Self::Tcp(port),
            None => Self::Marked,
        }
    }
}

impl PlacedRule {
    fn message(self) -> RuleMessage {
        let mut message = RuleMessage::default();
        message.header.family = AddressFamily::Inet;
        let mut add = |attribute| message.attributes.push(attribute);
        add(RuleAttribute::Protocol(RouteProtocol::Other(PROTOCOL)));
        let (offset, action) = match self.rule {
            Rule::Around(_) => (0, RuleAction::Goto),
            Rule::Table(_) => (1, RuleAction::ToTable),
            Rule::End => (2, RuleAction::Nop),
            Rule::Past(_) => (PAST, RuleAction::ToTable),
        };
        add(RuleAttribute::Priority(self.base + offset));
        if let Rule::Around(sockets) | Rule::Past(sockets) = self.rule {
            sockets.select().into_iter().for_each(&mut add);
        }
        match self.rule {
            Rule::Table(table) => add(RuleAttribute::Table(table)),
            Rule::Past(_) => add(RuleAttribute::Table(MAIN)),
            Rule::End | Rule::Around(_) => {}
        }
        if action == RuleAction::Goto {
            add(RuleAttribute::Goto(self.base + 2));
        }
        message.header.action = action;
        message
    }

    fn read(message: &RuleMessage) -> Option<Self> {
        if message.header.family != AddressFamily::Inet || !is_ours(message) {
            return None;
        }
        let (offset, rule) = match message.header.action {
            RuleAction::Nop => (2, Rule::End),
            RuleAction::Goto => (0, Rule::Around(Sockets::selected_by(message))),
            RuleAction::ToTable => match table_of(message)? {
                MAIN => (PAST, Rule::Past(Sockets::selected_by(message))),
                table => (1, Rule::Table(table)),
            },
            _ => return None,
        };
        Some(Self {
            base: preference_of(message)?.checked_sub(offset)?,
            rule,
        })
    }

    /// Makes the rule. An existing one is no failure.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn make(self, netlink: &mut Netlink) -> io::Result<()> {
        let message = RouteNetlinkMessage::NewRule(self.message());
        match netlink.change(message, NLM_F_CREATE | NLM_F_EXCL) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            done => done,
        }
    }

    /// Removes the rule. A missing one is no failure.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn remove(self, netlink: &mut Netlink) -> io::Result<()> {
        match netlink.change(RouteNetlinkMessage::DelRule(self.message()), 0) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }
}

fn is_ours(message: &RuleMessage) -> bool {
    message
        .attributes
        .iter()
        .any(|a| matches!(a, RuleAttribute::Protocol(p) if u8::from(*p) == PROTOCOL))
}

fn table_of(message: &RuleMessage) -> Option<u32> {
    let wide = message.attributes.iter().find_map(|a| {
        if let RuleAttribute::Table(t) = a {
            Some(*t)
        } else {
            None
        }
    });
    wide.or((message.header.table != 0).then(|| message.header.table.into()))
}

fn preference_of(message: &RuleMessage) -> Option<u32> {
    message.attributes.iter().find_map(|a| match a {
        RuleAttribute::Priority(preference) => Some(*preference),
        _ => None,
    })
}

/// The table and preference of another program's rule that takes all packets, except those with
/// that program's own mark.
fn takes_all(message: &RuleMessage) -> Option<(u32, u32)> {
    let table = table_of(message).filter(|_| message.header.action == RuleAction::ToTable)?;
    let header = &message.header;
    let invert = header.flags.contains(RuleFlags::Invert);
    let narrow = |a: &RuleAttribute| match a {
        RuleAttribute::FwMark(mark) => *mark != 0 && !invert,
        RuleAttribute::SuppressPrefixLen(length) => *length != u32::MAX,
        RuleAttribute::Source(_)
        | RuleAttribute::Destination(_)
        | RuleAttribute::Iifname(_)
        | RuleAttribute::Oifname(_)
        | RuleAttribute::UidRange(_)
        | RuleAttribute::IpProtocol(_)
        | RuleAttribute::SourcePortRange(_)
        | RuleAttribute::DestinationPortRange(_)
        | RuleAttribute::TunId(_) => true,
        _ => false,
    };
    if header.family != AddressFamily::Inet
        || is_ours(message)
        || table == LOCAL_TABLE
        || header.tos != 0
    {
        return None;
    }
    if message.attributes.iter().any(narrow) {
        return None;
    }
    Some((table, preference_of(message).unwrap_or(0)))
}

/// The rules of the machine that matter here.
#[derive(Clone, Debug, Default)]
pub struct MachineRules {
    /// p2pvm's, of all networks here.
    pub ours: Vec<PlacedRule>,
    /// The base where they belong.
    pub base: u32,
    /// The base before all other programs' rules.
    pub first: u32,
}

/// Reads the machine's rules.
///
/// # Errors
/// The kernel's error.
pub fn rules(netlink: &mut Netlink) -> io::Result<MachineRules> {
    let mut ask = RuleMessage::default();
    ask.header.family = AddressFamily::Inet;
    let (mut found, mut all) = (
        MachineRules {
            ours: Vec::new(),
            base: BASE,
            first: BASE,
        },
        Vec::new(),
    );
    for answer in netlink.dump(RouteNetlinkMessage::GetRule(ask))? {
        let RouteNetlinkMessage::NewRule(message) = answer else {
            continue;
        };
        found.ours.extend(PlacedRule::read(&message));
        if !is_ours(&message) && table_of(&message) != Some(LOCAL_TABLE) {
            let preference = preference_of(&message).unwrap_or(0);
            let before = preference.saturating_sub(BEFORE).max(1);
            found.first = found.first.min(before);
        }
        all.extend(takes_all(&message).filter(|(_, preference)| *preference <= BASE + PAST));
    }
    all.sort_by_key(|(_, preference)| *preference);
    for (table, preference) in all {
        let has_default = |route: &Route| u32::from(route.net.prefix()) <= DEFAULT_LIKE;
        if routes(netlink, table)?.iter().any(has_default) {
            found.base = preference.saturating_sub(BEFORE).max(1);
            break;
        }
    }
    Ok(found)
}

/// The tables that all packets pass, except the kernel's own and ours.
///
/// # Errors
/// The kernel's error.
pub(crate) fn tables_of_all(netlink: &mut Netlink) -> io::Result<BTreeSet<u32>> {
    let mut ask = RuleMessage::default();
    ask.header.family = AddressFamily::Inet;
    let answers = netlink.dump(RouteNetlinkMessage::GetRule(ask))?.into_iter();
    Ok(answers
        .filter_map(|a| {
            if let RouteNetlinkMessage::NewRule(m) = a {
                takes_all(&m)
            } else {
                None
            }
        })
        .map(|(table, _)| table)
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_rules_are_read_back_as_made_and_others_stay_theirs() {
        let sockets = [Sockets::Udp(4002), Sockets::Tcp(4001), Sockets::Marked];
        let own = sockets.map(Rule::Around).into_iter();
        let own = own.chain(sockets.map(Rule::Past));
        for rule in own.chain([Rule::End, Rule::Table(0x7000_0001)]) {
            for base in [1, BASE] {
                let placed = PlacedRule { base, rule };
                assert_eq!(PlacedRule::read(&placed.message()), Some(placed));
                let mut others = placed.message();
                others
                    .attributes
                    .retain(|a| !matches!(a, RuleAttribute::Protocol(_)));
                assert_eq!(PlacedRule::read(&others), None);
            }
        }
    }

    #[test]
    fn a_rule_that_only_some_packets_come_by_does_not_take_all() {
        let rule = |attributes: &[RuleAttribute], flags| {
            let mut message = RuleMessage::default();
            message.header.family = AddressFamily::Inet;
            (message.header.action, message.header.flags) = (RuleAction::ToTable, flags);
            message.attributes =
                [RuleAttribute::Table(51820), RuleAttribute::Priority(99)].to_vec();
            message.attributes.extend_from_slice(attributes);
            takes_all(&message)
        };
        let none = RuleFlags::empty();
        assert_eq!(rule(&[], none), Some((51820, 99)));
        assert_eq!(
            rule(&[RuleAttribute::FwMark(51820)], RuleFlags::Invert),
            Some((51820, 99)),
            "wg-quick's"
        );
        assert_eq!(rule(&[RuleAttribute::FwMark(51820)], none), None);
        assert_eq!(rule(&[RuleAttribute::SuppressPrefixLen(0)], none), None);
        assert_eq!(rule(&[RuleAttribute::Iifname("eth1".into())], none), None);
        assert_eq!(
            rule(
                &[RuleAttribute::Protocol(RouteProtocol::Other(PROTOCOL))],
                none
            ),
            None
        );
    }
}
