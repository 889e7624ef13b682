//! This host's addresses: its own, those that others see, and what it does when they change.

use crate::{plane::handle::Plane, stun::TransactionId};
use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

impl Plane {
    /// The addresses of this machine's interfaces from which datagrams can leave.
    pub(crate) fn local_addresses(&self) -> Vec<IpAddr> {
        self.inner().underlay.view().local.clone()
    }

    /// Whether an address leads through a tunnel of this machine.
    pub(crate) fn is_inside_tunnel(&self, ip: &IpAddr) -> bool {
        self.inner().underlay.is_inside(ip)
    }

    /// Sends one datagram that belongs to no link.
    pub(crate) fn send_datagram(&self, to: SocketAddr, datagram: &[u8]) {
        self.inner().udp.send(to, datagram);
    }

    /// Asks the STUN server at `server` for the address that it sees. `None` on timeout, and for a
    /// server inside a tunnel of this machine.
    pub(crate) async fn stun(&self, server: SocketAddr, timeout: Duration) -> Option<SocketAddr> {
        self.inner().stun(server, timeout).await
    }

    /// As [`Plane::stun`], from the second port. Opens another second port if no link uses the
    /// current one.
    pub(crate) async fn stun_from_second_port(
        &self,
        server: SocketAddr,
        timeout: Duration,
    ) -> Option<SocketAddr> {
        self.inner().stun_from_second_port(server, timeout).await
    }

    /// Waits for a STUN answer that some member was asked to send unrequested, and returns the
    /// address in it.
    pub(crate) async fn hear_stun(
        &self,
        id: TransactionId,
        timeout: Duration,
    ) -> Option<SocketAddr> {
        self.inner().hear_stun(id, timeout).await
    }

    /// The second port, while some address is written to from it.
    pub(crate) fn second_port(&self) -> Option<u16> {
        self.inner().second_port()
    }

    /// Whether some address is written to from the second port.
    pub(crate) fn is_second_port_used(&self) -> bool {
        self.inner().udp.second_port().is_used()
    }

    /// Whether datagrams to this address leave from the second port.
    pub(crate) fn is_sent_from_second_port(&self, to: &SocketAddr) -> bool {
        self.inner().udp.second_port().sends_to(to)
    }

    /// Sends to these addresses from the second port, which is opened if need be.
    ///
    /// # Errors
    /// What the kernel says where the port or its thread cannot be had.
    pub(crate) fn move_to_second_port(&self, addresses: &[SocketAddr]) -> io::Result<()> {
        self.inner().move_to_second_port(addresses)
    }

    /// Sends to these addresses from the first port again.
    pub(crate) fn move_to_first_port(&self, addresses: &[SocketAddr]) {
        self.inner().move_to_first_port(addresses);
    }

    /// Sends to all public addresses of members from the second port, keeps the first one silent
    /// and probes every path again.
    pub(crate) fn move_all_to_second_port(&self) {
        self.inner().move_all_to_second_port();
    }

    /// Whether nothing may leave from the first port, so that routers forget its flows.
    pub(crate) fn silence_first_port(&self, silent: bool) {
        self.inner().udp.second_port().silence_first(silent);
    }

    /// Probes every known path of every link again and tells the connector: others see this host
    /// at another address.
    pub(crate) fn mapping_changed(&self) {
        self.inner().roamed("mapping");
    }

    /// Waits until this host has moved: when, and why. Of several moves meanwhile only the last is
    /// reported.
    pub(crate) async fn next_move(&self) -> (Instant, &'static str) {
        let moves = &self.inner().moves;
        loop {
            moves.changed().await;
            if let Some(moved) = moves.last() {
                return moved;
            }
        }
    }

    /// Whether this host has moved again after `since`.
    pub(crate) fn has_moved_since(&self, since: Instant) -> bool {
        self.inner().moves.last().is_some_and(|(at, _)| at > since)
    }
}
