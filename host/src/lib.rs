//! The machine that p2pvm runs on: what it is like, what p2pvm changes on it, and what is found wrong with it.
//!
//! The lowest crate: it knows no member and no network protocol of ours. [`netlink`] asks the kernel, [`device`] changes an interface, [`links`] tells which
//! interfaces are p2pvm's own, [`finding`] holds what is wrong in words that a person can act on.

pub mod causes;
pub mod device;
pub mod finding;
pub mod holders;
pub mod links;
pub mod netlink;
pub mod repeated;
pub mod socket_path;
pub mod tun;

pub use causes::chain;
pub use finding::{Board, Finding, Level};
pub use repeated::Repeated;
pub use socket_path::SocketPath;
