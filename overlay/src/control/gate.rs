//! [`Gated`]: a behaviour that takes part in a connection only once both ends have proved
//! membership.
//!
//! Until then the connection's handler offers one protocol, the proof's, refuses every other
//! inbound stream by not offering its protocol, and holds back what the inner handlers send. The
//! proof is per connection: a peer that restarted proves itself again.

use super::{
    address::member_of,
    door::{Door, DoorError, ProvedPeer},
    inbound::Inbound,
    wire::{MEMBER_PROTOCOL, MEMBER_PROTOCOL_SIGNED},
};
use futures::{FutureExt, future::BoxFuture};
use libp2p::{
    Multiaddr, PeerId,
    core::{
        Endpoint,
        transport::PortUse,
        upgrade::{InboundUpgrade, OutboundUpgrade, UpgradeInfo},
    },
    swarm::{
        CloseConnection, ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId,
        FromSwarm, NetworkBehaviour, Stream, StreamUpgradeError, SubstreamProtocol,
        THandlerInEvent, THandlerOutEvent, ToSwarm,
        handler::{
            ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound,
            InboundUpgradeSend, ListenUpgradeError, OutboundUpgradeSend, UpgradeInfoSend,
        },
    },
};
use std::{
    collections::VecDeque,
    fmt,
    future::{Ready, ready},
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

/// How long before a connection without proof is closed. Reason: an admission may ask other
/// members.
const PROOF_TIMEOUT: Duration = Duration::from_secs(20);

/// A version of the proof's protocol. A dialler proposes one at a time, which costs no round trip.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProofVersion {
    /// Members prove themselves by it; every release reads it.
    First,
    /// A joiner signs its request. Members of the first release do not offer it.
    Signed,
}

/// An event of a [`Gated`] behaviour.
#[derive(Debug)]
pub enum GateEvent<E> {
    /// Both ends of a connection are members now.
    Proved {
        peer: PeerId,
        connection: ConnectionId,
        proved: Box<ProvedPeer>,
    },
    /// A connection was refused; it is being closed.
    Failed { peer: PeerId, error: DoorError },
    /// An event of the inner behaviour.
    Inner(E),
}

/// A behaviour behind a door.
pub struct Gated<B: NetworkBehaviour> {
    /// The behaviour behind the gate.
    pub inner: B,
    door: Arc<Door>,
    inbound: Inbound,
    events: VecDeque<ToSwarm<GateEvent<B::ToSwarm>, THandlerInEvent<B>>>,
}

impl<B: NetworkBehaviour> Gated<B> {
    /// Puts `inner` behind `door`.
    pub fn new(inner: B, door: Arc<Door>) -> Self {
        Self {
            inner,
            door,
            inbound: Inbound::default(),
            events: VecDeque::new(),
        }
    }

    fn handler(
        &self,
        inner: B::ConnectionHandler,
        peer: PeerId,
        knocks: bool,
    ) -> GatedHandler<B::ConnectionHandler> {
        let version = match self.door.is_joining() {
            true => ProofVersion::Signed,
            false => ProofVersion::First,
        };
        GatedHandler {
            inner,
            door: self.door.clone(),
            peer,
            open: false,
            knock_due: knocks,
            knocks,
            version,
            exchange: None,
            timeout: Box::pin(tokio::time::sleep(PROOF_TIMEOUT)),
            failed: false,
        }
    }
}

impl<B: NetworkBehaviour> NetworkBehaviour for Gated<B> {
    type ConnectionHandler = GatedHandler<B::ConnectionHandler>;
    type ToSwarm = GateEvent<B::ToSwarm>;

    fn handle_pending_inbound_connection(
        &mut self,
        id: ConnectionId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        self.inbound.begin(id, remote)?;
        self.inner
            .handle_pending_inbound_connection(id, local, remote)
    }

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<Self::ConnectionHandler, ConnectionDenied> {
        self.inbound.established(id, peer)?;
        let inner = self
            .inner
            .handle_established_inbound_connection(id, peer, local, remote)?;
        Ok(self.handler(inner, peer, false))
    }

    fn handle_pending_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: Option<PeerId>,
        addresses: &[Multiaddr],
        role: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        self.inner
            .handle_pending_outbound_connection(id, peer, addresses, role)
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        role: Endpoint,
        port_use: PortUse,
    ) -> Result<Self::ConnectionHandler, ConnectionDenied> {
        let inner = self
            .inner
            .handle_established_outbound_connection(id, peer, address, role, port_use)?;
        // In a simultaneous open both ends dial; the one in the listener's role answers.
        Ok(self.handler(inner, peer, role == Endpoint::Dialer))
    }

    fn on_swarm_event(&mut self, event: FromSwarm) {
        match &event {
            FromSwarm::ListenFailure(failure) => self.inbound.end(failure.connection_id),
            FromSwarm::ConnectionClosed(closed) => self.inbound.end(closed.connection_id),
            _ => {}
        }
        self.inner.on_swarm_event(event);
    }

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        match event {
            FromHandler::Inner(event) => self
                .inner
                .on_connection_handler_event(peer, connection, event),
            FromHandler::Proved(proved) => {
                self.inbound.proved(connection);
                self.events
                    .push_back(ToSwarm::GenerateEvent(GateEvent::Proved {
                        peer,
                        connection,
                        proved,
                    }))
            }
            FromHandler::Failed(error) => {
                self.events
                    .push_back(ToSwarm::GenerateEvent(GateEvent::Failed { peer, error }));
                self.events.push_back(ToSwarm::CloseConnection {
                    peer_id: peer,
                    connection: CloseConnection::One(connection),
                });
            }
        }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        match self.events.pop_front() {
            Some(event) => Poll::Ready(event),
            None => self
                .inner
                .poll(cx)
                .map(|event| event.map_out(GateEvent::Inner)),
        }
    }
}

/// An event of a [`GatedHandler`].
pub enum FromHandler<E> {
    Proved(Box<ProvedPeer>),
    Failed(DoorError),
    Inner(E),
}

impl<E: fmt::Debug> fmt::Debug for FromHandler<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Proved(proved) => write!(f, "Proved({:?})", proved.contact.member()),
            Self::Failed(error) => write!(f, "Failed({})", p2pvm_host::chain(error)),
            Self::Inner(event) => event.fmt(f),
        }
    }
}

/// The handler of one connection.
pub struct GatedHandler<H> {
    inner: H,
    door: Arc<Door>,
    peer: PeerId,
    open: bool,
    knocks: bool,
    knock_due: bool,
    /// By which version this end knocks.
    version: ProofVersion,
    exchange: Option<BoxFuture<'static, Result<ProvedPeer, DoorError>>>,
    timeout: Pin<Box<tokio::time::Sleep>>,
    failed: bool,
}

impl<H> GatedHandler<H> {
    fn begin(&mut self, mut stream: Stream) {
        // One exchange a connection, started by the dialler: a second stream is dropped.
        if self.open || self.failed || self.exchange.is_some() {
            return;
        }
        let (door, peer, knocks) = (self.door.clone(), self.peer, self.knocks);
        let reads_signed = self.version == ProofVersion::Signed;
        self.exchange = Some(
            async move {
                let peer = member_of(&peer)
                    .ok_or_else(|| io::Error::other("the peer's key is not ed25519"))?;
                if knocks {
                    door.knock(peer, reads_signed, &mut stream).await
                } else {
                    door.answer(peer, &mut stream).await
                }
            }
            .boxed(),
        );
    }
}

type Out<H> = GateOutbound<<H as ConnectionHandler>::OutboundProtocol>;
type OutInfo<H> = Option<<H as ConnectionHandler>::OutboundOpenInfo>;
type In<H> = GateInbound<<H as ConnectionHandler>::InboundProtocol>;
type InInfo<H> = Option<<H as ConnectionHandler>::InboundOpenInfo>;

impl<H: ConnectionHandler> ConnectionHandler for GatedHandler<H> {
    type FromBehaviour = H::FromBehaviour;
    type ToBehaviour = FromHandler<H::ToBehaviour>;
    type InboundProtocol = In<H>;
    type OutboundProtocol = Out<H>;
    type InboundOpenInfo = InInfo<H>;
    type OutboundOpenInfo = OutInfo<H>;

    fn listen_protocol(&self) -> SubstreamProtocol<In<H>, InInfo<H>> {
        if self.open {
            self.inner
                .listen_protocol()
                .map_upgrade(GateInbound::open)
                .map_info(Some)
        } else {
            SubstreamProtocol::new(GateInbound::closed(&self.door), None)
        }
    }

    fn connection_keep_alive(&self) -> bool {
        true // The driver decides which connections end.
    }

    fn on_behaviour_event(&mut self, event: Self::FromBehaviour) {
        self.inner.on_behaviour_event(event);
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Out<H>, OutInfo<H>, Self::ToBehaviour>> {
        if !self.open && !self.failed {
            if std::mem::take(&mut self.knock_due) {
                let protocol = SubstreamProtocol::new(GateOutbound::Member(self.version), None);
                return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol });
            }
            let outcome = match self.exchange.as_mut().map(|e| e.poll_unpin(cx)) {
                Some(Poll::Ready(outcome)) => Some(outcome),
                _ => self
                    .timeout
                    .as_mut()
                    .poll(cx)
                    .is_ready()
                    .then_some(Err(DoorError::TimedOut)),
            };
            let event = match outcome {
                None => return Poll::Pending,
                // The other may be of the first release: what it says to the name of a protocol
                // that it does not know breaks the stream.
                Some(Err(DoorError::Io(_))) if self.version == ProofVersion::Signed => {
                    self.version = ProofVersion::First;
                    self.exchange = None;
                    let protocol = SubstreamProtocol::new(GateOutbound::Member(self.version), None);
                    let request = ConnectionHandlerEvent::OutboundSubstreamRequest { protocol };
                    return Poll::Ready(request);
                }
                Some(Ok(proved)) => {
                    self.open = true;
                    FromHandler::Proved(Box::new(proved))
                }
                Some(Err(error)) => {
                    self.failed = true;
                    FromHandler::Failed(error)
                }
            };
            self.exchange = None;
            return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(event));
        }
        if self.failed {
            return Poll::Pending;
        }
        self.inner.poll(cx).map(|event| {
            event
                .map_custom(FromHandler::Inner)
                .map_protocol(GateOutbound::Inner)
                .map_outbound_open_info(Some)
        })
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Option<Self::ToBehaviour>> {
        if self.open {
            self.inner
                .poll_close(cx)
                .map(|event| event.map(FromHandler::Inner))
        } else {
            Poll::Ready(None)
        }
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<In<H>, Out<H>, InInfo<H>, OutInfo<H>>,
    ) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound { protocol, info }) => {
                match (protocol, info) {
                    (GateStream::Member(stream), _) if !self.knocks => self.begin(stream),
                    (GateStream::Inner(protocol), Some(info)) => {
                        let inner = FullyNegotiatedInbound { protocol, info };
                        self.inner
                            .on_connection_event(ConnectionEvent::FullyNegotiatedInbound(inner));
                    }
                    _ => {}
                }
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound {
                protocol,
                info,
            }) => match (protocol, info) {
                (GateStream::Member(stream), _) => self.begin(stream),
                (GateStream::Inner(protocol), Some(info)) => {
                    self.inner
                        .on_connection_event(ConnectionEvent::FullyNegotiatedOutbound(
                            FullyNegotiatedOutbound { protocol, info },
                        ));
                }
                _ => {}
            },
            ConnectionEvent::DialUpgradeError(DialUpgradeError { info, error }) => match info {
                Some(info) => {
                    let error = inner_error(error.map_upgrade_err(|passed| match passed {
                        GateStream::Inner(error) => Some(error),
                        GateStream::Member(never) => match never {},
                    }));
                    self.inner
                        .on_connection_event(ConnectionEvent::DialUpgradeError(DialUpgradeError {
                            info,
                            error,
                        }));
                }
                None => {
                    let reason = format!("the other end does not speak {MEMBER_PROTOCOL}");
                    let failure = DoorError::Io(io::Error::other(reason));
                    self.exchange = Some(ready(Err(failure)).boxed());
                }
            },
            ConnectionEvent::ListenUpgradeError(ListenUpgradeError {
                info: Some(info),
                error: GateStream::Inner(error),
            }) => {
                self.inner
                    .on_connection_event(ConnectionEvent::ListenUpgradeError(ListenUpgradeError {
                        info,
                        error,
                    }));
            }
            ConnectionEvent::AddressChange(change) => self
                .inner
                .on_connection_event(ConnectionEvent::AddressChange(change)),
            ConnectionEvent::LocalProtocolsChange(change) => self
                .inner
                .on_connection_event(ConnectionEvent::LocalProtocolsChange(change)),
            ConnectionEvent::RemoteProtocolsChange(change) => {
                self.inner
                    .on_connection_event(ConnectionEvent::RemoteProtocolsChange(change));
            }
            _ => {}
        }
    }
}

/// The error of an inner protocol, if it is one.
fn inner_error<E>(error: StreamUpgradeError<Option<E>>) -> StreamUpgradeError<E> {
    match error {
        StreamUpgradeError::Timeout => StreamUpgradeError::Timeout,
        StreamUpgradeError::Apply(Some(error)) => StreamUpgradeError::Apply(error),
        StreamUpgradeError::Apply(None) | StreamUpgradeError::NegotiationFailed => {
            StreamUpgradeError::NegotiationFailed
        }
        StreamUpgradeError::Io(e) => StreamUpgradeError::Io(e),
    }
}

/// A protocol's name, the gate's or an inner one.
#[derive(Clone)]
pub enum Name<N> {
    Member(ProofVersion),
    Inner(N),
}

impl<N: AsRef<str>> AsRef<str> for Name<N> {
    fn as_ref(&self) -> &str {
        match self {
            Self::Member(ProofVersion::First) => MEMBER_PROTOCOL,
            Self::Member(ProofVersion::Signed) => MEMBER_PROTOCOL_SIGNED,
            Self::Inner(name) => name.as_ref(),
        }
    }
}

/// A negotiated stream's outcome, the gate's or an inner one.
#[derive(Debug)]
pub enum GateStream<M, I> {
    Member(M),
    Inner(I),
}

/// What is offered to inbound streams: the proof always, the rest once the gate is open.
pub struct GateInbound<U> {
    inner: Option<U>,
    reads_signed: bool,
}

impl<U> GateInbound<U> {
    /// Before the proof.
    fn closed(door: &Door) -> Self {
        Self {
            inner: None,
            reads_signed: door.is_current(),
        }
    }

    /// After it.
    fn open(inner: U) -> Self {
        Self {
            inner: Some(inner),
            reads_signed: false,
        }
    }
}

impl<U: UpgradeInfoSend> UpgradeInfo for GateInbound<U> {
    type Info = Name<U::Info>;
    type InfoIter = Vec<Self::Info>;
    fn protocol_info(&self) -> Self::InfoIter {
        let inner = self
            .inner
            .iter()
            .flat_map(|u| u.protocol_info())
            .map(Name::Inner);
        let signed = self.reads_signed.then_some(ProofVersion::Signed);
        let versions = std::iter::once(ProofVersion::First).chain(signed);
        versions.map(Name::Member).chain(inner).collect()
    }
}

type Outcome<T, E> = Result<GateStream<Stream, T>, GateStream<std::convert::Infallible, E>>;

impl<U: InboundUpgradeSend> InboundUpgrade<Stream> for GateInbound<U> {
    type Output = GateStream<Stream, U::Output>;
    type Error = GateStream<std::convert::Infallible, U::Error>;
    type Future = futures::future::Either<
        Ready<Outcome<U::Output, U::Error>>,
        BoxFuture<'static, Outcome<U::Output, U::Error>>,
    >;
    fn upgrade_inbound(self, stream: Stream, name: Self::Info) -> Self::Future {
        match (self.inner, name) {
            (Some(inner), Name::Inner(name)) => inner
                .upgrade_inbound(stream, name)
                .map(|r| r.map(GateStream::Inner).map_err(GateStream::Inner))
                .boxed()
                .right_future(),
            // Without an inner upgrade no inner name is offered.
            _ => ready(Ok(GateStream::Member(stream))).left_future(),
        }
    }
}

/// The purpose of an outbound stream.
pub enum GateOutbound<U> {
    Member(ProofVersion),
    Inner(U),
}

impl<U: UpgradeInfoSend> UpgradeInfo for GateOutbound<U> {
    type Info = Name<U::Info>;
    type InfoIter = Vec<Self::Info>;
    fn protocol_info(&self) -> Self::InfoIter {
        match self {
            Self::Member(version) => vec![Name::Member(*version)],
            Self::Inner(inner) => inner.protocol_info().map(Name::Inner).collect(),
        }
    }
}

impl<U: OutboundUpgradeSend> OutboundUpgrade<Stream> for GateOutbound<U> {
    type Output = GateStream<Stream, U::Output>;
    type Error = GateStream<std::convert::Infallible, U::Error>;
    type Future = futures::future::Either<
        Ready<Outcome<U::Output, U::Error>>,
        BoxFuture<'static, Outcome<U::Output, U::Error>>,
    >;
    fn upgrade_outbound(self, stream: Stream, name: Self::Info) -> Self::Future {
        match (self, name) {
            (Self::Inner(inner), Name::Inner(name)) => inner
                .upgrade_outbound(stream, name)
                .map(|r| r.map(GateStream::Inner).map_err(GateStream::Inner))
                .boxed()
                .right_future(),
            _ => ready(Ok(GateStream::Member(stream))).left_future(),
        }
    }
}
