//! The network's access rules: the signed policy, and who may set it.

pub(crate) mod http;
pub(crate) mod policy;
