//! Empties the queue towards the collector: OTLP over HTTP/1.1, a request a batch. What OTLP says
//! may be tried again is tried again with growing pauses; what the collector refuses is dropped.
//! Each of the two is said when it begins and when it is over, not for each batch.

use super::{endpoint::Endpoint, queue::Queue};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Request, StatusCode,
    body::Bytes,
    client::conn::http1,
    header::{CONTENT_TYPE, HOST, HeaderMap, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::{
    tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse},
    transform::{
        common::tonic::ResourceAttributesWithSchema,
        trace::tonic::group_spans_by_resource_and_scope,
    },
};
use opentelemetry_sdk::{Resource, trace::SpanData};
use p2pvm_host::chain;
use p2pvm_overlay::control::names;
use prost::Message;
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::{net::TcpStream, sync::watch};

/// Spans in one request: far below the 4 MiB that a collector takes by default.
const BATCH: usize = 256;
/// How long the first span waits for others, so that the end of a migration is one request.
const GATHER: Duration = Duration::from_millis(500);
/// A collector that has not answered by then is taken for away.
const LIMIT: Duration = Duration::from_secs(10);
/// After a failure the next try comes so much later, twice that after the next, ...
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// ... and never later than this.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Of an answer, so much is read.
const MAX_ANSWER_BYTES: usize = 64 << 10;
/// Of a refusal, so much is shown.
const SHOWN_CHARS: usize = 200;

/// The task that sends.
pub struct Sender {
    queue: Arc<Queue>,
    endpoint: Endpoint,
    headers: HeaderMap,
    resource: ResourceAttributesWithSchema,
    health: Health,
}

/// What was said of the collector last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Health {
    Takes,
    Refuses,
    Away,
}

/// What became of a batch.
#[derive(Debug)]
enum Fate {
    /// It was taken, all but so many.
    Taken { rejected: usize, why: String },
    /// It was not, and never will be.
    Refused(String),
    /// It may be taken later.
    Later(String),
}

impl Sender {
    /// A sender of what stands in `queue`.
    pub fn new(
        queue: Arc<Queue>,
        endpoint: Endpoint,
        headers: HeaderMap,
        resource: &Resource,
    ) -> Self {
        Self {
            queue,
            endpoint,
            headers,
            resource: resource.into(),
            health: Health::Takes,
        }
    }

    /// Sends until told to stop, and then once more.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let queue = self.queue.clone();
        let mut pause = GATHER;
        loop {
            let due = async {
                queue.filled().await;
                tokio::time::sleep(pause).await;
            };
            let stopping = tokio::select! {
                () = due => false,
                // A sender that is gone stops us as well.
                _ = stop.wait_for(|stop| *stop) => true,
            };
            pause = match self.empty().await {
                true => GATHER,
                false if pause < FIRST_PAUSE => FIRST_PAUSE,
                false => (pause * 2).min(LONGEST_PAUSE),
            };
            if stopping {
                return;
            }
        }
    }

    /// Sends all that waits; false if the collector is away.
    async fn empty(&mut self) -> bool {
        loop {
            let batch = self.queue.oldest(BATCH);
            let n = batch.len();
            if n == 0 {
                return true;
            }
            let fate = match tokio::time::timeout(LIMIT, self.post(batch)).await {
                Ok(fate) => fate,
                Err(_) => Fate::Later(format!("no answer within {} s", LIMIT.as_secs())),
            };
            match &fate {
                Fate::Taken { rejected, .. } => self.queue.remove(n, n.saturating_sub(*rejected)),
                Fate::Refused(_) => self.queue.remove(n, 0),
                Fate::Later(_) => {}
            }
            self.say(&fate);
            if let Fate::Later(_) = fate {
                return false;
            }
        }
    }

    /// Says what has changed.
    fn say(&mut self, fate: &Fate) {
        let (health, why) = match fate {
            Fate::Taken { rejected: 0, .. } => (Health::Takes, ""),
            Fate::Taken { why, .. } | Fate::Refused(why) => (Health::Refuses, why.as_str()),
            Fate::Later(why) => (Health::Away, why.as_str()),
        };
        if health == self.health {
            return;
        }
        self.health = health;
        match health {
            Health::Takes => tracing::info!(
                "the collector of traces at {} takes spans again",
                self.endpoint
            ),
            Health::Refuses => tracing::warn!(
                "the collector of traces at {} refuses spans, which are lost: {why}",
                self.endpoint
            ),
            Health::Away => {
                tracing::warn!(
                    "the collector of traces at {} does not answer; spans wait for it, VMs do \
                        not: {why}",
                    self.endpoint
                );
            }
        }
    }

    async fn post(&self, spans: Vec<SpanData>) -> Fate {
        let body = ExportTraceServiceRequest {
            resource_spans: group_spans_by_resource_and_scope(spans, &self.resource),
        }
        .encode_to_vec();
        self.exchange(body).await.unwrap_or_else(Fate::Later)
    }

    /// One request; the error is why there was no answer.
    async fn exchange(&self, body: Vec<u8>) -> Result<Fate, String> {
        let found = names::addresses(&self.endpoint.host).await?;
        let addresses: Vec<_> = found
            .into_iter()
            .map(|address| SocketAddr::new(address, self.endpoint.port))
            .collect();
        let stream = TcpStream::connect(addresses.as_slice())
            .await
            .map_err(|e| chain(&e))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| chain(&e))?;
        // It ends with `sender`, which is gone when this is.
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(error = %chain(&error), "the connection to the collector of \
                    traces ended");
            }
        });
        let mut request = Request::post(self.endpoint.path.as_str())
            .header(HOST, &self.endpoint.authority)
            .header(CONTENT_TYPE, "application/x-protobuf")
            .header(USER_AGENT, concat!("p2pvm/", env!("CARGO_PKG_VERSION")))
            .body(Full::new(Bytes::from(body)))
            .map_err(|e| chain(&e))?;
        request.headers_mut().extend(self.headers.clone());
        let answer = sender.send_request(request).await.map_err(|e| chain(&e))?;
        let status = answer.status();
        // An answer too long to read has a status all the same.
        let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES)
            .collect()
            .await;
        Ok(fate(
            status,
            &body.map(|body| body.to_bytes()).unwrap_or_default(),
        ))
    }
}

/// What an answer means (OTLP 1.5, "OTLP/HTTP Response").
fn fate(status: StatusCode, body: &[u8]) -> Fate {
    match status {
        _ if status.is_success() => {
            // Whoever answers something else, such as JSON, took them all as far as can be known.
            let partial = ExportTraceServiceResponse::decode(body)
                .ok()
                .and_then(|answer| answer.partial_success)
                .unwrap_or_default();
            Fate::Taken {
                rejected: usize::try_from(partial.rejected_spans).unwrap_or(0),
                why: shown(partial.error_message.as_bytes()),
            }
        }
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => Fate::Later(format!("HTTP {status}")),
        _ => Fate::Refused(
            format!("HTTP {status} {}", shown(body))
                .trim_end()
                .to_owned(),
        ),
    }
}

/// The beginning of what a collector says, as one line.
fn shown(text: &[u8]) -> String {
    String::from_utf8_lossy(text)
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(SHOWN_CHARS)
        .collect()
}
