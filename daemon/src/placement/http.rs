//! The control API about where VMs run: decisions, and emptying this host.

use super::service::Placement;
use crate::http::report::streamed;
use axum::{
    Json, Router,
    extract::State,
    response::Response,
    routing::{get, post},
};
use p2pvm_api::{Decided, DrainStopping};
use std::sync::Arc;

type Shared = State<Arc<Placement>>;

/// The routes, for this machine's own root.
pub(crate) fn routes(placement: Arc<Placement>) -> Router {
    Router::new()
        .route("/drain", post(drain).delete(stop_draining))
        .route("/decisions", get(decisions))
        .with_state(placement)
}

async fn decisions(State(placement): Shared) -> Json<Vec<Decided>> {
    Json(placement.decisions())
}

async fn drain(State(placement): Shared) -> Response {
    streamed(move |reporter| async move { placement.drain(&reporter).await })
}

async fn stop_draining(State(placement): Shared) -> Json<DrainStopping> {
    Json(placement.stop_draining())
}
