//! Live migration between two hosts that share nothing.
//!
//! The source leads; the target prepares, is *armed*, receives, and runs. Which side may run the
//! guest is decided by [`handover`] (pure, tested over all interleavings); [`source`] and
//! [`target`] are its shells, [`tunnel`] carries QEMU's streams over the fabric. One id names a
//! migration in the logs of both hosts.
//!
//! What may fail, and who then runs: until the hand-over the source; after it the target if it
//! became whole within its window and its confirmation reached a majority of the voters, else the
//! source under a new epoch once the window has passed. If neither can reach a majority, neither
//! runs, and both keep their copy.

use opentelemetry::trace::SpanContext;
use p2pvm_overlay::{Epoch, MemberId, VmId};
use serde::{Deserialize, Serialize};
use std::time::Duration;

use crate::hypervisor::MigrationReport;

pub mod handover;
pub mod pace;
mod source;
pub mod target;
mod traced;
pub mod tunnel;
pub mod wire;

/// From its last arming until when a target may begin to run the guest.
pub const WINDOW: Duration = Duration::from_secs(10);
/// How long past the window a target that runs may stay unconfirmed before it freezes itself.
pub const CONFIRM_GRACE: Duration = Duration::from_secs(2);
/// The source re-arms the target this often while RAM is sent, so that the window is fresh at the
/// hand-over.
pub const REARM_EVERY: Duration = Duration::from_secs(3);
/// How much longer than the target's window the source waits: two clocks may drift apart by this
/// much.
pub const CLOCK_GUARD: f64 = 1.03;

/// Which side runs the guest when a migration is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunsOn {
    /// Where it was.
    Source,
    /// Where it should go.
    Target,
    /// Held on both sides until a majority of the VM's voters answers; then one goes on by itself.
    Undecided,
}

/// Why a VM is moved, as its trace says.
#[derive(Clone, Debug)]
pub struct Occasion {
    /// In a word: "request", "drain", "autonomic".
    pub cause: &'static str,
    /// In a sentence, if there is more to say.
    pub reason: Option<String>,
    /// What people call the target; none for its id.
    pub called: Option<String>,
    /// The span of whoever asked, or [`SpanContext::NONE`].
    pub within: SpanContext,
}

impl Default for Occasion {
    fn default() -> Self {
        Self {
            cause: "request",
            reason: None,
            called: None,
            within: SpanContext::NONE,
        }
    }
}

/// How a migration ended. Exactly one side runs the guest, and this says which.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrationOutcome {
    /// The migration's id, as in the logs of both hosts (hexadecimal).
    pub id: String,
    /// The id of its trace, if it is traced.
    pub trace: Option<String>,
    /// The VM.
    pub vm: VmId,
    /// Its name.
    pub name: String,
    /// Where it was.
    pub from: MemberId,
    /// Where it should go.
    pub to: MemberId,
    /// Where it runs now.
    pub runs_on: RunsOn,
    /// In which epoch.
    pub epoch: Epoch,
    /// Why it did not move, naming the step that failed.
    pub failure: Option<String>,
    /// It did not move because somebody asked for that.
    pub cancelled: bool,
    /// It did not move because its guest ended by itself meanwhile: it is stopped.
    pub ended: bool,
    /// From the request to the end, milliseconds.
    pub total_ms: u64,
    /// From the guest's pause here to the target's word that it runs there, milliseconds: an upper
    /// bound of the stop.
    pub pause_ms: Option<u64>,
    /// The hypervisor's own figures.
    pub report: Option<MigrationReport>,
}
