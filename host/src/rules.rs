//! Policy routing rules: accepted routes in tables of their own, behind whatever this machine reaches by itself, and own sockets
//! around them.
//!
//! | preference | rule | for |
//! |---|---|---|
//! | 5300 | `ipproto udp\|tcp sport PORT goto 5390`, `fwmark MARK goto 5390` | own sockets, of every network here |
//! | 5320 | `lookup main suppress_prefixlength 7` | whatever this machine reaches other than by a default route, in whatever pieces |
//! | 5330 | `lookup TABLE` | the accepted routes of one network |
//! | 5390 | `nop` | where own sockets go on: main, or whatever others (a VPN) put behind 5400 |
//!
//! The rules carry a protocol number of ours ([`PROTOCOL`]), so that nobody else's rule in the same place is taken for ours.

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    AddressFamily, IpProtocol, RouteNetlinkMessage,
    route::RouteProtocol,
    rule::{RuleAction, RuleAttribute, RuleMessage, RulePortRange},
};

use crate::netlink::Netlink;
use std::io;

/// The mark of p2pvm's own sockets (SO_MARK): "p2pv".
pub const SOCKET_MARK: u32 = 0x7032_7076;
/// The protocol number of p2pvm's rules and routes (RTPROT_*, of which 112 is nobody's): "p".
pub const PROTOCOL: u8 = 112;
/// From linux/rtnetlink.h.
const RT_TABLE_MAIN: u32 = 254;
const AROUND: u32 = 5300;
const LOCAL: u32 = 5320;
const TABLE: u32 = 5330;
const END: u32 = 5390;
/// Routes up to this length count as a default route: a VPN may have replaced it by 0.0.0.0/1 and 128.0.0.0/1. No LAN is as large.
pub const DEFAULT_LIKE: u32 = 7;

/// A rule of p2pvm's, in the order in which they have to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// Where own sockets go on.
    End,
    /// UDP from this local port goes around.
    Udp(u16),
    /// TCP from this local port goes around.
    Tcp(u16),
    /// What carries the mark goes around.
    Marked,
    /// What this machine reaches by itself, other than by a default route.
    Local,
    /// The accepted routes of a network.
    Table(u32),
}

impl Rule {
    fn message(self) -> RuleMessage {
        let mut message = RuleMessage::default();
        message.header.family = AddressFamily::Inet;
        let mut add = |attribute| message.attributes.push(attribute);
        add(RuleAttribute::Protocol(RouteProtocol::Other(PROTOCOL)));
        let (preference, action, table) = match self {
            Self::End => (END, RuleAction::Nop, None),
            Self::Udp(_) | Self::Tcp(_) | Self::Marked => (AROUND, RuleAction::Goto, None),
            Self::Local => (LOCAL, RuleAction::ToTable, Some(RT_TABLE_MAIN)),
            Self::Table(table) => (TABLE, RuleAction::ToTable, Some(table)),
        };
        add(RuleAttribute::Priority(preference));
        match self {
            Self::Udp(port) | Self::Tcp(port) => {
                let udp = matches!(self, Self::Udp(_));
                add(RuleAttribute::IpProtocol(if udp { IpProtocol::Udp } else { IpProtocol::Tcp }));
                add(RuleAttribute::SourcePortRange(RulePortRange { start: port, end: port }));
            }
            Self::Marked => {
                add(RuleAttribute::FwMark(SOCKET_MARK));
                add(RuleAttribute::FwMask(u32::MAX));
            }
            Self::Local => add(RuleAttribute::SuppressPrefixLen(DEFAULT_LIKE)),
            Self::Table(_) | Self::End => {}
        }
        if action == RuleAction::Goto {
            add(RuleAttribute::Goto(END));
        }
        if let Some(table) = table {
            add(RuleAttribute::Table(table));
        }
        message.header.action = action;
        message
    }

    fn read(message: &RuleMessage) -> Option<Self> {
        if message.header.family != AddressFamily::Inet {
            return None;
        }
        let find = |pick: &dyn Fn(&RuleAttribute) -> Option<u32>| message.attributes.iter().find_map(pick);
        let ours = |a: &RuleAttribute| matches!(a, RuleAttribute::Protocol(p) if u8::from(*p) == PROTOCOL);
        if !message.attributes.iter().any(ours) {
            return None;
        }
        let preference = find(&|a| if let RuleAttribute::Priority(p) = a { Some(*p) } else { None })?;
        let port = find(&|a| if let RuleAttribute::SourcePortRange(r) = a { Some(u32::from(r.start)) } else { None });
        let udp = message.attributes.contains(&RuleAttribute::IpProtocol(IpProtocol::Udp));
        match (preference, message.header.action) {
            (END, RuleAction::Nop) => Some(Self::End),
            (AROUND, RuleAction::Goto) => Some(match port.and_then(|port| u16::try_from(port).ok()) {
                Some(port) if udp => Self::Udp(port),
                Some(port) => Self::Tcp(port),
                None => Self::Marked,
            }),
            (LOCAL, RuleAction::ToTable) => Some(Self::Local),
            (TABLE, RuleAction::ToTable) => find(&|a| if let RuleAttribute::Table(t) = a { Some(*t) } else { None }).map(Self::Table),
            _ => None,
        }
    }

    /// Makes the rule; one that is there already is no failure.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn make(self, netlink: &mut Netlink) -> io::Result<()> {
        let message = RouteNetlinkMessage::NewRule(self.message());
        match netlink.change(message, NLM_F_CREATE | NLM_F_EXCL) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            done => done,
        }
    }

    /// Removes the rule; one that is not there is no failure.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn remove(self, netlink: &mut Netlink) -> io::Result<()> {
        match netlink.change(RouteNetlinkMessage::DelRule(self.message()), 0) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }
}

/// p2pvm's rules that are there, of all networks on this machine.
///
/// # Errors
/// What the kernel says.
pub fn rules(netlink: &mut Netlink) -> io::Result<Vec<Rule>> {
    let mut ask = RuleMessage::default();
    ask.header.family = AddressFamily::Inet;
    let answers = netlink.dump(RouteNetlinkMessage::GetRule(ask))?;
    let read = |answer| if let RouteNetlinkMessage::NewRule(message) = answer { Rule::read(&message) } else { None };
    Ok(answers.into_iter().filter_map(read).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_is_read_back_as_it_was_made_and_others_rules_are_not_ours() {
        for rule in [Rule::End, Rule::Udp(4002), Rule::Tcp(4001), Rule::Marked, Rule::Local, Rule::Table(0x7000_0001)] {
            assert_eq!(Rule::read(&rule.message()), Some(rule));
            let mut others = rule.message();
            others.attributes.retain(|a| !matches!(a, RuleAttribute::Protocol(_)));
            assert_eq!(Rule::read(&others), None);
        }
    }
}
