//! Drives p2pvm from outside: the emulated wide area (`p2pvm testbed`), and the runs on it.
//!
//! A testbed is hosts in network namespaces, a router namespace with a real NAT per site, and one
//! userspace core that every packet between two sites goes through ([`forwarder`]): it delays,
//! jitters, loses and limits them. [`sites`] is the file a person writes, [`plan`] the addresses
//! and names computed from it, [`testbed`] the operations on it, [`keeper`] the process that keeps
//! it.
//!
//! A [`lab`] is a p2pvm network on a testbed, driven by p2pvm's command line alone: [`demo`],
//! [`bench`], [`chaos`], [`matrix`], [`soak`] and the end-to-end suites use it; [`compare`] and
//! [`netbench`] run other programs beside it. [`sim`] needs no testbed: it runs the ring by the
//! thousand in virtual time, and is here because `p2pvm simulate` runs it too.

pub mod bench;
pub mod chaos;
pub mod cli;
pub mod compare;
mod conntrack;
pub mod demo;
mod error;
pub mod figures;
pub mod forwarder;
pub mod guest_client;
pub mod host_state;
pub mod hosts;
pub mod keeper;
pub mod lab;
pub mod matrix;
mod n2n;
mod namespace;
mod nat;
pub mod netbench;
pub mod plan;
mod raise;
mod realtime;
mod root;
pub mod runner;
pub mod sim;
pub mod sites;
pub mod soak;
pub mod testbed;
mod upnp;

pub use p2pvm_overlay::chain;
pub use sites::{Ipv6, Nat, Shape, Sites};
pub use testbed::{Error, Testbed};
