//! The words of the control API, the same for the daemon, the command line, the status screen, the
//! dashboard and programs that drive them: requests and answers by resource, failures, progress.
//!
//! Members of different versions pass requests on to each other. A reader ignores fields that it
//! does not know, and a field that was added later has a default. Structs that say so have their
//! fields in alphabetical order, as their answers are printed with `--json`; [`Sorted`] puts the
//! others into that order.

mod access;
#[cfg(feature = "client")]
pub mod client;
mod cluster;
mod dashboard;
mod decisions;
#[cfg(test)]
mod document;
mod events;
mod failure;
#[cfg(test)]
#[path = "../../tests/golden.rs"]
mod golden;
#[cfg(test)]
mod golden_tests;
mod health;
mod ids;
mod line;
mod members;
mod metrics;
mod moves;
mod node;
mod offer;
pub mod operations;
mod path;
mod printed;
mod protection;
mod replication;
mod routes;
mod snapshot_state;
mod snapshots;
mod sorted;
mod tokens;
mod usage;
mod users;
mod vm_words;
mod vms;
mod words;

pub use ids::*;
pub use snapshot_state::*;

pub use {
    access::*, cluster::*, dashboard::*, decisions::*, events::*, failure::*, health::*, line::*,
    members::*, metrics::*, moves::*, node::*, offer::*, path::*, printed::*, protection::*,
    replication::*, routes::*, snapshots::*, sorted::*, tokens::*, usage::*, users::*, vm_words::*,
    vms::*,
};

/// The control API as an OpenAPI document, which the daemon serves too.
pub const OPENAPI: &str = include_str!("../openapi.json");

/// Checks the exact text of an answer: what is said, and that it is understood.
#[cfg(test)]
fn assert_text<T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug>(
    value: &T,
    text: &str,
) {
    assert_eq!(serde_json::to_string(value).unwrap(), text);
    assert_eq!(&serde_json::from_str::<T>(text).unwrap(), value);
}
