//! Changes of the routes and of where guests are, with the packets that waited for them.

use super::{
    core::Inner,
    guest::port::Port,
    io::udp::Batch,
    path::peer::Peer,
    routes::{Route, Routes},
    scratch::Scratch,
    types::PlaneEvent,
};
use crate::lock;
use crate::{
    id::{Epoch, MemberId},
    link::frame::{Frame, wire_epoch},
};
use std::{collections::HashMap, net::IpAddr, sync::Arc, time::Instant};

impl Inner {
    pub fn is_host(&self, addr: &IpAddr) -> bool {
        self.tables
            .hosts
            .load()
            .iter()
            .any(|(host, _)| host == addr)
    }

    /// The port behind an address, unless its guest has left and packets have to follow it.
    pub fn port_of(&self, addr: &IpAddr) -> Option<Arc<Port>> {
        let port = self.tables.ports.load().by_addr(addr).cloned()?;
        (!self.tables.forwards.load().contains_key(addr)).then_some(port)
    }

    pub fn set_route(&self, addr: IpAddr, route: Route) {
        if self.tables.routes.load().would_change(&addr, &route) {
            self.tables.routes.rcu(|routes| {
                let mut routes = Routes::clone(routes);
                routes.set(addr, route);
                routes
            });
        }
        self.release_waiting(addr);
    }

    /// Sets a route whatever epoch is known.
    pub fn replace_route(&self, addr: IpAddr, route: Route) {
        if self.tables.routes.load().holder(&addr) != Some(&route) {
            self.tables.routes.rcu(|routes| {
                let mut routes = Routes::clone(routes);
                routes.replace(addr, route);
                routes
            });
        }
        self.set_route(addr, route);
    }

    /// Sends the packets that waited for the route of an address.
    fn release_waiting(&self, addr: IpAddr) {
        let now = Instant::now();
        let outgoing = lock(&self.waiting.unresolved).take(now, &addr);
        let incoming = lock(&self.waiting.unknown_sources).take(now, &addr);
        if outgoing.is_empty() && incoming.is_empty() {
            return;
        }
        // Not the streams' shared scratch: the caller may be a stream's reader that holds it.
        let mut scratch = Scratch::default();
        for (from_epoch, packet) in outgoing {
            self.carry_one(&mut scratch, from_epoch, &packet, now);
        }
        for held in incoming {
            if let Some(peer) = self.tables.peers.load().get(&held.from) {
                self.ip_in(
                    &mut scratch,
                    peer,
                    Frame::Ip {
                        from_epoch: held.from_epoch,
                        to_epoch: held.to_epoch,
                        passed_on: false,
                    },
                    &held.packet,
                    now,
                );
            }
        }
        scratch.flush(self);
    }

    pub fn set_forward(&self, addr: IpAddr, to: Option<Route>) {
        self.tables.forwards.rcu(|forwards| {
            let mut forwards = HashMap::clone(forwards);
            match to {
                Some(route) => forwards.insert(addr, route),
                None => forwards.remove(&addr),
            };
            forwards
        });
        if let Some(route) = to {
            self.set_route(addr, route);
            self.pass_on_held(&addr, route);
        }
    }

    /// Sends packets that were held for a guest on to its new host.
    fn pass_on_held(&self, addr: &IpAddr, route: Route) {
        let Some(port) = self.tables.ports.load().by_addr(addr).cloned() else {
            return;
        };
        let (next, now) = (self.peer(route.member), Instant::now());
        let mut out = Batch::default();
        for packet in port.holding.release(true) {
            let frame = Frame::Ip {
                from_epoch: 0,
                to_epoch: wire_epoch(route.epoch),
                passed_on: true,
            };
            self.send_frame(&mut out, &next, frame, &packet, now);
        }
        out.flush(&self.udp);
    }

    /// Takes a hint that `addr` has moved. Only the member that held it so far is believed, and
    /// only for the next epochs.
    pub fn moved(&self, from: &Peer, addr: IpAddr, member: MemberId, epoch: Epoch) {
        let believed = self
            .tables
            .routes
            .load()
            .holder(&addr)
            .is_some_and(|known| known.member == from.member && epoch.follows(known.epoch));
        if believed {
            let route = Route { member, epoch };
            self.set_route(addr, route);
            self.tell(PlaneEvent::MovedHint { addr, route });
        }
    }
}
