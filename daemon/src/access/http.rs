//! The control API about the network's access rules: for this machine's root only.

use crate::{
    Daemon,
    http::{Answer, Shared},
};
use axum::{
    Json, Router,
    extract::State,
    routing::{get, post},
};
use p2pvm_api::{AclAnswer, AclCheck, AclSet, AclShow, AclVerdict};
use std::sync::Arc;

/// The routes.
pub(crate) fn routes(daemon: Arc<Daemon>) -> Router {
    Router::new()
        .route("/acl", get(show).post(set))
        .route("/acl/check", post(check))
        .with_state(daemon)
}

async fn set(State(daemon): Shared, Json(r): Json<AclSet>) -> Answer<AclAnswer> {
    daemon.set_policy(&r.text).await.map(Json)
}

async fn show(State(daemon): Shared) -> Answer<AclShow> {
    Ok(Json(daemon.show_policy()))
}

async fn check(State(daemon): Shared, Json(r): Json<AclCheck>) -> Answer<AclVerdict> {
    daemon.check_policy(&r).await.map(Json)
}
