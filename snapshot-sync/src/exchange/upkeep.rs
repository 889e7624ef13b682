//! Finds damaged chunks before they are needed, and repairs them: a few chunks are read at a time,
//! and the chunks that a pin lacks are fetched from the member that asked for it, or from any
//! connected one.

use super::Exchange;
use crate::{
    CollectionReport, Error, Progress,
    error::blocking,
    store::{Pin, ScrubState},
};
use p2pvm_overlay::{MemberId, UnixTime, chain, lock};
use std::{
    sync::{MutexGuard, atomic::Ordering},
    time::Duration,
};
use tokio::sync::watch;

impl Exchange {
    /// Reads the next chunks of a pass that takes about `period`, where this is called `every` so
    /// often, and no more than `rate` bytes per second; what is damaged is fetched again. Returns
    /// how many chunks were damaged.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub async fn scrub(
        &self,
        (period, every): (Duration, Duration),
        rate: u64,
        now: UnixTime,
    ) -> Result<u64, Error> {
        let (store, mut state) = (self.store().clone(), *self.scrubbed());
        let (report, state) = blocking("reading chunks", move || {
            if state.waits(now, period) {
                return Ok((None, state));
            }
            if !state.is_under_way() {
                (state.began, state.total) = (now.max(UnixTime(1)), store.count()?);
            }
            let report = store.scrub(state.after, state.portion(period, every, rate))?;
            state.advance(&report, now);
            // On a full disk the search goes on: what it found is to be repaired.
            if let Err(error) = store.write_scrub_state(state) {
                tracing::debug!(error = %chain(&error), "the search for damage begins at an \
                    earlier place after a restart");
            }
            Ok((Some(report), state))
        })
        .await?;
        *self.scrubbed() = state;
        let damaged = report.map_or(0, |report| report.damaged);
        if damaged > 0 {
            let store = self.store().clone();
            let pins = blocking("looking for damage", move || store.damaged_pins()).await?;
            self.repair(&pins).await;
        }
        Ok(damaged)
    }

    /// How far the search for damaged chunks is.
    pub fn scrub_state(&self) -> ScrubState {
        *self.scrubbed()
    }

    /// How many pinned manifests lack chunks that no connected member could give, as the last look
    /// found.
    pub fn unrepaired(&self) -> usize {
        self.unrepaired.load(Ordering::Relaxed)
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
        let (mut done, mut unrepaired) = (None, 0);
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
                unrepaired += 1;
                tracing::warn!(
                    manifest = %pin.manifest.short(), label = pin.label, error = %chain(&e),
                    "damaged chunks on this disk cannot be repaired yet"
                );
            }
        }
        self.unrepaired.store(unrepaired, Ordering::Relaxed);
    }

    fn scrubbed(&self) -> MutexGuard<'_, ScrubState> {
        lock(&self.scrubbed)
    }
}
