//! This node: its status and health in one answer, its figures, its description for others, and its
//! leave and end.

pub(crate) mod health;
pub(crate) mod http;
mod kept;
mod leave;
pub(crate) mod metrics;
pub(crate) mod service;
mod sight;
mod status;
