//! The control API's part about the network's policy and subnet routes: for this machine's root
//! only.

use super::types::{
    AcceptRoutes, AclAnswer, AclCheck, AclSet, AclShow, AclVerdict, RouteOffered, RouteSubnet,
    RouteView, RouteWithdrawn, RoutesAccepted,
};
use crate::{daemon::Daemon, failure::Outcome};
use axum::{
    Json, Router,
    extract::State,
    routing::{get, post},
};
use std::sync::Arc;

type Shared = State<Arc<Daemon>>;
type Answer<T> = Outcome<Json<T>>;

/// The routes of this part.
pub fn routes(daemon: Arc<Daemon>) -> Router {
    Router::new()
        .route("/acl", get(show).post(set))
        .route("/acl/check", post(check))
        .route("/routes", get(list))
        .route("/routes/offer", post(offer))
        .route("/routes/withdraw", post(withdraw))
        .route("/routes/accept", post(accept))
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

async fn list(State(daemon): Shared) -> Answer<Vec<RouteView>> {
    Ok(Json(daemon.routes()))
}

async fn offer(State(daemon): Shared, Json(r): Json<RouteSubnet>) -> Answer<RouteOffered> {
    daemon.offer_route(&r.subnet).map(Json)
}

async fn withdraw(State(daemon): Shared, Json(r): Json<RouteSubnet>) -> Answer<RouteWithdrawn> {
    daemon.withdraw_route(&r.subnet).map(Json)
}

async fn accept(State(daemon): Shared, Json(r): Json<AcceptRoutes>) -> Answer<RoutesAccepted> {
    daemon.accept_routes(r.on, r.subnet.as_deref()).map(Json)
}
