//! The control API about this node and the members.

use crate::http::report::streamed;
use crate::{
    Daemon,
    http::{Answer, Shared},
};
use axum::{
    Json, Router,
    extract::{Path, Query, State},
    http::header,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use p2pvm_api::{
    Cluster, Failure, FindingView, Force, InviteAnswer, InviteRequest, NetCheckView, Outcome, Peer,
    PingRequest, RevokeAnswer, RevokeRequest, Status, Traced, Traffic,
};
use serde::Deserialize;
use std::sync::Arc;
use std::time::Duration;

/// The routes, for this machine's own root.
pub(crate) fn routes(daemon: Arc<Daemon>) -> Router {
    Router::new()
        .route("/status", get(status))
        .route("/findings", get(findings).post(examine))
        .route("/mend", post(mend))
        .route("/peers", get(peers))
        .route("/traffic", get(traffic))
        .route("/netcheck", get(netcheck))
        .route("/metrics", get(metrics))
        .route("/cluster", get(cluster))
        .route("/ping", post(ping))
        .route("/trace/{member}", get(trace))
        .route("/invite", post(invite))
        .route("/revoke", post(revoke))
        .route("/leave", post(leave))
        .route("/shutdown", post(shutdown))
        .with_state(daemon)
}

async fn status(State(daemon): Shared) -> Answer<Status> {
    Ok(Json(daemon.status()))
}

async fn findings(State(daemon): Shared) -> Json<Vec<FindingView>> {
    Json(daemon.findings())
}

/// The same after everything has been looked at anew.
async fn examine(State(daemon): Shared) -> Json<Vec<FindingView>> {
    daemon.prove().await;
    Json(daemon.findings())
}

/// Puts in order what is the daemon's own; what that settled.
async fn mend(State(daemon): Shared) -> Json<Vec<FindingView>> {
    Json(daemon.mend().await)
}

#[derive(Deserialize)]
struct TrafficQuery {
    #[serde(default)]
    all: bool,
}

async fn traffic(State(daemon): Shared, Query(query): Query<TrafficQuery>) -> Json<Vec<Traffic>> {
    Json(daemon.traffic(query.all))
}

async fn peers(State(daemon): Shared) -> Answer<Vec<Peer>> {
    Ok(Json(daemon.living_peers().await))
}

async fn netcheck(State(daemon): Shared) -> Answer<NetCheckView> {
    Ok(Json(daemon.netcheck().await))
}

#[derive(Deserialize)]
struct MetricsQuery {
    scope: Option<String>,
    #[serde(default)]
    json: bool,
}

async fn metrics(State(daemon): Shared, Query(query): Query<MetricsQuery>) -> Outcome<Response> {
    let metrics = match query.scope.as_deref() {
        None | Some("node") => daemon.metrics(),
        Some("cluster") => daemon.cluster_metrics().await?,
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

async fn cluster(State(daemon): Shared) -> Answer<Cluster> {
    daemon.cluster().await.map(Json)
}

async fn trace(State(daemon): Shared, Path(member): Path<String>) -> Answer<Traced> {
    daemon.trace(&member).await.map(Json)
}

async fn ping(State(daemon): Shared, Json(r): Json<PingRequest>) -> Response {
    streamed(move |reporter| async move {
        daemon
            .ping(
                &r.member,
                r.count,
                Duration::from_millis(r.interval_ms),
                &reporter,
            )
            .await
    })
}

async fn invite(State(daemon): Shared, Json(r): Json<InviteRequest>) -> Answer<InviteAnswer> {
    daemon.invite(&r).await.map(Json)
}

async fn revoke(State(daemon): Shared, Json(r): Json<RevokeRequest>) -> Answer<RevokeAnswer> {
    daemon.revoke(&r.what).await.map(Json)
}

async fn leave(State(daemon): Shared, Json(r): Json<Force>) -> Answer<()> {
    daemon.leave(r.force).await.map(Json)
}

async fn shutdown(State(daemon): Shared) -> Json<()> {
    daemon.stop();
    Json(())
}
