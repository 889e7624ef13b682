//! The control API about this node: for its own root only.

use super::service::Node;
use crate::{cluster::service::Cluster, http::Answer};
use axum::{
    Json, Router,
    extract::{Query, State},
    http::header,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use p2pvm_api::{Failure, Force, Outcome, Status};
use serde::Deserialize;
use std::sync::Arc;

type Shared = State<Arc<Node>>;

/// The routes, but for the figures.
pub(crate) fn routes(node: Arc<Node>) -> Router {
    Router::new()
        .route("/status", get(status))
        .route("/leave", post(leave))
        .route("/shutdown", post(shutdown))
        .with_state(node)
}

/// The figures of this node, or of all members.
pub(crate) fn figures(node: Arc<Node>, cluster: Arc<Cluster>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .with_state((node, cluster))
}

async fn status(State(node): Shared) -> Json<Status> {
    Json(node.status())
}

#[derive(Deserialize)]
struct MetricsQuery {
    scope: Option<String>,
    #[serde(default)]
    json: bool,
}

async fn metrics(
    State((node, cluster)): State<(Arc<Node>, Arc<Cluster>)>,
    Query(query): Query<MetricsQuery>,
) -> Outcome<Response> {
    let metrics = match query.scope.as_deref() {
        None | Some("node") => node.metrics(),
        Some("cluster") => cluster.metrics().await?,
        Some(other) => {
            return Err(Failure::usage(format!(
                "scope is node or cluster, not '{other}'"
            )));
        }
    };
    if query.json {
        return Ok(Json(metrics).into_response());
    }
    Ok((
        [(header::CONTENT_TYPE, "text/plain; version=0.0.4")],
        metrics.page(),
    )
        .into_response())
}

async fn leave(State(node): Shared, Json(r): Json<Force>) -> Answer<()> {
    node.leave(r.force).await.map(Json)
}

async fn shutdown(State(node): Shared) -> Json<()> {
    node.lifecycle.stop();
    Json(())
}
