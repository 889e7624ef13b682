//! This node: its status and health in one answer, its figures, what it tells others of itself, and
//! how it leaves or ends.

pub(crate) mod health;
pub(crate) mod http;
mod leave;
pub(crate) mod metrics;
pub(crate) mod service;
mod sight;
mod status;
