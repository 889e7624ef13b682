//! Finds damaged chunks before they are needed, and repairs them: a few chunks are read at a time,
//! and the chunks that a pin lacks are fetched from the member that asked for it, or from any
//! connected one.

use super::Exchange;
use crate::{ChunkId, CollectionReport, Error, Progress, error::blocking, store::Pin};
use p2pvm_overlay::{MemberId, chain};
use std::{sync::PoisonError, time::Duration};
use tokio::sync::watch;

impl Exchange {
    /// Reads the next `count` chunks; what is damaged is fetched again. Returns how many chunks
    /// were damaged.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub async fn scrub(&self, count: usize) -> Result<u64, Error> {
        let (store, after) = (self.store().clone(), *self.scrubbed());
        let (last, damaged) = blocking("reading chunks", move || store.scrub(after, count)).await?;
        *self.scrubbed() = last;
        if damaged > 0 {
            let store = self.store().clone();
            let pins = blocking("looking for damage", move || store.damaged_pins()).await?;
            self.repair(&pins).await;
        }
        Ok(damaged)
    }

    /// Removes what no pin names (see [`crate::ChunkStore::gc`]), and fetches what pins lack.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub async fn collect(&self, grace: Duration) -> Result<CollectionReport, Error> {
        let store = self.store().clone();
        let report = blocking("removing unused chunks", move || store.gc(grace)).await?;
        self.repair(&report.damaged).await;
        Ok(report)
    }

    async fn repair(&self, pins: &[Pin]) {
        let mut done = None;
        for pin in pins {
            if done.replace(pin.manifest) == Some(pin.manifest) {
                continue;
            }
            let askers = pins.iter().filter(|other| other.manifest == pin.manifest);
            let providers: Vec<MemberId> = askers
                .filter_map(|other| other.owner)
                .chain(self.core.fabric.connected())
                .collect();
            let quiet = watch::Sender::new(Progress::default());
            if let Err(e) = self.mend(pin.manifest, &providers, &quiet).await {
                tracing::warn!(
                    manifest = %pin.manifest.short(), label = pin.label, error = %chain(&e),
                    "damaged chunks on this disk cannot be repaired yet"
                );
            }
        }
    }

    fn scrubbed(&self) -> std::sync::MutexGuard<'_, Option<ChunkId>> {
        self.scrubbed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
