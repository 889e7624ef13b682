//! Where VMs run: load, autonomic decisions, moves, emptying this host, its shutdown.

pub(crate) mod drain;
mod drained;
mod figures;
pub(crate) mod http;
pub(crate) mod load;
pub(crate) mod manager;
pub(crate) mod moves;
pub(crate) mod service;
mod shutdown;
