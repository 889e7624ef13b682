//! TCP whose dials carry the mark of p2pvm's own sockets from their first packet
//! ([`crate::underlay::mark`]). A dial that cannot leave from the listening port, because that port
//! is already connected to the address, leaves from another: policy rules by port do not match it,
//! and without the mark it would take an accepted route, into the tunnel that it is to carry.
//!
//! libp2p's transport connects before it gives access to the socket, so that it is used only for
//! listening. The port of a dial is selected as libp2p does.

use crate::underlay;
use futures::{FutureExt, future::BoxFuture};
use libp2p::{
    Multiaddr,
    core::transport::{DialOpts, ListenerId, PortUse, Transport, TransportError, TransportEvent},
    multiaddr::Protocol,
    tcp::{self, tokio::TcpStream},
};
use nix::sys::socket::{setsockopt, sockopt::Ipv6V6Only};
use std::{
    collections::HashSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::Pin,
    task::{Context, Poll},
};
use tokio::net::TcpSocket;

pub struct MarkedTransport {
    inner: tcp::tokio::Transport,
    listening: HashSet<(ListenerId, SocketAddr)>,
}

/// The socket address of a TCP address that has nothing after it but a peer.
fn socket_address(address: &Multiaddr) -> Option<SocketAddr> {
    let mut parts = address.iter();
    let ip: IpAddr = match parts.next()? {
        Protocol::Ip4(ip) => ip.into(),
        Protocol::Ip6(ip) => ip.into(),
        _ => return None,
    };
    let Protocol::Tcp(port) = parts.next()? else {
        return None;
    };
    parts
        .all(|part| matches!(part, Protocol::P2p(_)))
        .then(|| SocketAddr::new(ip, port))
}

fn socket(to: &SocketAddr, from: Option<SocketAddr>) -> io::Result<TcpSocket> {
    let socket = if to.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    if to.is_ipv6() {
        setsockopt(&socket, Ipv6V6Only, &true)?;
    }
    underlay::mark(&socket);
    socket.set_nodelay(true)?;
    socket.set_reuseaddr(true)?;
    if let Some(from) = from {
        socket.set_reuseport(true)?;
        socket.bind(from)?;
    }
    Ok(socket)
}

async fn connect(to: SocketAddr, from: Option<SocketAddr>) -> io::Result<TcpStream> {
    let connected = match socket(&to, from)?.connect(to).await {
        // There is a connection with the same two ends.
        Err(e) if from.is_some() && e.kind() == io::ErrorKind::AddrNotAvailable => {
            socket(&to, None)?.connect(to).await
        }
        connected => connected,
    };
    connected.map(TcpStream)
}

impl MarkedTransport {
    /// A transport that listens and dials with these settings.
    pub fn new(config: tcp::Config) -> Self {
        Self {
            inner: tcp::tokio::Transport::new(config),
            listening: HashSet::new(),
        }
    }

    /// The local address of a dial to `to`, if it is to leave from the listening port.
    fn listening_port(&self, to: &SocketAddr) -> Option<SocketAddr> {
        let fits = |own: &SocketAddr| {
            own.is_ipv4() == to.is_ipv4() && own.ip().is_loopback() == to.ip().is_loopback()
        };
        let port = self
            .listening
            .iter()
            .map(|(_, own)| own)
            .find(|own| fits(own))?
            .port();
        let any: IpAddr = if to.is_ipv4() {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        };
        Some(SocketAddr::new(any, port))
    }
}

impl Transport for MarkedTransport {
    type Output = TcpStream;
    type Error = io::Error;
    type ListenerUpgrade = <tcp::tokio::Transport as Transport>::ListenerUpgrade;
    type Dial = BoxFuture<'static, io::Result<TcpStream>>;

    fn listen_on(
        &mut self,
        id: ListenerId,
        address: Multiaddr,
    ) -> Result<(), TransportError<io::Error>> {
        self.inner.listen_on(id, address)
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.listening.retain(|(listener, _)| *listener != id);
        self.inner.remove_listener(id)
    }

    fn dial(
        &mut self,
        address: Multiaddr,
        options: DialOpts,
    ) -> Result<Self::Dial, TransportError<io::Error>> {
        match socket_address(&address) {
            Some(to) if to.port() != 0 && !to.ip().is_unspecified() => {
                let from = self
                    .listening_port(&to)
                    .filter(|_| options.port_use == PortUse::Reuse);
                Ok(connect(to, from).boxed())
            }
            _ => Err(TransportError::MultiaddrNotSupported(address)),
        }
    }

    fn poll(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, io::Error>> {
        let Poll::Ready(event) = Pin::new(&mut self.inner).poll(context) else {
            return Poll::Pending;
        };
        match &event {
            TransportEvent::NewAddress {
                listener_id,
                listen_addr,
            } => {
                self.listening
                    .extend(socket_address(listen_addr).map(|own| (*listener_id, own)));
            }
            TransportEvent::AddressExpired {
                listener_id,
                listen_addr,
            } => {
                if let Some(own) = socket_address(listen_addr) {
                    self.listening.remove(&(*listener_id, own));
                }
            }
            TransportEvent::ListenerClosed { listener_id, .. } => self
                .listening
                .retain(|(listener, _)| listener != listener_id),
            _ => {}
        }
        Poll::Ready(event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use libp2p::core::Endpoint;
    use nix::sys::socket::{getsockopt, sockopt};
    use std::future::poll_fn;

    async fn dial(
        transport: &mut MarkedTransport,
        to: &Multiaddr,
        port_use: PortUse,
    ) -> io::Result<tokio::net::TcpStream> {
        let options = DialOpts {
            role: Endpoint::Dialer,
            port_use,
        };
        Ok(transport
            .dial(to.clone(), options)
            .map_err(io::Error::other)?
            .await?
            .0)
    }

    async fn listen(transport: &mut MarkedTransport, address: &str) -> Multiaddr {
        transport
            .listen_on(ListenerId::next(), address.parse().unwrap())
            .unwrap();
        poll_fn(|context| Pin::new(&mut *transport).poll(context))
            .await
            .into_new_address()
            .unwrap()
    }

    /// Root alone may set a mark.
    fn is_marked(stream: &tokio::net::TcpStream) -> bool {
        getsockopt(stream, sockopt::Mark).unwrap() == underlay::SOCKET_MARK
            || !nix::unistd::geteuid().is_root()
    }

    #[tokio::test]
    async fn a_dial_carries_the_mark_and_if_possible_the_listening_port() {
        for any in ["/ip4/127.0.0.1/tcp/0", "/ip6/::1/tcp/0"] {
            let mut there = MarkedTransport::new(tcp::Config::default());
            let to = listen(&mut there, any).await;
            let mut here = MarkedTransport::new(tcp::Config::default());
            let stream = dial(&mut here, &to, PortUse::Reuse).await.unwrap();
            assert!(is_marked(&stream), "one that listens nowhere");

            let own = socket_address(&listen(&mut here, any).await).unwrap();
            let first = dial(&mut here, &to, PortUse::Reuse).await.unwrap();
            assert_eq!(first.local_addr().unwrap().port(), own.port());
            // The same two ends are connected: any port does.
            let second = dial(&mut here, &to, PortUse::Reuse).await.unwrap();
            let third = dial(&mut here, &to, PortUse::New).await.unwrap();
            for stream in [&second, &third] {
                assert_ne!(stream.local_addr().unwrap().port(), own.port());
            }
            assert!([&first, &second, &third].into_iter().all(is_marked));
            assert!(first.nodelay().unwrap() && second.nodelay().unwrap());
        }
    }

    #[tokio::test]
    async fn what_is_no_plain_tcp_address_is_left_to_others() {
        let mut transport = MarkedTransport::new(tcp::Config::default());
        for other in [
            "/ip4/192.0.2.1/udp/4001/quic-v1",
            "/ip4/192.0.2.1/tcp/4001/ws",
            "/ip4/192.0.2.1/tcp/0",
            "/ip4/0.0.0.0/tcp/1",
        ] {
            let options = DialOpts {
                role: Endpoint::Dialer,
                port_use: PortUse::New,
            };
            let dialled = transport.dial(other.parse().unwrap(), options);
            assert!(
                matches!(dialled, Err(TransportError::MultiaddrNotSupported(_))),
                "{other}"
            );
        }
        let refused: Multiaddr = "/ip4/127.0.0.1/tcp/1".parse().unwrap();
        assert_eq!(
            dial(&mut transport, &refused, PortUse::New)
                .await
                .unwrap_err()
                .kind(),
            io::ErrorKind::ConnectionRefused
        );
    }
}
