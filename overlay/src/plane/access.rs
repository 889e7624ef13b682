//! Access rules, enforced where packets arrive: for this host and for its guests, whoever sends and
//! by whatever path.
//!
//! Stateful for replies, by protocol: *TCP* needs no state. A segment that opens a connection (SYN
//! without ACK) must be allowed by a rule; any other may also answer a connection that the rules
//! let this side open, that is, the rules are asked with the ends exchanged. So a connection
//! survives a restart of the daemon and the move of its guest to a host that never saw it begin,
//! and a change of policy cuts what it no longer allows. *UDP* and *ICMP echo* do not show who
//! began: what is sent from here leaves an entry in a bounded table ([`flows`]) by which answers
//! come in. *ICMP errors* pass when they are about a conversation that may take place.
//!
//! Decisions are kept in the same table for seconds, so that a bulk transfer costs one look at one
//! cache line a packet. Before a new member has heard whether the network has a policy, nothing
//! comes in ([`Access::close`]). With no policy the cost is one relaxed load. A refusal is silent,
//! as with any firewall; the sender's side can be asked for the reason (`p2pvm acl check`).

mod fields;
mod flows;

use crate::membership::{
    NetworkPolicy,
    policy::{Action, Party, Traffic, Who},
};
use arc_swap::ArcSwapOption;
use fields::Seen;

/// Whether the packet's fields can be read, and those of one that an ICMP error quotes; for the
/// fuzzer.
#[cfg(fuzzing)]
pub(super) fn look_at(packet: &[u8]) -> bool {
    let quoted = |seen: &Seen<'_>| {
        if let Seen::Error(about) = seen {
            Seen::of_quoted(about) != Seen::Broken
        } else {
            true
        }
    };
    let seen = Seen::of(packet);
    quoted(&seen) && quoted(&Seen::of_quoted(packet)) && seen != Seen::Broken
}
use flows::{Flows, Key, Kind, State};
use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// An answer to a UDP datagram may come within this (RFC 4787, REQ-5: five minutes recommended).
const UDP_REPLY: Duration = Duration::from_secs(300);
/// An answer to an echo request (RFC 5508, REQ-1: at least sixty seconds).
const ECHO_REPLY: Duration = Duration::from_secs(60);
/// A decision by rule is taken again after this: a member's groups or a VM's name may have become
/// known.
const ALLOWED_FOR: Duration = Duration::from_secs(10);
const DENIED_FOR: Duration = Duration::from_secs(2);

/// Knows whose an address is. Asked once per conversation and some seconds, on the packet threads:
/// it must not wait.
pub trait Directory: Send + Sync + 'static {
    /// Whose `addr` is, as far as that is known and proved.
    fn who(&self, addr: &IpAddr) -> Who;
}

/// A policy in force, with the conversations that it has let through. Replaced as a whole.
struct InForce {
    policy: Arc<NetworkPolicy>,
    directory: Arc<dyn Directory>,
    flows: Flows,
}

/// The access rules of one plane.
#[derive(Default)]
pub(crate) struct Access {
    active: AtomicBool,
    in_force: ArcSwapOption<InForce>,
    closed: AtomicBool,
    denied: AtomicU64,
}

impl Access {
    /// Lets nothing in until [`Access::set`] says what the rules are, or that there are none.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.active.store(true, Ordering::Release);
    }

    /// Puts a policy in force, or takes it out of force. Conversations that are under way are
    /// judged anew.
    pub fn set(&self, policy: Option<(Arc<NetworkPolicy>, Arc<dyn Directory>)>) {
        let active = policy.is_some();
        let in_force = policy.map(|(policy, directory)| {
            Arc::new(InForce {
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

    /// Notes a packet that leaves this host or one of its guests: answers to it may come in.
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

impl InForce {
    fn sent(&self, packet: &[u8], src: &IpAddr, dst: &IpAddr, now: Instant) {
        // What may come in is what goes out with its ends exchanged.
        let (kind, ports, lasts) = match Seen::of(packet) {
            Seen::Udp { from, to } => (Kind::Udp, (to, from), UDP_REPLY),
            Seen::EchoRequest(id) => (Kind::EchoReply, (id, 0), ECHO_REPLY),
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
        match Seen::of(packet) {
            Seen::Error(about) => self.related(about, dst, now),
            seen => self.admits_seen(&seen, src, dst, now),
        }
    }

    fn admits_seen(&self, seen: &Seen<'_>, src: &IpAddr, dst: &IpAddr, now: Instant) -> bool {
        let (kind, ports, traffic) = match *seen {
            // Without its first fragment, which is judged, nobody can put it together.
            Seen::LaterFragment => return true,
            Seen::Broken | Seen::Error(_) => return false,
            Seen::Tcp {
                from,
                to,
                opens: true,
            } => (Kind::TcpOpening, (from, to), Traffic::Tcp(to)),
            Seen::Tcp {
                from,
                to,
                opens: false,
            } => (Kind::Tcp, (from, to), Traffic::Tcp(to)),
            Seen::Udp { from, to } => (Kind::Udp, (from, to), Traffic::Udp(to)),
            Seen::EchoReply(id) => (Kind::EchoReply, (id, 0), Traffic::Icmp),
            Seen::EchoRequest(id) => (Kind::Icmp, (id, 0), Traffic::Icmp),
            Seen::Icmp => (Kind::Icmp, (0, 0), Traffic::Icmp),
            Seen::Other(protocol) => (Kind::Other, (u16::from(protocol), 0), Traffic::Other),
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
            who: self.directory.who(addr),
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

    /// An ICMP error belongs to the packet that it quotes: one that `dst` sent in a conversation
    /// that may take place.
    fn related(&self, about: &[u8], dst: &IpAddr, now: Instant) -> bool {
        let Some((quoted_src, quoted_dst)) = super::packet::addresses(about) else {
            return false;
        };
        let answer = match Seen::of_quoted(about) {
            Seen::Tcp { from, to, .. } => Seen::Tcp {
                from: to,
                to: from,
                opens: false,
            },
            Seen::Udp { from, to } => Seen::Udp { from: to, to: from },
            Seen::EchoRequest(id) => Seen::EchoReply(id),
            _ => return false,
        };
        quoted_src == *dst && self.admits_seen(&answer, &quoted_dst, dst, now)
    }
}

#[cfg(test)]
mod tests;
