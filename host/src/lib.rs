//! The machine that p2pvm runs on: what it is like, what p2pvm changes on it, and what is found
//! wrong with it.
//!
//! The lowest crate: it knows no member and no network protocol of ours. [`netlink`] asks the
//! kernel, [`device`] changes an interface, [`links`] tells which interfaces are p2pvm's own,
//! [`names`] leads the machine's programs to our resolver, [`finding`] holds what is wrong in words
//! that a person can act on.
//!
//! What p2pvm changes in the kernel besides its interface has one owner, the [`keeper`]: a network
//! says what it wants ([`wanted`]), the keeper looks (module `look`), a pure function says what is
//! to be done ([`mod@plan`]), the [`journal`] says beforehand what will have to be undone, and
//! [`mod@undo`] undoes it, from whatever process.

pub mod apart;
pub mod causes;
pub mod device;
pub mod durable;
pub mod error;
pub mod finding;
pub mod firewall;
pub mod forwarding;
pub mod holders;
pub mod journal;
pub mod keeper;
mod kernel;
mod legacy;
pub mod links;
pub mod local_time;
mod look;
pub mod names;
pub mod net;
pub mod netlink;
mod numbers;
pub mod observed;
pub mod opening;
pub mod outbound;
pub mod overlap;
pub mod owner;
pub mod passage;
pub mod plan;
pub mod presence;
pub mod reached;
pub mod repeated;
pub mod reserve;
pub mod routes;
pub mod rules;
pub mod ruleset;
pub mod run;
pub mod sharing;
pub mod socket_path;
pub mod tun;
pub mod undo;
pub mod wanted;

mod locks;

pub use causes::chain;
pub use finding::{Board, Finding, Level};
pub use keeper::Keeper;
pub use locks::{lock, read_lock, write_lock};
pub use net::Net;
pub use overlap::{Conflict, ConflictKind, overlap, overlap_except};
pub use repeated::Repeated;
pub use socket_path::SocketPath;
pub use wanted::NetworkNeeds;
