//! What peers agree on: replicated signed records with TTL and create-if-absent on the closest
//! members, and epochs granted by named voters. It opens no socket: the overlay's `Fabric` makes
//! the lookups and requests.
//!
//! Records say where things are and may be stale; votes decide what must never happen twice.
//!
//! What is promised although members lie: the replicas of a key are the k = 5 members closest to it
//! as a lookup finds them (`p2pvm_overlay::lookup`: a lookup that may have been misled is an
//! error). As long as no more than two of the five lie:
//! - a create takes four of five, so that of two creators at most one succeeds
//!   ([`coordinate::sure`]);
//! - a read answers "absent" only by four of five, and a record only if most replicas hold it or no
//!   replica contradicts; if owners contend and none has a majority, it is an error;
//! - a record is replaced by another owner's only if most replicas hold that one; each replica asks
//!   them itself (`conflict`);
//! - no member but its owner changes, deletes or renews a record: all are signed.
//!
//! Liars can make all these fail: the caller gets an error, or sees an address as taken. Not
//! promised are: that a read sees the owner's newest version; anything if three of five lie; and a
//! single owner while a partition, or the exchange of most replicas at once, separates a key's old
//! replicas from its new ones. After such a partition has healed, one owner is kept everywhere, and
//! the other gets an error at its next renewal.

pub mod cell;
mod conflict;
pub mod coordinate;
mod dht;
#[cfg(test)]
#[path = "../../tests/golden.rs"]
mod golden;
#[cfg(test)]
mod golden_tests;
pub mod limits;
mod options;
mod peers;
pub mod record;
pub mod replica;
mod republish;
pub mod store;
pub mod votes;
pub mod wire;

pub use dht::Dht;
pub use limits::{Limits, Refusal};
pub use options::{Clock, DhtOptions};
pub use peers::SERVICE;
pub use record::{Record, RecordError, Records};
pub use store::{MemoryStore, SledStore, Store, StoreError};
pub use votes::{Grant, NewestEpoch, VoteError, Voter, VoterLog, VoterSet, Votes};
