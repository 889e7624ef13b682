//! The rounds of a running host: every twenty seconds each VM's voters are asked whether it is
//! still this host's, and what expires or was interrupted is renewed.

use crate::{
    Host,
    host::{Activity, NameChecks, Role, Slot},
};
use futures::{StreamExt, stream};
use p2pvm_overlay::{chain, network_time::NetworkTime};
use std::sync::Arc;

/// How many VMs are looked after at a time. Reason: voters that do not answer take seconds each,
/// and a host's VMs must all be checked within a round; one by one, 40 of them took minutes.
const AT_A_TIME: usize = 16;

impl Host {
    /// Makes the rounds in a task, as long as the host lives.
    pub(super) fn watch_vms(&self) {
        let (this, every, renew_every) = (
            self.weak(),
            self.options.guard_every,
            self.options.renew_every,
        );
        let clock = self.clock.clone();
        self.spawn(async move {
            let mut renewed = tokio::time::Instant::now();
            let mut times_set = NetworkTime::of_process().times_set();
            let mut names = NameChecks::default();
            loop {
                // After a sleep of the machine a round is due at once: another member may have been
                // given its VMs.
                clock.passed(every).await;
                let Some(host) = this.upgrade() else { return };
                // A change of the network's time leaves expiry times of the previous one behind.
                let set = NetworkTime::of_process().times_set();
                let renew = renewed.elapsed() >= renew_every
                    || std::mem::replace(&mut times_set, set) != set;
                if renew {
                    renewed = tokio::time::Instant::now();
                }
                let check_names = names.due(host.parts.fabric.connected());
                let host = &host;
                stream::iter(host.slots())
                    .for_each_concurrent(AT_A_TIME, |slot| async move {
                        host.round(&slot, renew).await;
                        if (check_names || renew) && host.lists(&slot) {
                            host.keep_name(&slot, renew).await;
                        }
                    })
                    .await;
            }
        });
    }

    /// Removes what is left of a half-made or half-deleted VM, unless an operation makes or removes
    /// it at this moment.
    pub(super) fn unmake_in_background(&self, slot: &Arc<Slot>) {
        let (Some(host), Ok(operation), slot) =
            (self.strong(), slot.begin(Activity::Removing), slot.clone())
        else {
            return;
        };
        self.spawn(async move {
            host.unmake(&slot).await;
            drop(operation);
        });
    }

    async fn round(&self, slot: &Arc<Slot>, renew: bool) {
        let entry = slot.entry();
        if entry.role == Role::Unmade {
            self.unmake_in_background(slot);
        }
        if entry.role != Role::Held {
            return;
        }
        self.keep_shield(slot).await;
        // A stopped VM is checked too: if it was restored elsewhere meanwhile, its copy here
        // becomes a branch, which does not hinder the VM's return. The renewals of a lease check a
        // protected one.
        if !self.is_leased(entry.definition.vm)
            && let Err(e) = self.check(slot).await
        {
            tracing::info!(vm = %entry.definition.name, error = %chain(&e), "the VM goes on \
                unchecked");
        }
        if !self.lists(slot) {
            return;
        }
        if renew
            && let Err(e) = self
                .parts
                .port
                .renew(&entry.secret.keys(), &entry.definition, entry.epoch)
                .await
        {
            tracing::warn!(vm = %entry.definition.name, error = %chain(&e), "the VM's address \
                could not be renewed");
        }
        self.drop_ended_revocations(slot);
        self.resume_copies(slot).await;
        if renew || slot.is_unpublished() {
            self.publish(slot).await;
        }
        self.tell_heirs(slot, renew).await;
    }
}
