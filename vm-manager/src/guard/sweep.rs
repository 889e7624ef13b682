//! Ends copies of checkpoints that nothing names any more: those written down in
//! [`crate::host::Host`]'s list of releases, which are tried until their keepers answer, and those
//! that a daemon stored and died before an entry named them.
//!
//! Of the latter only what a key of a VM held here names is let go: a host keeps snapshots of VMs
//! that have moved on as their keeper, and no entry here names those.

use crate::{
    Host,
    host::{Activity, Release, Role, Slot},
};
use p2pvm_overlay::{VmId, chain};
use p2pvm_snapshot_sync::ManifestId;
use std::{sync::Arc, time::Duration};

/// How long before releases are tried again.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// How many are tried at a time. Reason: a member that does not answer takes seconds.
const TRIES: usize = 32;

impl Host {
    /// Sweeps in a task, as long as the host lives: after the start, and once in each period in
    /// which keepers are asked.
    pub(super) fn watch_releases(&self) {
        let (this, period) = (self.weak(), self.options.ask_keepers_every);
        let clock = self.clock.clone();
        // The record may still name what a killed daemon was about to release.
        let open = self.releases.all();
        for slot in self.slots() {
            let vm = slot.entry().definition.vm;
            if open.iter().any(|release| release.vm == vm) {
                slot.set_unpublished(true);
            }
        }
        self.spawn(async move {
            let mut swept = None;
            let mut waiting = Vec::new();
            loop {
                clock.passed(LOOK_EVERY).await;
                let Some(host) = this.upgrade() else { return };
                host.make_releases().await;
                let now = clock.now();
                if swept.is_none_or(|at| now.saturating_sub(at) >= period) {
                    swept = Some(now);
                    waiting = host.slots();
                }
                if !waiting.is_empty() {
                    waiting = host.sweep(waiting).await;
                }
            }
        });
    }

    /// Tries the releases that are open, of members that are connected.
    async fn make_releases(&self) {
        let connected = self.parts.fabric.connected();
        let is_there = |r: &Release| r.member == self.me || connected.contains(&r.member);
        let mut open = self.releases.all();
        open.retain(is_there);
        for release in open.into_iter().take(TRIES) {
            self.make_release(&release).await;
        }
    }

    async fn make_release(&self, release: &Release) {
        // The daemon died before the entry changed, or the change failed: it is wanted.
        if self.named_checkpoints().contains(&release.checkpoint) {
            return self.releases.cross_out(release);
        }
        let is_branch = |slot: &Arc<Slot>| {
            let entry = slot.entry();
            entry.definition.vm == release.vm && entry.is_branch()
        };
        let mut keys = Vec::new();
        if let Some(slot) = self.slot_of(release.vm) {
            let entry = slot.entry();
            // As long as the record may name it, a restore by the record needs it.
            if entry.role != Role::Held || slot.is_unpublished() || slot.is_unproven() {
                return self.releases.put_back(release);
            }
            keys = entry.sealing.releasers(&entry.secret);
        } else if self.slots().iter().any(is_branch) {
            // The VM went on elsewhere, and its present host decides what is kept.
            return self.releases.cross_out(release);
        }
        let (vault, who) = (&self.parts.vault, (release.checkpoint, release.member));
        let done = match release.member == self.me {
            true => {
                let here = vault.forget(release.checkpoint, &[self.me], &[]).await;
                here.map(|_| true)
            }
            false => vault.release(who, &[release.member], &keys).await,
        };
        match done {
            Ok(true) => self.releases.cross_out(release),
            Ok(false) => self.releases.put_back(release),
            Err(error) => {
                tracing::debug!(member = %release.member.short(), error = %chain(&error), "cannot \
                    end a copy that nothing names yet");
                self.releases.put_back(release);
            }
        }
    }

    /// Lets go of what is kept here and named by nothing; gives the VMs that must wait.
    async fn sweep(&self, slots: Vec<Arc<Slot>>) -> Vec<Arc<Slot>> {
        // Listed first: what is stored from here on is not in the list.
        let kept = match self.parts.vault.kept().await {
            Ok(kept) => kept,
            Err(error) => {
                tracing::info!(error = %chain(&error), "cannot list the snapshots that are kept");
                return slots;
            }
        };
        let mut waiting = Vec::new();
        for slot in slots {
            if !self.sweep_of(&slot, &kept).await {
                waiting.push(slot);
            }
        }
        waiting
    }

    /// Whether nothing is left to do for the VM.
    async fn sweep_of(&self, slot: &Arc<Slot>, kept: &[(ManifestId, VmId)]) -> bool {
        let entry = slot.entry();
        if !self.lists(slot) || entry.role != Role::Held {
            return true;
        }
        let keys = entry.sealing.releasers(&entry.secret);
        let of_this = |key: &VmId| keys.iter().any(|own| own.vm_id() == *key);
        let mine: Vec<ManifestId> = kept
            .iter()
            .filter(|(_, key)| of_this(key))
            .map(|(id, _)| *id)
            .collect();
        let unnamed = || {
            let named = self.named_checkpoints();
            let left = mine.iter().copied().filter(|id| !named.contains(id));
            left.collect::<Vec<_>>()
        };
        if unnamed().is_empty() {
            return true;
        }
        // A snapshot is stored and named within one operation, and a replica within one round,
        // which does not begin while an operation goes on: with neither, nothing is between them.
        let Ok(_operation) = slot.begin(Activity::Checking) else {
            return false;
        };
        if slot.replication().is_under_way() || slot.is_unproven() {
            return false;
        }
        self.publish(slot).await;
        if slot.is_unpublished() || !self.lists(slot) || slot.entry().role != Role::Held {
            return false;
        }
        for id in unnamed() {
            // Which members had begun to keep it was not written down.
            self.note_releases(entry.definition.vm, id, &self.parts.fabric.connected());
            match self.parts.vault.let_go(id).await {
                Ok(()) => tracing::info!(vm = %entry.listed_name(), snapshot = %id, "let go of a \
                    copy that nothing names, as a killed daemon leaves it"),
                Err(error) => tracing::warn!(error = %chain(&error), "a copy that nothing names \
                    stays"),
            }
        }
        true
    }
}
