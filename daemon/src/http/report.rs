//! Answers in lines: a long operation reports its steps and results on the way.

use axum::{
    body::Body,
    http::header,
    response::{IntoResponse, Response},
};
use futures::{StreamExt, stream};
use p2pvm_api::{Failure, Kind, Line, Outcome, Step};
use serde::Serialize;
use std::future::Future;
use tokio::sync::mpsc;

/// Where a long operation reports its steps.
#[derive(Clone)]
pub(crate) struct Reporter(mpsc::Sender<Line>);

impl Reporter {
    /// Reports a step; a slow reader misses some.
    pub(crate) fn step(&self, step: Step) {
        // Progress is a courtesy: where the reader lags or is gone, the work goes on.
        let _ = self.0.try_send(Line::Progress(step));
    }

    /// Reports a phase without figures.
    pub(crate) fn phase(&self, phase: &str) {
        self.step(Step {
            phase: phase.to_owned(),
            ..Step::default()
        });
    }

    /// Reports one of several results; fails when the reader is gone.
    pub(crate) async fn item(&self, item: &impl Serialize) -> Outcome<()> {
        let value =
            serde_json::to_value(item).map_err(|e| Failure::new(Kind::Failed, e.to_string()))?;
        self.0
            .send(Line::Item(value))
            .await
            .map_err(|_| Failure::new(Kind::Failed, "nobody listens any more"))
    }
}

/// Runs `work` in a task of its own, which a lost connection does not interrupt half-way, and
/// streams what it reports.
pub(crate) fn streamed<T, F>(work: impl FnOnce(Reporter) -> F) -> Response
where
    T: Serialize,
    F: Future<Output = Outcome<T>> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(64);
    let running = work(Reporter(sender.clone()));
    tokio::spawn(async move {
        let line = match running.await.map(serde_json::to_value) {
            Ok(Ok(value)) => Line::Done(value),
            Ok(Err(e)) => Line::Error(Failure::new(Kind::Failed, e.to_string())),
            Err(failure) => Line::Error(failure),
        };
        // The asker may have gone; the work is done all the same.
        let _ = sender.send(line).await;
    });
    let lines = stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|line| (line, receiver))
    });
    let bytes = lines.map(|line| {
        serde_json::to_vec(&line).map(|mut bytes| {
            bytes.push(b'\n');
            bytes
        })
    });
    (
        [(header::CONTENT_TYPE, "application/x-ndjson")],
        Body::from_stream(bytes),
    )
        .into_response()
}
