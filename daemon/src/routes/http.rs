//! The control API about subnet routes: for this machine's root only.

use crate::{
    Daemon,
    http::{Answer, Shared},
};
use axum::{
    Json, Router,
    extract::State,
    routing::{get, post},
};
use p2pvm_api::{
    AcceptRoutes, RouteOffered, RouteSubnet, RouteView, RouteWithdrawn, RoutesAccepted,
};
use std::sync::Arc;

/// The routes.
pub(crate) fn routes(daemon: Arc<Daemon>) -> Router {
    Router::new()
        .route("/routes", get(list))
        .route("/routes/offer", post(offer))
        .route("/routes/withdraw", post(withdraw))
        .route("/routes/accept", post(accept))
        .with_state(daemon)
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
