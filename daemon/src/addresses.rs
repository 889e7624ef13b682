//! Addresses and names in the network: resolving them, claiming this host's, guests' ports, and
//! pointing this host's programs to the resolver.

pub(crate) mod allowance;
pub(crate) mod changed;
pub(crate) mod kept;
pub(crate) mod ports;
mod questions;
pub(crate) mod reach;
pub(crate) mod resolver;
