//! How far the moves of VMs from here are, whoever asked for them: a person or the autonomic
//! manager. For those who look on.

use crate::vms::service::step_of;
use p2pvm_api::Moving;
use p2pvm_vm_manager::hypervisor::Progress;
use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};
use tokio::sync::watch;

/// The moves under way, by the VM's name.
#[derive(Default)]
pub struct Moves(Mutex<HashMap<String, (String, watch::Receiver<Progress>)>>);

impl Moves {
    /// Follows the move of `vm` to the member called `to` until its progress is dropped.
    pub fn follow(&self, vm: &str, to: String, progress: &watch::Sender<Progress>) {
        let mut moves = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        moves.retain(|_, (_, step)| step.has_changed().is_ok());
        // A second move is refused and must not hide the first.
        moves
            .entry(vm.to_owned())
            .or_insert_with(|| (to, progress.subscribe()));
    }

    /// How far the VM's move is, if it is being moved.
    pub fn of(&self, vm: &str) -> Option<Moving> {
        let moves = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (to, step) = moves
            .get(vm)
            .filter(|(_, step)| step.has_changed().is_ok())?;
        Some(Moving {
            to: to.clone(),
            step: step_of(&step.borrow()),
        })
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
