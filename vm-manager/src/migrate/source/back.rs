//! The way back of a move that failed while its guest was here for certain: the guest goes on here,
//! or, if it ended by itself meanwhile, the VM's restart policy says what follows.

use super::{Ending, Move, ended, ended_how, has_ended, phases::Setback};
use crate::{
    Error,
    host::{Operation, Role, RunningSide, run_here},
    migrate::wire::{self, Request, SHORT},
    restart,
};
use p2pvm_overlay::chain;
use std::time::Duration;
use tokio::sync::oneshot;

/// How long after the end of its monitor the end of a guest may be noticed.
const ENDED: Duration = Duration::from_secs(2);
/// How long the process of a guest that powered itself off may take to end.
const ENDING: Duration = Duration::from_secs(5);

/// How long a failed move waits for a newer epoch before it is reported. Reason: voters that can be
/// reached answer within a round trip and a flush.
const NEWER_EPOCH: Duration = Duration::from_secs(2);

impl Move {
    pub(super) async fn take_back(&self, setback: Setback, operation: Operation) -> Ending {
        let Setback { error, promised } = setback;
        tracing::info!(error = %chain(&error), "the move ended before the hand-over: the VM stays \
            here");
        let back = self.trail.step("take back");
        let ended = self.guest_ended(&error).await;
        let failure = match ended {
            true => self.stop_here().await,
            false => self.stay(&error).await,
        };
        back.done();
        if promised && !ended {
            self.newer_epoch(operation).await;
        }
        Ending {
            runs_on: RunningSide::Source,
            failure: Some(failure),
            cancelled: matches!(error, Error::Cancelled),
            ended,
            pause: None,
            report: None,
        }
    }

    /// Whether the guest ended by itself. The end of its monitor may be noticed first.
    async fn guest_ended(&self, error: &Error) -> bool {
        let machine = &*self.machine;
        let late =
            error.is_of_hypervisor() && tokio::time::timeout(ENDED, ended(machine)).await.is_ok();
        late || has_ended(machine)
    }

    /// The guest ended by itself while it was being moved: the VM is here, and starts again after
    /// the move if its policy says so.
    async fn stop_here(&self) -> String {
        let (host, machine, name) = (&self.host, &*self.machine, &self.entry.definition.name);
        // Read before the process is ended here.
        let (why, halt) = (ended_how(machine), machine.halted());
        // Its process may still wait for the target's disk: that ends with the move.
        if let Err(e) = machine.stop(ENDING).await {
            tracing::warn!(error = %chain(&e), "the process of the guest that ended is still \
                there");
        }
        self.slot.take_guest();
        host.end_lease(&self.slot).await;
        if let Err(e) = host.parts.port.detach(self.vm()).await {
            tracing::warn!(vm = %name, error = %chain(&e), "the guest's port could not be taken \
                away");
        }
        if let Err(e) = host.update(&self.slot, |e| e.role = Role::Held) {
            tracing::error!(vm = %name, error = %chain(&e), "the VM's end could not be written \
                down");
        }
        self.tell_target(why.to_owned());
        let ending = restart::Ending::of(halt);
        host.settle_end(&self.slot, (ending, " while it was being moved"))
            .await;
        why.to_owned()
    }

    /// The guest goes on here.
    async fn stay(&self, why: &Error) -> String {
        let why = chain(why);
        let mut failure = why.clone();
        if let Err(e) = run_here(&*self.machine).await {
            failure = format!("{failure}; giving the move up: {}", chain(&e));
            tracing::warn!(error = %chain(&e), "the hypervisor could not give the move up cleanly");
        }
        self.host.parts.port.held(self.vm(), false).await;
        if let Err(e) = self.host.update(&self.slot, |e| e.role = Role::Held) {
            tracing::error!(error = %chain(&e), "the VM's stay could not be written down; the \
                next start settles it");
        }
        self.tell_target(why);
        failure
    }

    /// Tells the target in a task that the VM does not come.
    fn tell_target(&self, reason: String) {
        let abort = Request::Abort {
            id: self.id,
            vm: self.vm(),
            reason,
        };
        let (host, to) = (self.host.clone(), self.to);
        self.host.spawn(async move {
            if let Err(e) = wire::ask(&*host.parts.fabric, to, &abort, SHORT).await {
                tracing::info!(error = %chain(&e), "the target could not be told; it gives up by \
                    itself");
            }
        });
    }

    /// Ends the operation with a newer epoch than the target's, and waits for that a while: the
    /// target of the next move would be refused the one that the voters have given away.
    async fn newer_epoch(&self, operation: Operation) {
        let (host, slot) = (self.host.clone(), self.slot.clone());
        let (asked, is_over) = oneshot::channel();
        self.host.spawn(async move {
            host.ask_newer_epoch(&slot).await;
            drop(operation);
            // An error means that the move has been reported meanwhile.
            let _ = asked.send(());
        });
        let _ = tokio::time::timeout(NEWER_EPOCH, is_over).await;
    }
}
