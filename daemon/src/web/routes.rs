//! The requests that the page may send: this list and no other.

use super::{Dashboard, access, console, files};
use crate::{
    http::forward,
    machine::sight,
    node::health::health,
    vms::{http as vms, rights::Asker},
};
use axum::{
    Extension, Json, Router,
    body::Body,
    extract::{Request, State},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use http_body_util::Limited;
use p2pvm_api::{Failure, View};
use std::sync::Arc;

/// The longest request body, bytes. Reason: a request names a member or a snapshot.
const MAX_REQUEST_BYTES: usize = 16 << 10;

/// The routes of one listener of the dashboard.
pub fn router(dashboard: &Arc<Dashboard>, hosts: access::Hosts) -> Router {
    let service = dashboard.vms.clone();
    let at_holder = Router::new()
        .route("/vms/{name}/start", post(vms::start))
        .route("/vms/{name}/stop", post(vms::stop))
        .route(
            "/vms/{name}/migrate",
            post(vms::migrate).delete(vms::cancel_migration),
        )
        .route("/vms/{name}/snapshot", post(vms::snapshot))
        .route("/vms/{name}/explain", get(vms::explain))
        .layer(middleware::from_fn_with_state(
            service.clone(),
            forward::to_holder,
        ));
    let at_chosen = Router::new()
        .route("/vms/{name}/restore", post(vms::restore))
        .layer(middleware::from_fn_with_state(
            service.clone(),
            forward::to_chosen,
        ));
    let own = Router::new()
        .route("/view", get(view))
        .route("/vms/{name}/console", get(console::open))
        .with_state(dashboard.clone());
    let api = Router::new()
        .merge(at_holder)
        .merge(at_chosen)
        .with_state(service)
        .merge(own)
        .fallback(nothing)
        .layer(middleware::from_fn(bounded))
        .layer(middleware::from_fn_with_state(
            dashboard.clone(),
            access::with_token,
        ))
        .layer(Extension(Asker::Root));
    Router::new()
        .nest("/api", api)
        .fallback(files::serve)
        .layer(middleware::from_fn_with_state(
            Arc::new(hosts),
            access::same_site,
        ))
}

async fn nothing() -> Response {
    Failure::not_found("the dashboard has no such request: use the command line").into_response()
}

/// Rejects a request whose body is longer than any of the page's.
async fn bounded(request: Request, next: Next) -> Response {
    next.run(request.map(|body| Body::new(Limited::new(body, MAX_REQUEST_BYTES))))
        .await
}

/// The answer with everything that the page shows.
async fn view(State(dashboard): State<Arc<Dashboard>>) -> Json<View> {
    let (vms, members) = tokio::join!(dashboard.seen_vms.latest(), dashboard.sights.latest());
    let (status, peers) = (dashboard.node.status(), dashboard.members.peers());
    let (vms, silent) = vms
        .map(|found| (found.vms.clone(), found.silent.clone()))
        .unwrap_or_default();
    let health = health(
        !sight::local_addresses().is_empty(),
        &status,
        &peers,
        &vms,
        &silent,
    );
    Json(View {
        status,
        health,
        peers,
        members: members.map(|m| m.as_ref().clone()).unwrap_or_default(),
        vms,
        silent,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wiring::alone::{Alone, Answered, send};
    use p2pvm_api::{DashboardChange, Health, Kind};

    /// Asks as the page does, with a token.
    async fn ask(alone: &Alone, method: &str, path: &str, token: &str) -> Answered {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "localhost:4080")
            .header("authorization", format!("Bearer {token}"));
        let router = router(&alone.services.dashboard, access::Hosts::Local);
        send(router, request.body(Body::empty()).unwrap()).await
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_page_sees_the_network_and_asks_for_nothing_else() {
        let alone = Alone::start().await;
        let token = alone.services.dashboard.state().token;
        let view: View = ask(&alone, "GET", "/api/view", &token).await.value();
        assert_eq!(view.status.name, "attic");
        assert!(view.vms.is_empty() && view.peers.is_empty(), "{view:?}");
        assert!(
            !matches!(view.health.word, Health::Other(_)),
            "{:?}",
            view.health
        );
        for (method, path) in [
            ("POST", "/api/shutdown"),
            ("POST", "/api/leave"),
            ("POST", "/api/invite"),
            ("GET", "/api/dashboard"),
            ("POST", "/api/vms"),
        ] {
            let failure = ask(&alone, method, path, &token).await.failure();
            assert_eq!(failure.kind, Kind::NotFound, "{path}: {failure}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn only_the_newest_token_opens_the_page() {
        let alone = Alone::start().await;
        let dashboard = &alone.services.dashboard;
        let old = dashboard.state().token;
        let change = DashboardChange {
            on: None,
            new_token: true,
        };
        let new = dashboard.change(&change).unwrap().token;
        for token in ["", old.as_str()] {
            let answer = ask(&alone, "GET", "/api/vms/web/explain", token).await;
            assert_eq!(answer.status, hyper::StatusCode::UNAUTHORIZED);
            assert_eq!(answer.failure().kind, Kind::Refused);
        }
        let failure = ask(&alone, "GET", "/api/vms/web/explain", &new)
            .await
            .failure();
        assert_eq!(
            failure,
            Failure::not_found("there is no VM 'web': see 'p2pvm vm list'")
        );
    }
}
