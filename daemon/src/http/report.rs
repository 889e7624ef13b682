//! Answers in lines: a long operation reports its steps and results on the way.

use axum::{
    body::Body,
    http::header,
    response::{IntoResponse, Response},
};
use futures::stream;
use p2pvm_api::{Failure, Kind, Line, NoItem, Outcome, Sorted, Step};
use serde::Serialize;
use std::{future::Future, io, marker::PhantomData};
use tokio::sync::mpsc;

/// Where a long operation reports its steps, and each of several results `I`.
pub(crate) struct Reporter<I = NoItem> {
    lines: mpsc::Sender<Text>,
    items: PhantomData<fn(I)>,
}

/// A line as it is sent.
type Text = Result<Vec<u8>, io::Error>;

fn text<T: Serialize, I: Serialize>(line: &Line<T, I>) -> Text {
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    Ok(text)
}

impl<I: Serialize> Reporter<I> {
    /// A reporter of work that nobody asked for.
    pub(crate) fn unheard() -> Self {
        Self {
            lines: mpsc::channel(1).0,
            items: PhantomData,
        }
    }

    /// Reports a step; a slow reader misses some.
    pub(crate) fn step(&self, step: Step) {
        // Progress is a courtesy: where the reader lags or is gone, the work goes on.
        let _ = self.lines.try_send(text(&Line::<()>::Progress(step)));
    }

    /// Reports a phase without figures.
    pub(crate) fn phase(&self, phase: &str) {
        self.step(Step {
            phase: phase.to_owned(),
            ..Step::default()
        });
    }

    /// Waits until nobody reads any more.
    pub(crate) async fn gone(&self) {
        self.lines.closed().await;
    }

    /// Reports one of several results; fails when the reader is gone.
    pub(crate) async fn item(&self, item: &I) -> Outcome<()> {
        self.lines
            .send(text(&Line::<(), _>::Item(Sorted(item))))
            .await
            .map_err(|_| Failure::new(Kind::Failed, "nobody listens any more"))
    }
}

/// Runs `work` in a task of its own, which a lost connection does not interrupt half-way, and
/// streams what it reports.
pub(crate) fn streamed<T, I, F>(work: impl FnOnce(Reporter<I>) -> F) -> Response
where
    T: Serialize,
    F: Future<Output = Outcome<T>> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(64);
    let running = work(Reporter {
        lines: sender.clone(),
        items: PhantomData,
    });
    tokio::spawn(async move {
        let last = text(&match running.await {
            Ok(value) => Line::<_>::Done(Sorted(value)),
            Err(failure) => Line::Error(failure),
        });
        // The asker may have gone; the work is done all the same.
        let _ = sender.send(last).await;
    });
    let lines = stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|line| (line, receiver))
    });
    (
        [(header::CONTENT_TYPE, "application/x-ndjson")],
        Body::from_stream(lines),
    )
        .into_response()
}
