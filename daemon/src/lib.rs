//! The daemon: one service a resource, and the control API that serves them. `wiring` is the only
//! file that knows all of them; `run` begins and ends them.

mod access;
mod addresses;
pub mod clock;
pub mod config;
mod daemon;
mod failure;
pub mod guardian;
mod http;
pub mod layout;
pub mod lock;
mod machine;
mod members;
pub mod membership;
pub mod naming;
mod notify;
mod parts;
mod placement;
pub mod preflight;
mod routes;
mod run;
pub mod service;
pub mod shown;
mod succession;
mod traces;
mod vms;
mod web;
mod wiring;

pub(crate) use daemon::Daemon;
pub use failure::OrFailure;
pub use machine::{changes, sight};
pub use members::metrics::Metrics;
pub use parts::HOST_FACTS;
pub use run::{Overrides, run};
