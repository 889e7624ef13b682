//! Decides where VMs should run: load gossip over a partial view, a placement score, negotiation
//! between two nodes, hysteresis. Does no IO and knows no clock: [`Manager::handle`] takes what
//! happened, [`Manager::poll`] gives what to do. No node sees all, and none decides for others.

mod affinity;
mod explain;
mod gossip;
mod load;
mod manager;
mod negotiation;
mod placement;
mod score;
mod wire;

pub use explain::{Decision, Explanation};
pub use load::{LoadVector, LocalLoad, Millis, Talk, VmLoad};
pub use manager::{Input, Manager, MigrationEnd, Output, Status};
pub use placement::{Placement, UnusablePlacement};
pub use score::Place;
pub use wire::{Heard, MAX_ENTRIES, MAX_MESSAGE_BYTES, Message, Offer, Refusal, WireError};
