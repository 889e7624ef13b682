//! Requests and streams that this node asks of others, over what the driver opens. A stream begins
//! with its kind and the name of its service. The other end is [`super::serve`].

use super::{
    serve::TrackedStream,
    shared::{Command, Shared},
    streams::{NoStream, RawStream},
    wire::{MAX_REPLY_BYTES, Status, read_bytes, write_bytes},
};
use crate::{
    fabric::{BoxStream, FabricError, MAX_BODY_BYTES},
    id::MemberId,
};
use futures::{AsyncReadExt, AsyncWriteExt};
use std::{io, time::Duration};
use tokio::sync::oneshot;

/// How long opening a stream may take, with the connection attempt, through relays if needed.
const OPEN_TIMEOUT: Duration = Duration::from_secs(15);
pub(super) const KIND_CALL: u8 = 0;
pub(super) const KIND_STREAM: u8 = 1;

impl Shared {
    async fn open_once(
        &self,
        member: MemberId,
        search: bool,
    ) -> Result<Result<RawStream, NoStream>, FabricError> {
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

    async fn open(&self, to: MemberId, search: bool) -> Result<RawStream, FabricError> {
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
                tracing::debug!(
                    peer = ?to,
                    service,
                    error = %p2pvm_host::chain(&e),
                    "a request broke off"
                );
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
            return match self.room_for_stream(service).await {
                Ok(room) => {
                    room.send((to, Box::new(there)));
                    Ok(Box::new(here))
                }
                Err(status) => Err(no_stream(to, service, status)),
            };
        }
        let opening = async {
            let RawStream { mut stream, token } = self.open(to, true).await?;
            let broken = |_: io::Error| FabricError::Unreachable(to);
            stream
                .write_all(&header(KIND_STREAM, service))
                .await
                .map_err(broken)?;
            stream.flush().await.map_err(broken)?;
            let mut status = [0];
            stream.read_exact(&mut status).await.map_err(broken)?;
            match Status::from_byte(status[0]).map_err(broken)? {
                Status::Ok => Ok(Box::new(TrackedStream::new(stream, token)) as BoxStream),
                status => Err(no_stream(to, service, status)),
            }
        };
        tokio::time::timeout(OPEN_TIMEOUT, opening)
            .await
            .unwrap_or(Err(FabricError::TimedOut(to, OPEN_TIMEOUT)))
    }
}

fn no_stream(to: MemberId, service: &str, status: Status) -> FabricError {
    match status {
        Status::Refused => FabricError::Refused(to, "too many streams are open or waiting".into()),
        _ => FabricError::NoSuchService(to, service.to_owned()),
    }
}

pub(super) fn header(kind: u8, service: &str) -> Vec<u8> {
    // Our services have short constant names.
    let name = &service.as_bytes()[..service.len().min(255)];
    [&[kind, name.len() as u8], name].concat()
}

async fn request(
    carried: &mut RawStream,
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
