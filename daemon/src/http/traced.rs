//! The trace of a request to move a VM: what the request is within (a `traceparent` header, as any
//! HTTP client with traces sends it), and where the VM's host is another member, the asking as a
//! span of its own, which lasts until the answer's last line.

use axum::{
    body::Body,
    extract::Request,
    http::{HeaderMap, HeaderValue, Method},
    response::Response,
};
use http_body_util::BodyExt;
use hyper::body::{Bytes, Frame};
use opentelemetry::trace::{SpanContext, SpanKind};
use p2pvm_api::Line;
use p2pvm_vm_manager::{
    Traces,
    trace::{Step, from_traceparent, traceparent},
};
use serde::de::IgnoredAny;

/// The header's name (<https://www.w3.org/TR/trace-context/#traceparent-header>).
const HEADER: &str = "traceparent";
/// How long a line may be before it is skipped. Reason: the last line of a move's answer is
/// shorter.
const MAX_LINE_BYTES: usize = 64 << 10;

/// The span that a request is within, or [`SpanContext::NONE`].
pub fn within(headers: &HeaderMap) -> SpanContext {
    headers
        .get(HEADER)
        .and_then(|value| value.to_str().ok())
        .and_then(from_traceparent)
        .unwrap_or(SpanContext::NONE)
}

/// Begins the span of a request that is passed on, if it asks for a move, and makes the request say
/// so.
pub fn begin(traces: &Traces, vm: &str, request: &mut Request) -> Option<Step> {
    if request.method() != Method::POST || !request.uri().path().ends_with("/migrate") {
        return None;
    }
    let mut step = traces.begin(
        &within(request.headers()),
        SpanKind::Client,
        format!("ask to migrate {vm}"),
    );
    step.note_text("p2pvm.vm.name", vm);
    let context = traceparent(step.context())?;
    request
        .headers_mut()
        .insert(HEADER, HeaderValue::from_str(&context).ok()?);
    Some(step)
}

/// Lets the span end with the answer.
pub fn follow(step: Step, response: Response) -> Response {
    if !response.status().is_success() {
        step.failed(&response.status());
        return response;
    }
    let mut last = LastLine {
        step: Some(step),
        line: Vec::new(),
    };
    response.map(|body| {
        Body::new(body.map_frame(move |frame| {
            last.saw(&frame);
            frame
        }))
    })
}

/// Waits for the line that says how the move ended.
struct LastLine {
    step: Option<Step>,
    line: Vec<u8>,
}

impl LastLine {
    fn saw(&mut self, frame: &Frame<Bytes>) {
        let Some(data) = frame.data_ref() else { return };
        for part in data.split_inclusive(|b| *b == b'\n') {
            if self.line.len() + part.len() <= MAX_LINE_BYTES {
                self.line.extend_from_slice(part);
            }
            if part.ends_with(b"\n") {
                let line = std::mem::take(&mut self.line);
                let outcome = match serde_json::from_slice::<Line<IgnoredAny>>(&line) {
                    Ok(Line::Done(_)) => Ok(()),
                    Ok(Line::Error(failure)) => Err(failure),
                    _ => continue,
                };
                if let Some(step) = self.step.take() {
                    step.ended(&outcome);
                }
            }
        }
    }
}
