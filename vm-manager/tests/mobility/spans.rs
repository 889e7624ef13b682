//! Keeps the spans that members end, as their programs would send them.

use opentelemetry::{
    Context,
    global::BoxedTracer,
    trace::{Status, TracerProvider},
};
use opentelemetry_sdk::{
    error::OTelSdkResult,
    trace::{SdkTracerProvider, Span, SpanData, SpanProcessor},
};
use p2pvm_vm_manager::Traces;
use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

/// The spans of all members, each with the member it is of, in the order in which they ended.
#[derive(Clone, Debug, Default)]
pub struct Spans(Arc<Mutex<Vec<(usize, SpanData)>>>);

#[derive(Debug)]
struct Keeper {
    site: usize,
    spans: Spans,
}

impl SpanProcessor for Keeper {
    fn on_start(&self, _: &mut Span, _: &Context) {}
    fn on_end(&self, span: SpanData) {
        self.spans.0.lock().unwrap().push((self.site, span));
    }
    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }
    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

impl Spans {
    /// The maker of the spans of member `site`.
    pub fn of(&self, site: usize) -> Traces {
        let provider = SdkTracerProvider::builder()
            .with_span_processor(Keeper {
                site,
                spans: self.clone(),
            })
            .build();
        Traces::new(BoxedTracer::new(Box::new(provider.tracer("p2pvm"))), |_| {
            None
        })
    }

    /// All that have ended.
    pub fn ended(&self) -> Vec<(usize, SpanData)> {
        self.0.lock().unwrap().clone()
    }

    /// The one of that name.
    pub fn named(&self, name: &str) -> SpanData {
        let all = self.ended();
        let mut found: Vec<_> = all.iter().filter(|(_, span)| span.name == name).collect();
        assert_eq!(found.len(), 1, "{name}: {:?}", self.outline());
        found.remove(0).1.clone()
    }

    /// The ids of all traces.
    pub fn traces(&self) -> BTreeSet<String> {
        self.ended()
            .iter()
            .map(|(_, span)| span.span_context.trace_id().to_string())
            .collect()
    }

    /// The names of one member's spans.
    pub fn names_of(&self, site: usize) -> BTreeSet<String> {
        self.ended()
            .into_iter()
            .filter(|(at, _)| *at == site)
            .map(|(_, span)| span.name.into_owned())
            .collect()
    }

    /// The member, name and status of each span that has ended.
    pub fn outline(&self) -> Vec<(usize, String, Status)> {
        self.ended()
            .into_iter()
            .map(|(site, span)| (site, span.name.into_owned(), span.status))
            .collect()
    }
}

/// The value that a span notes under a key.
pub fn noted(span: &SpanData, key: &str) -> Option<String> {
    let attributes = &span.attributes;
    let found = attributes.iter().find(|kv| kv.key.as_str() == key);
    found.map(|kv| kv.value.to_string())
}
