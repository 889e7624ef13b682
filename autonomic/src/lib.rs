//! Decides where VMs should run: load gossip over a partial view, a placement score, negotiation
//! between two nodes, hysteresis. No IO and no clock: [`Manager::handle`] takes what happened,
//! [`Manager::poll`] gives what to do. Each node has a partial view, and decides for its own VMs
//! alone.

mod explain;
#[cfg(test)]
#[path = "../../tests/golden.rs"]
mod golden;
mod gossip;
mod limits;
mod load;
mod moves;
mod placement;
mod wire;

pub use explain::{Decision, Explanation};
pub use limits::{MAX_ENTRIES, MAX_MESSAGE_BYTES};
pub use load::{LoadVector, LocalLoad, Millis, Talk, VmLoad};
pub use moves::manager::{Input, Manager, MigrationEnd, Output, Status};
pub use moves::score::Candidate;
pub use placement::{Placement, UnusablePlacement};
pub use wire::{LoadReport, Message, Offer, OfferRefusal, WireError};
