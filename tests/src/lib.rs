//! The emulated wide area (`p2pvm testbed`), end-to-end suites and simulations.
//!
//! A testbed is hosts in network namespaces, a router namespace with a real NAT per site, and one
//! userspace core that every packet between two sites goes through ([`forwarder`]): it delays,
//! jitters, loses and limits them. [`sites`] is the file a person writes, [`plan`] what it means in
//! addresses and names, [`testbed`] what one does with it, [`keeper`] the process that a testbed
//! lives as long as.

pub mod chaos;
pub mod cli;
pub mod compare;
mod conntrack;
pub mod figures;
pub mod forwarder;
pub mod guest_client;
pub mod host_state;
pub mod hosts;
pub mod keeper;
pub mod lab;
pub mod matrix;
mod namespace;
mod nat;
pub mod netbench;
pub mod plan;
mod raise;
mod realtime;
mod root;
pub mod sim;
pub mod sites;
pub mod soak;
pub mod testbed;
mod upnp;

pub use sites::{Ipv6, Nat, Shape, Sites};
pub use testbed::{Error, Testbed};
