//! Speaks the control API to a daemon: over its unix socket, or over any stream to another
//! member's.

use crate::{Doing, Failure, Kind, Line, Outcome, Step};
use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request, Response, StatusCode, body::Bytes, body::Incoming, client::conn::http1,
    upgrade::Upgraded,
};
use hyper_util::rt::TokioIo;
use p2pvm_host::{SocketPath, chain};
use serde::{Serialize, de::DeserializeOwned};
use std::{io, path::Path};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::UnixStream,
};

/// The header with a user's proof.
pub const USER_HEADER: &str = "p2pvm-user";

/// Makes the proof of a user that asks, of a request's method and its path with the query.
pub type Signer = Box<dyn Fn(&str, &str) -> String + Send + Sync>;

/// One connection's worth of control API.
pub struct Client {
    sender: http1::SendRequest<Full<Bytes>>,
    /// Called whenever a part of a streamed answer arrives.
    on_data: fn(),
    /// What each request says beside its own headers.
    headers: Vec<(&'static str, String)>,
    signer: Option<Signer>,
}

/// What a streamed answer reports on the way, where each of its results is an `I`.
pub enum Event<I> {
    /// How far it has come.
    Step(Step),
    /// One of several results.
    Item(I),
}

/// The step of a failure to parse an answer.
const NOT_UNDERSTOOD: &str = "understanding the daemon's answer (is it of the same version?)";

impl Client {
    /// Connects to the daemon whose socket this is.
    pub async fn connect(socket: &Path) -> Outcome<Self> {
        let stream = Self::dial(socket).await.map_err(|e| match e.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Failure::new(
                Kind::Failed,
                "no p2pvm daemon is running here; start one with \
                    'p2pvm up --detach' (or 'p2pvm join' first)",
            ),
            io::ErrorKind::PermissionDenied => Failure::refused(
                "the daemon's socket is for root, and for the group p2pvm, if this machine has it: \
                    run this as root",
            ),
            _ => Failure::new(
                Kind::Failed,
                format!(
                    "cannot reach the daemon at \
                {}: {e}",
                    socket.display()
                ),
            ),
        })?;
        Self::over(stream).await
    }

    /// Opens the socket. A daemon that takes nobody in any more lets its queue fill:
    /// [`io::ErrorKind::WouldBlock`].
    async fn dial(socket: &Path) -> io::Result<UnixStream> {
        UnixStream::connect(SocketPath::to(socket)?.path()).await
    }

    /// Waits for any answer at all.
    pub async fn hello(&mut self) -> Outcome<()> {
        let answer = self.send(Method::GET, "/status", None, false).await?;
        answer
            .into_body()
            .collect()
            .await
            .map(drop)
            .doing("reading the daemon's answer")
    }

    /// Speaks over a stream that is already open.
    pub async fn over(
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    ) -> Outcome<Self> {
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .doing("speaking to the daemon")?;
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(error = %chain(&error), "control API connection ended");
            }
        });
        Ok(Self {
            sender,
            on_data: || {},
            headers: Vec::new(),
            signer: None,
        })
    }

    /// Calls `on_data` whenever a part of a streamed answer arrives, as a sign that the daemon
    /// goes on.
    pub fn with_on_data(mut self, on_data: fn()) -> Self {
        self.on_data = on_data;
        self
    }

    /// Sends a header with each request.
    pub fn with_header(mut self, name: &'static str, value: String) -> Self {
        self.headers.push((name, value));
        self
    }

    /// Sends a user's proof with each request.
    pub fn signed_by(mut self, signer: Option<Signer>) -> Self {
        self.signer = signer;
        self
    }

    async fn send(
        &mut self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
        upgrade: bool,
    ) -> Outcome<Response<Incoming>> {
        let proof = self.signer.as_ref().map(|sign| sign(method.as_str(), path));
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "p2pvm")
            .header("content-type", "application/json");
        if let Some(proof) = proof {
            request = request.header(USER_HEADER, proof);
        }
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        if upgrade {
            request = request
                .header("connection", "upgrade")
                .header("upgrade", "console");
        }
        let request = request
            .body(Full::new(Bytes::from(body.unwrap_or_default())))
            .doing("making the request")?;
        let closed = "the daemon closed the connection (see its log)";
        // A second request is taken only when the connection's task is through with the first,
        // which is not at once.
        self.sender.ready().await.doing(closed)?;
        self.sender.send_request(request).await.doing(closed)
    }

    /// One request, and the text of its answer.
    async fn answer(
        &mut self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Outcome<Bytes> {
        let answer = self.send(method, path, body, false).await?;
        let status = answer.status();
        let bytes = answer
            .into_body()
            .collect()
            .await
            .doing("reading the daemon's answer")?
            .to_bytes();
        if status.is_success() {
            Ok(bytes)
        } else {
            Err(failure_of(status, &bytes))
        }
    }

    /// One request, one JSON answer.
    pub async fn ask<T: DeserializeOwned>(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Outcome<T> {
        let body = body
            .map(serde_json::to_vec)
            .transpose()
            .doing("encoding the request")?;
        let answer = self.answer(method, path, body).await?;
        serde_json::from_slice(&answer).doing(NOT_UNDERSTOOD)
    }

    /// A GET whose answer is not read here: its text, as the daemon wrote it.
    pub async fn text(&mut self, path: &str) -> Outcome<String> {
        let answer = self.answer(Method::GET, path, None).await?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    /// A GET.
    pub async fn get<T: DeserializeOwned>(&mut self, path: &str) -> Outcome<T> {
        self.ask(Method::GET, path, None::<&()>).await
    }

    /// A POST.
    pub async fn post<T: DeserializeOwned>(
        &mut self,
        path: &str,
        body: &impl Serialize,
    ) -> Outcome<T> {
        self.ask(Method::POST, path, Some(body)).await
    }

    /// A request whose answer is a stream of lines; `on_event` sees all but the last.
    pub async fn follow<I: DeserializeOwned, T: DeserializeOwned>(
        &mut self,
        path: &str,
        body: &impl Serialize,
        mut on_event: impl FnMut(Event<I>),
    ) -> Outcome<T> {
        let body = serde_json::to_vec(body).doing("encoding the request")?;
        let answer = self.send(Method::POST, path, Some(body), false).await?;
        let status = answer.status();
        let mut body = answer.into_body();
        if !status.is_success() {
            let bytes = body
                .collect()
                .await
                .doing("reading the daemon's answer")?
                .to_bytes();
            return Err(failure_of(status, &bytes));
        }
        let mut pending = Vec::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.doing("reading the daemon's answer")?.into_data() else {
                continue;
            };
            pending.extend_from_slice(&data);
            (self.on_data)();
            while let Some(end) = pending.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = pending.drain(..=end).collect();
                match serde_json::from_slice::<Line<T, I>>(&line).doing(NOT_UNDERSTOOD)? {
                    Line::Progress(step) => on_event(Event::Step(step)),
                    Line::Item(item) => on_event(Event::Item(item)),
                    Line::Done(answer) => return Ok(answer),
                    Line::Error(failure) => return Err(failure),
                }
            }
        }
        Err(Failure::new(
            Kind::Failed,
            "the daemon ended before it answered (see its log)",
        ))
    }

    /// Turns the connection into a byte stream, as for a console.
    pub async fn upgrade(mut self, path: &str) -> Outcome<TokioIo<Upgraded>> {
        let answer = self.send(Method::GET, path, None, true).await?;
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            let status = answer.status();
            let bytes = answer
                .into_body()
                .collect()
                .await
                .doing("reading the daemon's answer")?
                .to_bytes();
            return Err(failure_of(status, &bytes));
        }
        Ok(TokioIo::new(
            hyper::upgrade::on(answer)
                .await
                .doing("opening the console")?,
        ))
    }
}

fn failure_of(status: StatusCode, body: &[u8]) -> Failure {
    serde_json::from_slice(body).unwrap_or_else(|_| {
        let kind = match status {
            StatusCode::NOT_FOUND => Kind::NotFound,
            StatusCode::BAD_REQUEST
            | StatusCode::UNPROCESSABLE_ENTITY
            | StatusCode::UNSUPPORTED_MEDIA_TYPE => Kind::Usage,
            _ => Kind::Failed,
        };
        Failure::new(kind, format!("{status}: {}", String::from_utf8_lossy(body)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::{Json, Router, routing::get};

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn one_connection_takes_question_after_question() {
        let (here, there) = tokio::io::duplex(4096);
        let router = Router::new().route("/question", get(|| async { Json(7) }));
        let service = hyper_util::service::TowerToHyperService::new(router);
        tokio::spawn(
            hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(there), service),
        );
        let mut client = Client::over(here).await.unwrap();
        for _ in 0..5000 {
            assert_eq!(client.get::<u32>("/question").await.unwrap(), 7);
        }
    }
}
