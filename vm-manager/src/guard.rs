//! What a host does unasked: it takes its VMs up again when the daemon starts and settles what a
//! kill interrupted (`adopt`), and looks after each of them from then on (`rounds`), and after the
//! copies of their snapshots (`keepers`) and the replicas of their disks (`replicas`), takes the
//! snapshots that are scheduled (`schedule`), and ends copies that nothing names (`sweep`).
//!
//! This is the crate's top floor: it uses moves and snapshots, and [`crate::host`] does not.

use crate::{
    Error, Host,
    host::{HostOptions, Parts},
    migrate::Arrivals,
};
use std::{path::Path, sync::Arc};

mod adopt;
mod keeper_log;
mod keepers;
mod replicas;
mod rounds;
mod schedule;
mod sweep;

impl Host {
    /// Opens the host whose VMs are defined in `dir`: takes up what runs, settles what was
    /// interrupted, serves other members.
    ///
    /// # Errors
    /// The file system's error.
    pub async fn open(parts: Parts, options: HostOptions, dir: &Path) -> Result<Arc<Self>, Error> {
        let host = Self::new(parts, options, dir)?;
        let all_known = host.adopt_all().await?;
        host.envelope.own.settle();
        if all_known {
            host.watch_images();
            // An entry that cannot be read may name what no other one does.
            host.watch_releases();
        }
        host.serve_members();
        host.watch_leases();
        Arrivals::serve(&host);
        host.watch_vms();
        host.watch_keepers();
        host.watch_replicas();
        host.watch_schedules();
        host.watch_room();
        host.watch_inheritances();
        Ok(host)
    }
}
