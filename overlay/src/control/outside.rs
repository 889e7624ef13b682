//! A transport that keeps the control plane out of the tunnels of this machine: it dials no address
//! behind one, refuses connections from there, and does not publish listening addresses there.
//! Names are resolved above it, so that this holds for all addresses, from invites, contacts or
//! hole punching.
//!
//! A dial by QUIC leaves from the listening port, which the policy rules match; only a check
//! whether a stranger's packets come in leaves from another. That port can neither be matched nor
//! marked (the QUIC library makes the socket), so no such dial is made if a route leads it into a
//! tunnel.

use super::address::ip_of;
use crate::underlay::Underlay;
use libp2p::{
    Multiaddr, PeerId,
    core::{
        muxing::StreamMuxerBox,
        transport::{
            Boxed, DialOpts, ListenerId, PortUse, Transport, TransportError, TransportEvent,
        },
    },
};
use nix::net::if_::if_indextoname;
use p2pvm_host::device;
use std::{
    collections::HashSet,
    io,
    net::IpAddr,
    pin::Pin,
    task::{Context, Poll},
};

type Connection = (PeerId, StreamMuxerBox);

pub struct OutsideTransport {
    inner: Boxed<Connection>,
    underlay: Underlay,
    /// Addresses that were not published.
    hidden: HashSet<(ListenerId, Multiaddr)>,
    /// Whether dials from other ports than the listening one carry no mark.
    unmarked: bool,
    /// Where it listens.
    listening: HashSet<(ListenerId, IpAddr)>,
}

impl OutsideTransport {
    /// Keeps `inner` out of the tunnels that `underlay` knows.
    pub fn new(inner: Boxed<Connection>, underlay: Underlay) -> Self {
        Self {
            inner,
            underlay,
            hidden: HashSet::new(),
            unmarked: false,
            listening: HashSet::new(),
        }
    }

    /// Marks a transport whose sockets carry no mark.
    pub fn unmarked(self) -> Self {
        Self {
            unmarked: true,
            ..self
        }
    }

    /// Whether a dial would take an accepted route.
    fn takes_a_route_inside(&self, address: &Multiaddr, options: &DialOpts) -> bool {
        let Some(ip) = ip_of(address).filter(|_| self.unmarked) else {
            return false;
        };
        let listens = options.port_use == PortUse::Reuse
            && self
                .listening
                .iter()
                .any(|(_, own)| own.is_ipv4() == ip.is_ipv4());
        !listens
            && device::way_to(&ip).is_ok_and(|way| way.is_some_and(|index| self.is_tunnel(index)))
    }

    fn is_tunnel(&self, index: u32) -> bool {
        if_indextoname(index)
            .is_ok_and(|name| self.underlay.view().is_ours(&name.to_string_lossy()))
    }

    fn is_inside(&self, address: &Multiaddr) -> bool {
        ip_of(address).is_some_and(|ip| self.underlay.is_inside(&ip))
    }
}

impl Transport for OutsideTransport {
    type Output = Connection;
    type Error = io::Error;
    type ListenerUpgrade = <Boxed<Connection> as Transport>::ListenerUpgrade;
    type Dial = <Boxed<Connection> as Transport>::Dial;

    fn listen_on(
        &mut self,
        id: ListenerId,
        address: Multiaddr,
    ) -> Result<(), TransportError<io::Error>> {
        self.inner.listen_on(id, address)
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.hidden.retain(|(listener, _)| *listener != id);
        self.listening.retain(|(listener, _)| *listener != id);
        self.inner.remove_listener(id)
    }

    fn dial(
        &mut self,
        address: Multiaddr,
        options: DialOpts,
    ) -> Result<Self::Dial, TransportError<io::Error>> {
        if self.is_inside(&address) {
            return Err(TransportError::Other(io::Error::other(
                "it lies behind a p2pvm network of this machine",
            )));
        }
        if self.takes_a_route_inside(&address, &options) {
            return Err(TransportError::Other(io::Error::other(
                "a route leads there through a p2pvm network of this machine",
            )));
        }
        self.inner.dial(address, options)
    }

    fn poll(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, io::Error>> {
        loop {
            let Poll::Ready(event) = Pin::new(&mut self.inner).poll(context) else {
                return Poll::Pending;
            };
            match &event {
                TransportEvent::NewAddress {
                    listener_id,
                    listen_addr,
                } => {
                    self.listening
                        .extend(ip_of(listen_addr).map(|ip| (*listener_id, ip)));
                    // It may be on an interface that was only just made.
                    self.underlay.renew();
                    if self.is_inside(listen_addr) {
                        self.hidden.insert((*listener_id, listen_addr.clone()));
                        continue;
                    }
                }
                TransportEvent::AddressExpired {
                    listener_id,
                    listen_addr,
                } if self.hidden.remove(&(*listener_id, listen_addr.clone())) => {
                    continue;
                }
                // Dropping it ends it.
                TransportEvent::Incoming { send_back_addr, .. }
                    if self.is_inside(send_back_addr) =>
                {
                    continue;
                }
                _ => {}
            }
            return Poll::Ready(event);
        }
    }
}
