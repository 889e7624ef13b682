//! The DHT over an in-process network in virtual time.
#![allow(missing_docs)]

mod faults;
mod liars;
mod net;
mod records;
mod votes;
mod wire;
