//! A guest that ended without a request: what becomes of its VM, by its restart policy. The rule is
//! [`crate::restart`]'s.

use super::{Activity, Entry, Host, Role, Slot, VmStatus, lock};
use crate::{
    Error,
    directory::RunGoal,
    hypervisor::Machine,
    protection::Restart,
    restart::{Ending, MOST, Next},
};
use p2pvm_api::EventKind;
use p2pvm_overlay::chain;
use std::{sync::Arc, time::Duration};

/// How long before the next try where too few voters answer.
/// Reason: a partition lasts longer than the pauses between restarts.
const VOTERS_AWAY: Duration = Duration::from_secs(10);

/// What happened to the guest, for the log.
fn kind(ending: Ending) -> EventKind {
    match ending {
        Ending::PoweredOff => EventKind::GuestPoweredOff,
        Ending::Panicked | Ending::ProcessEnded | Ending::StartFailed => EventKind::GuestCrashed,
    }
}

impl Host {
    /// Sets whether a VM's guest is started again when it ends.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Refused`] if the VM is not held here, or the file system's.
    pub async fn set_restart(&self, name: &str, restart: Restart) -> Result<VmStatus, Error> {
        let slot = self.named(name)?;
        self.must_be_held(&slot)?;
        if slot.entry().protection.restart != restart {
            self.update(&slot, |e| e.protection.restart = restart)?;
            self.publish(&slot).await;
        }
        Ok(self.status_of(&slot))
    }

    pub(super) async fn ended_by_itself(&self, slot: &Arc<Slot>, machine: &Arc<dyn Machine>) {
        // A stop or a move that is under way takes the guest away; a snapshot does not, and without
        // this the VM would stay as it is, neither running nor started again.
        let _operation = slot.begin_next(Activity::Ended).await;
        if !slot.machine().is_some_and(|m| Arc::ptr_eq(&m, machine)) {
            return;
        }
        slot.take_guest();
        let entry = slot.entry();
        self.end_lease(slot).await;
        if let Err(e) = self.parts.port.detach(entry.definition.vm).await {
            tracing::warn!(vm = %entry.definition.name, error = %chain(&e), "the guest's port \
                could not be taken away");
        }
        if let Role::Held = entry.role {
            let ending = Ending::of(machine.halted());
            self.settle_end(slot, (ending, "")).await;
        }
    }

    /// Writes down what follows from a guest's end, and has it started again if that is due. The
    /// VM is meant to run until then: a daemon that starts meanwhile boots it. `when` is said after
    /// what happened.
    pub(crate) async fn settle_end(&self, slot: &Arc<Slot>, (ending, when): (Ending, &str)) {
        let entry = slot.entry();
        let next = match entry.wanted {
            RunGoal::Running => {
                lock(&slot.restarts).ended(self.now(), entry.protection.restart, ending)
            }
            RunGoal::Stopped => Next::Stay,
        };
        let said = sentence(&format!("{}{when}", ending.words()), next);
        let name = entry.listed_name();
        self.note(
            &entry,
            kind(ending),
            &[],
            format!("The guest of {name} {said}."),
        );
        if next == Next::GiveUp {
            let most = MOST.to_string();
            let text = format!("The guest of {name} stays stopped: {most} restarts in 10 min.");
            self.note(&entry, EventKind::GuestGivenUp, &[("restarts", most)], text);
        }
        let wanted = match next {
            Next::Start { .. } => RunGoal::Running,
            Next::Stay | Next::GiveUp => RunGoal::Stopped,
        };
        let note = Some(format!("the guest {said}"));
        if let Err(e) = self.update(slot, |e| (e.wanted, e.note) = (wanted, note)) {
            tracing::error!(vm = %entry.definition.name, error = %chain(&e), "the VM's end could \
                not be written down");
        }
        self.publish(slot).await;
        if let Next::Start { wait, attempt } = next {
            self.restart_after(slot, wait, attempt);
        }
    }

    fn restart_after(&self, slot: &Arc<Slot>, wait: Duration, attempt: usize) {
        let (this, slot) = (self.weak(), slot.clone());
        self.spawn(async move {
            tokio::time::sleep(wait).await;
            let Some(host) = this.upgrade() else { return };
            let _operation = slot.begin_next(Activity::Starting).await;
            if !host.may_restart(&slot) {
                return;
            }
            match host.boot(&slot).await {
                Ok(()) => {
                    let entry = slot.entry();
                    let name = entry.listed_name();
                    let fields = [("attempt", attempt.to_string())];
                    let text = format!(
                        "The guest of {name} was started again (restart {attempt} \
                        of {MOST})."
                    );
                    host.note(&entry, EventKind::GuestRestarted, &fields, text);
                }
                Err(e) => {
                    tracing::warn!(vm = %slot.entry().listed_name(), error = %chain(&e), "the \
                        guest could not be started again");
                    if !host.may_restart(&slot) {
                        return;
                    }
                    match e {
                        // No fault of the guest: too few voters answer. It does not count.
                        Error::Agreement { .. } => {
                            host.restart_after(&slot, VOTERS_AWAY, attempt);
                        }
                        _ => host.settle_failed(&slot).await,
                    }
                }
            }
        });
    }

    /// The same as [`Host::settle_end`], in a box: it begins another restart.
    fn settle_failed<'a>(
        &'a self,
        slot: &'a Arc<Slot>,
    ) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
        Box::pin(self.settle_end(slot, (Ending::StartFailed, "")))
    }

    /// Whether a VM still waits for its restart: nobody has stopped, started, moved or deleted it.
    fn may_restart(&self, slot: &Arc<Slot>) -> bool {
        let entry: Entry = slot.entry();
        self.lists(slot)
            && entry.role == Role::Held
            && entry.wanted == RunGoal::Running
            && slot.machine().is_none()
            && self.must_be_open(&entry.definition.name).is_ok()
    }
}

/// What happened and what follows, after "the guest".
fn sentence(what: &str, next: Next) -> String {
    match next {
        Next::Start { wait, attempt } => format!(
            "{what}; it starts again after {} s (restart {attempt} of {MOST})",
            wait.as_secs()
        ),
        Next::Stay => what.to_owned(),
        Next::GiveUp => format!(
            "{what}, and was restarted {MOST} times within 10 minutes: it stays stopped until \
                'vm start'"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_says_what_happened_and_what_follows() {
        let start = Next::Start {
            wait: Duration::from_secs(4),
            attempt: 3,
        };
        let said = sentence(Ending::ProcessEnded.words(), start);
        assert!(
            said.contains("starts again after 4 s (restart 3 of 5)"),
            "{said}"
        );
        assert_eq!(
            sentence(Ending::PoweredOff.words(), Next::Stay),
            "powered itself off"
        );
        let said = sentence(Ending::Panicked.words(), Next::GiveUp);
        assert!(
            said.contains("panicked") && said.contains("'vm start'"),
            "{said}"
        );
    }
}
