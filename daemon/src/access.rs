//! The network's access rules: the signed policy, and the right to set it.

mod check;
pub(crate) mod http;
pub(crate) mod policy;
pub(crate) mod service;
