//! The daemon: one service a resource, and the control API that serves them. `wiring` is the only
//! file that knows all of them; `run` begins and ends them.

mod access;
mod addresses;
pub mod clock;
mod cluster;
pub mod config;
mod event_log;
mod events;
mod failure;
#[cfg(test)]
#[path = "../../tests/golden.rs"]
mod golden;
pub mod guardian;
mod http;
pub mod layout;
mod lifecycle;
pub mod lock;
mod lookup;
mod machine;
mod members;
pub mod membership;
pub mod naming;
mod node;
mod notify;
pub mod offer;
mod parts;
mod placement;
pub mod preflight;
mod routes;
mod run;
pub mod service;
pub mod shown;
mod store;
mod succession;
mod tokens;
mod traces;
mod usage;
pub mod user_key;
mod vms;
mod web;
mod wiring;

pub use failure::OrFailure;
pub use machine::{changes, sight};
pub use node::metrics::prometheus_page;
pub use parts::HOST_FACTS;
pub use run::{Overrides, run};
