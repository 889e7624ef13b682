//! The tasks of the log of events.

use crate::{config::Config, event_log, parts::Parts};
use p2pvm_api::EventKind;
use p2pvm_authority::Subject;
use p2pvm_vm_manager::host::HostEvent;
use std::sync::Arc;
use tokio::{sync::broadcast::Receiver, task::JoinSet};

/// Starts recording, and posting to the webhook if one is set.
pub(super) fn spawn(
    tasks: &mut JoinSet<()>,
    parts: &Arc<Parts>,
    config: &Config,
    vms: Receiver<HostEvent>,
) {
    let host = parts.certificate.name().to_owned();
    let posted = event_log::run_webhook(parts.events.clone(), host, config.events.clone());
    tasks.spawn(posted);
    tasks.spawn(event_log::host::follow(parts.clone(), vms));
    let version = env!("CARGO_PKG_VERSION");
    let fields = [("version", version.to_owned())];
    let text = format!("The daemon of version {version} started.");
    parts
        .events
        .record(EventKind::DaemonStarted, Subject::Host, &fields, text);
}
