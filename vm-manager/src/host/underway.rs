//! A move from this host that is under way: how far it is, how to end it, and the operations that
//! go before it.

use super::{Activity, Host, Operation, Slot, lock};
use crate::{Error, hypervisor::Progress};
use p2pvm_overlay::MemberId;
use std::{sync::Arc, time::Duration};
use tokio::sync::watch;

/// How long a move may take to be given up before the caller is told that it does not end.
const GIVING_UP: Duration = Duration::from_secs(30);

/// A move from this host.
#[derive(Clone, Debug)]
pub(crate) struct OutgoingMove {
    pub(crate) to: MemberId,
    /// That member's name.
    pub(crate) called: String,
    pub(crate) progress: watch::Receiver<Progress>,
    /// Set to end the move.
    pub(crate) give_up: watch::Sender<bool>,
}

impl OutgoingMove {
    /// Why another operation on the VM has to wait.
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
    pub(crate) fn note_move(&self, outgoing: OutgoingMove) {
        *lock(&self.outgoing) = Some(outgoing);
    }

    /// Refuses while a move is under way: its target was told how the VM was, and would not learn
    /// of a change.
    ///
    /// # Errors
    /// [`Error::Refused`], with how far the move is.
    pub(crate) fn must_stay(&self) -> Result<(), Error> {
        let refuse = |outgoing: OutgoingMove| {
            Err(Error::Refused(
                outgoing.refusal(&self.entry().listed_name()),
            ))
        };
        self.outgoing_move().map_or(Ok(()), refuse)
    }

    fn outgoing_move(&self) -> Option<OutgoingMove> {
        lock(&self.outgoing).clone()
    }
}

impl Host {
    /// Gives up the move of a VM as long as its guest still runs here, and waits until that is
    /// done. The outcome of the move is that the VM stayed.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Refused`] if the VM is not being moved, or has just been
    /// handed over.
    pub async fn cancel_migration(&self, name: &str) -> Result<(), Error> {
        let slot = self.named(name)?;
        let Some(outgoing) = slot.outgoing_move() else {
            return Err(Error::Refused(format!(
                "'{name}' is not being moved from here: see 'p2pvm vm show {name}'"
            )));
        };
        self.end_move(&slot, &outgoing, Activity::EndingMove)
            .await
            .map(drop)
    }

    /// Begins an operation that goes before a move: a move that is under way is given up for it.
    pub(crate) async fn begin_before_move(
        &self,
        slot: &Arc<Slot>,
        what: Activity,
    ) -> Result<Operation, Error> {
        match slot.outgoing_move() {
            Some(outgoing) => self.end_move(slot, &outgoing, what).await,
            None => slot.begin_after_check(what).await,
        }
    }

    async fn end_move(
        &self,
        slot: &Arc<Slot>,
        outgoing: &OutgoingMove,
        what: Activity,
    ) -> Result<Operation, Error> {
        let entry = slot.entry();
        let (name, to) = (entry.listed_name(), &outgoing.called);
        tracing::info!(vm = %name, to = %outgoing.to.short(), why = %what, "the move is to be \
            given up");
        outgoing.give_up.send_replace(true);
        let begun = tokio::time::timeout(GIVING_UP, slot.begin_next(what)).await;
        let late = |_| Error::TimedOut {
            step: "give the VM's move up",
            seconds: GIVING_UP.as_secs(),
        };
        let operation = begun.map_err(late)?;
        if self
            .slot_of(entry.definition.vm)
            .is_some_and(|now| Arc::ptr_eq(&now, slot))
        {
            return Ok(operation);
        }
        Err(Error::Refused(format!(
            "'{name}' has just moved to {to}: repeat the request, which then goes there"
        )))
    }
}
