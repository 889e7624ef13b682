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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wiring::alone::{Alone, get, post};
    use hyper::StatusCode;
    use serde_json::json;

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_accepted_is_kept_and_the_networks_own_subnet_is_not_offered() {
        let alone = Alone::start().await;
        let routes = || routes(alone.services.subnets.clone());
        assert_eq!(get(routes(), "/routes").await, (StatusCode::OK, json!([])));
        let own = json!({"subnet": "10.83.7.0/24"});
        let (status, said) = post(routes(), "/routes/offer", &own).await;
        assert!(
            status.is_client_error() && said.to_string().contains("overlaps the network's own"),
            "{status} {said}"
        );
        let accept = json!({"on": true});
        let (status, said) = post(routes(), "/routes/accept", &accept).await;
        assert_eq!(
            (status, &said["accept"], &said["used"]),
            (StatusCode::OK, &json!(true), &json!(0)),
            "{said}"
        );
        let kept = std::fs::read_to_string(alone.layout.routes()).unwrap();
        assert!(kept.contains("\"accept\": true"), "{kept}");
    }
}
