//! Access rules, enforced where packets arrive for this host and its guests, from every sender and
//! by every path.
//!
//! Stateful for replies, by protocol: *TCP* needs no state. A segment that opens a connection (SYN
//! without ACK) must be allowed by a rule; any other may also answer a connection that the rules
//! let this side open, that is, the rules are asked with the ends exchanged. So a connection
//! survives a restart of the daemon and the move of its guest to a host that never saw it begin,
//! and a change of policy cuts connections that it no longer allows. *UDP* and *ICMP echo* do not
//! show which end began: a packet sent from here leaves an entry in a bounded table ([`flows`])
//! that lets answers in. *ICMP errors* pass if they are about a conversation that is allowed.
//!
//! Decisions are kept in the same table for seconds, so that a bulk transfer costs one look at one
//! cache line a packet. Until a new member knows whether the network has a policy, nothing comes in
//! ([`Access::close`]). Without a policy the cost is one relaxed load. A refusal is silent, as with
//! any firewall; `p2pvm acl check` gives the reason on the sender's side.

mod fields;
mod flows;

use crate::membership::{
    NetworkPolicy,
    policy::{Action, AddressOwner, Party, Traffic},
};
use arc_swap::ArcSwapOption;
use fields::PacketKind;
use flows::{Flows, Key, Kind, State};
use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// How long after a UDP datagram an answer may come (RFC 4787, REQ-5: five minutes recommended).
const UDP_REPLY: Duration = Duration::from_secs(300);
/// How long after an echo request an answer may come (RFC 5508, REQ-1: at least sixty seconds).
const ECHO_REPLY: Duration = Duration::from_secs(60);
/// How long a rule's decision to allow is kept. Reason: a member's groups or a VM's name may have
/// become known by then.
const ALLOWED_FOR: Duration = Duration::from_secs(10);
/// How long a rule's decision to deny is kept. Reason: as for [`ALLOWED_FOR`].
const DENIED_FOR: Duration = Duration::from_secs(2);

/// Knows the holder of an address. Packet threads ask it once every few seconds for each
/// conversation: it must not block.
pub trait Directory: Send + Sync + 'static {
    /// The holder of `addr`, as far as it is known and proved.
    fn owner_of(&self, addr: &IpAddr) -> AddressOwner;
}

/// A policy in force, with the conversations that it has let through; replaced as a whole.
struct ActivePolicy {
    policy: Arc<NetworkPolicy>,
    directory: Arc<dyn Directory>,
    flows: Flows,
}

/// The access rules of one plane.
#[derive(Default)]
pub(crate) struct Access {
    active: AtomicBool,
    in_force: ArcSwapOption<ActivePolicy>,
    closed: AtomicBool,
    denied: AtomicU64,
}

impl Access {
    /// Lets nothing in until [`Access::set`] is called.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.active.store(true, Ordering::Release);
    }

    /// Puts a policy in force, or none. Conversations under way are judged again.
    pub fn set(&self, policy: Option<(Arc<NetworkPolicy>, Arc<dyn Directory>)>) {
        let active = policy.is_some();
        let in_force = policy.map(|(policy, directory)| {
            Arc::new(ActivePolicy {
                policy,
                directory,
                flows: Flows::new(Instant::now()),
            })
        });
        self.in_force.store(in_force);
        self.closed.store(false, Ordering::Release);
        self.active.store(active, Ordering::Release);
    }

    /// Packets dropped by rule so far.
    pub fn denied(&self) -> u64 {
        self.denied.load(Ordering::Relaxed)
    }

    /// Notes a packet that leaves this host or one of its guests, so that answers may come in.
    #[inline]
    pub fn sent(&self, packet: &[u8], src: &IpAddr, dst: &IpAddr, now: Instant) {
        if self.active.load(Ordering::Relaxed)
            && let Some(in_force) = &*self.in_force.load()
        {
            in_force.sent(packet, src, dst, now);
        }
    }

    /// Whether a packet from `src` may be delivered to `dst`, which is here.
    #[inline]
    pub fn admits(&self, packet: &[u8], src: &IpAddr, dst: &IpAddr, now: Instant) -> bool {
        if !self.active.load(Ordering::Relaxed) {
            return true;
        }
        let in_force = self.in_force.load();
        let admitted = match &*in_force {
            Some(in_force) => in_force.admits(packet, src, dst, now),
            None => !self.closed.load(Ordering::Acquire),
        };
        if !admitted {
            self.denied.fetch_add(1, Ordering::Relaxed);
        }
        admitted
    }
}

impl ActivePolicy {
    fn sent(&self, packet: &[u8], src: &IpAddr, dst: &IpAddr, now: Instant) {
        // An answer has the packet's ends exchanged.
        let (kind, ports, lasts) = match PacketKind::of(packet) {
            PacketKind::Udp { from, to } => (Kind::Udp, (to, from), UDP_REPLY),
            PacketKind::EchoRequest(id) => (Kind::EchoReply, (id, 0), ECHO_REPLY),
            _ => return,
        };
        self.flows.note(
            &Key {
                src: *dst,
                dst: *src,
                kind,
                ports,
            },
            State::Answer,
            lasts,
            now,
        );
    }

    fn admits(&self, packet: &[u8], src: &IpAddr, dst: &IpAddr, now: Instant) -> bool {
        match PacketKind::of(packet) {
            PacketKind::Error(about) => self.related(about, dst, now),
            kind => self.admits_kind(&kind, src, dst, now),
        }
    }

    fn admits_kind(
        &self,
        packet: &PacketKind<'_>,
        src: &IpAddr,
        dst: &IpAddr,
        now: Instant,
    ) -> bool {
        let (kind, ports, traffic) = match *packet {
            // The first fragment is judged; without it no receiver can reassemble the packet.
            PacketKind::LaterFragment => return true,
            PacketKind::Broken | PacketKind::Error(_) => return false,
            PacketKind::Tcp {
                from,
                to,
                opens: true,
            } => (Kind::TcpOpening, (from, to), Traffic::Tcp(to)),
            PacketKind::Tcp {
                from,
                to,
                opens: false,
            } => (Kind::Tcp, (from, to), Traffic::Tcp(to)),
            PacketKind::Udp { from, to } => (Kind::Udp, (from, to), Traffic::Udp(to)),
            PacketKind::EchoReply(id) => (Kind::EchoReply, (id, 0), Traffic::Icmp),
            PacketKind::EchoRequest(id) => (Kind::Icmp, (id, 0), Traffic::Icmp),
            PacketKind::Icmp => (Kind::Icmp, (0, 0), Traffic::Icmp),
            PacketKind::Other(protocol) => (Kind::Other, (u16::from(protocol), 0), Traffic::Other),
        };
        let key = Key {
            src: *src,
            dst: *dst,
            kind,
            ports,
        };
        match self.flows.get(&key, now) {
            Some(State::Answer | State::Allowed) => return true,
            Some(State::Denied) => return false,
            None => {}
        }
        let party = |addr: &IpAddr| Party {
            addr: *addr,
            owner: self.directory.owner_of(addr),
        };
        let (sender, receiver) = (party(src), party(dst));
        let allows =
            |from, to, traffic| self.policy.decide(from, to, traffic).action == Action::Allow;
        let allowed = allows(&sender, &receiver, traffic)
            || (kind == Kind::Tcp && allows(&receiver, &sender, Traffic::Tcp(ports.0)));
        let (state, lasts) = if allowed {
            (State::Allowed, ALLOWED_FOR)
        } else {
            (State::Denied, DENIED_FOR)
        };
        self.flows.note(&key, state, lasts, now);
        allowed
    }

    /// Whether an ICMP error quotes a packet that `dst` sent in a conversation that is allowed.
    fn related(&self, about: &[u8], dst: &IpAddr, now: Instant) -> bool {
        let Some((quoted_src, quoted_dst)) = super::shape::packet::addresses(about) else {
            return false;
        };
        let answer = match PacketKind::of_quoted(about) {
            PacketKind::Tcp { from, to, .. } => PacketKind::Tcp {
                from: to,
                to: from,
                opens: false,
            },
            PacketKind::Udp { from, to } => PacketKind::Udp { from: to, to: from },
            PacketKind::EchoRequest(id) => PacketKind::EchoReply(id),
            _ => return false,
        };
        quoted_src == *dst && self.admits_kind(&answer, &quoted_dst, dst, now)
    }
}

/// Reads the packet's fields, and those of the packet that an ICMP error quotes, for the fuzzer.
#[cfg(fuzzing)]
pub(super) fn look_at(packet: &[u8]) -> bool {
    let quoted = |kind: &PacketKind<'_>| {
        if let PacketKind::Error(about) = kind {
            PacketKind::of_quoted(about) != PacketKind::Broken
        } else {
            true
        }
    };
    let kind = PacketKind::of(packet);
    quoted(&kind) && quoted(&PacketKind::of_quoted(packet)) && kind != PacketKind::Broken
}

#[cfg(test)]
mod tests;
