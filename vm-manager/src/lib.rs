//! The life of a VM on one host and its move to another.
//!
//! [`Host`] is one member's VMs and every operation on them. It works over traits: [`hypervisor`]
//! (QEMU behind it), [`Port`] (the network), [`Vault`] (chunks), [`Ballot`] (voters) and the DHT's
//! records.
//!
//! The floors, lowest first: the traits and documents, with [`handover`] (the right to run a guest
//! during a move, without IO); [`host`]; [`migrate`] and [`checkpoint`], neither of which uses the
//! other; `guard`, what a host does unasked. None uses a higher one.

pub mod backups;
pub mod ballot;
pub mod bit_rate;
mod cgroup;
pub mod checkpoint;
pub mod clock;
pub mod definition;
pub mod directory;
pub mod error;
mod framed;
#[cfg(test)]
#[path = "../../tests/golden.rs"]
mod golden;
mod guard;
pub mod guardian;
pub mod handover;
pub mod heal;
pub mod host;
pub mod hypervisor;
mod image_file;
mod jail;
pub mod migrate;
pub mod offer;
pub mod port;
pub mod protection;
pub mod qemu;
pub mod recovery;
mod restart;
mod run_dir;
mod sealed;
pub mod trace;
pub mod vault;

pub use ballot::Ballot;
pub use bit_rate::BitRate;
pub use cgroup::limit_processors;
pub use definition::{Definition, GuestAddress, ImageSource, NewVm, VmSecret};
pub use error::Error;
pub use host::{Host, HostOptions, Parts};
pub use port::Port;
pub use protection::{Protection, Replica};
#[cfg(fuzzing)]
pub use sealed::parse as parse_sealed;
pub use sealed::{HoldingKeys, KeyShare, ReleaseRule};
pub use trace::Traces;
pub use vault::Vault;
