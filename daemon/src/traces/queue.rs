//! The queue of ended spans. It is bounded: when it is full, it drops and counts the newest span,
//! so that the waiting ones form whole traces.

use super::Counts;
use opentelemetry::Context;
use opentelemetry_sdk::{
    error::OTelSdkResult,
    trace::{Span, SpanData, SpanProcessor},
};
use p2pvm_host::lock;
use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::sync::Notify;

/// How many spans may wait. A host ends about ten for each migration; one is a kilobyte or two.
pub const MAX_WAITING: usize = 2048;

#[derive(Debug, Default)]
pub struct Queue {
    spans: Mutex<VecDeque<SpanData>>,
    sent: AtomicU64,
    dropped: AtomicU64,
    news: Notify,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, VecDeque<SpanData>> {
        lock(&self.spans)
    }

    fn push(&self, span: SpanData) {
        let mut spans = self.lock();
        if spans.len() < MAX_WAITING {
            spans.push_back(span);
            self.news.notify_one();
        } else {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Ends when there is something to send.
    pub async fn filled(&self) {
        while self.lock().is_empty() {
            self.news.notified().await;
        }
    }

    /// The oldest spans, which stay until [`Queue::remove`].
    pub fn oldest(&self, most: usize) -> Vec<SpanData> {
        self.lock().iter().take(most).cloned().collect()
    }

    /// Removes the `n` oldest, of which the collector accepted `sent`.
    pub fn remove(&self, n: usize, sent: usize) {
        let mut spans = self.lock();
        let n = n.min(spans.len());
        spans.drain(..n);
        self.sent.fetch_add(sent.min(n) as u64, Ordering::Relaxed);
        self.dropped
            .fetch_add(n.saturating_sub(sent) as u64, Ordering::Relaxed);
    }

    pub fn counts(&self) -> Counts {
        Counts {
            sent: self.sent.load(Ordering::Relaxed),
            dropped: self.dropped.load(Ordering::Relaxed),
            waiting: self.lock().len() as u64,
        }
    }
}

/// The queue as the tracer sees it.
#[derive(Debug)]
pub struct Feed(pub Arc<Queue>);

impl SpanProcessor for Feed {
    fn on_start(&self, _span: &mut Span, _within: &Context) {}

    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled() {
            self.0.push(span);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _limit: Duration) -> OTelSdkResult {
        Ok(())
    }
}
