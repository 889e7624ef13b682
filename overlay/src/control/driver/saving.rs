//! Writes the address book when it has changed, beside the driver: a disk may take seconds for it,
//! and connections go on meanwhile.

use super::Driver;
use crate::write_lock;
use crate::{control::shared::Shared, durable::write_atomically};
use futures::{FutureExt, future::BoxFuture};
use std::{io, sync::Arc, time::Duration};
use tokio::task::JoinHandle;

/// How long the end waits for the disk. Reason: the book is a cache.
const LAST_SAVE: Duration = Duration::from_secs(5);

/// The write under way, and the results of the last ones.
#[derive(Default)]
pub struct Saving {
    under_way: Option<JoinHandle<io::Result<()>>>,
    /// Failures to write the peer cache.
    failures: p2pvm_host::Repeated,
}

/// Starts to write the book if it has changed.
fn begin(shared: &Arc<Shared>) -> Option<JoinHandle<io::Result<()>>> {
    let (file, content) = write_lock(&shared.book).changed()?;
    Some(tokio::task::spawn_blocking(move || {
        write_atomically(&file, &content, 0o644)
    }))
}

impl Driver {
    /// Writes the book if it has changed, unless a write is under way.
    pub(super) fn save_book(&mut self) {
        if let Some(writing) = self.saving.under_way.take() {
            if !writing.is_finished() {
                self.saving.under_way = Some(writing);
                return;
            }
            self.saved(writing.now_or_never());
        }
        self.saving.under_way = begin(&self.shared);
    }

    fn saved(&mut self, ended: Option<Result<io::Result<()>, tokio::task::JoinError>>) {
        let failure = match ended {
            Some(Ok(Ok(()))) | None => {
                self.saving.failures.over();
                return;
            }
            Some(Ok(Err(error))) => error.to_string(),
            Some(Err(error)) => error.to_string(),
        };
        write_lock(&self.shared.book).unsaved();
        if let Some(times) = self.saving.failures.again(&failure) {
            tracing::warn!(times, "the peer cache cannot be written: {failure}");
        }
    }

    /// Writes the last changes.
    pub(super) fn save_at_last(&mut self) -> BoxFuture<'static, ()> {
        let (before, shared) = (self.saving.under_way.take(), self.shared.clone());
        let all = async move {
            let trust = shared.door.trust.clone();
            let _ = tokio::task::spawn_blocking(move || trust.keep()).await;
            if let Some(before) = before {
                let _ = before.await;
            }
            if let Some(last) =
                begin(&shared).map(|last| async { last.await.map_err(io::Error::other)? })
            {
                last.await
                    .unwrap_or_else(|e| tracing::warn!("the peer cache cannot be written: {e}"));
            }
        };
        let limited = async {
            let _ = tokio::time::timeout(LAST_SAVE, all).await;
        };
        limited.boxed()
    }
}
