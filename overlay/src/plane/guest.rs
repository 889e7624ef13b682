//! Guests' ports: the interface of each guest, and what passes through it.

pub(super) mod attach;
pub(super) mod care;
pub(super) mod config;
pub(super) mod deliver;
pub(super) mod holding;
pub(super) mod limit;
pub(super) mod listening;
pub(super) mod multicast;
pub(super) mod neighbour;
pub(super) mod port;
pub(super) mod proof;
pub(super) mod reach;
pub(super) mod upkeep;
