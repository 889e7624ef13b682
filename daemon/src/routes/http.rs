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
    use p2pvm_api::Kind;

    fn subnet(text: &str) -> RouteSubnet {
        RouteSubnet {
            subnet: text.to_owned(),
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn accepted_routes_are_kept_and_the_own_subnet_is_not_offered() {
        let alone = Alone::start().await;
        let routes = || routes(alone.services.subnets.clone());
        assert!(
            get(routes(), "/routes")
                .await
                .value::<Vec<RouteView>>()
                .is_empty()
        );
        let own = post(routes(), "/routes/offer", &subnet("10.83.7.0/24"))
            .await
            .failure();
        assert_eq!(own.kind, Kind::Refused);
        assert!(own.message.contains("overlaps the network's own"), "{own}");
        let accept = AcceptRoutes {
            on: true,
            subnet: None,
        };
        let done: RoutesAccepted = post(routes(), "/routes/accept", &accept).await.value();
        assert_eq!((done.accept, done.used), (true, 0));
        let kept = std::fs::read_to_string(alone.layout.routes()).unwrap();
        assert!(kept.contains("\"accept\": true"), "{kept}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_offer_is_withdrawn_once() {
        let kept = r#"{"offers":[["192.168.7.0",24]],"since":1}"#;
        let alone = Alone::after(|layout| std::fs::write(layout.routes(), kept).unwrap()).await;
        let routes = || routes(alone.services.subnets.clone());
        let path = "/routes/withdraw";
        let offered = subnet("192.168.7.0/24");
        let done: RouteWithdrawn = post(routes(), path, &offered).await.value();
        assert_eq!(done.withdrawn, offered.subnet);
        let again = post(routes(), path, &offered).await.failure();
        assert_eq!(again.kind, Kind::NotFound, "{again}");
        let none = post(routes(), path, &subnet("the LAN")).await.failure();
        assert_eq!(none.kind, Kind::Usage, "{none}");
    }
}
