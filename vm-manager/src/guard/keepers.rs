//! Asks the members that keep snapshots of the VMs here, one at a time, whether they still have
//! them, and copies again what they lost, so that "durable" stays true after the copies are made.
//! It believes a member that lies about what it has.

use super::keeper_log::{Due, KeeperLog, Kept, KeptSnapshot, Verdict};
use crate::{
    Host,
    directory::Snapshot,
    host::{Role, Slot},
    vault::Durability,
};
use p2pvm_api::EventKind;
use p2pvm_overlay::{MemberId, UnixTime, chain, durable::write_atomically};
use p2pvm_snapshot_sync::ManifestId;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// How many keepers are asked in a period at most. Reason: each question names all chunks of a
/// snapshot.
const QUESTIONS: u32 = 1440;

impl Host {
    /// Asks the keepers in a task, as long as the host lives.
    pub(super) fn watch_keepers(&self) {
        let (this, period) = (self.weak(), self.options.ask_keepers_every);
        let (clock, file) = (self.clock.clone(), self.keepers_file());
        self.spawn(async move {
            let mut log = load(&file);
            // Counted by this host's clock from the start on: it also passes in a sleep.
            let (wall, begun) = (UnixTime::now(), clock.now());
            loop {
                clock.passed(period / QUESTIONS).await;
                let Some(host) = this.upgrade() else { return };
                let now = wall.plus(clock.now().saturating_sub(begun).as_secs());
                if host.ask_a_keeper(&mut log, now, period).await {
                    save(&file, &log);
                }
            }
        });
    }

    fn keepers_file(&self) -> PathBuf {
        self.registry.dir().with_file_name("keepers.json")
    }

    /// Whether the log has changed.
    async fn ask_a_keeper(&self, log: &mut KeeperLog, now: UnixTime, period: Duration) -> bool {
        let snapshots = self.kept_snapshots();
        let kept = snapshots
            .iter()
            .map(|(slot, s)| (s.checkpoint, self.kept(slot, s)));
        let kept: Kept = kept.collect();
        let is_changed = log.take(now, period, &kept);
        if self.parts.fabric.connected().is_empty() {
            return is_changed;
        }
        let Some((checkpoint, member, due)) = log.due(now, period, &kept) else {
            return is_changed;
        };
        let found = snapshots.iter().find(|(_, s)| s.checkpoint == checkpoint);
        let Some((slot, snapshot)) = found else {
            return is_changed;
        };
        let who = (checkpoint, member);
        match due {
            Due::Ask => {
                let (vault, providers) = (&self.parts.vault, &snapshot.providers);
                let lacks = match vault.lacking(checkpoint, member, providers).await {
                    Ok(lacks) => lacks,
                    // It says nothing about the member.
                    Err(error) => {
                        tracing::debug!(snapshot = snapshot.name, error = %chain(&error), "cannot \
                            tell which chunks a keeper should have");
                        Some(0)
                    }
                };
                let verdict = log.answered(now, period, who, lacks);
                self.act(slot, snapshot, member, verdict).await;
            }
            Due::Release => {
                let what = (&**slot, snapshot);
                self.release_former(what, who, log, (now, period)).await
            }
        }
        true
    }

    async fn release_former(
        &self,
        (slot, snapshot): (&Slot, &Snapshot),
        who: (ManifestId, MemberId),
        log: &mut KeeperLog,
        (now, period): (UnixTime, Duration),
    ) {
        let entry = slot.entry();
        let keys = entry.sealing.releasers(&entry.secret);
        let providers = &snapshot.providers;
        let released = self.parts.vault.release(who, providers, &keys).await;
        if let Err(error) = &released {
            tracing::debug!(member = %who.1.short(), error = %chain(error), "cannot end the \
                copy of a snapshot at a member that was replaced");
        }
        log.released(now, period, who, released.unwrap_or(false));
    }

    /// The snapshots of the VMs held here.
    fn kept_snapshots(&self) -> Vec<(Arc<Slot>, Snapshot)> {
        let held = self.slots().into_iter().filter(|slot| {
            let entry = slot.entry();
            entry.role == Role::Held
        });
        held.flat_map(|slot| {
            let snapshots = slot.entry().snapshots;
            snapshots.into_iter().map(move |s| (slot.clone(), s))
        })
        .collect()
    }

    fn kept(&self, slot: &Slot, snapshot: &Snapshot) -> KeptSnapshot {
        let others = snapshot.providers.iter().copied().filter(|m| *m != self.me);
        KeptSnapshot {
            members: others.collect(),
            is_durable: snapshot.durability == Durability::Durable,
            is_copied: slot.is_copying(snapshot.checkpoint),
        }
    }

    async fn act(&self, slot: &Arc<Slot>, snapshot: &Snapshot, member: MemberId, said: Verdict) {
        let gone = match said {
            Verdict::Fine => return,
            Verdict::Lost => None,
            Verdict::Gone => Some(member),
        };
        tracing::warn!(
            vm = %slot.entry().definition.name, snapshot = snapshot.name, %member,
            is_gone = gone.is_some(),
            "a member no longer has all of a snapshot that it keeps: it is copied again"
        );
        let entry = slot.entry();
        let (vm, name) = (&entry.definition.name, &snapshot.name);
        let text = format!(
            "A member no longer has all of the snapshot {vm}@{name}: it is copied \
            again."
        );
        let fields = [("snapshot", name.clone()), ("member", member.to_string())];
        self.note(&entry, EventKind::SnapshotDegraded, &fields, text);
        if let Err(error) = self.copy_again(slot, snapshot, gone).await {
            tracing::warn!(snapshot = snapshot.name, error = %chain(&error), "the snapshot cannot \
                be copied again yet");
        }
    }
}

/// The log in the file. One that cannot be read begins empty: each keeper is asked within a period.
fn load(file: &Path) -> KeeperLog {
    let read = std::fs::read(file).ok();
    read.and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .unwrap_or_default()
}

fn save(file: &Path, log: &KeeperLog) {
    let bytes = serde_json::to_vec(log).expect("plain fields always serialize");
    if let Err(error) = write_atomically(file, &bytes, 0o600) {
        tracing::debug!(error = %chain(&error), "which members keep snapshots is not written down");
    }
}
