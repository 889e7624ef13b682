//! Live migration between two hosts that share nothing.
//!
//! The source leads; the target prepares, is *armed*, receives, and runs. [`crate::handover`]
//! decides which side may run the guest (pure, tested over thousands of random interleavings);
//! [`source`] and [`target`] are its shells, [`doubt`] settles what a lost answer or a restart
//! leaves open, and [`tunnel`] carries QEMU's streams over the fabric. One id names a migration in
//! the logs of both hosts.
//!
//! At most one side ever runs the guest. Until the hand-over that is the source. Then it is the
//! target, if it became whole within its window and a majority of the voters confirmed it; else the
//! source under a new epoch, once the window has passed. If neither side reaches a majority,
//! neither runs the guest, and both keep their copy.

use opentelemetry::trace::SpanContext;

mod doubt;
pub mod pace;
mod source;
mod target;
mod traced;
pub mod tunnel;
pub mod wire;

pub use crate::host::{MigrationOutcome, RunningSide};
pub(crate) use target::Arrivals;

/// Why a VM is moved, as its trace says.
#[derive(Clone, Debug)]
pub struct Occasion {
    /// One word: "request", "drain", "autonomic".
    pub cause: &'static str,
    /// One sentence, if there is more to say.
    pub reason: Option<String>,
    /// The target's name; its id is shown without one.
    pub called: Option<String>,
    /// The span of the request, or [`SpanContext::NONE`].
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
