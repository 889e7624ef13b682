//! The requests of a migration, service "migrate". The source asks, the target answers at once; what takes
//! long at the target is asked for again. Losing a request or an answer loses nothing: each may be repeated.

use crate::{Definition, Error, definition::VmSecret, directory::Snapshot, hypervisor::Progress};
use p2pvm_overlay::{Epoch, Fabric, FabricError, MemberId, VmId};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The service's name, for requests and streams.
pub const SERVICE: &str = "migrate";

/// How long a request that is answered from memory may take.
pub const SHORT: Duration = Duration::from_secs(3);
/// How long a request that asks voters or starts a guest may take.
pub const LONG: Duration = Duration::from_secs(10);

/// What the source offers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// The migration.
    pub id: u64,
    /// The VM.
    pub definition: Definition,
    /// Its key.
    pub secret: VmSecret,
    /// The epoch in which the target would have it.
    pub epoch: Epoch,
    /// Its snapshots.
    pub snapshots: Vec<Snapshot>,
}

/// A request of the source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ask {
    /// Prepare to take the VM.
    Prepare(Box<Offer>),
    /// How far is the preparation? Also says that the source lives.
    Progress {
        /// The migration.
        id: u64,
    },
    /// Be ready to run the guest from now, within the window.
    Arm {
        /// The migration.
        id: u64,
        /// Grows with each arming.
        serial: u64,
    },
    /// The guest was handed over: what became of it? Answered when there is news, or after a second.
    Settle {
        /// The migration.
        id: u64,
        /// The VM.
        vm: VmId,
        /// The source knows already that it runs.
        running: bool,
    },
    /// Give it up, unless it runs; what became of it?
    Abort {
        /// The migration.
        id: u64,
        /// The VM.
        vm: VmId,
        /// Why.
        reason: String,
    },
}

/// An answer of the target.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Answer {
    /// Work goes on.
    Preparing(Progress),
    /// RAM and disk can be sent.
    Ready {
        /// The name of the disk's NBD export.
        export: String,
    },
    /// The voters granted the epoch, and the window is open.
    Armed,
    /// Not whole yet.
    Waiting,
    /// It runs here; the voters' confirmation is under way.
    Running,
    /// It is this host's for good.
    Confirmed {
        /// In that epoch.
        epoch: Epoch,
    },
    /// It ran here, is held still, and waits for the voters.
    Doubtful,
    /// This member knows nothing of it, which says nothing: it may have forgotten, or passed the VM on.
    Unknown,
    /// It never ran here and never will.
    Gone {
        /// Why.
        reason: String,
    },
}

/// Asks `to`.
pub async fn ask(fabric: &dyn Fabric, to: MemberId, ask: &Ask, timeout: Duration) -> Result<Answer, FabricError> {
    let body = postcard::to_allocvec(ask).expect("plain fields always serialize");
    let answer = fabric.call(to, SERVICE, body, timeout).await?;
    postcard::from_bytes(&answer).map_err(|e| FabricError::Refused(to, format!("its answer cannot be read: {e}")))
}

/// A failed request as this crate's error.
pub fn peer(step: &'static str) -> impl FnOnce(FabricError) -> Error {
    move |source| Error::Peer { step, source }
}
