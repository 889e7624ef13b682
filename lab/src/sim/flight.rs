//! Datagrams between members: sent, lost or delayed, received, and forwarded by the table.

use super::{
    dial::Handshake,
    engine::{Event, LOWER_HEADERS, Sim},
    queue::Micros,
};
use p2pvm_overlay::ring::{Input, Kind, Packet, RingHop};

/// A datagram under way.
#[derive(Clone)]
pub(super) struct Flight {
    pub from: u32,
    pub to: u32,
    pub cargo: Cargo,
}

/// The content of a datagram.
#[derive(Clone)]
pub(super) enum Cargo {
    /// A packet of the ring, the session it is sealed with, and the members that forwarded it.
    Packet {
        packet: Packet,
        session: u64,
        trail: Vec<u32>,
    },
    /// A step of a handshake, over that relay.
    Handshake(Handshake, Option<u32>),
}

/// The purpose that a datagram is counted under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    Upkeep,
    Routed,
    Linking,
}

impl Sim {
    /// Sends a packet to a neighbour. Without a link to it the packet is lost, as a frame of the
    /// daemon would be.
    pub(super) fn send_packet(
        &mut self,
        from: u32,
        to: u32,
        packet: Packet,
        class: Class,
        trail: Vec<u32>,
    ) -> bool {
        let now = self.now();
        let Some(link) = self.members[from as usize]
            .link(to)
            .copied()
            .filter(|l| l.stands(now))
        else {
            return false;
        };
        let size = packet.encoded_len();
        self.send(
            Flight {
                from,
                to,
                cargo: Cargo::Packet {
                    packet,
                    session: link.session,
                    trail,
                },
            },
            size,
            link.relay,
            class,
        );
        true
    }

    pub(super) fn send(&mut self, flight: Flight, size: usize, relay: Option<u32>, class: Class) {
        let (from, to) = (flight.from, flight.to);
        let size = size + LOWER_HEADERS;
        let sent = &mut self.members[from as usize].sent;
        match class {
            Class::Upkeep => sent.upkeep.add(size),
            Class::Routed => sent.routed.add(size),
            Class::Linking => sent.linking.add(size),
        }
        let rtt = |sim: &Self, a: u32, b: u32| {
            sim.world
                .rtt_us(&sim.members[a as usize].home, &sim.members[b as usize].home)
        };
        let one_way = match relay {
            None if self.conditions.open(from, to) => rtt(self, from, to) / 2,
            Some(relay)
                if self.conditions.open(from, relay)
                    && self.conditions.open(relay, to)
                    && self.awake(relay) =>
            {
                self.members[relay as usize].sent.relayed.add(size);
                (rtt(self, from, relay) + rtt(self, relay, to)) / 2
            }
            _ => return,
        };
        let fate = self.conditions.fate(&mut self.rng, one_way);
        if let [Some(first), again] = fate {
            if let Some(again) = again {
                self.fly(flight.clone(), again);
            }
            self.fly(flight, first);
        }
    }

    fn fly(&mut self, flight: Flight, delay: Micros) {
        let number = self.free.pop().unwrap_or_else(|| {
            self.flights.push(None);
            self.flights.len() as u32 - 1
        });
        self.flights[number as usize] = Some(flight);
        self.queue.put(self.now() + delay, Event::Arrive(number));
    }

    /// The datagram of a flight that has ended; its number is free again.
    pub(super) fn land(&mut self, number: u32) -> Option<Flight> {
        let flight = self.flights.get_mut(number as usize).and_then(Option::take);
        self.free.push(number);
        flight
    }

    /// Receives a datagram, if the member runs and can open it.
    pub(super) fn arrive(&mut self, flight: Flight) {
        let Flight { from, to, cargo } = flight;
        if !self.awake(to) {
            return;
        }
        match cargo {
            Cargo::Handshake(step, relay) => self.handshake(to, from, step, relay),
            Cargo::Packet {
                packet,
                session,
                trail,
            } => {
                self.confirm(to, from, session);
                let now = self.now();
                if let Some(link) = self.members[to as usize]
                    .link_mut(from)
                    .filter(|l| l.stands(now) && l.opens(session))
                {
                    link.heard = now;
                    self.packet(to, from, packet, trail);
                }
            }
        }
    }

    /// Handles a packet of the ring as the packet threads and the driver do.
    fn packet(&mut self, me: u32, from: u32, mut packet: Packet, mut trail: Vec<u32>) {
        if packet.header.from == self.members[me as usize].node.position {
            // An agent found no better path than back to the origin.
            return;
        }
        match self.members[me as usize].table.route(&packet.header) {
            RingHop::Via(member) => {
                let Some(next) = self.number(&member).filter(|next| *next != from) else {
                    return;
                };
                if trail.contains(&me) {
                    self.breach(format!(
                        "a {:?} packet came to member {me} twice: {trail:?}",
                        packet.header.kind
                    ));
                    return;
                }
                trail.push(me);
                packet.header.hops_left -= 1;
                let class = if matches!(packet.header.kind, Kind::Call | Kind::Answer) {
                    Class::Linking
                } else {
                    Class::Routed
                };
                self.send_packet(me, next, packet, class, trail);
            }
            RingHop::Here => {
                let from = self.members[from as usize].node.member;
                self.tell(me, Input::Received { from, packet });
            }
            RingHop::Nowhere => {
                self.undeliverable += 1;
                if packet.header.hops_left == 0 {
                    self.breach(format!(
                        "a {:?} packet used up its hops at member {me}: {trail:?}",
                        packet.header.kind
                    ));
                }
            }
        }
    }
}
