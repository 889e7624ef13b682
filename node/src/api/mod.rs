//! The control API: HTTP with JSON over the daemon's unix socket, newline-delimited JSON for what
//! takes long, an upgraded connection for a console. The VM part is served to other members too,
//! over a stream of the overlay, so that a VM can be asked for from any member wherever it runs.

pub mod client;
pub mod dashboard;
pub mod forward;
pub mod policy;
pub mod server;
pub mod traced;
pub mod types;
