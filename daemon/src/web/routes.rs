//! The requests that the page may send: this list and no other.

use super::{Dashboard, access, console, files};
use crate::{
    event_log,
    http::{forward, server},
    machine::sight,
    node::health::health,
    offer,
    vms::{http as vms, rights::Asker, snapshots::http as snapshots},
};
use axum::{
    Extension, Json, Router,
    body::Body,
    extract::{Request, State},
    middleware::{self, Next},
    response::Response,
    routing::{get, post},
};
use http_body_util::Limited;
use p2pvm_api::{Role, View};
use std::sync::Arc;

/// The longest request body, bytes. Reason: a request names a member or a snapshot.
const MAX_REQUEST_BYTES: usize = 16 << 10;

/// The routes of one listener of the dashboard: the page, what it asks below `/api`, and the same
/// and more of the control API below `/v1`.
pub fn router(dashboard: &Arc<Dashboard>, hosts: access::Hosts) -> Router {
    let own = reading(dashboard)
        .merge(acting(dashboard).layer(middleware::from_fn(access::for_operators)));
    let guarded = |api: Router| {
        api.layer(middleware::from_fn(bounded))
            .layer(middleware::from_fn_with_state(
                dashboard.clone(),
                access::with_token,
            ))
            .layer(Extension(Asker::Root))
    };
    let more = dashboard.more.get().cloned();
    let api = guarded(own.clone().fallback(server::not_listed));
    let v1 = guarded(match more {
        Some(more) => own.fallback_service(more),
        None => own.fallback(server::not_listed),
    });
    Router::new()
        // The same for everybody, like the page's files.
        .route("/v1/openapi.json", get(server::openapi))
        .nest("/api", api)
        .nest("/v1", v1)
        .fallback(files::serve)
        .layer(middleware::from_fn_with_state(
            dashboard.clone(),
            access::in_measure,
        ))
        .layer(middleware::from_fn_with_state(
            Arc::new(hosts),
            access::same_site,
        ))
}

/// The requests that change nothing.
fn reading(dashboard: &Arc<Dashboard>) -> Router {
    let service = dashboard.vms.clone();
    let at_holder: Router = Router::new()
        .route("/vms/{name}/explain", get(vms::explain))
        .layer(middleware::from_fn_with_state(
            service.clone(),
            forward::to_holder,
        ))
        .with_state(service);
    Router::new()
        .route("/view", get(view))
        .with_state(dashboard.clone())
        .merge(event_log::http::routes(dashboard.vms.parts.clone()))
        .merge(offer::http::reading(dashboard.offers.clone()))
        .merge(at_holder)
}

/// The requests that start or change something, and consoles.
fn acting(dashboard: &Arc<Dashboard>) -> Router {
    let service = dashboard.vms.clone();
    let at_holder = Router::new()
        .route("/vms/{name}/start", post(vms::start))
        .route("/vms/{name}/stop", post(vms::stop))
        .route(
            "/vms/{name}/migrate",
            post(vms::migrate).delete(vms::cancel_migration),
        )
        .route("/vms/{name}/snapshot", post(snapshots::take))
        .route(
            "/vms/{name}/snapshots/{snapshot}",
            axum::routing::delete(snapshots::delete),
        )
        .route("/vms/{name}/schedule", post(snapshots::set_schedule))
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
    let console: Router = Router::new()
        .route("/vms/{name}/console", get(console::open))
        .with_state(dashboard.clone());
    Router::new()
        .merge(at_holder)
        .merge(at_chosen)
        .with_state(service)
        .merge(offer::http::changing(dashboard.offers.clone()))
        .merge(console)
}

/// Rejects a request whose body is longer than any of the page's.
async fn bounded(request: Request, next: Next) -> Response {
    next.run(request.map(|body| Body::new(Limited::new(body, MAX_REQUEST_BYTES))))
        .await
}

/// The answer with everything that the page shows.
async fn view(
    State(dashboard): State<Arc<Dashboard>>,
    Extension(role): Extension<Role>,
) -> Json<View> {
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
        role,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wiring::alone::{Alone, Answered, send};
    use p2pvm_api::{DashboardChange, Failure, Health, Kind, OfferView, Status};

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
            new_token: true,
            ..DashboardChange::default()
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

    #[tokio::test(flavor = "multi_thread")]
    async fn a_reader_sees_all_and_is_refused_everything_that_changes_something() {
        let alone = Alone::start().await;
        let token = alone.services.dashboard.state().reader_token;
        for base in ["/api", "/v1"] {
            let path = |rest: &str| format!("{base}{rest}");
            let view: View = ask(&alone, "GET", &path("/view"), &token).await.value();
            assert_eq!(view.role, Role::Reader);
            let offer: OfferView = ask(&alone, "GET", &path("/offer"), &token).await.value();
            assert_eq!(offer.host, "attic");
            let why = ask(&alone, "GET", &path("/vms/web/explain"), &token).await;
            assert_eq!(why.status, hyper::StatusCode::NOT_FOUND);
            for (method, rest) in [
                ("POST", "/vms/web/start"),
                ("POST", "/vms/web/stop"),
                ("POST", "/vms/web/migrate"),
                ("DELETE", "/vms/web/migrate"),
                ("POST", "/vms/web/snapshot"),
                ("DELETE", "/vms/web/snapshots/before"),
                ("POST", "/vms/web/schedule"),
                ("POST", "/vms/web/restore"),
                ("GET", "/vms/web/console"),
                ("POST", "/offer"),
                ("POST", "/offer/off"),
            ] {
                let answer = ask(&alone, method, &path(rest), &token).await;
                assert_eq!(answer.status, hyper::StatusCode::FORBIDDEN, "{rest}");
                let failure = answer.failure();
                assert_eq!(failure.kind, Kind::Refused, "{rest}");
                assert!(failure.message.contains("only reads"), "{failure}");
            }
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_versioned_paths_are_those_of_the_page_and_the_document() {
        let alone = Alone::start().await;
        let token = alone.services.dashboard.state().token;
        let view: View = ask(&alone, "GET", "/v1/view", &token).await.value();
        assert_eq!(view.role, Role::Operator);
        let failure = ask(&alone, "POST", "/v1/vms/web/start", &token).await;
        assert_eq!(failure.failure().kind, Kind::NotFound);
        let failure = ask(&alone, "POST", "/v1/shutdown", &token).await.failure();
        assert_eq!(failure.kind, Kind::NotFound);
        let more = alone.services.for_tokens();
        alone.services.dashboard.offer(more);
        for path in ["/v1/shutdown", "/v1/invite", "/v1/vms", "/v1/findings"] {
            let failure = ask(&alone, "POST", path, &token).await.failure();
            assert_eq!(failure.kind, Kind::NotFound, "{path}");
        }
        for path in ["/v1/dashboard", "/v1/tokens", "/v1/netcheck", "/api/status"] {
            let failure = ask(&alone, "GET", path, &token).await.failure();
            assert_eq!(failure.kind, Kind::NotFound, "{path}");
        }
        let reader = alone.services.dashboard.state().reader_token;
        let status: Status = ask(&alone, "GET", "/v1/status", &reader).await.value();
        assert_eq!(status.name, "attic");
        let answer = ask(&alone, "GET", "/v1/status", "x").await;
        assert_eq!(answer.status, hyper::StatusCode::UNAUTHORIZED);
        let document = ask(&alone, "GET", "/v1/openapi.json", "").await;
        assert_eq!(document.status, hyper::StatusCode::OK);
        assert_eq!(document.text, p2pvm_api::OPENAPI);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn many_wrong_tokens_are_answered_later_and_the_right_one_passes() {
        let alone = Alone::start().await;
        let token = alone.services.dashboard.state().token;
        let wrong = futures::future::join_all((0..12).map(|_| ask(&alone, "GET", "/v1/view", "x")));
        let mut counts = [0; 2];
        for answer in wrong.await {
            match answer.status.as_u16() {
                401 => counts[0] += 1,
                429 => counts[1] += 1,
                other => panic!("{other}: {}", answer.text),
            }
        }
        assert_eq!(counts, [10, 2]);
        let answer = ask(&alone, "GET", "/v1/view", &token).await;
        assert_eq!(answer.status, hyper::StatusCode::OK);
        let asked = (0..200).map(|_| ask(&alone, "GET", "/nothing", ""));
        let answers = futures::future::join_all(asked).await;
        let late = answers.iter().find(|a| a.status.as_u16() == 429);
        let failure = late.expect("a request beyond the limit").failure();
        assert_eq!(failure.kind, Kind::NotNow);
        assert!(failure.message.contains("try again in"), "{failure}");
    }
}
