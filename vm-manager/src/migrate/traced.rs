//! What the spans of a migration say: one of the whole move at its source, one of the whole arrival
//! at its target, and events for the passes over memory. [`super::source`] and [`super::target`]
//! begin and end the spans of the steps, where each is taken.

use super::{Occasion, wire::Offer};
use crate::{
    host::{Host, MigrationOutcome, RunningSide, Slot},
    hypervisor::{MigrateOptions, Progress},
    trace::Step,
};
use opentelemetry::trace::{SpanContext, SpanKind};
use p2pvm_overlay::MemberId;
use std::{future::Future, pin::pin};
use tokio::sync::watch;

impl Host {
    /// The span of the whole move.
    pub(super) fn begin_trace(
        &self,
        why: &Occasion,
        slot: &Slot,
        id: u64,
        to: MemberId,
        options: MigrateOptions,
    ) -> Step {
        let entry = slot.entry();
        let name = &entry.definition.name;
        let mut root =
            self.parts
                .traces
                .begin(&why.within, SpanKind::Internal, format!("migrate {name}"));
        root.note_text("p2pvm.vm.name", name);
        root.note_text("p2pvm.vm.id", &entry.definition.vm.to_string());
        root.note_text("p2pvm.migration.id", &format!("{id:016x}"));
        root.note_member("p2pvm.migration.from", "p2pvm.migration.from.id", self.me);
        root.note_member("p2pvm.migration.to", "p2pvm.migration.to.id", to);
        root.note("p2pvm.migration.cause", why.cause);
        if let Some(reason) = &why.reason {
            root.note_text("p2pvm.migration.reason", reason);
        }
        root.note("p2pvm.migration.post_copy_allowed", options.post_copy);
        root
    }

    /// The span of the whole arrival.
    pub(super) fn begin_arrival_trace(
        &self,
        within: &SpanContext,
        offer: &Offer,
        from: MemberId,
    ) -> Step {
        let name = &offer.definition.name;
        let mut root = self
            .parts
            .traces
            .begin(within, SpanKind::Server, format!("receive {name}"));
        root.note_text("p2pvm.vm.name", name);
        root.note_text("p2pvm.vm.id", &offer.definition.vm.to_string());
        root.note_text("p2pvm.migration.id", &format!("{:016x}", offer.id));
        root.note_member("p2pvm.migration.from", "p2pvm.migration.from.id", from);
        root
    }
}

/// Does `work`, and notes each new pass over the guest's memory as an event of `step`.
pub(super) async fn noting_rounds<T>(
    step: &mut Step,
    progress: &watch::Sender<Progress>,
    work: impl Future<Output = T>,
) -> T {
    let (mut work, mut seen, mut rounds, mut post_copy) =
        (pin!(work), progress.subscribe(), 0, false);
    loop {
        let done = tokio::select! {
            done = &mut work => Some(done),
            Ok(()) = seen.changed() => None,
        };
        {
            let now = seen.borrow_and_update();
            if now.rounds > rounds {
                rounds = now.rounds;
                let left = now.total_bytes.saturating_sub(now.done_bytes);
                step.event(
                    "pass over memory",
                    &[
                        ("pass", rounds),
                        ("bytes_left", left),
                        ("dirty_bytes_per_second", now.dirty_rate),
                    ],
                );
            }
            if now.post_copy && !post_copy {
                post_copy = true;
                step.event("post-copy begins", &[]);
            }
        }
        if let Some(done) = done {
            return done;
        }
    }
}

/// Notes how the move ended.
pub(super) fn note_outcome(root: &mut Step, outcome: &MigrationOutcome, post_copy: bool) {
    let settled = match outcome.runs_on {
        RunningSide::Target => "moved",
        RunningSide::Source => "stayed",
        RunningSide::Undecided => "undecided",
    };
    root.note("p2pvm.migration.outcome", settled);
    root.note(
        "p2pvm.migration.mode",
        if post_copy { "post-copy" } else { "pre-copy" },
    );
    root.note_count("p2pvm.vm.epoch", outcome.epoch.0);
    root.note_count("p2pvm.migration.total_ms", outcome.total_ms);
    if let Some(pause_ms) = outcome.pause_ms {
        root.note_count("p2pvm.migration.pause_ms", pause_ms);
    }
    if let Some(report) = outcome.report {
        root.note_count("p2pvm.migration.downtime_ms", report.downtime_ms);
        root.note_count("p2pvm.migration.ram_bytes", report.ram_bytes);
        root.note_count("p2pvm.migration.rounds", report.rounds);
    }
}
