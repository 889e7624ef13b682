//! A move that is under way, for those who ask about it, want it ended, or go before it.

use super::{Busy, Host, Slot, lock};
use crate::{Error, hypervisor::Progress};
use p2pvm_overlay::MemberId;
use std::{sync::Arc, time::Duration};
use tokio::sync::watch;

/// How long the source of a move may take to give it up.
const GIVING_UP: Duration = Duration::from_secs(30);

/// A move from this host.
#[derive(Clone, Debug)]
pub(crate) struct Underway {
    /// Where to.
    pub(crate) to: MemberId,
    /// What people call that member.
    pub(crate) called: String,
    /// How far.
    pub(crate) progress: watch::Receiver<Progress>,
    /// Set by whoever wants it ended.
    pub(crate) give_up: watch::Sender<bool>,
}

impl Underway {
    /// What is said to whoever wants something else of the VM meanwhile.
    pub(crate) fn refusal(&self, name: &str) -> String {
        let Progress {
            phase,
            done_bytes,
            total_bytes,
            ..
        } = self.progress.borrow().clone();
        let far = match total_bytes {
            0 => phase,
            total => format!(
                "{phase}, {} of {} MiB",
                done_bytes >> 20,
                total.div_ceil(1 << 20)
            ),
        };
        let to = &self.called;
        format!(
            "'{name}' is being moved to {to} ({far}): wait until that is done, or end it with \
                'p2pvm vm migrate --cancel {name}'"
        )
    }
}

impl Slot {
    /// Notes a move; it is forgotten when its operation ends.
    pub(crate) fn moves(&self, underway: Underway) {
        *lock(&self.underway) = Some(underway);
    }

    fn underway(&self) -> Option<Underway> {
        lock(&self.underway).clone()
    }
}

impl Host {
    /// Gives up the move of a VM that is under way, as long as its guest still runs here, and waits
    /// until it is. The move ends with the outcome that the VM stayed.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Refused`] if it is not being moved, or went over in this
    /// moment.
    pub async fn cancel_migration(&self, name: &str) -> Result<(), Error> {
        let slot = self.named(name)?;
        let Some(underway) = slot.underway() else {
            return Err(Error::Refused(format!(
                "'{name}' is not being moved from here: see 'p2pvm vm show {name}'"
            )));
        };
        self.end_move(&slot, &underway, "the move's end")
            .await
            .map(drop)
    }

    /// Begins an operation that goes before a move: one that is under way is given up for it.
    pub(crate) async fn begin_before_move(
        &self,
        slot: &Arc<Slot>,
        what: &'static str,
    ) -> Result<Busy, Error> {
        match slot.underway() {
            Some(underway) => self.end_move(slot, &underway, what).await,
            None => slot.begin_soon(what).await,
        }
    }

    async fn end_move(
        &self,
        slot: &Arc<Slot>,
        underway: &Underway,
        what: &'static str,
    ) -> Result<Busy, Error> {
        let entry = slot.entry();
        let (name, to) = (entry.listed_name(), &underway.called);
        tracing::info!(vm = %name, to = %underway.to.short(), why = what, "the move is to be \
            given up");
        underway.give_up.send_replace(true);
        let begun = tokio::time::timeout(GIVING_UP, slot.begin_next(what)).await;
        let late = |_| Error::TimedOut {
            step: "give the VM's move up",
            seconds: GIVING_UP.as_secs(),
        };
        let busy = begun.map_err(late)?;
        if self
            .slot_of(entry.definition.vm)
            .is_some_and(|now| Arc::ptr_eq(&now, slot))
        {
            return Ok(busy);
        }
        Err(Error::Refused(format!(
            "'{name}' has gone over to {to} in this moment: ask once more, and it is asked there"
        )))
    }
}
