//! The control API about subnet routes: for this machine's root only.

use super::subnets::Subnets;
use crate::http::Answer;
use axum::{
    Json, Router,
    extract::State,
    routing::{get, post},
};
use p2pvm_api::{
    AcceptRoutes, RouteOffered, RouteSubnet, RouteView, RouteWithdrawn, RoutesAccepted,
};
use std::sync::Arc;

type Shared = State<Arc<Subnets>>;

/// The routes.
pub(crate) fn routes(subnets: Arc<Subnets>) -> Router {
    Router::new()
        .route("/routes", get(list))
        .route("/routes/offer", post(offer))
        .route("/routes/withdraw", post(withdraw))
        .route("/routes/accept", post(accept))
        .with_state(subnets)
}

async fn list(State(subnets): Shared) -> Json<Vec<RouteView>> {
    Json(subnets.list())
}

async fn offer(State(subnets): Shared, Json(r): Json<RouteSubnet>) -> Answer<RouteOffered> {
    subnets.offer(&r.subnet).map(Json)
}

async fn withdraw(State(subnets): Shared, Json(r): Json<RouteSubnet>) -> Answer<RouteWithdrawn> {
    subnets.withdraw(&r.subnet).map(Json)
}

async fn accept(State(subnets): Shared, Json(r): Json<AcceptRoutes>) -> Answer<RoutesAccepted> {
    subnets.accept(r.on, r.subnet.as_deref()).map(Json)
}
