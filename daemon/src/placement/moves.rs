//! The progress of VMs' moves from here, and their results, whether a user or the autonomic manager
//! asked for them.

use crate::parts::Parts;
use p2pvm_api::{Failure, Kind, Moving, Outcome, Step, VmMoved};
use p2pvm_host::lock;
use p2pvm_vm_manager::{
    hypervisor::Progress,
    migrate::{MigrationOutcome, RunningSide},
};
use std::{collections::HashMap, sync::Mutex};
use tokio::sync::watch;

/// The moves under way, by the VM's name.
#[derive(Default)]
pub struct Moves(Mutex<HashMap<String, (String, watch::Receiver<Progress>)>>);

impl Moves {
    /// Follows the move of `vm` to the member called `to` until its progress is dropped.
    pub fn follow(&self, vm: &str, to: String, progress: &watch::Sender<Progress>) {
        let mut moves = lock(&self.0);
        moves.retain(|_, (_, step)| step.has_changed().is_ok());
        // A second move is refused and must not hide the first.
        moves
            .entry(vm.to_owned())
            .or_insert_with(|| (to, progress.subscribe()));
    }

    /// The progress of the VM's move, if it is being moved.
    pub fn of(&self, vm: &str) -> Option<Moving> {
        let moves = lock(&self.0);
        let (to, step) = moves
            .get(vm)
            .filter(|(_, step)| step.has_changed().is_ok())?;
        Some(Moving {
            to: to.clone(),
            step: step_of(&step.borrow()),
        })
    }
}

/// The progress of an operation on a VM.
pub(crate) fn step_of(progress: &Progress) -> Step {
    let mut note = String::new();
    if progress.dirty_rate > 0 {
        note = format!("dirty {}/s", indicatif::HumanBytes(progress.dirty_rate));
    }
    if progress.expected_downtime_ms > 0 {
        note = format!(
            "{note} expected downtime {} ms",
            progress.expected_downtime_ms
        )
        .trim_start()
        .to_owned();
    }
    Step {
        phase: progress.phase.clone(),
        done_bytes: progress.done_bytes,
        total_bytes: progress.total_bytes,
        note,
    }
}

/// The result of a move, for its caller.
pub(crate) fn moved(parts: &Parts, outcome: &MigrationOutcome) -> Outcome<VmMoved> {
    let report = outcome.report.unwrap_or_default();
    let traced = outcome
        .trace
        .as_ref()
        .map_or_else(String::new, |trace| format!(" (trace {trace})"));
    match outcome.runs_on {
        RunningSide::Target => Ok(VmMoved {
            downtime_ms: report.downtime_ms,
            epoch: outcome.epoch.0,
            from: parts.name_of(outcome.from),
            host: parts.name_of(outcome.to),
            migration: outcome.id.clone().into(),
            name: outcome.name.clone(),
            pause_ms: outcome.pause_ms,
            ram_bytes: report.ram_bytes,
            total_ms: outcome.total_ms,
            trace: outcome.trace.clone(),
        }),
        RunningSide::Source if outcome.cancelled => Err(Failure::cancelled(format!(
            "cancelled: {} did not move and stays on {}{traced}",
            outcome.name,
            parts.name_of(outcome.from)
        ))),
        RunningSide::Source if outcome.ended => Err(Failure::new(
            Kind::Failed,
            format!(
                "{} did not move: {} during the move on {}; 'p2pvm vm show {0}' says whether it \
                    starts again, 'p2pvm vm start {0}' starts it{traced}",
                outcome.name,
                outcome.failure.as_deref().unwrap_or("its guest ended"),
                parts.name_of(outcome.from)
            ),
        )),
        RunningSide::Source => Err(Failure::new(
            Kind::Failed,
            format!(
                "{} did not move and still runs on {}: {}{traced}",
                outcome.name,
                parts.name_of(outcome.from),
                outcome.failure.as_deref().unwrap_or("unknown cause")
            ),
        )),
        RunningSide::Undecided => Err(Failure::new(
            Kind::Failed,
            format!(
                "{} is held on both hosts until a majority of its voters answers, then goes \
                    on by itself on one: {}{traced}",
                outcome.name,
                outcome.failure.as_deref().unwrap_or("unknown cause")
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_move_is_seen_with_its_last_step_until_it_ends() {
        let moves = Moves::default();
        let progress = watch::Sender::new(Progress::default());
        moves.follow("web", "lyon".to_owned(), &progress);
        progress.send_replace(Progress {
            phase: "ram".to_owned(),
            done_bytes: 3,
            total_bytes: 4,
            ..Progress::default()
        });
        let seen = moves.of("web").unwrap();
        assert_eq!(
            (
                seen.to.as_str(),
                seen.step.phase.as_str(),
                seen.step.done_bytes
            ),
            ("lyon", "ram", 3)
        );
        assert!(moves.of("db").is_none());
        moves.follow("web", "riga".to_owned(), &watch::Sender::default());
        assert_eq!(
            moves.of("web").unwrap().to,
            "lyon",
            "a second move is refused and does not hide the first"
        );
        drop(progress);
        assert!(moves.of("web").is_none());
    }
}
