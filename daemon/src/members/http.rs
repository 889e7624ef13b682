//! The control API about the members: for this machine's root only.

use super::service::Members;
use crate::http::{Answer, report::streamed};
use axum::{
    Json, Router,
    extract::{Path, Query, State},
    response::Response,
    routing::{get, post},
};
use p2pvm_api::{
    InviteAnswer, InviteRequest, NetCheckView, Peer, PingRequest, RevokeAnswer, RevokeRequest,
    Traced, Traffic,
};
use serde::Deserialize;
use std::{sync::Arc, time::Duration};

type Shared = State<Arc<Members>>;

pub(crate) fn routes(members: Arc<Members>) -> Router {
    Router::new()
        .route("/peers", get(peers))
        .route("/traffic", get(traffic))
        .route("/netcheck", get(netcheck))
        .route("/ping", post(ping))
        .route("/trace/{member}", get(trace))
        .route("/invite", post(invite))
        .route("/revoke", post(revoke))
        .with_state(members)
}

#[derive(Deserialize)]
struct TrafficQuery {
    #[serde(default)]
    all: bool,
}

async fn traffic(State(members): Shared, Query(query): Query<TrafficQuery>) -> Json<Vec<Traffic>> {
    Json(members.traffic(query.all))
}

async fn peers(State(members): Shared) -> Json<Vec<Peer>> {
    Json(members.living_peers().await)
}

async fn netcheck(State(members): Shared) -> Json<NetCheckView> {
    Json(members.netcheck().await)
}

async fn trace(State(members): Shared, Path(member): Path<String>) -> Answer<Traced> {
    members.trace(&member).await.map(Json)
}

async fn ping(State(members): Shared, Json(r): Json<PingRequest>) -> Response {
    streamed(move |reporter| async move {
        let interval = Duration::from_millis(r.interval_ms);
        members.ping(&r.member, r.count, interval, &reporter).await
    })
}

async fn invite(State(members): Shared, Json(r): Json<InviteRequest>) -> Answer<InviteAnswer> {
    members.invite(&r).await.map(Json)
}

async fn revoke(State(members): Shared, Json(r): Json<RevokeRequest>) -> Answer<RevokeAnswer> {
    members.revoke(&r.what).await.map(Json)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wiring::alone::{Alone, get, post};
    use hyper::StatusCode;
    use serde_json::json;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_member_that_is_alone_has_no_peers_and_cannot_ping_or_revoke_itself() {
        let alone = Alone::start().await;
        let routes = || routes(alone.services.members.clone());
        assert_eq!(get(routes(), "/peers").await, (StatusCode::OK, json!([])));
        assert_eq!(get(routes(), "/traffic").await, (StatusCode::OK, json!([])));
        let ping = json!({"member": "attic", "count": 1, "interval_ms": 1});
        let (_, said) = post(routes(), "/ping", &ping).await;
        assert!(said.to_string().contains("attic is this member"), "{said}");
        let (status, said) = post(routes(), "/revoke", &json!({"what": "attic.lab.p2p"})).await;
        assert!(
            status.is_client_error() && said.to_string().contains("cannot revoke itself"),
            "{status} {said}"
        );
    }
}
