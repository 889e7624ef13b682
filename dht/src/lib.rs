//! What peers agree on: replicated signed records with TTL and create-if-absent on the closest members,
//! and epochs granted by named voters. Opens no socket: asks the overlay's `Fabric` for lookups and requests.
//!
//! Records say where things are and may be stale; votes decide what must never happen twice. A record that
//! survives a partition in two versions is decided by the same coin everywhere ([`cell::prefers`]).

pub mod cell;
pub mod coordinate;
pub mod dht;
pub mod record;
pub mod replica;
mod republish;
pub mod store;
pub mod votes;
pub mod wire;

pub use dht::{Dht, DhtOptions};
pub use record::{Record, RecordError, Records};
pub use store::{MemoryStore, SledStore, Store, StoreError};
pub use votes::{Grant, Newest, VoteError, Voter, VoterLog, VoterSet, Votes};
