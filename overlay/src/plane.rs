//! The packet plane: carries IP between this host, its guests and other members over encrypted
//! links.
//!
//! Threads, not the async runtime, carry packets: one reads the TUN, one the UDP socket, one each
//! guest port, and a clock thread runs handshakes, probes and timeouts. What they look up (routes,
//! sessions, ports) are snapshots that change rarely and are read without a lock. The plane knows
//! how to use a path; finding one is [`crate::connect`]'s part.
//!
//! `core.rs` has the state that the threads share. The folders hold, by concern, first the parts
//! that know nothing of it, then what the threads do with it: `io/` sockets and devices, `shape/`
//! the form of packets, `path/` how datagrams reach a member, `guest/` guests' ports, `interface/`
//! the TUN as it has to be, `access/` the rules. `door/` is what the rest of this crate may do.

mod access;
mod clock;
mod core;
mod door;
mod error;
#[cfg(fuzzing)]
mod fuzz;
mod guest;
mod handle;
#[cfg(test)]
mod idle_tests;
mod interface;
mod io;
mod large;
mod path;
mod receive;
mod reports;
mod routes;
mod routing;
mod scratch;
mod send;
mod shape;
mod start;
mod tables;
mod tasks;
mod traffic;
mod tun;
mod types;
mod waiting;

pub(crate) use self::path::ring_port::first_hop;
pub use access::Directory;
pub use error::Error;
#[cfg(fuzzing)]
pub use fuzz::look_at;
pub use guest::{
    config::{GuestPort, Leaving},
    limit::GuestLimit,
    reach::{GuestProof, GuestReach},
};
pub use handle::Plane;
pub use interface::proof::{AnswerKind, Proof, ProofFailure};
pub use path::{paths, relaying::RelayOffer};
pub use routes::Route;
pub use shape::packet;
pub use traffic::{Flow, NOISE as TRAFFIC_NOISE, TrafficMatrix};
pub use types::{Path, PathInfo, PlaneConfig, PlaneEvent, Pong};
