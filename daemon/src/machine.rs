//! This machine: what the daemon changes on it, watches, proves and finds wrong.

pub mod changes;
pub(crate) mod clocks;
pub(crate) mod control;
pub(crate) mod http;
pub(crate) mod interface;
pub(crate) mod networks;
pub(crate) mod proof;
pub(crate) mod service;
pub mod sight;
pub(crate) mod space;
