//! Subnet routes: offered, accepted, put into the kernel.

pub(crate) mod http;
pub(crate) mod subnets;
