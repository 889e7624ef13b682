//! Sends the queue to the collector: OTLP over HTTP/1.1, one request a batch. It retries, with
//! growing pauses, the failures that OTLP calls retryable, and drops batches that the collector
//! rejects. The log says when either begins and ends, not each batch.

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

/// How many spans one request has: far below the 4 MiB that a collector accepts by default.
const BATCH: usize = 256;
/// How long the first span waits for others, so that the end of a migration is one request.
const GATHER: Duration = Duration::from_millis(500);
/// How long a collector may take to answer.
const LIMIT: Duration = Duration::from_secs(10);
/// How long to wait after the first failure before a retry; each further failure doubles it.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest wait before a retry.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How much of an answer is read, bytes.
const MAX_ANSWER_BYTES: usize = 64 << 10;
/// How much of a rejection is shown.
const SHOWN_CHARS: usize = 200;

/// The task that sends.
pub struct Sender {
    queue: Arc<Queue>,
    endpoint: Endpoint,
    headers: HeaderMap,
    resource: ResourceAttributesWithSchema,
    health: Health,
}

/// The collector's state as logged last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Health {
    Takes,
    Refuses,
    Away,
}

/// The outcome for a batch.
#[derive(Debug)]
enum Fate {
    /// Accepted, except for some spans.
    Taken { rejected: usize, why: String },
    /// Rejected for good.
    Refused(String),
    /// Worth a retry.
    Later(String),
}

impl Sender {
    /// A sender of the spans in `queue`.
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
                // A dropped sender also means stop.
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

    /// Sends all waiting spans; false if the collector does not answer.
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

    /// Logs a change of the collector's state.
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
                "the collector of traces at {} rejects spans, which are lost: {why}",
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

    /// Sends one request; the error says why there was no answer.
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
        // The task ends with `sender`, which is dropped when this function returns.
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
        // An answer that is too long to read still has a status.
        let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES)
            .collect()
            .await;
        Ok(fate(
            status,
            &body.map(|body| body.to_bytes()).unwrap_or_default(),
        ))
    }
}

/// The meaning of an answer (OTLP 1.5, "OTLP/HTTP Response").
fn fate(status: StatusCode, body: &[u8]) -> Fate {
    match status {
        _ if status.is_success() => {
            // Another answer, such as JSON, counts as if all spans were accepted.
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

/// The beginning of a collector's answer, as one line.
fn shown(text: &[u8]) -> String {
    String::from_utf8_lossy(text)
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(SHOWN_CHARS)
        .collect()
}
