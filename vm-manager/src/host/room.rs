//! Room on this host's disk: what does not fit is refused beforehand, a guest that QEMU stopped
//! because its disk found none is shown with the reason, and goes on when there is room again.
//!
//! Such a guest has lost nothing: QEMU keeps the write that failed and does it again when the guest
//! goes on, here or where it has been moved to.

use super::{Host, Slot, status::Standstill};
use crate::{
    Error,
    directory::Wanted,
    error::io_at,
    host::Role,
    hypervisor::{Halt, Machine, RunState},
};
use p2pvm_overlay::{
    chain,
    reserve::{self, Room},
};
use std::{path::Path, sync::Arc, time::Duration};

/// How many bytes of the disk stay free when images and disks come in, and are free before a guest
/// that found none goes on. Reason: records and voters' promises are written too.
const KEPT_FREE: u64 = 64 << 20;
/// At most this share of a small file system is asked for before a guest goes on.
const SHARE: u64 = 16;
/// How often guests that wait for room are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How long a guest that goes on runs before it counts as running. Reason: the write that failed is
/// tried first of all.
const TRIED: Duration = Duration::from_millis(300);
/// What [`Host::go_on`] is called while it works.
const GOING_ON: &str = "going on";

fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

/// How much must be free before guests go on: what is kept free anyway, and the part of the reserve
/// that was spent.
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

    /// Why the VM's guest stands still though nobody asked for it.
    pub(crate) fn standstill(&self, slot: &Slot) -> Option<Standstill> {
        let machine = slot
            .machine()
            .filter(|_| slot.run_state() == RunState::Paused)?;
        let why = machine.halted()?;
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

    /// Lets a guest go on that is held and not stopped, if it can.
    pub(crate) async fn go_on(&self, slot: &Slot, machine: &dyn Machine) -> Result<(), Error> {
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

    /// Lets guests go on that found the disk full, as soon as there is room.
    pub(super) fn watch_room(&self) {
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
            || slot.entry().wanted != Wanted::Running
        {
            return;
        }
        // Whatever is going on with it, a move say, sees to it.
        let Ok(_busy) = slot.begin(GOING_ON) else {
            return;
        };
        let (entry, machine) = (slot.entry(), slot.machine());
        let Some(machine) = machine.filter(|_| entry.role == Role::Held) else {
            return;
        };
        // First what this node itself has to be able to write.
        if let Err(error) = reserve::refill() {
            tracing::debug!(%error, "the reserve stays short");
        }
        match self.go_on(slot, &*machine).await {
            Ok(()) => {
                tracing::info!(
                    vm = %entry.definition.name, free_mib = mib(still.free_bytes),
                    "there is room again: the guest goes on"
                )
            }
            Err(error) => {
                tracing::debug!(vm = %entry.definition.name, error = %chain(&error), "not yet")
            }
        }
    }
}
