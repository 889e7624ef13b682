//! The DHT over an in-process network in virtual time.
#![allow(missing_docs)]

mod faults;
mod leases;
mod liars;
mod net;
mod records;
mod votes;
mod wire;
