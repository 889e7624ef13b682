//! Traces of what this crate does, as OpenTelemetry spans: a migration is one trace over both its
//! hosts.
//!
//! This crate uses OpenTelemetry's API alone; the program brings the tracer that records, and
//! without one ([`Traces::default`]) a [`Step`] costs next to nothing and goes nowhere. The context
//! of a trace travels as a `traceparent`
//! (<https://www.w3.org/TR/trace-context/#traceparent-header>) and is read strictly, since another
//! member wrote it; `tracestate`, which may be long, does not travel.

use opentelemetry::{
    Context, KeyValue, Value,
    global::{BoxedSpan, BoxedTracer},
    trace::{
        Span as _, SpanContext, SpanId, SpanKind, Status, TraceContextExt as _, TraceFlags,
        TraceId, TraceState, Tracer as _, noop::NoopTracer,
    },
};
use p2pvm_overlay::{MemberId, chain};
use std::{borrow::Cow, error::Error, fmt::Display, future::Future, sync::Arc};

/// How many bytes of a text a span keeps. Reason: some texts come from other members.
const MAX_TEXT_BYTES: usize = 1024;
/// How many bytes a `traceparent` of the version in use has.
const TRACEPARENT_BYTES: usize = 55;

type Names = Arc<dyn Fn(MemberId) -> Option<String> + Send + Sync>;

/// The maker of spans, by the program's tracer.
#[derive(Clone)]
pub struct Traces {
    tracer: Arc<BoxedTracer>,
    names: Option<Names>,
}

impl Default for Traces {
    fn default() -> Self {
        Self {
            tracer: Arc::new(BoxedTracer::new(Box::new(NoopTracer::new()))),
            names: None,
        }
    }
}

impl Traces {
    /// Spans recorded by `tracer`; `names` gives members' names.
    pub fn new(
        tracer: BoxedTracer,
        names: impl Fn(MemberId) -> Option<String> + Send + Sync + 'static,
    ) -> Self {
        Self {
            tracer: Arc::new(tracer),
            names: Some(Arc::new(names)),
        }
    }

    /// Begins a span below `within`, which may be [`SpanContext::NONE`].
    pub fn begin(
        &self,
        within: &SpanContext,
        kind: SpanKind,
        name: impl Into<Cow<'static, str>>,
    ) -> Step {
        let parent = match within.is_valid() {
            true => Context::new().with_remote_span_context(within.clone()),
            false => Context::new(),
        };
        let name: Cow<'static, str> = match name.into() {
            Cow::Owned(name) => cut(&name).into(),
            fixed => fixed,
        };
        let builder = self.tracer.span_builder(name).with_kind(kind);
        Step {
            span: self.tracer.build_with_context(builder, &parent),
            traces: self.clone(),
            ended: false,
        }
    }
}

/// A span under way. One that is dropped before its end ends as given up.
pub struct Step {
    span: BoxedSpan,
    traces: Traces,
    ended: bool,
}

impl Step {
    /// The context for spans within this one, here or on another host.
    pub fn context(&self) -> &SpanContext {
        self.span.span_context()
    }

    /// The trace's id as people look it up, if it is part of one.
    pub fn trace_id(&self) -> Option<String> {
        self.context()
            .is_valid()
            .then(|| self.context().trace_id().to_string())
    }

    /// The maker of steps within this one.
    pub fn trail(&self) -> Trail {
        Trail {
            traces: self.traces.clone(),
            within: self.context().clone(),
        }
    }

    /// Notes an attribute.
    pub fn note(&mut self, key: &'static str, value: impl Into<Value>) {
        self.span.set_attribute(KeyValue::new(key, value));
    }

    /// Notes a text, which may be another member's.
    pub fn note_text(&mut self, key: &'static str, text: &str) {
        if self.span.is_recording() {
            self.note(key, cut(text));
        }
    }

    /// Notes a number of something.
    pub fn note_count(&mut self, key: &'static str, count: u64) {
        self.note(key, signed(count));
    }

    /// Notes a member, by name and id.
    pub fn note_member(&mut self, name_key: &'static str, id_key: &'static str, member: MemberId) {
        if self.span.is_recording() {
            if let Some(name) = self.traces.names.as_ref().and_then(|names| names(member)) {
                self.note(name_key, cut(&name));
            }
            self.note(id_key, member.to_string());
        }
    }

    /// Notes that something happened now, with figures.
    pub fn event(&mut self, name: &'static str, figures: &[(&'static str, u64)]) {
        if self.span.is_recording() {
            self.span.add_event(
                name,
                figures
                    .iter()
                    .map(|(key, n)| KeyValue::new(*key, signed(*n)))
                    .collect(),
            );
        }
    }

    /// Ends it as done.
    pub fn done(self) {
        self.end(Status::Ok);
    }

    /// Ends it as failed, with the reason.
    pub fn failed(self, why: &dyn Display) {
        let why = if self.span.is_recording() {
            cut(&why.to_string())
        } else {
            String::new()
        };
        self.end(Status::error(why));
    }

    /// Ends it as the outcome says.
    pub fn ended<T, E: Error>(self, outcome: &Result<T, E>) {
        match outcome {
            Ok(_) => self.done(),
            Err(e) => self.failed(&chain(e)),
        }
    }

    fn end(mut self, status: Status) {
        self.ended = true;
        self.span.set_status(status);
        self.span.end();
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if !self.ended {
            self.span
                .set_status(Status::error("given up before it was done"));
            self.span.end();
        }
    }
}

/// The maker of steps within one span.
#[derive(Clone)]
pub struct Trail {
    traces: Traces,
    within: SpanContext,
}

impl Trail {
    /// The span whose steps these are.
    pub fn within(&self) -> &SpanContext {
        &self.within
    }

    /// Begins a step.
    pub fn step(&self, name: &'static str) -> Step {
        self.traces.begin(&self.within, SpanKind::Internal, name)
    }

    /// Does `work` as a step.
    pub async fn through<T, E: Error>(
        &self,
        name: &'static str,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let step = self.step(name);
        let outcome = work.await;
        step.ended(&outcome);
        outcome
    }
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn cut(text: &str) -> String {
    let end = (0..=text.len().min(MAX_TEXT_BYTES))
        .rev()
        .find(|at| text.is_char_boundary(*at))
        .unwrap_or(0);
    text[..end].to_owned()
}

/// The context of a trace as it travels to another host; `None` without a trace.
pub fn traceparent(context: &SpanContext) -> Option<String> {
    let sampled = context.trace_flags() & TraceFlags::SAMPLED;
    context.is_valid().then(|| {
        format!(
            "00-{}-{}-{:02x}",
            context.trace_id(),
            context.span_id(),
            sampled.to_u8()
        )
    })
}

/// The context that another host sent; `None` if it is not a `traceparent`. Of a later version,
/// which has more behind a dash, the known part counts, as the recommendation asks.
pub fn from_traceparent(text: &str) -> Option<SpanContext> {
    let bytes = text.as_bytes();
    let known = bytes.get(..TRACEPARENT_BYTES)?;
    let is_dash = |at: &usize| [2, 35, 52].contains(at);
    let is_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    if !known
        .iter()
        .enumerate()
        .all(|(at, b)| if is_dash(&at) { *b == b'-' } else { is_hex(*b) })
    {
        return None;
    }
    match (&text[..2], bytes.get(TRACEPARENT_BYTES)) {
        ("ff", _) | ("00", Some(_)) => return None,
        (_, None | Some(b'-')) => {}
        _ => return None,
    }
    let trace = TraceId::from_hex(&text[3..35]).ok()?;
    let span = SpanId::from_hex(&text[36..52]).ok()?;
    let flags = TraceFlags::new(u8::from_str_radix(&text[53..55], 16).ok()?) & TraceFlags::SAMPLED;
    Some(SpanContext::new(trace, span, flags, true, TraceState::NONE)).filter(SpanContext::is_valid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_context_survives_the_way_to_another_host(
            trace in 1u128.., span in 1u64.., sampled: bool
        ) {
            let flags = if sampled { TraceFlags::SAMPLED } else { TraceFlags::NOT_SAMPLED };
            let ids = (
                TraceId::from_bytes(trace.to_be_bytes()), SpanId::from_bytes(span.to_be_bytes())
            );
            let there = from_traceparent(
                &traceparent(
                    &SpanContext::new(ids.0, ids.1, flags, false, TraceState::NONE)
                ).unwrap()
            ).unwrap();
            prop_assert_eq!(
                (there.trace_id(), there.span_id(), there.trace_flags()), (ids.0, ids.1, flags)
            );
            prop_assert!(there.is_remote());
        }

        #[test]
        fn whatever_another_host_sends_is_a_context_or_nothing(
            text in "\\PC{0,80}",
            mangled in "[0-9a-fg-]{2}-[0-9a-f+]{32}-[0-9a-f]{16}-[0-9a-fA-F]{2}.?"
        ) {
            for text in [text, mangled] {
                if let Some(context) = from_traceparent(&text) {
                    prop_assert_eq!(&traceparent(&context).unwrap()[3..52], &text[3..52]);
                }
            }
        }
    }

    #[test]
    fn only_what_the_recommendation_allows_is_taken_for_a_context() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(
            traceparent(&from_traceparent(good).unwrap()).as_deref(),
            Some(good)
        );
        assert!(
            from_traceparent(&good.replacen("00", "cc", 1)).is_some(),
            "a later version"
        );
        assert!(
            from_traceparent(&format!(
                "{}-what-the-future-brings",
                good.replacen("00", "cc", 1)
            ))
            .is_some()
        );
        let unknown_flags = from_traceparent(&good.replace("-01", "-ff")).unwrap();
        assert_eq!(
            unknown_flags.trace_flags(),
            TraceFlags::SAMPLED,
            "unknown flags are not passed on"
        );
        for bad in [
            "",
            "00",
            &good[..54],
            &format!("{good}-more"),
            &format!("{good} "),
            &good.replacen("00", "ff", 1),
            &good.replace("4bf9", "4BF9"),
            &good.replace("4bf9", "+bf9"),
            &good.replace("-01", "-0g"),
            &good.replace('-', "_"),
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473\u{e9}-00f067aa0ba902b7-01",
        ] {
            assert!(from_traceparent(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn without_a_tracer_a_step_has_no_trace_but_hands_one_on() {
        let traces = Traces::default();
        let step = traces.begin(&SpanContext::NONE, SpanKind::Internal, "alone");
        assert_eq!((step.trace_id(), traceparent(step.context())), (None, None));
        let asked =
            from_traceparent("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01").unwrap();
        let step = traces.begin(&asked, SpanKind::Internal, "asked for by another");
        assert_eq!(
            step.trail().step("within").context(),
            &asked,
            "the next step can go on with it"
        );
    }

    #[test]
    fn a_long_text_is_cut_where_a_letter_ends() {
        assert_eq!(cut(&"\u{e9}".repeat(600)).len(), MAX_TEXT_BYTES);
        assert_eq!(
            cut(&format!("x{}", "\u{e9}".repeat(600))).len(),
            MAX_TEXT_BYTES - 1
        );
        assert_eq!(cut("short"), "short");
    }
}
