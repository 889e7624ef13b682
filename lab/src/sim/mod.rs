//! Thousands of members in virtual time: the ring's own state machines, the network between them
//! simulated, everything drawn from a seed.
//!
//! [`world`] is where members live, [`conditions`] what the network does to datagrams, [`engine`]
//! the loop, `flight` a datagram's way, `dial` how links are made, [`survey`] the observer that
//! sees all. Two programs use these: [`scale`] measures how the ring grows and repairs itself, and
//! [`report`] writes the page with plots; [`faults`] searches for schedules of faults that break an
//! invariant. [`cli`] runs both.
//!
//! Only the ring is real. Sealing, sockets and the control plane are left out: the emulated wide
//! area and the end-to-end tests have those.

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
