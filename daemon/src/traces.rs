//! OpenTelemetry traces, if `node.toml` has them on: spans go to a collector (Jaeger, Tempo, the
//! OpenTelemetry collector) by OTLP over HTTP, in protobuf
//! (<https://opentelemetry.io/docs/specs/otlp/#otlphttp>). [`p2pvm_vm_manager::trace`] makes the
//! spans; this module has the settings and sends ended spans.
//!
//! A slow or missing collector delays nothing: an ended span goes into a bounded queue ([`queue`]),
//! which one task empties ([`send`]), with retries. `docs/decisions/0026-traces.md` says why
//! existing exporters are not used.

mod endpoint;
mod queue;
mod send;

pub use endpoint::Endpoint;

use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::{KeyValue, global::BoxedTracer, trace::TracerProvider};
use opentelemetry_sdk::{
    Resource,
    trace::{Sampler, SdkTracerProvider},
};
use p2pvm_api::{Failure, Outcome};
use p2pvm_overlay::MemberId;
use p2pvm_vm_manager::Traces;
use queue::{Feed, Queue};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::{sync::watch, task::JoinHandle};

/// The environment variable with the host's collector. It counts if `node.toml` names none.
const ENVIRONMENT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
/// How long an ending daemon waits for the collector.
const CLOSING: Duration = Duration::from_secs(1);
/// How many events a span may have. Reason: a busy guest needs more passes over its memory than
/// anyone reads.
const MAX_EVENTS: u32 = 64;

/// `[traces]`: where the spans of migrations go.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The collector's address for OTLP over HTTP, such as "http://127.0.0.1:4318"; empty for no
    /// traces.
    pub endpoint: String,
    /// Headers of every request, such as `{ authorization = "Basic ..." }`.
    pub headers: BTreeMap<String, String>,
}

impl Settings {
    /// Checks the settings.
    pub fn check(&self) -> Result<(), String> {
        if !self.endpoint.is_empty() {
            self.endpoint.parse::<Endpoint>()?;
        }
        self.headers().map(drop)
    }

    fn headers(&self) -> Result<HeaderMap, String> {
        let mut headers = HeaderMap::new();
        for (name, value) in &self.headers {
            let known: HeaderName = name.parse().map_err(|_| {
                format!("[traces] headers: '{name}' cannot be the name of an HTTP header")
            })?;
            // The value may be a secret, so the message does not repeat it.
            let mut said: HeaderValue = value.parse().map_err(|_| {
                format!("[traces] headers: the value of '{name}' cannot be sent in an HTTP header")
            })?;
            said.set_sensitive(true);
            headers.insert(known, said);
        }
        Ok(headers)
    }

    /// The collector of these settings or of the environment. The environment's value is also for
    /// other programs: an unusable one is logged and ignored.
    fn endpoint(&self, environment: Option<&str>) -> Option<Endpoint> {
        if !self.endpoint.is_empty() {
            return self.endpoint.parse().ok();
        }
        let text = environment.filter(|text| !text.is_empty())?;
        match text.parse() {
            Ok(endpoint) => Some(endpoint),
            Err(why) => {
                tracing::warn!("{ENVIRONMENT} is ignored, no traces are sent: {why}");
                None
            }
        }
    }
}

/// Counts of spans since the daemon started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Accepted by the collector.
    pub sent: u64,
    /// Lost: the queue was full, or the collector rejected them.
    pub dropped: u64,
    /// In the queue.
    pub waiting: u64,
}

/// Sends ended spans to the collector.
pub struct Exporter {
    provider: SdkTracerProvider,
    queue: Arc<Queue>,
    stop: watch::Sender<bool>,
    sender: tokio::sync::Mutex<Option<JoinHandle<()>>>,
}

impl Exporter {
    /// Starts sending, if the settings name a collector. Needs a runtime.
    pub fn start(settings: &Settings, me: MemberId, name: &str) -> Outcome<Option<Self>> {
        let environment = std::env::var(ENVIRONMENT).ok();
        let Some(endpoint) = settings.endpoint(environment.as_deref()) else {
            return Ok(None);
        };
        let headers = settings.headers().map_err(Failure::usage)?;
        let resource = Resource::builder()
            .with_service_name("p2pvm")
            .with_attributes([
                KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
                KeyValue::new("service.instance.id", me.to_string()),
                KeyValue::new("host.name", name.to_owned()),
            ])
            .build();
        let queue = Arc::new(Queue::default());
        tracing::info!("traces go to {endpoint}");
        let (stop, stopped) = watch::channel(false);
        let sender = send::Sender::new(queue.clone(), endpoint, headers, &resource);
        let sender = tokio::sync::Mutex::new(Some(tokio::spawn(sender.run(stopped))));
        let provider = SdkTracerProvider::builder()
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::AlwaysOn)))
            .with_max_events_per_span(MAX_EVENTS)
            .with_resource(resource)
            .with_span_processor(Feed(queue.clone()))
            .build();
        Ok(Some(Self {
            provider,
            queue,
            stop,
            sender,
        }))
    }

    /// The maker of spans that are sent in this way.
    pub fn traces(
        &self,
        names: impl Fn(MemberId) -> Option<String> + Send + Sync + 'static,
    ) -> Traces {
        Traces::new(
            BoxedTracer::new(Box::new(self.provider.tracer("p2pvm"))),
            names,
        )
    }

    /// The counts.
    pub fn counts(&self) -> Counts {
        self.queue.counts()
    }

    /// Sends the waiting spans, if the collector accepts them at once, and ends.
    pub async fn close(&self) {
        self.stop.send_replace(true);
        if let Some(mut sender) = self.sender.lock().await.take()
            && tokio::time::timeout(CLOSING, &mut sender).await.is_err()
        {
            sender.abort();
        }
    }
}

#[cfg(test)]
mod tests;
