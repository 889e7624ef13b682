//! What this node serves to members: the calls and streams that they open. Each step that waits for
//! the other end has a time limit, and each member has so many seats: one that opens hundreds of
//! calls and goes on with none of them delays only its own. What other members' work rests on, as a
//! VM's epoch does on its voters, has seats of its own ([`Serve::is_vital`]).
//!
//! [`Serve::is_vital`]: crate::fabric::Serve::is_vital

use super::{
    admit::SignedAdmit,
    requests::{KIND_CALL, KIND_STREAM},
    shared::{Command, Shared},
    wire::{
        ADMIT_SERVICE, ADMIT_SIGNED_SERVICE, AdmitRequest, CONTACTS_SERVICE, GOSSIP_SERVICE,
        NEAREST_SERVICE, PART_SERVICE, PROBE_SERVICE, REVOCATIONS_SERVICE, Status, decode, invalid,
        read_body, read_header, read_length, write_bytes,
    },
};
use crate::{
    fabric::{BoxStream, MAX_BODY_BYTES},
    id::{MemberId, RingAddr},
    seats::{Seat, Seats},
};
use futures::{AsyncRead, AsyncWrite, AsyncWriteExt};
use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::ReadBuf,
    sync::{mpsc, oneshot},
};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt};

/// How many streams of members are looked at or wait at the same time, of all and of one member.
/// More are turned away.
const OPENED: (usize, usize) = (8192, 512);
/// How many calls are served at the same time, of all members and of one. More wait.
const CALLS: (usize, usize) = (512, 64);
/// How many calls of vital services are served beside them, of all members and of one.
const VITAL_CALLS: (usize, usize) = (128, 16);
/// How many streams may be open to acceptors at the same time, of all members and of one.
const STREAMS: (usize, usize) = (4096, 256);
/// How long the other end may take to say what it wants, or how long its request is.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a call waits for a seat. Reason: its caller has given up by then.
const SEAT_TIMEOUT: Duration = Duration::from_secs(30);
/// How long an acceptor may have no room. Reason: the opener hears of it before it gives up.
const ACCEPT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a body may take besides the time for its bytes, in either direction.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// How many bytes of a body must pass in a second. Reason: a path that carries less than this
/// brings a chunk of 1 MiB long after its caller has given up.
const LEAST_RATE: usize = 16 << 10;

type Room = mpsc::OwnedPermit<(MemberId, BoxStream)>;

/// How long a body of so many bytes may take.
fn time_for(bytes: usize) -> Duration {
    BODY_TIMEOUT + Duration::from_secs((bytes / LEAST_RATE) as u64)
}

async fn in_time<T>(limit: Duration, step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(limit, step)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// See the module.
pub struct Server {
    shared: Arc<Shared>,
    opened: Seats,
    calls: Seats,
    vital_calls: Seats,
    streams: Seats,
}

impl Server {
    /// Serves what `shared` has handlers and acceptors for.
    pub fn new(shared: Arc<Shared>) -> Arc<Self> {
        let seats = |(all, each)| Seats::new(all, each);
        Arc::new(Self {
            shared,
            opened: seats(OPENED),
            calls: seats(CALLS),
            vital_calls: seats(VITAL_CALLS),
            streams: seats(STREAMS),
        })
    }

    /// Begins to serve a stream that a member opened; `token` is its connection's. Never waits.
    pub fn begin<S>(self: &Arc<Self>, member: MemberId, stream: S, token: Arc<()>)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let Some(opened) = self.opened.try_take(member) else {
            tracing::debug!(%member, "a stream was turned away: the member has too many");
            return;
        };
        let server = self.clone();
        tokio::spawn(async move {
            if let Err(e) = server.serve_stream(member, stream, token).await {
                tracing::debug!(
                    %member,
                    error = %p2pvm_host::chain(&e),
                    "a stream ended early"
                );
            }
            drop(opened);
        });
    }

    async fn serve_stream<S>(&self, from: MemberId, mut stream: S, token: Arc<()>) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        // A connection outlives the news of its member's revocation by a moment: nothing is served
        // in it.
        if self
            .shared
            .certificate(from)
            .is_none_or(|c| self.shared.door.trust.verify(&c).is_err())
        {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let (kind, service) = in_time(HEADER_TIMEOUT, read_header(&mut stream)).await?;
        match kind {
            KIND_CALL => self.serve_call(from, &service, stream).await,
            KIND_STREAM => self.give_stream(from, &service, stream, token).await,
            _ => Err(invalid("unknown kind of stream")),
        }
    }

    async fn serve_call<S>(&self, from: MemberId, service: &str, mut stream: S) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin,
    {
        let length = in_time(HEADER_TIMEOUT, read_length(&mut stream, MAX_BODY_BYTES)).await?;
        let seats = if self.shared.is_vital(service) {
            &self.vital_calls
        } else {
            &self.calls
        };
        let _seat = tokio::time::timeout(SEAT_TIMEOUT, seats.take(from)).await?;
        let body = in_time(time_for(length), read_body(&mut stream, length)).await?;
        let (status, answer) = match self.shared.answer(from, service, body).await {
            None => (Status::NoSuchService, Vec::new()),
            Some(Ok(answer)) if answer.len() <= MAX_BODY_BYTES => (Status::Ok, answer),
            Some(Ok(answer)) => (
                Status::Refused,
                format!("the answer of {} bytes is too large", answer.len()).into_bytes(),
            ),
            Some(Err(reason)) => (Status::Refused, reason.into_bytes()),
        };
        let answering = async {
            stream.write_all(&[status as u8]).await?;
            write_bytes(&mut stream, &answer).await?;
            stream.close().await
        };
        in_time(time_for(answer.len()), answering).await
    }

    async fn give_stream<S>(
        &self,
        from: MemberId,
        service: &str,
        mut stream: S,
        token: Arc<()>,
    ) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let room = match self.streams.try_take(from) {
            Some(seat) => {
                let room = self.shared.room_for_stream(service).await;
                room.map(|room| (room, seat))
            }
            None => Err(Status::Refused),
        };
        let status = room.as_ref().map_or_else(|status| *status, |_| Status::Ok);
        let answering = async {
            stream.write_all(&[status as u8]).await?;
            stream.flush().await?;
            if room.is_err() {
                stream.close().await?;
            }
            Ok(())
        };
        in_time(BODY_TIMEOUT, answering).await?;
        if let Ok((room, seat)) = room {
            let tracked = TrackedStream {
                _seat: Some(seat),
                ..TrackedStream::new(stream, token)
            };
            room.send((from, Box::new(tracked)));
        }
        Ok(())
    }
}

impl Shared {
    /// Room for one stream at the service's acceptor, or why there is none.
    pub(super) async fn room_for_stream(&self, service: &str) -> Result<Room, Status> {
        let acceptor = self.acceptors().get(service).cloned();
        let acceptor = acceptor.ok_or(Status::NoSuchService)?;
        match tokio::time::timeout(ACCEPT_TIMEOUT, acceptor.reserve_owned()).await {
            Ok(Ok(room)) => Ok(room),
            Ok(Err(_)) => Err(Status::NoSuchService),
            Err(_) => Err(Status::Refused),
        }
    }

    fn is_vital(&self, service: &str) -> bool {
        // A member that answers no probe is taken for dead.
        service == PROBE_SERVICE || self.handler(service).is_some_and(|h| h.is_vital())
    }

    async fn answer(
        &self,
        from: MemberId,
        service: &str,
        body: Vec<u8>,
    ) -> Option<Result<Vec<u8>, String>> {
        let unreadable = |e: io::Error| e.to_string();
        match service {
            GOSSIP_SERVICE => Some(match decode(&body) {
                Ok(gossip) => self
                    .commands
                    .send(Command::Gossip(from, gossip))
                    .await
                    .map(|()| Vec::new())
                    .map_err(|e| e.to_string()),
                Err(e) => Err(unreadable(e)),
            }),
            ADMIT_SERVICE => Some(match decode::<(MemberId, AdmitRequest)>(&body) {
                Ok((joiner, request)) => {
                    let decision = self.door.certify(joiner, &request).await;
                    postcard::to_stdvec(&decision).map_err(|e| e.to_string())
                }
                Err(e) => Err(unreadable(e)),
            }),
            ADMIT_SIGNED_SERVICE if self.door.is_current() => {
                Some(match decode::<(MemberId, SignedAdmit)>(&body) {
                    Ok((joiner, signed)) => {
                        let decision = match signed.verify(joiner) {
                            Ok(()) => self.door.certify(joiner, &signed.request).await,
                            Err(refusal) => Err(refusal),
                        };
                        postcard::to_stdvec(&decision).map_err(|e| e.to_string())
                    }
                    Err(e) => Err(unreadable(e)),
                })
            }
            REVOCATIONS_SERVICE if self.door.is_current() => Some(match decode(&body) {
                Ok(theirs) => postcard::to_stdvec(&self.door.trust.differing(&theirs))
                    .map_err(|e| e.to_string()),
                Err(e) => Err(unreadable(e)),
            }),
            NEAREST_SERVICE => Some(match decode::<RingAddr>(&body) {
                Ok(place) => {
                    postcard::to_stdvec(&self.nearest_known(place)).map_err(|e| e.to_string())
                }
                Err(e) => Err(unreadable(e)),
            }),
            CONTACTS_SERVICE => Some(match decode::<Vec<MemberId>>(&body) {
                Ok(members) => {
                    postcard::to_stdvec(&self.contacts_of(&members)).map_err(|e| e.to_string())
                }
                Err(e) => Err(unreadable(e)),
            }),
            PART_SERVICE => {
                let (sender, agreed) = oneshot::channel();
                let asked = self.commands.send(Command::Part(from, sender)).await;
                Some(match (asked, agreed.await) {
                    (Ok(()), Ok(true)) => Ok(Vec::new()),
                    _ => Err("the connection is still needed".into()),
                })
            }
            PROBE_SERVICE => Some(Ok(Vec::new())),
            _ => Some(self.handler(service)?.serve(from, body).await),
        }
    }
}

/// A stream that keeps its connection from being closed as superfluous.
pub(super) struct TrackedStream<S> {
    stream: Compat<S>,
    _token: Arc<()>,
    _seat: Option<Seat>,
}

impl<S: AsyncRead> TrackedStream<S> {
    pub fn new(stream: S, token: Arc<()>) -> Self {
        Self {
            stream: stream.compat(),
            _token: token,
            _seat: None,
        }
    }
}

impl<S: AsyncRead + Unpin> tokio::io::AsyncRead for TrackedStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> tokio::io::AsyncWrite for TrackedStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
