//! The machine that p2pvm runs on: what it is like, what p2pvm changes on it, and what is found wrong with it.
//!
//! The lowest crate: it knows no member and no network protocol of ours. [`netlink`] asks the kernel, [`device`] changes an interface, [`links`] tells which
//! interfaces are p2pvm's own, [`finding`] holds what is wrong in words that a person can act on.

pub mod device;
pub mod finding;
pub mod links;
pub mod netlink;

pub use finding::{Board, Finding, Level};
