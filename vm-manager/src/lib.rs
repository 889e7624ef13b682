//! The life of a VM on one host and its move to another.

pub mod error;
pub mod hypervisor;

pub use error::Error;
