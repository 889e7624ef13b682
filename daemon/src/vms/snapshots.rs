//! What the control API asks about a VM's snapshots and their schedule.

use super::{
    service::{Vms, watched},
    view::snapshot_state,
};
use crate::{failure::OrFailure, http::report::Reporter};
use p2pvm_api::{
    CopyVerified, DiffView, Failure, HereVerified, Outcome, ScheduleAnswer, ScheduleView,
    SnapshotDeleted, SnapshotDetail, SnapshotDiff, SnapshotTaken, SnapshotVerified, SnapshotView,
    SnapshotVm,
};
use p2pvm_overlay::UnixTime;
use p2pvm_snapshot_sync::store::FileDiff;
use p2pvm_vm_manager::{
    backups::{Retention, Schedule},
    checkpoint::Content,
    vault::Durability,
};
use std::time::Duration;

pub(crate) mod http;

/// How long a snapshot may take to be durable before it is reported as it is; copying goes on.
const DURABLE_LIMIT: Duration = Duration::from_secs(300);

fn diff_view(diff: &FileDiff) -> DiffView {
    DiffView {
        bytes: diff.bytes,
        changed_blocks: diff.changed_blocks,
        changed_bytes: diff.changed_bytes,
        new_bytes: diff.new_bytes,
    }
}

impl Vms {
    /// Takes a snapshot and waits until it is durable.
    pub async fn snapshot(
        &self,
        name: &str,
        request: SnapshotVm,
        reporter: &Reporter,
    ) -> Outcome<SnapshotTaken> {
        let content = match request.disk_only {
            true => Content::Disk,
            false => Content::All,
        };
        let snapshot = request.name.unwrap_or_else(|| {
            let now = humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string();
            now.to_ascii_lowercase()
                .replace([':', 't', 'z'], "-")
                .trim_end_matches('-')
                .to_owned()
        });
        let taken = watched(reporter, async |progress| {
            self.host
                .snapshot_of(name, &snapshot, content, &progress)
                .await
        })
        .await
        .or_failure()?;
        let mut copies = taken.copies;
        let last = async {
            loop {
                let now = copies.borrow_and_update().clone();
                reporter.phase(&snapshot_state(&now.durability).to_string());
                if now.durability == Durability::Durable || copies.changed().await.is_err() {
                    return now;
                }
            }
        };
        let state = tokio::time::timeout(DURABLE_LIMIT, last).await.ok();
        let shown = self.snapshot_view(&taken.snapshot, false);
        Ok(SnapshotTaken {
            checkpoint: taken.snapshot.checkpoint.to_string().into(),
            holders: state
                .as_ref()
                .map(|c| c.providers.iter().map(|m| self.parts.name_of(*m)).collect()),
            name: snapshot,
            pause_ms: taken.pause.as_secs_f64() * 1e3,
            state: state.map_or(shown.state, |c| snapshot_state(&c.durability)),
            taken: shown.taken,
        })
    }

    /// The snapshots of a VM, oldest first.
    pub async fn snapshots(&self, name: &str) -> Outcome<Vec<SnapshotView>> {
        Ok(self.show(name).await?.snapshots)
    }

    /// A snapshot with its size.
    pub async fn show_snapshot(&self, name: &str, snapshot: &str) -> Outcome<SnapshotDetail> {
        let all = self.snapshots(name).await?;
        let found = all.into_iter().find(|s| s.name == snapshot);
        let found = found.ok_or_else(|| {
            Failure::not_found(format!(
                "'{name}' has no snapshot '{snapshot}': see 'p2pvm vm snapshot list {name}'"
            ))
        })?;
        let size = self.host.snapshot_size(name, snapshot).await.or_failure()?;
        Ok(SnapshotDetail {
            content_bytes: size.bytes,
            missing_bytes: size.missing_bytes,
            snapshot: found,
        })
    }

    /// Deletes a snapshot of a VM here.
    pub async fn delete_snapshot(&self, name: &str, snapshot: &str) -> Outcome<SnapshotDeleted> {
        self.host
            .delete_snapshot(name, snapshot)
            .await
            .or_failure()?;
        Ok(SnapshotDeleted {
            deleted: snapshot.to_owned(),
            vm: name.to_owned(),
        })
    }

    /// Reads every chunk of a snapshot of a VM here, asks the members that keep it, and repairs it
    /// if that is wanted.
    pub async fn verify_snapshot(
        &self,
        (name, snapshot): (&str, &str),
        repair: bool,
        reporter: &Reporter,
    ) -> Outcome<SnapshotVerified> {
        let check = watched(reporter, async |progress| {
            self.host
                .verify_snapshot(name, snapshot, repair, &progress)
                .await
        })
        .await
        .or_failure()?;
        let here = check.here.map(|found| HereVerified {
            bytes: found.bytes,
            damaged: found.damaged,
            host: self.parts.name_of(self.parts.me()),
            missing: found.missing,
            repaired: check.is_repaired,
            unrepaired: check.unrepaired,
            whole: found.whole,
        });
        let copies = check.copies.iter().map(|copy| CopyVerified {
            host: self.parts.name_of(copy.member),
            lacking: copy.lacking.map(|lacking| lacking as u64),
        });
        Ok(SnapshotVerified {
            copies: copies.collect(),
            here,
            name: snapshot.to_owned(),
        })
    }

    /// How the second snapshot differs from the first.
    pub async fn diff_snapshots(
        &self,
        name: &str,
        (from, to): (&str, &str),
    ) -> Outcome<SnapshotDiff> {
        let diff = self
            .host
            .diff_snapshots(name, from, to)
            .await
            .or_failure()?;
        Ok(SnapshotDiff {
            disk: diff_view(&diff.disk),
            from: from.to_owned(),
            ram: diff.ram.as_ref().map(diff_view),
            to: to.to_owned(),
        })
    }

    /// When snapshots of a VM are taken by themselves.
    pub async fn schedule(&self, name: &str) -> Outcome<ScheduleAnswer> {
        Ok(ScheduleAnswer {
            schedule: self.show(name).await?.schedule,
            vm: name.to_owned(),
        })
    }

    /// Sets or ends the schedule of a VM here.
    pub async fn set_schedule(
        &self,
        name: &str,
        wanted: Option<ScheduleView>,
    ) -> Outcome<ScheduleAnswer> {
        let schedule = wanted.map(|wanted| Schedule {
            every: wanted.every_seconds,
            keep: Retention {
                last: wanted.keep.last,
                hours: wanted.keep.hours,
                days: wanted.keep.days,
                weeks: wanted.keep.weeks,
            },
            disk_only: wanted.disk_only,
            since: UnixTime::now(),
        });
        self.host.set_schedule(name, schedule).await.or_failure()?;
        self.schedule(name).await
    }
}
