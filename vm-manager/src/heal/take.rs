//! Starting the VM of a lost host: the newest recovery point, by the path of a restore.

use super::inheritance::{Inheritance, Untaken, not_heir};
use crate::{
    Error, Host,
    checkpoint::Right,
    directory::{RunGoal, Snapshot, VmRecord},
    host::{Activity, Healed, HostEvent, Role, Slot, VmStatus},
    protection::Replace,
    recovery::recovery_points,
};
use p2pvm_overlay::{MemberId, UnixTime, chain};
use std::{sync::Arc, time::Duration};
use tokio::sync::watch;

/// How long the VM's record is looked for before what the host told is used.
pub(super) const RECORD_LIMIT: Duration = Duration::from_secs(5);
/// How long before the second try to start a VM; each further pause is twice as long.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
/// How long between two tries at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(120);

/// What became of a try.
pub(super) enum Outcome {
    /// The VM runs here.
    Runs,
    /// It does not: try again after this time.
    NotNow(Duration),
}

/// The tries of one heir since its host was lost.
#[derive(Default)]
pub(super) struct Tries {
    failed: u32,
}

impl Tries {
    fn pause(&mut self) -> Duration {
        let doubled = FIRST_PAUSE * (1 << self.failed.min(8));
        self.failed += 1;
        doubled.min(LONGEST_PAUSE)
    }
}

impl Host {
    /// Starts the VM of a lost host here, or says once why not.
    pub(super) async fn take_over_lost(
        &self,
        one: &Inheritance,
        right: Right<'_>,
        tries: &mut Tries,
    ) -> Outcome {
        let why = match self.try_take_over(one, right).await {
            Ok(_) => return Outcome::Runs,
            Err(e) => chain(&e),
        };
        let (name, from) = (one.record.definition.name.clone(), one.record.holder);
        let untaken = Untaken {
            name: name.clone(),
            from,
            why: why.clone(),
        };
        if self.inheritances.refuse(one.set.vm, untaken) {
            tracing::warn!(vm = %name, why, "the VM of a lost host is not started here");
            let vm = one.set.vm;
            self.emit(HostEvent::NotTakenOver {
                vm,
                name,
                from,
                why,
            });
        }
        Outcome::NotNow(tries.pause())
    }

    async fn try_take_over(&self, one: &Inheritance, right: Right<'_>) -> Result<VmStatus, Error> {
        let host = self
            .strong()
            .ok_or_else(|| Error::Refused("this host is shutting down".into()))?;
        let Some(_taking) = self.inheritances.begin_taking(one.set.vm) else {
            return Err(Error::Refused(format!(
                "'{}' is being started here already",
                one.record.definition.name
            )));
        };
        let record = host.record_now(one).await;
        let name = &record.definition.name;
        if let Some(why) = not_heir(&record, self.me) {
            self.inheritances.forget(one.set.vm);
            return Err(Error::Refused(format!(
                "this host is no heir of '{name}': {why}"
            )));
        }
        if record.protection.replace == Replace::Ask && matches!(right, Right::Heir(_)) {
            return Err(Error::Refused(format!(
                "'{name}' waits for a person: 'p2pvm vm takeover {name}' on this host starts it \
                    here"
            )));
        }
        let (lost, restored) = host.restore_newest_point(&record, right).await?;
        if let Err(e) = restored {
            // With its epoch it is this host's, whatever failed then: no other heir starts it.
            let mine = host.slot_of(one.set.vm).filter(|slot| {
                slot.entry().role == Role::Held
                    && slot.entry().wanted == RunGoal::Running
                    && slot.machine().is_none()
            });
            let Some(slot) = mine else { return Err(e) };
            tracing::warn!(vm = %name, error = %chain(&e), "the VM of a lost host is this host's, \
                and does not run yet");
            host.boot_until_it_runs(slot);
        }
        host.note_taken_over(&record, lost)
    }

    /// Restores the newest recovery point that is whole somewhere; gives what is lost by that.
    async fn restore_newest_point(
        self: &Arc<Self>,
        record: &VmRecord,
        right: Right<'_>,
    ) -> Result<(String, Result<VmStatus, Error>), Error> {
        let (vm, name) = (record.definition.vm, &record.definition.name);
        let mut points = recovery_points(record).into_iter().peekable();
        while let Some(point) = points.next() {
            let is_last = points.peek().is_none();
            if !is_last && !self.is_within_reach(record, &point) {
                continue;
            }
            let lost = self.what_is_lost(record, &point);
            let what = (record, &point, right);
            let restored = self.restore_as_heir(what, &watch::Sender::default()).await;
            match restored {
                Err(Error::Chunks { .. }) if !is_last && self.slot_of(vm).is_none() => {
                    tracing::info!(vm = %name, snapshot = point.name, "no member has all of the \
                        VM's newest snapshot: an older state is looked for");
                }
                restored => return Ok((lost, restored)),
            }
        }
        Err(Error::NotFound(format!("a copy of '{name}'")))
    }

    /// Whether this host or a connected member other than the lost one is named as having it.
    fn is_within_reach(&self, record: &VmRecord, point: &Snapshot) -> bool {
        let connected = self.parts.fabric.connected();
        let there = |member: &MemberId| *member == self.me || connected.contains(member);
        let others = point.providers.iter().filter(|m| **m != record.holder);
        others.copied().any(|member| there(&member))
    }

    /// Boots a VM in a task, again and again until it runs or is not meant to run here.
    fn boot_until_it_runs(&self, slot: Arc<Slot>) {
        let this = self.weak();
        self.spawn(async move {
            let mut tries = Tries::default();
            loop {
                let Some(host) = this.upgrade() else { return };
                let operation = slot.begin_next(Activity::Restarting).await;
                let entry = slot.entry();
                if !host.lists(&slot)
                    || entry.role != Role::Held
                    || entry.wanted != RunGoal::Running
                    || slot.machine().is_some()
                {
                    return;
                }
                let Err(e) = host.boot(&slot).await else {
                    return;
                };
                tracing::warn!(vm = %entry.definition.name, error = %chain(&e), "the VM of a lost \
                    host does not start yet");
                drop((operation, host));
                tokio::time::sleep(tries.pause()).await;
            }
        });
    }

    /// The VM's record as the network has it now, or as its host told of it.
    async fn record_now(&self, one: &Inheritance) -> VmRecord {
        let looking = self.directory.record(one.set.vm);
        match tokio::time::timeout(RECORD_LIMIT, looking).await {
            Ok(Ok(Some(found))) if found.epoch >= one.record.epoch => found,
            _ => one.record.clone(),
        }
    }

    /// What the VM had done since its recovery point, as far as this host can tell.
    fn what_is_lost(&self, record: &VmRecord, point: &Snapshot) -> String {
        let now = UnixTime::now();
        let what = match point.with_ram {
            true => "memory and disk",
            false => "disk",
        };
        let heard = self.inheritances.heard.answered(record.holder);
        let silent = heard.map(|at| self.boottime().saturating_sub(at).as_secs());
        match silent {
            Some(silent) => format!(
                "{what} as of {} s before its host was last heard",
                now.0.saturating_sub(silent).saturating_sub(point.taken.0)
            ),
            None => format!(
                "{what} as of {} s before it was started here",
                now.0.saturating_sub(point.taken.0)
            ),
        }
    }

    fn note_taken_over(
        self: &Arc<Self>,
        record: &VmRecord,
        lost: String,
    ) -> Result<VmStatus, Error> {
        let vm = record.definition.vm;
        self.inheritances.forget(vm);
        let slot = self.named(&record.definition.name)?;
        let from = record.holder;
        let healed = Healed {
            at: UnixTime::now(),
            from,
            lost: lost.clone(),
        };
        let note = format!(
            "started here since its host {} was lost: {lost}",
            from.short()
        );
        let entry = self.update(&slot, |e| (e.note, e.healed) = (Some(note), Some(healed)))?;
        tracing::warn!(
            vm = %entry.definition.name, from = %from.short(), epoch = %entry.epoch, lost,
            "started a VM whose host was lost"
        );
        self.emit(HostEvent::TakenOver {
            vm,
            name: entry.definition.name.clone(),
            from,
            epoch: entry.epoch,
            lost,
        });
        Ok(self.status_of(&slot))
    }

    /// The VMs of lost hosts that this host, an heir of them, does not start.
    pub fn untaken(&self) -> Vec<Untaken> {
        self.inheritances.refused()
    }

    /// Starts a VM here whose host is lost and that waits for a person; `proofs` show its voters
    /// that this host may.
    ///
    /// # Errors
    /// [`Error::NotFound`] if this host is no heir of it, [`Error::Refused`] with the reason,
    /// [`Error::Agreement`] if the lease of its host still runs.
    pub async fn take_over_vm(&self, name: &str, proofs: &[Vec<u8>]) -> Result<VmStatus, Error> {
        let one = self.inheritances.named(name);
        let one = one.ok_or_else(|| {
            Error::Refused(format!(
                "this host is no heir of a VM '{name}': 'p2pvm vm show {name}' on its host names \
                    them; --on HEIR asks one"
            ))
        })?;
        let right = match one.record.protection.replace {
            Replace::Auto => Right::Heir(&one.set),
            Replace::Ask | Replace::Never => Right::HeirAsked(proofs),
        };
        self.try_take_over(&one, right).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tries_without_end_come_to_one_in_two_minutes() {
        let mut tries = Tries::default();
        let pauses: Vec<_> = (0..40).map(|_| tries.pause()).collect();
        assert_eq!(pauses[0], FIRST_PAUSE);
        assert!(pauses.windows(2).all(|pair| pair[0] <= pair[1]));
        assert_eq!(pauses[39], LONGEST_PAUSE);
    }
}
