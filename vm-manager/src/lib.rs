//! The life of a VM on one host and its move to another.

mod cgroup;
pub mod error;
pub mod hypervisor;
mod jail;
pub mod qemu;

pub use error::Error;
