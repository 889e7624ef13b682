//! Virtual machines: those of this host, those of hosts that are gone, and whether guests answer.

pub(crate) mod absent;
mod admit;
mod cluster;
mod gone;
pub(crate) mod guests;
mod heal;
mod history;
pub(crate) mod http;
pub(crate) mod releases;
mod replicas;
pub(crate) mod rights;
pub(crate) mod service;
pub(crate) mod snapshots;
mod view;
pub(crate) mod voters;
