//! Room on this host's disk: what does not fit is refused beforehand; a guest that QEMU stopped on
//! a full disk is shown with the reason, and goes on when there is room again.
//!
//! Such a guest has lost nothing: QEMU keeps the write that failed and repeats it when the guest
//! goes on, here or on the member that it was moved to.

use super::{Activity, Host, Role, Slot, Standstill};
use crate::{
    Error,
    directory::RunGoal,
    error::io_at,
    hypervisor::{Halt, Machine, RunState},
};
use p2pvm_overlay::{
    chain,
    reserve::{self, Room},
};
use std::{path::Path, sync::Arc, time::Duration};

/// How many bytes of the disk stay free when images and disks are stored, and must be free before a
/// guest goes on that found none. Reason: records and voters' promises need room too.
const KEPT_FREE: u64 = 64 << 20;
/// The part of a small file system that must be free before a guest goes on: one in this many.
/// Reason: it may never have `KEPT_FREE` free.
const SHARE: u64 = 16;
/// How long between two looks for room for guests that wait for it.
const LOOK: Duration = Duration::from_secs(1);
/// How long a resumed guest runs before it counts as running. Reason: the write that failed is
/// repeated first.
const TRIED: Duration = Duration::from_millis(300);

fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

/// How much must be free before guests go on: what is kept free anyway, or less on a small file
/// system.
fn needed(room: Room) -> u64 {
    KEPT_FREE.min(room.size / SHARE)
}

fn room_at(dir: &Path) -> Result<Room, Error> {
    reserve::room(dir).map_err(io_at("look for room", dir))
}

impl Host {
    /// Refuses what would fill this host's disk, with the figures.
    pub(crate) fn room_on_disk(&self, bytes: u64) -> Result<(), Error> {
        let dir = self.registry.dir();
        let free = room_at(dir)?.free;
        let needed = bytes.saturating_add(KEPT_FREE);
        if needed <= free {
            return Ok(());
        }
        Err(Error::Refused(format!(
            "{} MiB are needed at {}, {} of them kept free for records, and {} MiB are free: make \
                room there",
            mib(needed),
            dir.display(),
            mib(KEPT_FREE),
            mib(free)
        )))
    }

    /// Gives programs that are about to be started a little room on a full disk, for their logs and
    /// process ids. The guests that filled it stand still and do not take it.
    pub(crate) fn ease(&self) {
        let dir = self.registry.dir();
        if reserve::room(dir).is_ok_and(|room| room.free < reserve::PIECE) {
            reserve::spend(dir);
        }
    }

    /// Why the VM's guest stands still without a request.
    pub(crate) fn standstill(&self, slot: &Slot) -> Option<Standstill> {
        let machine = slot
            .machine()
            .filter(|_| slot.run_state() == RunState::Paused)?;
        // A guest that panicked ends; members of the previous release do not know the word.
        let why = machine.halted().filter(|why| *why != Halt::Panicked)?;
        let dir = self.registry.dir();
        let room = reserve::room(dir).ok();
        let (free, needed) = room.map_or((0, 0), |room| (room.free, needed(room)));
        Some(Standstill {
            why,
            path: dir.display().to_string(),
            free_bytes: free,
            needed_bytes: needed,
        })
    }

    /// Lets a held guest go on, if it can and the VM is this host's.
    pub(crate) async fn go_on(&self, slot: &Arc<Slot>, machine: &dyn Machine) -> Result<(), Error> {
        self.prove(slot).await?;
        let (entry, halted) = (slot.entry(), self.standstill(slot));
        let name = &entry.definition.name;
        if let Some(still) = halted
            .as_ref()
            .filter(|still| still.why == Halt::DiskFull && still.free_bytes < still.needed_bytes)
        {
            return Err(Error::Refused(format!(
                "'{name}' is paused, nothing of it is lost: {still}; or move it away: 'p2pvm vm \
                    migrate {name}'"
            )));
        }
        self.parts
            .port
            .attach(
                &self.registry.spec(&entry),
                &entry.definition.address,
                entry.epoch,
            )
            .await?;
        let stop_first = |e: Error| {
            Error::Refused(format!(
                "'{name}' is paused and cannot go on ({}): 'p2pvm vm stop {name}', then start it",
                chain(&e)
            ))
        };
        machine.resume().await.map_err(stop_first)?;
        self.parts.port.frozen(entry.definition.vm, false).await?;
        tokio::time::sleep(TRIED).await;
        match self.standstill(slot) {
            Some(still) => Err(Error::Refused(format!(
                "'{name}' is paused again, nothing of it is lost: {still}"
            ))),
            None => Ok(()),
        }
    }

    /// Lets guests that found the disk full go on as soon as there is room.
    pub(crate) fn watch_room(&self) {
        let this = self.this.clone();
        self.spawn(async move {
            loop {
                tokio::time::sleep(LOOK).await;
                let Some(host) = this.upgrade() else { return };
                for slot in host.slots() {
                    host.go_on_when_it_can(&slot).await;
                }
            }
        });
    }

    async fn go_on_when_it_can(&self, slot: &Arc<Slot>) {
        let Some(still) = self.standstill(slot) else {
            return;
        };
        if still.why != Halt::DiskFull
            || still.free_bytes < still.needed_bytes
            || slot.entry().wanted != RunGoal::Running
            || slot.is_unproven()
        {
            return;
        }
        // An operation that works on it, a move say, sees to it.
        let Ok(_operation) = slot.begin(Activity::Resuming) else {
            return;
        };
        let (entry, machine) = (slot.entry(), slot.machine());
        let Some(machine) = machine.filter(|_| entry.role == Role::Held) else {
            return;
        };
        // This node's own records come first.
        if let Err(error) = reserve::refill() {
            tracing::debug!(error = %chain(&error), "the reserve stays short");
        }
        match self.go_on(slot, &*machine).await {
            Ok(()) => {
                tracing::info!(
                    vm = %entry.definition.name, free_mib = mib(still.free_bytes),
                    "there is room again: the guest goes on"
                )
            }
            Err(error) => {
                tracing::debug!(
                    vm = %entry.definition.name, error = %chain(&error),
                    "the guest cannot go on yet"
                )
            }
        }
    }
}
