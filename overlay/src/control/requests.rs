//! Requests and streams between members, over the driver's connections: this node's requests to
//! others, and its services. A stream begins with its kind and the name of its service.

use super::{
    shared::{Command, Shared},
    streams::{Carried, NoStream},
    wire::{
        ADMIT_SERVICE, AdmitRequest, CONTACTS_SERVICE, GOSSIP_SERVICE, MAX_REPLY_BYTES,
        NEAREST_SERVICE, PART_SERVICE, PROBE_SERVICE, Status, decode, invalid, read_bytes,
        read_header, write_bytes,
    },
};
use crate::{
    fabric::{BoxStream, FabricError, MAX_BODY_BYTES},
    id::{MemberId, RingAddr},
};
use futures::{AsyncReadExt, AsyncWriteExt};
use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::oneshot,
};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt};

/// How long opening a stream may take, with the connection attempt, through relays if needed.
const OPEN_TIMEOUT: Duration = Duration::from_secs(15);
/// How long the opener of a stream may take to send its header.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
const KIND_CALL: u8 = 0;
const KIND_STREAM: u8 = 1;

impl Shared {
    async fn open_once(
        &self,
        member: MemberId,
        search: bool,
    ) -> Result<Result<Carried, NoStream>, FabricError> {
        let (waiter, answer) = oneshot::channel();
        self.commands
            .send(Command::Open {
                member,
                waiter,
                search,
            })
            .await
            .map_err(|_| FabricError::Closed)?;
        match tokio::time::timeout(OPEN_TIMEOUT, answer).await {
            Ok(Ok(outcome)) => Ok(outcome),
            Ok(Err(_)) if self.commands.is_closed() => Err(FabricError::Closed),
            // The connection ended between the request and the opening.
            Ok(Err(_)) => Ok(Err(NoStream::Broken)),
            Err(_) => Err(FabricError::Unreachable(member)),
        }
    }

    async fn open(&self, to: MemberId, search: bool) -> Result<Carried, FabricError> {
        // A connection found broken at the first use is replaced once; nothing has been sent on it.
        for _ in 0..2 {
            match self.open_once(to, search).await? {
                Ok(carried) => return Ok(carried),
                Err(NoStream::Unreachable) => break,
                Err(NoStream::Broken | NoStream::Unsupported) => {}
            }
        }
        Err(FabricError::Unreachable(to))
    }

    /// Sends a request and waits for the answer.
    pub async fn call(
        &self,
        to: MemberId,
        service: &str,
        body: Vec<u8>,
        timeout: Duration,
    ) -> Result<Vec<u8>, FabricError> {
        self.exchange(to, service, body, timeout, true).await
    }

    /// As [`Self::call`], for a member whose contact is known: a lookup's own requests must not
    /// start another lookup.
    pub async fn call_known(
        &self,
        to: MemberId,
        service: &str,
        body: Vec<u8>,
        timeout: Duration,
    ) -> Result<Vec<u8>, FabricError> {
        self.exchange(to, service, body, timeout, false).await
    }

    async fn exchange(
        &self,
        to: MemberId,
        service: &str,
        body: Vec<u8>,
        timeout: Duration,
        search: bool,
    ) -> Result<Vec<u8>, FabricError> {
        if body.len() > MAX_BODY_BYTES {
            return Err(FabricError::TooLarge(body.len()));
        }
        let exchange = async {
            if to == self.me {
                return match self.handler(service) {
                    Some(handler) => handler
                        .serve(to, body)
                        .await
                        .map_err(|reason| FabricError::Refused(to, reason)),
                    None => Err(FabricError::NoSuchService(to, service.to_owned())),
                };
            }
            let mut carried = self.open(to, search).await?;
            let (status, answer) = request(&mut carried, service, &body).await.map_err(|e| {
                tracing::debug!(peer = ?to, service, "a request broke off: {e}");
                FabricError::Unreachable(to)
            })?;
            match status {
                Status::Ok => Ok(answer),
                Status::Refused => Err(FabricError::Refused(
                    to,
                    String::from_utf8_lossy(&answer).into_owned(),
                )),
                Status::NoSuchService => Err(FabricError::NoSuchService(to, service.to_owned())),
            }
        };
        tokio::time::timeout(timeout, exchange)
            .await
            .unwrap_or(Err(FabricError::TimedOut(to, timeout)))
    }

    /// Opens a byte stream to an acceptor.
    pub async fn open_stream(&self, to: MemberId, service: &str) -> Result<BoxStream, FabricError> {
        if to == self.me {
            let (here, there) = tokio::io::duplex(256 << 10);
            return match self.accept(service, to, Box::new(there)).await {
                true => Ok(Box::new(here)),
                false => Err(FabricError::NoSuchService(to, service.to_owned())),
            };
        }
        let opening = async {
            let Carried { mut stream, token } = self.open(to, true).await?;
            let broken = |_: io::Error| FabricError::Unreachable(to);
            stream
                .write_all(&header(KIND_STREAM, service))
                .await
                .map_err(broken)?;
            stream.flush().await.map_err(broken)?;
            let mut status = [0];
            stream.read_exact(&mut status).await.map_err(broken)?;
            match Status::from_byte(status[0]).map_err(broken)? {
                Status::Ok => Ok(Box::new(Tracked {
                    stream: stream.compat(),
                    _token: token,
                }) as BoxStream),
                _ => Err(FabricError::NoSuchService(to, service.to_owned())),
            }
        };
        tokio::time::timeout(OPEN_TIMEOUT, opening)
            .await
            .unwrap_or(Err(FabricError::TimedOut(to, OPEN_TIMEOUT)))
    }

    async fn accept(&self, service: &str, from: MemberId, stream: BoxStream) -> bool {
        let acceptor = self.acceptors().get(service).cloned();
        match acceptor {
            Some(acceptor) => acceptor.send((from, stream)).await.is_ok(),
            None => false,
        }
    }

    /// Serves one stream that a member opened.
    pub async fn serve_stream(&self, from: MemberId, carried: Carried) -> io::Result<()> {
        // A connection outlives the revocation of its member by a moment: nothing is served on it.
        if self
            .certificate(from)
            .is_none_or(|c| self.door.trust.verify(&c).is_err())
        {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let Carried { mut stream, token } = carried;
        let late = |_| io::Error::from(io::ErrorKind::TimedOut);
        let (kind, service) = tokio::time::timeout(HEADER_TIMEOUT, read_header(&mut stream))
            .await
            .map_err(late)??;
        match kind {
            KIND_CALL => {
                let body = read_bytes(&mut stream, MAX_BODY_BYTES).await?;
                let (status, answer) = match self.answer(from, &service, body).await {
                    None => (Status::NoSuchService, Vec::new()),
                    Some(Ok(answer)) if answer.len() <= MAX_BODY_BYTES => (Status::Ok, answer),
                    Some(Ok(answer)) => (
                        Status::Refused,
                        format!("the answer of {} bytes is too large", answer.len()).into_bytes(),
                    ),
                    Some(Err(reason)) => (Status::Refused, reason.into_bytes()),
                };
                stream.write_all(&[status as u8]).await?;
                write_bytes(&mut stream, &answer).await?;
                stream.close().await
            }
            KIND_STREAM => {
                let open = self
                    .acceptors()
                    .get(service.as_str())
                    .is_some_and(|a| !a.is_closed());
                let status = if open {
                    Status::Ok
                } else {
                    Status::NoSuchService
                };
                stream.write_all(&[status as u8]).await?;
                stream.flush().await?;
                if open {
                    self.accept(
                        &service,
                        from,
                        Box::new(Tracked {
                            stream: stream.compat(),
                            _token: token,
                        }),
                    )
                    .await;
                } else {
                    stream.close().await?;
                }
                Ok(())
            }
            _ => Err(invalid("unknown kind of stream")),
        }
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

fn header(kind: u8, service: &str) -> Vec<u8> {
    // Our services have short constant names.
    let name = &service.as_bytes()[..service.len().min(255)];
    [&[kind, name.len() as u8], name].concat()
}

async fn request(
    carried: &mut Carried,
    service: &str,
    body: &[u8],
) -> io::Result<(Status, Vec<u8>)> {
    let stream = &mut carried.stream;
    stream.write_all(&header(KIND_CALL, service)).await?;
    write_bytes(stream, body).await?;
    let mut status = [0];
    stream.read_exact(&mut status).await?;
    let answer = read_bytes(stream, MAX_BODY_BYTES.max(MAX_REPLY_BYTES)).await?;
    Ok((Status::from_byte(status[0])?, answer))
}

/// A stream that keeps its connection from being closed as superfluous.
struct Tracked {
    stream: Compat<libp2p::Stream>,
    _token: Arc<()>,
}

impl AsyncRead for Tracked {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Tracked {
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
