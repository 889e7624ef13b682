//! The control API about the whole cluster: for this machine's root only.

use super::service::Cluster;
use crate::http::Answer;
use axum::{Json, Router, extract::State, routing::get};
use std::sync::Arc;

/// The routes.
pub(crate) fn routes(cluster: Arc<Cluster>) -> Router {
    Router::new()
        .route("/cluster", get(members))
        .with_state(cluster)
}

async fn members(State(cluster): State<Arc<Cluster>>) -> Answer<p2pvm_api::Cluster> {
    cluster.members().await.map(Json)
}
