//! Addresses and names out of the DHT, and the answers on a guest's port.
//!
//! [`Addresses`] claims, renews and resolves addresses and names; [`Responder`] answers a guest at
//! the network's edge (DHCP, ARP, neighbour discovery); [`Resolver`] answers DNS. The DHT has the
//! truth; only the last leases are cached here.

mod cache;
mod claim;
#[cfg(test)]
mod claim_tests;
pub mod dns;
#[cfg(not(fuzzing))]
mod entry;
#[cfg(fuzzing)]
pub mod entry;
mod error;
#[cfg(test)]
#[path = "../../tests/golden.rs"]
mod golden;
#[cfg(test)]
mod golden_tests;
#[cfg(test)]
mod memory;
pub mod responder;
pub mod subnet;

pub use claim::{Addresses, DeriveV6, LEASE_TTL, Lease, RENEW_AFTER};
pub use dns::{Names, Resolver};
pub use entry::{Holder, NameEntry, NameKind, Subject, address_key, is_label, is_name, name_key};
pub use error::Error;
pub use responder::{DnsQuestion, GATEWAY_MAC, PortConfig, Responder};
pub use subnet::Subnet;
