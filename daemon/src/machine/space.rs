//! Reports on the board that this host's disk is full, with the VMs that are paused because of it;
//! refills the reserve from which records are then written.

use crate::parts::Parts;
use p2pvm_host::{Finding, reserve};
use p2pvm_vm_manager::{
    host::{Host, Standstill, VmStatus},
    hypervisor::Halt,
};
use std::{path::PathBuf, sync::Arc, time::Duration};

/// How long before the disk is checked again. Reason: it is one call of the file system.
const EVERY: Duration = Duration::from_secs(2);
/// The board's area.
const AREA: &str = "disk-full";
/// How many free bytes a disk needs before it counts as not full.
const FULL: u64 = 1 << 20;
const MAKE_ROOM: &str = "make room there: 'du -xh DIR | sort -h' shows what takes it; 'p2pvm vm \
    migrate NAME' moves a VM away with its \
    memory, 'p2pvm vm delete NAME' removes one that is stopped";

/// Checks until the daemon ends.
pub(crate) async fn watch(parts: Arc<Parts>, host: Arc<Host>, dir: PathBuf) {
    let mut said: Option<FullDisk> = None;
    loop {
        match reserve::room(&dir) {
            Ok(room) => {
                let kept = reserve::refill().unwrap_or(0);
                let spent = reserve::wanted().saturating_sub(kept);
                let now = FullDisk::of(&host.list(), room.free, spent, &dir.display().to_string());
                // The figures change from look to look; only another set of paused VMs is worth a
                // log line.
                if now.as_ref().map(FullDisk::sameness) != said.as_ref().map(FullDisk::sameness) {
                    parts
                        .board
                        .set(AREA, now.iter().map(FullDisk::finding).collect());
                    said = now;
                }
            }
            Err(error) => tracing::debug!(
                error = %p2pvm_host::chain(&error),
                "the room on the disk is not known"
            ),
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// A disk that is full.
#[derive(Clone, Debug, PartialEq, Eq)]
struct FullDisk {
    path: String,
    free: u64,
    needed: u64,
    /// VMs that are paused because of it.
    still: Vec<String>,
    /// Bytes of the reserve that are used up.
    spent: u64,
}

impl FullDisk {
    fn of(vms: &[VmStatus], free: u64, spent: u64, dir: &str) -> Option<Self> {
        let waits = |vm: &&VmStatus| {
            vm.still
                .as_ref()
                .is_some_and(|still| still.why == Halt::DiskFull)
        };
        let waiting: Vec<&VmStatus> = vms.iter().filter(waits).collect();
        if waiting.is_empty() && free >= FULL {
            return None;
        }
        let first: Option<&Standstill> = waiting.first().and_then(|vm| vm.still.as_ref());
        Some(Self {
            path: first.map_or_else(|| dir.to_owned(), |still| still.path.clone()),
            free,
            needed: first.map_or(FULL, |still| still.needed_bytes),
            still: waiting.iter().map(|vm| vm.name.clone()).collect(),
            spent,
        })
    }

    /// The parts whose change makes it another finding.
    fn sameness(&self) -> (&str, &[String], bool) {
        (&self.path, &self.still, self.spent > 0)
    }

    fn finding(&self) -> Finding {
        let mib = |bytes: u64| bytes >> 20;
        let mut found = format!(
            "host disk full: {} MiB are free at {}, {} MiB are needed",
            mib(self.free),
            self.path,
            self.needed.div_ceil(1 << 20)
        );
        if !self.still.is_empty() {
            found += &format!(
                "; paused until then, nothing is lost: {}",
                self.still.join(", ")
            );
        }
        if self.spent > 0 {
            found += "; votes and records are written from the reserve";
        }
        Finding::failed(found, MAKE_ROOM.replace("DIR", &self.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_one_finding_with_the_figures_however_they_change() {
        assert_eq!(FullDisk::of(&[], FULL, 0, "/x"), None);
        let full = |free, spent| FullDisk {
            path: "/x".into(),
            free,
            needed: 25 << 20,
            still: vec!["fat".into()],
            spent,
        };
        let said = full(3 << 20, 5).finding();
        assert!(
            said.found
                .contains("3 MiB are free at /x, 25 MiB are needed")
                && said.found.contains("fat"),
            "{said:?}"
        );
        assert!(
            said.advice.contains("vm migrate") && said.advice.contains("du -xh /x"),
            "{said:?}"
        );
        assert_eq!(full(3 << 20, 5).sameness(), full(1 << 20, 9).sameness());
        let alone = FullDisk::of(&[], FULL - 1, 0, "/x").unwrap().finding();
        assert!(
            alone
                .found
                .starts_with("host disk full: 0 MiB are free at /x")
                && !alone.found.contains("paused"),
            "{alone:?}"
        );
    }
}
