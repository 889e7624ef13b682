//! The control API about where VMs run: decisions, and emptying this host.

use crate::http::report::streamed;
use crate::{Daemon, http::Shared};
use axum::{
    Json, Router,
    extract::State,
    response::Response,
    routing::{get, post},
};
use p2pvm_api::{Decided, DrainStopping};
use std::sync::Arc;

/// The routes, for this machine's own root.
pub(crate) fn routes(daemon: Arc<Daemon>) -> Router {
    Router::new()
        .route("/drain", post(drain).delete(stop_draining))
        .route("/decisions", get(decisions))
        .with_state(daemon)
}

async fn decisions(State(daemon): Shared) -> Json<Vec<Decided>> {
    Json(daemon.decisions())
}

async fn drain(State(daemon): Shared) -> Response {
    streamed(move |reporter| async move { daemon.drain(&reporter).await })
}

async fn stop_draining(State(daemon): Shared) -> Json<DrainStopping> {
    Json(daemon.stop_draining())
}
