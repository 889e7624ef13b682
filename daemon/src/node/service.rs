//! This node as a whole: its status, its health and its end.

use crate::{
    addresses::reach::Reach, layout::Layout, lifecycle::Lifecycle, machine::service::Machine,
    members::service::Members, parts::Parts, traces::Exporter, usage::service::Accounting,
    vms::service::Vms,
};
use std::sync::Arc;

/// This node.
pub(crate) struct Node {
    pub(crate) parts: Arc<Parts>,
    pub(crate) lifecycle: Arc<Lifecycle>,
    pub(crate) reach: Arc<Reach>,
    pub(crate) members: Arc<Members>,
    pub(crate) machine: Arc<Machine>,
    pub(crate) vms: Arc<Vms>,
    pub(crate) usage: Arc<Accounting>,
    /// Where spans go, if the settings name a collector.
    pub(crate) exporter: Option<Arc<Exporter>>,
    pub(crate) layout: Layout,
}
