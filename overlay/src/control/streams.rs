//! Opens and accepts raw streams on a chosen connection, where `libp2p-stream` would pick one at
//! random: a member may be connected directly and through a relay at once.
//!
//! Each connection has a token that its streams hold a clone of, so that a connection in use is
//! never closed as superfluous.

use super::wire::STREAM_PROTOCOL;
use libp2p::{
    Multiaddr, PeerId, StreamProtocol,
    core::{Endpoint, transport::PortUse, upgrade::ReadyUpgrade},
    swarm::{
        ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, FromSwarm,
        NetworkBehaviour, NotifyHandler, Stream, StreamUpgradeError, SubstreamProtocol,
        THandlerInEvent, THandlerOutEvent, ToSwarm,
        handler::{
            ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound,
        },
    },
};
use std::{
    collections::{HashMap, VecDeque},
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll, Waker},
};
use tokio::sync::{mpsc, oneshot};

/// A raw stream and the token of its connection.
pub struct RawStream {
    pub stream: Stream,
    pub token: Arc<()>,
}

/// Why no stream came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoStream {
    /// The other end does not speak the protocol (yet).
    Unsupported,
    /// The connection broke; nothing was sent on it.
    Broken,
    /// No connection could be made.
    Unreachable,
}

/// The caller that waits for a stream.
pub type Waiter = oneshot::Sender<Result<RawStream, NoStream>>;

/// The behaviour that opens and accepts streams.
pub struct Streams {
    incoming: mpsc::Sender<(PeerId, RawStream)>,
    tokens: HashMap<ConnectionId, Arc<()>>,
    events: VecDeque<(PeerId, ConnectionId, Waiter)>,
    waker: Option<Waker>,
}

impl Streams {
    /// Streams opened by others go to `incoming`; if that is full they are dropped.
    pub fn new(incoming: mpsc::Sender<(PeerId, RawStream)>) -> Self {
        Self {
            incoming,
            tokens: HashMap::new(),
            events: VecDeque::new(),
            waker: None,
        }
    }

    /// Opens a stream on one connection.
    pub fn open(&mut self, peer: PeerId, connection: ConnectionId, waiter: Waiter) {
        self.events.push_back((peer, connection, waiter));
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// How many streams a connection carries now, those being opened included.
    pub fn in_use(&self, connection: ConnectionId) -> usize {
        // One clone is here and one in the handler.
        self.tokens
            .get(&connection)
            .map_or(0, |token| Arc::strong_count(token).saturating_sub(2))
    }

    fn handler(&mut self, peer: PeerId, connection: ConnectionId) -> Handler {
        let token = Arc::new(());
        self.tokens.insert(connection, token.clone());
        Handler {
            peer,
            token,
            incoming: self.incoming.clone(),
            wanted: VecDeque::new(),
        }
    }
}

impl NetworkBehaviour for Streams {
    type ConnectionHandler = Handler;
    type ToSwarm = Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<Handler, ConnectionDenied> {
        Ok(self.handler(peer, id))
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<Handler, ConnectionDenied> {
        Ok(self.handler(peer, id))
    }

    fn on_swarm_event(&mut self, event: FromSwarm) {
        match event {
            FromSwarm::ConnectionClosed(closed) => drop(self.tokens.remove(&closed.connection_id)),
            FromSwarm::DialFailure(failure) => drop(self.tokens.remove(&failure.connection_id)),
            FromSwarm::ListenFailure(failure) => drop(self.tokens.remove(&failure.connection_id)),
            _ => {}
        }
    }

    fn on_connection_handler_event(
        &mut self,
        _: PeerId,
        _: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        match event {}
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Infallible, THandlerInEvent<Self>>> {
        match self.events.pop_front() {
            Some((peer_id, connection, waiter)) => {
                let event = RequestedStream(
                    waiter,
                    self.tokens.get(&connection).cloned().unwrap_or_default(),
                );
                Poll::Ready(ToSwarm::NotifyHandler {
                    peer_id,
                    handler: NotifyHandler::One(connection),
                    event,
                })
            }
            None => {
                self.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

/// A requested stream.
#[derive(Debug)]
pub struct RequestedStream(Waiter, Arc<()>);

impl std::fmt::Debug for RawStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RawStream")
    }
}

/// The handler of one connection.
pub struct Handler {
    peer: PeerId,
    token: Arc<()>,
    incoming: mpsc::Sender<(PeerId, RawStream)>,
    wanted: VecDeque<RequestedStream>,
}

impl ConnectionHandler for Handler {
    type FromBehaviour = RequestedStream;
    type ToBehaviour = Infallible;
    type InboundProtocol = ReadyUpgrade<StreamProtocol>;
    type OutboundProtocol = ReadyUpgrade<StreamProtocol>;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = RequestedStream;

    fn listen_protocol(&self) -> SubstreamProtocol<Self::InboundProtocol> {
        SubstreamProtocol::new(ReadyUpgrade::new(StreamProtocol::new(STREAM_PROTOCOL)), ())
    }

    fn on_behaviour_event(&mut self, wanted: RequestedStream) {
        self.wanted.push_back(wanted);
    }

    fn poll(
        &mut self,
        _: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Self::OutboundProtocol, RequestedStream, Infallible>> {
        match self.wanted.pop_front() {
            Some(wanted) => {
                let protocol = SubstreamProtocol::new(
                    ReadyUpgrade::new(StreamProtocol::new(STREAM_PROTOCOL)),
                    wanted,
                );
                Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol })
            }
            None => Poll::Pending,
        }
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<Self::InboundProtocol, Self::OutboundProtocol, (), RequestedStream>,
    ) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound {
                protocol: stream,
                ..
            }) => {
                let handed_on = self.incoming.try_send((
                    self.peer,
                    RawStream {
                        stream,
                        token: self.token.clone(),
                    },
                ));
                if handed_on.is_err() {
                    tracing::warn!(peer = %self.peer, "a stream was turned away: too many are \
                        waiting");
                }
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound {
                protocol: stream,
                info: RequestedStream(waiter, token),
            }) => {
                let _ = waiter.send(Ok(RawStream { stream, token }));
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError {
                info: RequestedStream(waiter, _),
                error,
            }) => {
                let why = match error {
                    StreamUpgradeError::NegotiationFailed => NoStream::Unsupported,
                    _ => NoStream::Broken,
                };
                let _ = waiter.send(Err(why));
            }
            _ => {}
        }
    }
}
