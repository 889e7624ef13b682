//! How a simulated member makes a link, in the steps and with the failures of the daemon's
//! connector.
//!
//! The handshake with a public member whose address is known (a bootstrap, one of the address book)
//! begins at once. Any other is called over the ring first: the call and its answer carry both
//! ends' candidates; then the handshake goes directly, or over a public member if the two NATs
//! block it. The handshake is that of WireGuard (§5.4): initiation, response, and a first packet
//! that confirms. Every step can be lost; an attempt without success is repeated, a few times.

use super::{
    engine::{Event, Sim},
    flight::{Cargo, Class, Flight},
    queue::{Micros, SECOND},
    world::Access,
};
use p2pvm_overlay::ring::{Header, Input, Kind, Mode, Packet, Position, RingHop};
use rand::Rng;
use std::time::Duration;

/// How many attempts are made before the ring is told that there is no path.
const ATTEMPTS: u8 = 3;
/// How long one attempt may take.
/// Reason: a call over the slowest path of the ring and a handshake.
const ATTEMPT: Micros = 2 * SECOND;
/// How long a link may be silent before a request replaces it.
const FRESH: Micros = 10 * SECOND;
/// The share of punches that fail at first although both NATs allow them.
const PUNCH_FAILS: f64 = 0.03;
/// How many bytes a call or its answer has: an id, and the candidates of one side, three IPv4, two
/// IPv6 addresses and a key.
const CALL: usize = 148;
/// How many bytes the question whether a member is reachable has.
const PROOF: usize = 10;
/// How many bytes the messages of the handshake have, as WireGuard's.
const INITIATION: usize = 148;
const RESPONSE: usize = 92;
const CONFIRMATION: usize = 32;
/// How many public members are compared when a relay is chosen.
const RELAYS: usize = 6;
/// How many half-open handshakes a member keeps before it forgets the oldest.
const HALF_OPEN: usize = 64;

/// An attempt to make a link, at the end that asked for it; or the question over the ring whether a
/// member is reachable.
pub(super) struct Dial {
    /// The other end.
    pub to: u32,
    /// Whether this only asks if the member answers.
    pub proof: bool,
    id: u64,
    agent: Option<Position>,
    attempt: u8,
    /// When the initiation went out, for the round trip.
    initiated: Micros,
}

/// A step of the handshake. The number is the session, chosen by the initiator.
#[derive(Clone, Copy, Debug)]
pub(super) enum Handshake {
    Initiation(u64),
    Response(u64),
    Confirmation(u64),
}

impl Sim {
    /// A ring asks for a link. Returns the input that answers it at once.
    pub(super) fn dial(
        &mut self,
        me: u32,
        to: u32,
        agent: Option<Position>,
    ) -> Option<Input<'static>> {
        let member = self.members[to as usize].node.member;
        if me == to {
            return Some(Input::LinkFailed { member });
        }
        // A link that was given up is reused, unless it has been silent for so long that the other
        // end may be dead.
        let now = self.now();
        if let Some(link) = self.members[me as usize]
            .link_mut(to)
            .filter(|l| now < l.heard + FRESH)
        {
            link.wanted = true;
            return Some(Input::Linked { member, rtt: None });
        }
        if let Some(dial) = self.dials[me as usize]
            .iter_mut()
            .find(|d| d.to == to && !d.proof)
        {
            dial.agent = agent.or(dial.agent);
            return None;
        }
        self.begin(
            me,
            Dial {
                to,
                proof: false,
                id: self.next_number,
                agent,
                attempt: 0,
                initiated: 0,
            },
        );
        None
    }

    /// Asks over the ring for a member that is reachable without it. If it does not answer, it is
    /// in another ring.
    pub(super) fn prove(&mut self, me: u32, to: u32) {
        self.begin(
            me,
            Dial {
                to,
                proof: true,
                id: self.next_number,
                agent: None,
                attempt: 0,
                initiated: 0,
            },
        );
    }

    fn begin(&mut self, me: u32, dial: Dial) {
        self.next_number += 1;
        let id = dial.id;
        self.dials[me as usize].push(dial);
        self.attempt(me, id);
    }

    fn attempt(&mut self, me: u32, id: u64) {
        let Some(dial) = self.dials[me as usize].iter_mut().find(|d| d.id == id) else {
            return;
        };
        dial.attempt += 1;
        let (to, agent, proof) = (dial.to, dial.agent, dial.proof);
        let life = self.members[me as usize].life;
        self.queue.put(
            self.now() + ATTEMPT,
            Event::DialTimeout {
                member: me,
                life,
                dial: id,
            },
        );
        let reachable = self.members[to as usize].home.access == Access::Public
            && self.members[me as usize].known.contains(&to);
        if reachable && !proof {
            return self.initiate(me, id);
        }
        let (here, there) = (
            self.members[me as usize].node.position,
            self.members[to as usize].node.position,
        );
        let header = Header {
            agent,
            ..Header::new(Kind::Call, here, there)
        };
        self.call(me, header, id, if proof { PROOF } else { CALL });
    }

    /// Sends a call or an answer to the agent that it names, else by the table. If no member
    /// accepts it, it is lost, and the attempt with it.
    fn call(&mut self, me: u32, header: Header, id: u64, len: usize) {
        let via = match (
            header.agent,
            self.members[me as usize].table.next(header.to, Mode::Exact),
            header.leaf,
        ) {
            (Some(agent), ..) => self.at(agent),
            (None, RingHop::Via(via), _) => self.number(&via),
            // This member is the other side's agent itself.
            (None, RingHop::Here, Some(leaf)) => self.at(leaf),
            _ => None,
        };
        let Some(via) = via else { return };
        let mut body = vec![0; len.max(8)];
        body[..8].copy_from_slice(&id.to_be_bytes());
        self.send_packet(me, via, Packet { header, body }, Class::Linking, vec![me]);
    }

    /// Handles a call or an answer at its destination.
    pub(super) fn dial_message(&mut self, me: u32, packet: &Packet) {
        let Some((id, _)) = packet.body.split_first_chunk::<8>() else {
            return;
        };
        let id = u64::from_be_bytes(*id);
        match packet.header.kind {
            Kind::Call => {
                let header = packet
                    .header
                    .reply(Kind::Answer, self.members[me as usize].node.position);
                self.call(me, header, id, packet.body.len());
            }
            _ => match self.dials[me as usize]
                .iter()
                .position(|d| d.id == id && d.proof)
            {
                Some(i) => drop(self.dials[me as usize].swap_remove(i)),
                None => self.initiate(me, id),
            },
        }
    }

    /// Sends the first datagram of the handshake: both ends know each other's candidates.
    fn initiate(&mut self, me: u32, id: u64) {
        let now = self.now();
        let Some(dial) = self.dials[me as usize].iter_mut().find(|d| d.id == id) else {
            return;
        };
        dial.initiated = now;
        let (to, first) = (dial.to, dial.attempt == 1);
        let (here, there) = (
            self.members[me as usize].home,
            self.members[to as usize].home,
        );
        let relay = if here.access.direct(there.access) {
            let punched = here.access != Access::Public && there.access != Access::Public;
            if punched && first && self.rng.random_bool(PUNCH_FAILS) {
                return;
            }
            None
        } else {
            match self.choose_relay(me, to) {
                None => return,
                relay => relay,
            }
        };
        let step = Handshake::Initiation(id);
        self.send(
            Flight {
                from: me,
                to,
                cargo: Cargo::Handshake(step, relay),
            },
            INITIATION,
            relay,
            Class::Linking,
        );
    }

    /// Of a few public members that both reach, the one with the shortest path.
    fn choose_relay(&mut self, a: u32, b: u32) -> Option<u32> {
        let count = self.members.len() as u32;
        let drawn: Vec<u32> = (0..RELAYS * 4)
            .map(|_| self.rng.random_range(0..count))
            .collect();
        let usable = |r: &u32| {
            let open = |x, y| self.conditions.open(x, y) && self.conditions.open(y, x);
            *r != a
                && *r != b
                && self.awake(*r)
                && self.members[*r as usize].home.access == Access::Public
                && open(a, *r)
                && open(b, *r)
        };
        let rtt = |x: u32, y: u32| {
            self.world.rtt_us(
                &self.members[x as usize].home,
                &self.members[y as usize].home,
            )
        };
        let way = |r: &u32| rtt(a, *r) + rtt(*r, b);
        let chosen = drawn
            .into_iter()
            .filter(usable)
            .take(RELAYS)
            .min_by_key(way);
        // The bootstraps are public and known to all: the last resort of a small network.
        chosen.or_else(|| {
            self.members[a as usize]
                .known
                .iter()
                .take(self.members[a as usize].bootstraps)
                .copied()
                .filter(usable)
                .min_by_key(way)
        })
    }

    /// Handles a step of a handshake at `me`.
    pub(super) fn handshake(&mut self, me: u32, from: u32, step: Handshake, relay: Option<u32>) {
        match step {
            Handshake::Initiation(session) => {
                let half_open = &mut self.half_open[me as usize];
                if !half_open.iter().any(|h| h.0 == from && h.1 == session) {
                    if half_open.len() == HALF_OPEN {
                        half_open.remove(0);
                    }
                    half_open.push((from, session, relay));
                }
                let cargo = Cargo::Handshake(Handshake::Response(session), relay);
                self.send(
                    Flight {
                        from: me,
                        to: from,
                        cargo,
                    },
                    RESPONSE,
                    relay,
                    Class::Linking,
                );
            }
            Handshake::Response(session) => {
                let Some(i) = self.dials[me as usize]
                    .iter()
                    .position(|d| d.id == session && d.to == from)
                else {
                    return;
                };
                let dial = self.dials[me as usize].swap_remove(i);
                let now = self.now();
                self.members[me as usize].set_link(from, session, relay, now);
                self.linked.0 += 1;
                self.linked.1 += u64::from(relay.is_some());
                let cargo = Cargo::Handshake(Handshake::Confirmation(session), relay);
                self.send(
                    Flight {
                        from: me,
                        to: from,
                        cargo,
                    },
                    CONFIRMATION,
                    relay,
                    Class::Linking,
                );
                let rtt = Duration::from_micros(self.now() - dial.initiated);
                self.linked(me, from, Some(rtt));
            }
            Handshake::Confirmation(session) => self.confirm(me, from, session),
        }
    }

    /// The initiator used `session`: a half-open link is a link.
    pub(super) fn confirm(&mut self, me: u32, from: u32, session: u64) {
        let half_open = &mut self.half_open[me as usize];
        let Some(i) = half_open.iter().position(|h| h.0 == from && h.1 == session) else {
            return;
        };
        let (_, _, relay) = half_open.remove(i);
        let now = self.now();
        self.members[me as usize].set_link(from, session, relay, now);
        self.linked(me, from, None);
    }

    /// Ends an attempt that timed out; retries it a few times.
    pub(super) fn dial_timeout(&mut self, me: u32, id: u64) {
        let Some(i) = self.dials[me as usize].iter().position(|d| d.id == id) else {
            return;
        };
        if self.dials[me as usize][i].attempt < ATTEMPTS {
            return self.attempt(me, id);
        }
        let dial = self.dials[me as usize].swap_remove(i);
        let member = self.members[dial.to as usize].node.member;
        self.tell(
            me,
            if dial.proof {
                Input::Seed(member)
            } else {
                Input::LinkFailed { member }
            },
        );
    }
}
