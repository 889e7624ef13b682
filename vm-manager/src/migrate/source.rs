//! The source's side of a migration: leads it from the offer to the end, and takes the guest back
//! when it fails.
//!
//! Each phase of a move is a type, and a step consumes one and returns the next ([`phases`]), so
//! that a step out of order does not compile:
//!
//! ```text
//! Move ─offer→ Offered ─connect→ Ready ─copy_disk→ Mirrored ─arm→ Armed ─copy_memory→ Paused
//! ─clear→ Cleared ─hand_over→ HandedOver ─settle→ Ending
//! ```
//!
//! A step that fails before the hand-over leads back ([`back`]); what comes after the hand-over is
//! decided by the target's word or the voters ([`handed_over`]).

use super::{
    MigrationOutcome, Occasion, RunningSide,
    traced::note_outcome,
    wire::{self, Answer, Request},
};
use crate::{
    Error,
    ballot::after,
    error::undecided,
    host::{Activity, Entry, Host, HostEvent, Operation, OutgoingMove, Slot},
    hypervisor::{Halt, Machine, MigrateOptions, MigrationReport, Progress, RunState},
    trace::{Step, Trail},
};
use p2pvm_overlay::{Epoch, FabricError, MemberId, VmId};
use std::{future::Future, sync::Arc, time::Duration};
use tokio::sync::{oneshot, watch};

mod back;
mod handed_over;
mod phases;

/// How long before a target or a guest's end is asked about again.
const POLL: Duration = Duration::from_millis(250);

/// One migration as its source sees it: what stays the same through all phases.
struct Move {
    host: Arc<Host>,
    slot: Arc<Slot>,
    machine: Arc<dyn Machine>,
    /// The VM's entry when the move began.
    entry: Entry,
    id: u64,
    to: MemberId,
    options: MigrateOptions,
    /// The epoch in which the target would have the VM.
    epoch: Epoch,
    started: Duration,
    progress: watch::Sender<Progress>,
    /// Makes the spans of its steps.
    trail: Trail,
}

/// A request for a move.
struct Order {
    why: Occasion,
    to: MemberId,
    options: MigrateOptions,
    progress: watch::Sender<Progress>,
}

/// A move that has begun, with what ends together with it.
struct MoveTask {
    this: Move,
    operation: Operation,
    stop: Interruption,
    root: Step,
}

/// What may end a move while its guest is still here.
struct Interruption {
    cancel: watch::Receiver<bool>,
    machine: Arc<dyn Machine>,
}

/// How a move ended, by its phases alone.
struct Ending {
    runs_on: RunningSide,
    failure: Option<String>,
    cancelled: bool,
    /// Whether the guest ended by itself.
    ended: bool,
    /// From the guest's pause here to the target's word that it runs there.
    pause: Option<Duration>,
    report: Option<MigrationReport>,
}

impl Host {
    /// Moves a running VM to `to` while it runs. The move goes on in a task of the host even if the
    /// caller goes away.
    ///
    /// # Errors
    /// Only for what could not begin: [`Error::NotFound`], [`Error::Refused`]. A move that began
    /// and failed is an outcome that says why and which side runs the VM.
    pub async fn migrate(
        &self,
        name: &str,
        to: MemberId,
        options: MigrateOptions,
        progress: watch::Sender<Progress>,
    ) -> Result<MigrationOutcome, Error> {
        self.migrate_because(Occasion::default(), name, to, options, progress)
            .await
    }

    /// As [`Host::migrate`], with the reason for the move's trace.
    ///
    /// # Errors
    /// As [`Host::migrate`].
    pub async fn migrate_because(
        &self,
        why: Occasion,
        name: &str,
        to: MemberId,
        options: MigrateOptions,
        progress: watch::Sender<Progress>,
    ) -> Result<MigrationOutcome, Error> {
        let slot = self.named(name)?;
        if to == self.me {
            return Err(Error::Refused(format!("'{name}' is on this host already")));
        }
        let operation = slot.begin_after_check(Activity::Migrating).await?;
        self.must_be_held(&slot)?;
        self.must_have_lease(&slot)?;
        let host = self
            .strong()
            .ok_or_else(|| Error::Refused("this host is shutting down".into()))?;
        let order = Order {
            why,
            to,
            options,
            progress,
        };
        let task = Move::begin(host, slot, operation, order)?;
        let span = task.log_span(name);
        let (done, outcome) = oneshot::channel();
        let work = async move {
            let host = task.this.host.clone();
            let outcome = task.run().await;
            host.emit(HostEvent::Migrated(outcome.clone()));
            // A caller that went away misses the outcome, which is no error.
            let _ = done.send(outcome);
        };
        self.spawn(tracing::Instrument::instrument(work, span));
        outcome.await.map_err(|_| {
            Error::Refused(
                "this host is shutting down; the move is settled when it is up again".into(),
            )
        })
    }
}

impl Move {
    /// Begins a move of the slot's guest.
    fn begin(
        host: Arc<Host>,
        slot: Arc<Slot>,
        operation: Operation,
        order: Order,
    ) -> Result<MoveTask, Error> {
        let entry = slot.entry();
        // A guest that stands still, on a full disk say, moves with its memory as well, and goes on
        // there.
        let machine = slot
            .machine()
            .filter(|_| matches!(slot.run_state(), RunState::Running | RunState::Paused));
        let machine = machine.ok_or_else(|| {
            Error::Refused(format!(
                "'{}' does not run: only a running VM moves; start it first",
                entry.listed_name()
            ))
        })?;
        let epoch = after(entry.epoch).map_err(undecided("asking for the VM's next epoch"))?;
        let give_up = watch::Sender::new(false);
        let stop = Interruption {
            cancel: give_up.subscribe(),
            machine: machine.clone(),
        };
        let Order {
            why,
            to,
            options,
            progress,
        } = order;
        slot.note_move(OutgoingMove {
            to,
            called: why.called.clone().unwrap_or_else(|| to.short()),
            progress: progress.subscribe(),
            give_up,
        });
        let id: u64 = rand::random();
        let root = host.begin_trace(&why, &slot, id, to, options);
        let this = Self {
            epoch,
            entry,
            started: host.now(),
            trail: root.trail(),
            host,
            slot,
            machine,
            id,
            to,
            options,
            progress,
        };
        Ok(MoveTask {
            this,
            operation,
            stop,
            root,
        })
    }

    fn vm(&self) -> VmId {
        self.entry.definition.vm
    }

    /// Sends the target a request.
    async fn ask(&self, request: &Request, timeout: Duration) -> Result<Answer, FabricError> {
        wire::ask(&*self.host.parts.fabric, self.to, request, timeout).await
    }

    /// Shows that a new phase begins, of which nothing is done yet.
    fn enter(&self, phase: &str) {
        self.progress.send_replace(Progress {
            phase: phase.into(),
            ..Progress::default()
        });
    }

    /// Shows that a new phase begins, which counts what the one before has done.
    fn rename_phase(&self, phase: &str) {
        self.progress.send_modify(|p| p.phase = phase.into());
    }

    fn outcome(&self, root: &Step, ending: Ending) -> MigrationOutcome {
        MigrationOutcome {
            id: format!("{:016x}", self.id),
            trace: root.trace_id(),
            vm: self.vm(),
            name: self.entry.definition.name.clone(),
            from: self.host.me,
            to: self.to,
            runs_on: ending.runs_on,
            epoch: match ending.runs_on {
                RunningSide::Target => self.epoch,
                RunningSide::Source | RunningSide::Undecided => self.slot.entry().epoch,
            },
            failure: ending.failure,
            cancelled: ending.cancelled,
            ended: ending.ended,
            total_ms: (self.host.now() - self.started).as_millis() as u64,
            pause_ms: ending.pause.map(|p| p.as_millis() as u64),
            report: ending.report,
        }
    }
}

impl MoveTask {
    /// The span of the move's log lines.
    fn log_span(&self, name: &str) -> tracing::Span {
        let trace = self.root.trace_id().map(tracing::field::display);
        tracing::info_span!(
            "migrate",
            id = %format_args!("{:016x}", self.this.id),
            vm = name,
            to = %self.this.to.short(),
            trace,
        )
    }

    /// Leads the move until it is known which side runs the guest.
    async fn run(self) -> MigrationOutcome {
        let Self {
            this,
            operation,
            mut stop,
            mut root,
        } = self;
        tracing::info!(epoch = %this.epoch, "the move begins");
        let ending = match this.reach_hand_over(&mut stop).await {
            Ok(cleared) => cleared.hand_over().await.settle(operation).await,
            Err(setback) => this.take_back(setback, operation).await,
        };
        let outcome = this.outcome(&root, ending);
        tracing::info!(
            runs_on = ?outcome.runs_on, failure = outcome.failure, total_ms = outcome.total_ms,
            "the move is over"
        );
        note_outcome(&mut root, &outcome, this.progress.borrow().post_copy);
        match &outcome.failure {
            None => root.done(),
            Some(failure) => root.failed(failure),
        }
        outcome
    }
}

impl Interruption {
    /// Does `work`, unless the move is cancelled or its guest ends by itself meanwhile.
    async fn during<T>(
        &mut self,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        tokio::select! {
            // A cancellation before the hand-over takes effect even when all is ready for it.
            biased;
            Ok(_) = self.cancel.wait_for(|cancel| *cancel) => Err(Error::Cancelled),
            how = ended(&*self.machine) => Err(Error::Refused(how.to_owned())),
            done = work => done,
        }
    }
}

/// Waits until the guest has ended by itself; returns how.
async fn ended(machine: &dyn Machine) -> &'static str {
    while !has_ended(machine) {
        tokio::time::sleep(POLL).await;
    }
    ended_how(machine)
}

/// Whether the guest has ended by itself. One that powered itself off has, though its process may
/// still wait for the target's disk.
fn has_ended(machine: &dyn Machine) -> bool {
    machine.halted() == Some(Halt::PoweredOff) || *machine.watch().borrow() == RunState::Stopped
}

fn ended_how(machine: &dyn Machine) -> &'static str {
    match machine.halted() {
        Some(Halt::PoweredOff) => "its guest powered itself off",
        _ => "its guest's process ended",
    }
}

/// The target's answer as the error of a step that needed another one.
fn refused(step: &'static str, answer: &Answer) -> Error {
    Error::Refused(match answer {
        Answer::Gone { reason } => format!("{step}: the target gave up: {reason}"),
        Answer::Unknown => format!("{step}: the target has forgotten the move, as after a restart"),
        other => format!("{step}: the target answered {other:?}"),
    })
}
