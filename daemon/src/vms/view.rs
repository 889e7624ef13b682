//! VMs as the control API shows them.

use super::{history::restart_word, service::Vms};
use p2pvm_api::{
    BandwidthView, KeepView, ReachState, ReplicationView, ScheduleView, SnapshotState,
    SnapshotView, StillView, VmStateView, VmView,
};
use p2pvm_overlay::{MemberId, VmId};
use p2pvm_vm_manager::{
    backups::{Retention, Schedule, is_automatic},
    directory::{RunGoal, Snapshot},
    host::{ReplicationStatus, VmState, VmStatus},
    vault::Durability,
};
use std::time::Duration;

/// A VM's state, as the network shows it.
fn state_view(vm: &VmStatus) -> VmStateView {
    match vm.state {
        VmState::Running => VmStateView::Running,
        VmState::Paused => VmStateView::Paused,
        VmState::Stopped => VmStateView::Stopped,
        VmState::Leaving => VmStateView::Leaving,
        VmState::Arriving => VmStateView::Arriving,
        VmState::Doubtful => VmStateView::Doubtful,
        // It did not run when its VM went on elsewhere: there is nothing to choose between.
        VmState::Branch if vm.wanted == RunGoal::Stopped => VmStateView::Leftover,
        VmState::Branch => VmStateView::Branch,
        VmState::Remote => VmStateView::Remote,
    }
}

/// How safe a snapshot is.
pub(super) fn snapshot_state(durability: &Durability) -> SnapshotState {
    match *durability {
        Durability::Local => SnapshotState::Local,
        Durability::Replicating { done, wanted } => SnapshotState::Replicating { done, wanted },
        Durability::Durable => SnapshotState::Durable,
    }
}

/// How well a disk is replicated, as it is shown.
fn replication_view(status: &ReplicationStatus) -> ReplicationView {
    ReplicationView {
        text: status.to_string(),
        every_s: status.every_s,
        rpo_s: status.age_s,
        copies: status.copies,
        wanted: status.wanted,
        late: status.is_late,
        why: status.why.clone(),
        rounds: status.rounds,
        new_bytes: status.new_bytes,
        last_new_bytes: status.last_new_bytes,
    }
}

/// A schedule as the network shows it.
fn schedule_view(schedule: &Schedule) -> ScheduleView {
    let Retention {
        last,
        hours,
        days,
        weeks,
    } = schedule.keep;
    ScheduleView {
        disk_only: schedule.disk_only,
        every_seconds: schedule.every,
        keep: KeepView {
            days,
            hours,
            last,
            weeks,
        },
    }
}

/// How safe a snapshot is that has lost a copy since it was durable.
fn degraded(durability: &Durability, wanted: usize) -> SnapshotState {
    let (done, wanted) = match *durability {
        Durability::Replicating { done, wanted } => (done, wanted),
        Durability::Local => (0, wanted),
        Durability::Durable => return SnapshotState::Durable,
    };
    SnapshotState::Degraded { done, wanted }
}

impl Vms {
    /// The VMs on this host.
    pub(crate) fn here(&self) -> Vec<VmView> {
        self.host.list().iter().map(|vm| self.view(vm)).collect()
    }

    pub(crate) fn view(&self, vm: &VmStatus) -> VmView {
        let definition = &vm.definition;
        let reach = self
            .guests
            .view(definition.vm)
            .filter(|_| vm.holder == self.parts.me());
        let blocked = reach
            .as_ref()
            .filter(|reach| reach.state == ReachState::Blocked)
            .and_then(|reach| reach.why.as_ref());
        let cut_off = blocked.map(|why| format!("packets do not reach it: {why}"));
        VmView {
            name: vm.name.clone(),
            id: definition.vm.to_string().into(),
            state: state_view(vm),
            host: self.parts.name_of(vm.holder),
            host_id: vm.holder.to_string().into(),
            address: definition.address.v4.to_string(),
            address_v6: definition.address.v6.to_string(),
            mac: definition.address.mac.map(|b| format!("{b:02x}")).join(":"),
            cpus: definition.cpus,
            memory_mib: definition.memory_mib,
            image: definition.image.to_string(),
            epoch: vm.epoch.0,
            voters: definition
                .voters
                .iter()
                .map(|m| self.parts.name_of(*m))
                .collect(),
            activity: vm.activity.clone(),
            note: vm
                .still
                .as_ref()
                .map(ToString::to_string)
                .or_else(|| vm.note.clone())
                .or(cut_off),
            still: vm.still.as_ref().map(|still| StillView {
                why: still.why.to_string(),
                path: still.path.clone(),
                free_bytes: still.free_bytes,
                needed_bytes: still.needed_bytes,
            }),
            replication: vm.replication.as_ref().map(replication_view),
            protection: self
                .protection_view(vm)
                .filter(|_| vm.holder == self.parts.me()),
            reach,
            last_seen: None,
            advice: None,
            cpu: self.manager.cpu_of(definition.vm),
            moving: self.manager.moves.of(&vm.name),
            user: vm.user.map(|user| MemberId(user).to_string()),
            bandwidth: self.bandwidth_of(definition.vm),
            restart: vm.restart.map(restart_word),
            snapshots: vm
                .snapshots
                .iter()
                .map(|s| self.snapshot_view(s, vm.backups.degraded.contains(&s.checkpoint)))
                .collect(),
            schedule: vm.backups.schedule.as_ref().map(schedule_view),
            restored_from: None,
        }
    }

    /// The bound of a guest's bandwidth here.
    fn bandwidth_of(&self, vm: VmId) -> Option<BandwidthView> {
        let limit = self.parts.plane.limit_of(vm)?;
        Some(BandwidthView {
            bits_per_second: limit.bits_per_second?,
            dropped_bytes: limit.dropped_bytes,
        })
    }

    pub(super) fn snapshot_view(&self, snapshot: &Snapshot, has_lost: bool) -> SnapshotView {
        let taken = std::time::UNIX_EPOCH + Duration::from_secs(snapshot.taken.0);
        SnapshotView {
            name: snapshot.name.clone(),
            taken: humantime::format_rfc3339_seconds(taken).to_string(),
            state: match has_lost {
                true => degraded(&snapshot.durability, self.host.wanted_copies()),
                false => snapshot_state(&snapshot.durability),
            },
            holders: snapshot
                .providers
                .iter()
                .map(|m| self.parts.name_of(*m))
                .collect(),
            automatic: is_automatic(&snapshot.name),
            checkpoint: Some(snapshot.checkpoint.to_string().into()),
            epoch: Some(snapshot.epoch.0),
            with_ram: Some(snapshot.with_ram),
        }
    }

    /// How many VMs run on this host.
    pub(crate) fn running(&self) -> usize {
        self.host
            .list()
            .iter()
            .filter(|vm| vm.state == VmState::Running)
            .count()
    }
}
