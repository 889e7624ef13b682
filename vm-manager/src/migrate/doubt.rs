//! A hand-over in doubt: both sides may have the guest, so it stands still until the other side's
//! word or the VM's voters say where it runs. Each side settles it by itself, and goes on after a
//! restart.
//!
//! Only the source asks the target: the target's copy is the newer one, and what it has decided
//! holds. Where the target does not answer, the source waits until an unconfirmed target has
//! stopped for certain ([`crate::handover`]) and claims the VM under a new epoch.

use super::wire::{self, Answer, Request};
use crate::{
    directory::RunGoal,
    host::{Activity, Entry, Host, Ownership, Role, Side, Slot, run_here},
    hypervisor::RunState,
};
use p2pvm_overlay::{Epoch, MemberId, chain};
use std::{sync::Arc, time::Duration};

/// How long before voters that could not decide yet are asked again.
const RETRY: Duration = Duration::from_secs(5);
/// How long a source that could ask the voters leaves the VM to a target that answers and is in
/// doubt as well. Reason: the target's copy is the newer one.
const DEFER: Duration = Duration::from_secs(30);
/// How long before a target whose guest is not confirmed yet is asked again.
const POLL: Duration = Duration::from_millis(300);

/// What a source does next about its doubt, by the target's answer.
enum Verdict {
    /// The target has the VM for good.
    Moved(Epoch),
    /// The target never ran it and never will.
    Stays(String),
    /// The target may still decide.
    Later(Duration),
    /// Only the voters can tell.
    Unknown,
}

impl Host {
    /// Settles a doubtful VM in a task; `wait` is how long the other side may still run it
    /// unconfirmed.
    pub(crate) fn settle_in_background(&self, slot: &Arc<Slot>, wait: Duration) {
        let (Some(host), slot) = (self.strong(), slot.clone()) else {
            return;
        };
        self.spawn(async move {
            let _operation = slot.begin_next(Activity::Settling).await;
            host.settle(&slot, wait).await;
        });
    }

    /// Settles a doubtful VM: on the source by the target's word if it answers, else by the
    /// voters'.
    pub(crate) async fn settle(&self, slot: &Arc<Slot>, wait: Duration) {
        let claim_from = self.now() + wait;
        let mut deferred = Duration::ZERO;
        loop {
            let entry = slot.entry();
            let Role::Doubtful { id, side, other } = entry.role else {
                return;
            };
            let verdict = match side {
                Side::Target => Verdict::Unknown,
                Side::Source => self.ask_target(&entry, id, other, &mut deferred).await,
            };
            match verdict {
                Verdict::Moved(epoch) => return self.gone_to(slot, other, epoch).await,
                Verdict::Stays(reason) => return self.take_back(slot, &reason).await,
                Verdict::Later(pause) => {
                    tokio::time::sleep(pause).await;
                    continue;
                }
                Verdict::Unknown => {}
            }
            if self.now() < claim_from {
                tokio::time::sleep(Duration::from_millis(500).min(claim_from - self.now())).await;
                continue;
            }
            match self.claim(&entry).await {
                Ok(Ownership::Ours(epoch)) => return self.thaw(slot, side, epoch).await,
                Ok(Ownership::Theirs { holder, epoch }) => {
                    return self.fence(slot, holder, epoch).await;
                }
                Err(e) => {
                    tracing::info!(
                        vm = %entry.definition.name, error = %chain(&e), "still doubtful"
                    )
                }
            }
            tokio::time::sleep(RETRY + Duration::from_millis(rand::random_range(0..1000))).await;
        }
    }

    /// Source: asks the target to give the VM up, unless it runs there.
    async fn ask_target(
        &self,
        entry: &Entry,
        id: u64,
        target: MemberId,
        deferred: &mut Duration,
    ) -> Verdict {
        let request = Request::Abort {
            id,
            vm: entry.definition.vm,
            reason: "the hand-over is in doubt".into(),
        };
        match wire::ask(&*self.parts.fabric, target, &request, wire::SHORT).await {
            Ok(Answer::Confirmed { epoch }) => Verdict::Moved(epoch),
            Ok(Answer::Gone { reason }) => Verdict::Stays(reason),
            Ok(Answer::Running | Answer::Waiting) => Verdict::Later(POLL),
            Ok(Answer::Doubtful) if *deferred < DEFER => {
                *deferred += RETRY;
                Verdict::Later(RETRY)
            }
            _ => Verdict::Unknown,
        }
    }

    /// Source: the target never ran it and never will.
    pub(crate) async fn take_back(&self, slot: &Arc<Slot>, reason: &str) {
        tracing::info!(reason, "the target gave the VM up; it goes on here");
        let epoch = slot.entry().epoch;
        self.thaw(slot, Side::Source, epoch).await;
        // The target's epoch was promised: the source's has to be newer for peers that have
        // received it.
        let (Some(host), slot) = (self.strong(), slot.clone()) else {
            return;
        };
        self.spawn(async move {
            // The operation that called this one ends first.
            let operation = slot.begin_next(Activity::Checking).await;
            host.ask_newer_epoch(&slot).await;
            drop(operation);
        });
    }

    /// Asks the voters for an epoch that is newer than the one promised to a target, within an
    /// operation of the caller's: until then no other target is granted one.
    pub(super) async fn ask_newer_epoch(&self, slot: &Arc<Slot>) {
        if let Err(e) = self.check_now(slot).await {
            tracing::info!(error = %chain(&e), "a newer epoch will be asked for later");
        }
    }

    /// Lets a doubtful VM run here.
    async fn thaw(&self, slot: &Arc<Slot>, side: Side, epoch: Epoch) {
        let thawed = async {
            let entry = self.update(slot, |e| {
                (e.role, e.epoch, e.note) = (Role::Held, epoch, None)
            })?;
            let address = &entry.definition.address;
            let Some(machine) = slot
                .machine()
                .filter(|_| slot.run_state() != RunState::Stopped)
            else {
                self.kill_guest(slot).await?;
                return if entry.wanted == RunGoal::Running {
                    self.boot(slot).await
                } else {
                    Ok(())
                };
            };
            self.lease_again(slot, &*machine).await?;
            let epoch = slot.entry().epoch;
            self.parts
                .port
                .attach(&self.registry.spec(&entry), address, epoch)
                .await?;
            match side {
                Side::Source => {
                    run_here(&*machine).await?;
                    self.parts.port.recall(address, epoch).await?;
                }
                Side::Target => machine.resume().await?,
            }
            self.parts.port.frozen(entry.definition.vm, false).await?;
            self.parts
                .port
                .announce(&entry.secret.keys(), &entry.definition, self.me, epoch)
                .await
        };
        if let Err(e) = thawed.await {
            tracing::error!(vm = %slot.entry().definition.name, error = %chain(&e), "the VM is \
                this host's, but its guest could not go on");
            let note = Some(format!(
                "it could not go on after a migration: {}",
                chain(&e)
            ));
            if let Err(e) = self.update(slot, |e| e.note = note) {
                tracing::error!(error = %chain(&e), "the reason could not be written down either");
            }
            // Its voters may not have answered about the lease: they are asked until they do.
            if slot.entry().leased
                && let (Some(host), slot) = (self.strong(), slot.clone())
            {
                self.spawn(async move { host.settle_in(&slot).await });
            }
        }
        self.publish(slot).await;
    }

    /// Source: the target has the VM for good; the copy here is removed.
    pub(crate) async fn gone_to(&self, slot: &Arc<Slot>, to: MemberId, epoch: Epoch) {
        let entry = slot.entry();
        let gone = async {
            self.parts
                .port
                .forward(&entry.definition.address, to, epoch)
                .await?;
            self.kill_guest(slot).await?;
            self.parts.port.detach(entry.definition.vm).await?;
            self.remove(slot)
        };
        if let Err(e) = gone.await {
            tracing::error!(vm = %entry.definition.name, error = %chain(&e), "the copy left \
                behind could not be removed");
        }
    }
}
