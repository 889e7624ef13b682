//! The control API about the network's access rules: for this machine's root only.

use super::service::Access;
use crate::http::Answer;
use axum::{
    Json, Router,
    extract::State,
    routing::{get, post},
};
use p2pvm_api::{AclAnswer, AclCheck, AclSet, AclShow, AclVerdict};
use std::sync::Arc;

type Shared = State<Arc<Access>>;

/// The routes.
pub(crate) fn routes(access: Arc<Access>) -> Router {
    Router::new()
        .route("/acl", get(show).post(set))
        .route("/acl/check", post(check))
        .with_state(access)
}

async fn set(State(access): Shared, Json(r): Json<AclSet>) -> Answer<AclAnswer> {
    access.set(&r.text).await.map(Json)
}

async fn show(State(access): Shared) -> Json<AclShow> {
    Json(access.show())
}

async fn check(State(access): Shared, Json(r): Json<AclCheck>) -> Answer<AclVerdict> {
    access.check(&r).await.map(Json)
}
