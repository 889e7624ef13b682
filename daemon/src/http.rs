//! The control API: HTTP with JSON over the daemon's unix socket, newline-delimited JSON for what
//! takes long, an upgraded connection for a console. The part about VMs is served to other members
//! too, over a stream of the overlay, so that a VM can be asked for from any member wherever it
//! runs. Each resource has its routes in its own folder.

use axum::Json;
use p2pvm_api::Outcome;

pub(crate) mod caller;
pub(crate) mod connection;
pub(crate) mod forward;
pub(crate) mod rate;
pub(crate) mod report;
pub(crate) mod server;
pub(crate) mod traced;

/// One answer as JSON.
pub(crate) type Answer<T> = Outcome<Json<T>>;
