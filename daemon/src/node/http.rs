//! The control API about this node: for its own root only.

use super::{metrics::prometheus_page, service::Node};
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
        prometheus_page(&metrics),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wiring::alone::{Alone, get, post};
    use hyper::StatusCode;
    use p2pvm_api::Metrics;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_node_tells_status_and_figures_and_ends_on_request() {
        let alone = Alone::start().await;
        let (node, cluster) = (&alone.services.node, &alone.services.cluster);
        let status: Status = get(routes(node.clone()), "/status").await.value();
        assert_eq!(
            (status.name.as_str(), status.network.as_str()),
            ("attic", "lab")
        );
        let figures = || figures(node.clone(), cluster.clone());
        let page = get(figures(), "/metrics").await;
        assert!(page.text.contains("p2pvm_up_seconds"), "{}", page.text);
        let same: Metrics = get(figures(), "/metrics?json=true").await.value();
        assert_eq!(same.members[0].0, "attic");
        let moon = get(figures(), "/metrics?scope=moon").await.failure();
        assert_eq!(moon, Failure::usage("scope is node or cluster, not 'moon'"));
        let stopped = alone.lifecycle.stopped();
        let () = post(routes(node.clone()), "/shutdown", &()).await.value();
        stopped.await;
        assert!(!alone.lifecycle.end().unwrap(), "it does not start again");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_node_without_vms_leaves_and_ends() {
        let alone = Alone::start().await;
        let routes = || routes(alone.services.node.clone());
        let wrong = post(routes(), "/leave", &["force"]).await;
        assert_eq!(wrong.status, StatusCode::UNPROCESSABLE_ENTITY, "{wrong:?}");
        let stopped = alone.lifecycle.stopped();
        let () = post(routes(), "/leave", &Force::default()).await.value();
        stopped.await;
        assert!(!alone.lifecycle.end().unwrap(), "it does not start again");
    }
}
