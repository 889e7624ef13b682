//! The machine that p2pvm runs on: what it is like, what p2pvm changes on it, and what is found wrong with it.
//!
//! The lowest crate: it knows no member and no network protocol of ours. [`netlink`] asks the kernel, [`links`] tells which
//! interfaces are p2pvm's own, [`names`] leads the machine's programs to our resolver, [`finding`] holds what is wrong in words
//! that a person can act on.

pub mod finding;
pub mod links;
pub mod names;
pub mod netlink;

pub use finding::{Board, Finding, Level};
