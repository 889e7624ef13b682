//! One incarnation in memory: its entry, its guest, and the one operation at a time that changes
//! it.

use super::{
    activity::Activity,
    envelope::{Place, Promise},
    registry::{Entry, Role},
    replication::{Replication, ReplicationStatus},
    shield::ShieldCell,
    status::{VmState, VmStatus},
    underway::OutgoingMove,
};
use crate::{
    Error,
    hypervisor::{Machine, RunState},
    restart::Restarts,
};
pub(crate) use p2pvm_overlay::lock;
use p2pvm_overlay::{MemberId, UnixTime};
use p2pvm_snapshot_sync::ManifestId;
use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::time::Instant;

/// How long an operation waits for a check with the voters before it is refused. Reason: a check
/// whose voters do not answer ends within this time.
const CHECK_LIMIT: Duration = Duration::from_secs(10);
/// How long between two checks that other members' reports cause. Reason: however many reports
/// come, the VM stays free for its owner's operations between the checks.
const HEED_EVERY: Duration = Duration::from_secs(2);
/// How long between two looks whether such a check is over.
const LOOK: Duration = Duration::from_millis(50);

/// One incarnation in memory.
pub(crate) struct Slot {
    pub(super) entry: Mutex<Entry>,
    pub(super) guest: Mutex<Option<Guest>>,
    turn: Arc<tokio::sync::Mutex<()>>,
    activity: Mutex<Option<Activity>>,
    /// The move to another member that is under way.
    pub(super) outgoing: Mutex<Option<OutgoingMove>>,
    /// The record in the DHT is older than the entry.
    unpublished: AtomicBool,
    /// The guest stands still, and this daemon has no record of the reason, or could not write down
    /// that the VM was lost: the voters are asked before it goes on.
    unproven: AtomicBool,
    /// Snapshots that are being copied to other members.
    copying: Mutex<BTreeSet<ManifestId>>,
    /// The rounds that replicate its disk.
    replication: Mutex<Replication>,
    /// When the latest check begins, or began, that another member's report caused.
    heeded: Mutex<Option<Instant>>,
    /// Its part of what this host offers to other members, until it is removed.
    place: Mutex<Option<Place>>,
    /// Whether it is protected, as last found.
    pub(super) shield: ShieldCell,
    /// Its restarts after it ended by itself.
    pub(super) restarts: Mutex<Restarts>,
}

/// A guest with the memory that it was given, which is free again when this is dropped: after its
/// process has ended.
pub(crate) struct Guest {
    pub(crate) machine: Arc<dyn Machine>,
    _memory: Promise,
}

impl Guest {
    pub(crate) fn new(machine: Arc<dyn Machine>, memory: Promise) -> Self {
        Self {
            machine,
            _memory: memory,
        }
    }
}

/// The right to change a VM, held for the length of one operation.
pub(crate) struct Operation {
    slot: Arc<Slot>,
    _turn: tokio::sync::OwnedMutexGuard<()>,
}

impl Drop for Operation {
    fn drop(&mut self) {
        *lock(&self.slot.activity) = None;
        *lock(&self.slot.outgoing) = None;
    }
}

impl Slot {
    pub(crate) fn new(entry: Entry, place: Option<Place>) -> Arc<Self> {
        Arc::new(Self {
            entry: Mutex::new(entry),
            guest: Mutex::default(),
            turn: Arc::default(),
            activity: Mutex::new(None),
            outgoing: Mutex::default(),
            unpublished: AtomicBool::new(false),
            unproven: AtomicBool::new(false),
            copying: Mutex::default(),
            replication: Mutex::default(),
            heeded: Mutex::default(),
            place: Mutex::new(place),
            shield: ShieldCell::default(),
            restarts: Mutex::default(),
        })
    }

    /// Gives its part of this host back: it was removed.
    pub(super) fn free_place(&self) {
        let place = lock(&self.place).take();
        drop(place);
    }

    /// Notes another member's report that the VM runs elsewhere. Returns when the check that it
    /// causes is to begin; `None` if one that has not begun is to come anyway.
    pub(super) fn heed(&self, now: Instant) -> Option<Instant> {
        let mut heeded = lock(&self.heeded);
        let at = match *heeded {
            Some(at) if at > now => return None,
            Some(last) => now.max(last + HEED_EVERY),
            None => now,
        };
        *heeded = Some(at);
        Some(at)
    }

    /// The present entry.
    pub(crate) fn entry(&self) -> Entry {
        lock(&self.entry).clone()
    }

    /// The guest, if it has one.
    pub(crate) fn machine(&self) -> Option<Arc<dyn Machine>> {
        lock(&self.guest)
            .as_ref()
            .map(|guest| guest.machine.clone())
    }

    /// Takes the guest away: what happens to it from now on is not this VM's.
    pub(crate) fn take_guest(&self) -> Option<Guest> {
        lock(&self.guest).take()
    }

    pub(crate) fn run_state(&self) -> RunState {
        self.machine()
            .map_or(RunState::Stopped, |m| *m.watch().borrow())
    }

    /// Notes whether a snapshot is being copied.
    pub(crate) fn set_copying(&self, snapshot: ManifestId, copying: bool) {
        let mut all = lock(&self.copying);
        if copying {
            all.insert(snapshot);
        } else {
            all.remove(&snapshot);
        }
    }

    pub(crate) fn is_copying(&self, snapshot: ManifestId) -> bool {
        lock(&self.copying).contains(&snapshot)
    }

    /// The rounds that replicate its disk.
    pub(crate) fn replication(&self) -> MutexGuard<'_, Replication> {
        lock(&self.replication)
    }

    /// How well the disk is replicated; `None` if it is not.
    pub(crate) fn replication_status(&self, entry: &Entry) -> Option<ReplicationStatus> {
        let what = (&entry.protection, entry.replica.as_ref());
        self.replication().status(what, UnixTime::now())
    }

    /// Whether no operation works on the VM.
    pub(crate) fn is_idle(&self) -> bool {
        self.turn.try_lock().is_ok()
    }

    /// Notes whether the VM's record has to be published.
    pub(crate) fn set_unpublished(&self, unpublished: bool) {
        self.unpublished.store(unpublished, Ordering::Relaxed);
    }

    pub(crate) fn is_unpublished(&self) -> bool {
        self.unpublished.load(Ordering::Relaxed)
    }

    /// Notes whether the voters must be asked before the guest goes on.
    pub(crate) fn set_unproven(&self, unproven: bool) {
        self.unproven.store(unproven, Ordering::Relaxed);
    }

    pub(crate) fn is_unproven(&self) -> bool {
        self.unproven.load(Ordering::Relaxed)
    }

    /// Begins an operation, or says what is going on.
    pub(crate) fn begin(self: &Arc<Self>, what: Activity) -> Result<Operation, Error> {
        let Ok(turn) = self.turn.clone().try_lock_owned() else {
            return Err(self.busy());
        };
        Ok(self.operation(what, turn))
    }

    fn operation(
        self: &Arc<Self>,
        what: Activity,
        turn: tokio::sync::OwnedMutexGuard<()>,
    ) -> Operation {
        *lock(&self.activity) = Some(what);
        Operation {
            slot: self.clone(),
            _turn: turn,
        }
    }

    fn busy(&self) -> Error {
        let name = self.entry().listed_name();
        if let Some(outgoing) = &*lock(&self.outgoing) {
            return Error::Refused(outgoing.refusal(&name));
        }
        let activity = lock(&self.activity);
        let doing = activity.as_ref().map_or("something else", Activity::as_str);
        Error::Refused(format!(
            "'{name}' is busy ({doing}): wait until that is done"
        ))
    }

    /// Begins an operation, after a check with the voters that may be going on: the host makes such
    /// checks by itself, and they are soon over.
    pub(crate) async fn begin_after_check(
        self: &Arc<Self>,
        what: Activity,
    ) -> Result<Operation, Error> {
        let until = Instant::now() + CHECK_LIMIT;
        loop {
            match self.begin(what.clone()) {
                // Between two operations there is no activity for a moment.
                Err(_)
                    if matches!(*lock(&self.activity), None | Some(Activity::Checking))
                        && Instant::now() < until =>
                {
                    tokio::time::sleep(LOOK).await;
                }
                begun => return begun,
            }
        }
    }

    /// Begins an operation when the present one is done.
    pub(crate) async fn begin_next(self: &Arc<Self>, what: Activity) -> Operation {
        let turn = self.turn.clone().lock_owned().await;
        self.operation(what, turn)
    }

    pub(crate) fn status(&self, me: MemberId) -> VmStatus {
        let entry = self.entry();
        let state = match (&entry.role, self.run_state()) {
            (Role::Branch { .. }, _) => VmState::Branch,
            (Role::Doubtful { .. }, _) => VmState::Doubtful,
            (Role::Arriving { .. } | Role::Unmade, _) => VmState::Arriving,
            (Role::Leaving { .. }, RunState::Running) => VmState::Leaving,
            (_, RunState::Running) => VmState::Running,
            (_, RunState::Paused | RunState::Incoming) => VmState::Paused,
            (_, RunState::Stopped) => VmState::Stopped,
        };
        let replication = self.replication_status(&entry);
        VmStatus {
            name: entry.listed_name(),
            state,
            // A branch too is where it lies; its note says which member has the VM.
            holder: me,
            epoch: entry.epoch,
            wanted: entry.wanted,
            activity: lock(&self.activity).clone(),
            definition: entry.definition,
            snapshots: entry.snapshots,
            note: entry.note,
            still: None,
            replication,
            owner: entry.owner,
            restart: Some(entry.protection.restart),
            user: entry.user,
            backups: entry.backups,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::registry::tests::entry;

    #[test]
    fn reports_without_end_cause_a_check_every_two_seconds() {
        let slot = Slot::new(entry("web"), None);
        let began = Instant::now();
        let mut checks = Vec::new();
        for millis in 0..10_000 {
            let now = began + Duration::from_millis(millis);
            checks.extend(slot.heed(now));
        }
        assert_eq!(checks[0], began, "the first one at once");
        assert_eq!(checks.len(), 6);
        let apart = checks.windows(2).map(|pair| pair[1] - pair[0]);
        assert!(apart.into_iter().all(|apart| apart == HEED_EVERY));
        // After the last report there is a check that begins later.
        assert!(checks[5] >= began + Duration::from_millis(9_999));
    }
}
