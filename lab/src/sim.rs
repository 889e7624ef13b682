//! Thousands of members in virtual time: the ring's own state machines, the network between them
//! simulated, everything drawn from a seed.
//!
//! [`world`] is where members live, [`conditions`] what the network does to datagrams, [`engine`]
//! the loop, `flight` a datagram's way, `dial` how links are made, [`survey`] the observer that
//! sees all. Two programs use these: [`scale`] measures how the ring grows and repairs itself, and
//! [`report`] makes the figures and plots; [`faults`] searches for schedules of faults that break
//! an invariant. [`cli`] runs both.
//!
//! Only the ring is real, and the rule by which NATs let a punch through. Sealing, sockets and the
//! control plane are left out: the emulated wide area and the end-to-end tests have those. The
//! connector itself meets every NAT in virtual time in `overlay/src/connect/state/tests`.

pub mod cli;
pub mod conditions;
mod dial;
pub mod engine;
pub mod faults;
mod flight;
pub mod member;
pub mod plot;
pub mod queue;
pub mod report;
pub mod scale;
pub mod survey;
pub mod world;

pub use engine::Sim;
