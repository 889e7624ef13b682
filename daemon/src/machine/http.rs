//! The control API about this machine: for its own root only.

use super::service::Machine;
use axum::{
    Json, Router,
    extract::State,
    routing::{get, post},
};
use p2pvm_api::FindingView;
use std::sync::Arc;

type Shared = State<Arc<Machine>>;

/// The routes.
pub(crate) fn routes(machine: Arc<Machine>) -> Router {
    Router::new()
        .route("/findings", get(findings).post(examine))
        .route("/mend", post(mend))
        .with_state(machine)
}

async fn findings(State(machine): Shared) -> Json<Vec<FindingView>> {
    Json(machine.findings())
}

/// The same after everything has been looked at again.
async fn examine(State(machine): Shared) -> Json<Vec<FindingView>> {
    Json(machine.examine().await)
}

/// Puts in order what is the daemon's own; answers what that settled.
async fn mend(State(machine): Shared) -> Json<Vec<FindingView>> {
    Json(machine.mend().await)
}
