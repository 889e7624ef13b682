//! The control plane as the crates above use it, as traits: lookups, requests and streams between
//! members whose membership has been proved. `control::Control` implements them over libp2p;
//! [`memory::MemoryNet`] implements them inside one process for tests and simulations.
//!
//! A service is a short name ("dht", "chunk"): one handler a name answers its requests, one
//! acceptor a name takes its streams. Bodies are bounded by [`MAX_BODY_BYTES`]; larger content goes
//! by stream.

use crate::{
    id::{MemberId, RingAddr},
    identity::LinkKey,
};
use async_trait::async_trait;
use std::{sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
};

pub mod memory;

/// The largest request or response body: a chunk of 1 MiB and its frame fit.
pub const MAX_BODY_BYTES: usize = 2 << 20;

/// Why a lookup, a request or a stream failed.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum FabricError {
    /// No connection to the member could be made, directly or through a relay.
    #[error("{} cannot be reached", .0.short())]
    Unreachable(MemberId),
    /// The member was asked and did not answer in time.
    #[error("{} did not answer within {:?}", .0.short(), .1)]
    TimedOut(MemberId, Duration),
    /// The member answered that it will not or cannot, with its reason.
    #[error("{} refused: {}", .0.short(), .1)]
    Refused(MemberId, String),
    /// The service has no handler or acceptor there.
    #[error("{} does not offer '{}'", .0.short(), .1)]
    NoSuchService(MemberId, String),
    /// It is not certain which members are closest to a place.
    #[error("the members closest to a place cannot be told")]
    NotFound(#[source] crate::lookup::LookupError),
    /// The body is larger than [`MAX_BODY_BYTES`].
    #[error("a body of {0} bytes is too large for one request")]
    TooLarge(usize),
    /// This node is shutting down.
    #[error("the node is shutting down")]
    Closed,
}

/// The result of [`Fabric::sound`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// It answers.
    Answers,
    /// It did not answer, and another connection made beside it has replaced it.
    Replaced,
    /// Nothing answers, or the state is unknown.
    Silent,
}

/// A byte stream to another member, encrypted and authenticated by the control plane.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A boxed [`Stream`].
pub type BoxStream = Box<dyn Stream>;

/// Answers one service's requests. An `Err` goes to the caller as it is, as
/// [`FabricError::Refused`]: a sentence with its causes.
#[async_trait]
pub trait Serve: Send + Sync + 'static {
    /// Answers `body`, sent by the proved member `from`.
    async fn serve(&self, from: MemberId, body: Vec<u8>) -> Result<Vec<u8>, String>;

    /// Whether other members' work stands still until it is answered: then a flood of requests to
    /// other services does not delay it.
    fn is_vital(&self) -> bool {
        false
    }
}

/// The interface of the control plane for the crates above.
#[async_trait]
pub trait Fabric: Send + Sync + 'static {
    /// This node.
    fn me(&self) -> MemberId;

    /// The other members with a live control connection now, in no order.
    fn connected(&self) -> Vec<MemberId>;

    /// A member's link key, once its certificate has been seen on a connection.
    fn link_key(&self, member: MemberId) -> Option<LinkKey>;

    /// The round trip to a connected member that all members can reach directly; `None` for others,
    /// or if not measured.
    fn rtt_of_open(&self, _member: MemberId) -> Option<Duration> {
        None
    }

    /// This host has changed its addresses, or slept: connections may be dead without either end
    /// having noticed.
    fn roamed(&self) {}

    /// Packets to a connected member are not answered: asks its control connection for a sign of
    /// life. If none comes, it makes another connection beside it, over TCP, without waiting for
    /// the first to be given up.
    async fn sound(&self, _member: MemberId) -> Life {
        Life::Silent
    }

    /// Up to `n` live members closest to `place`, nearest first, this node among them if it is one
    /// of them.
    async fn closest(&self, place: RingAddr, n: usize) -> Result<Vec<MemberId>, FabricError>;

    /// The up to `n` members closest to `place` among this node and those it is connected to. That
    /// is the result of [`Fabric::closest`], except for new members and for places far from here,
    /// and it sends nothing.
    fn nearby(&self, place: RingAddr, n: usize) -> Vec<MemberId> {
        let mut members = self.connected();
        members.push(self.me());
        members.sort_by_cached_key(|m| m.ring_addr().distance(&place));
        members.truncate(n);
        members
    }

    /// Sends a request and waits for its answer, dialling if needed. A call to this node itself is
    /// answered locally.
    async fn call(
        &self,
        to: MemberId,
        service: &'static str,
        body: Vec<u8>,
        timeout: Duration,
    ) -> Result<Vec<u8>, FabricError>;

    /// Answers `service` with `handler` from now on; the last handler set wins.
    fn serve(&self, service: &'static str, handler: Arc<dyn Serve>);

    /// Opens a byte stream to a member's acceptor of `service`.
    async fn open_stream(
        &self,
        to: MemberId,
        service: &'static str,
    ) -> Result<BoxStream, FabricError>;

    /// Takes the streams that members open to `service` here; the last acceptor set wins. Dropping
    /// the receiver closes the service.
    fn accept_streams(&self, service: &'static str) -> mpsc::Receiver<(MemberId, BoxStream)>;
}
