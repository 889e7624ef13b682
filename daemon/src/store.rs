//! The chunks on this host's disk: what uses them, and what may go.

pub(crate) mod http;
pub(crate) mod service;
pub(crate) mod settings;
