//! Snapshots of VMs, their schedules, and the store that has them.

use super::{ALL, ALL_LOOKING, Method, Operation, ROOT, WITH_MEMBERS, json, lines};
use crate::{
    CollectStore, RestoreVm, ScheduleAnswer, ScheduleChange, SnapshotDeleted, SnapshotDetail,
    SnapshotDiff, SnapshotTaken, SnapshotVerified, SnapshotView, SnapshotVm, StoreCollected,
    StoreView, VerifySnapshot, VmView,
};

/// Snapshots of VMs.
pub(super) const SNAPSHOTS: &[Operation] = &[
    lines::<SnapshotTaken>(
        Method::Post,
        "/vms/{name}/snapshot",
        ALL,
        "Takes a snapshot of a VM.",
    )
    .body::<SnapshotVm>(),
    lines::<VmView>(
        Method::Post,
        "/vms/{name}/restore",
        ALL,
        "Sets a VM back to a snapshot, here or on the member that the request names.",
    )
    .body::<RestoreVm>(),
    json::<Vec<SnapshotView>>(
        Method::Get,
        "/vms/{name}/snapshots",
        ALL_LOOKING,
        "Lists the snapshots of a VM, oldest first.",
    ),
    json::<SnapshotDetail>(
        Method::Get,
        "/vms/{name}/snapshots/{snapshot}",
        ALL_LOOKING,
        "Shows a snapshot and its size.",
    ),
    json::<SnapshotDeleted>(
        Method::Delete,
        "/vms/{name}/snapshots/{snapshot}",
        ALL,
        "Deletes a snapshot, here and at the members that keep it.",
    ),
    lines::<SnapshotVerified>(
        Method::Post,
        "/vms/{name}/snapshots/{snapshot}/verify",
        WITH_MEMBERS,
        "Reads every chunk of a snapshot, asks the members that keep it, and repairs.",
    )
    .body::<VerifySnapshot>(),
    json::<SnapshotDiff>(
        Method::Get,
        "/vms/{name}/snapshots/{snapshot}/diff/{other}",
        ALL_LOOKING,
        "Tells how much the other snapshot differs from this one.",
    ),
    json::<ScheduleAnswer>(
        Method::Get,
        "/vms/{name}/schedule",
        ALL_LOOKING,
        "Shows when snapshots of a VM are taken by themselves, and which stay.",
    ),
    json::<ScheduleAnswer>(
        Method::Post,
        "/vms/{name}/schedule",
        ALL,
        "Sets or ends the schedule of a VM's snapshots.",
    )
    .body::<ScheduleChange>(),
];

/// The chunks on this host's disk.
pub(super) const STORE: &[Operation] = &[
    json::<StoreView>(
        Method::Get,
        "/store",
        ROOT,
        "Shows what uses this host's disk: images, snapshots, replicas for others, and the rest.",
    ),
    json::<StoreCollected>(
        Method::Post,
        "/store/gc",
        ROOT,
        "Removes the chunks that nothing uses, or says what would go.",
    )
    .body::<CollectStore>(),
];
