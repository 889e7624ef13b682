//! The control API about virtual machines.

use super::service::Vms;
use crate::http::{Answer, forward, report::streamed, traced};
use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Path, Query, Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use hyper_util::rt::TokioIo;
use p2pvm_api::{
    ClusterVms, CreateVm, Explained, Force, MigrateVm, MoveCancelled, Outcome, RestoreVm,
    SnapshotVm, Sorted, VmDeleted, VmView,
};
use std::sync::Arc;

type Shared = State<Arc<Vms>>;

/// How long a request may be. Reason: it names a VM and a few settings.
const MAX_REQUEST_BYTES: usize = 256 << 10;

/// All VMs of the network, for this machine's own root.
pub(crate) fn of_cluster(vms: Arc<Vms>) -> Router {
    Router::new()
        .route("/cluster/vms", get(cluster_vms))
        .with_state(vms)
}

/// What other members may ask as well: virtual machines.
pub(crate) fn routes(vms: Arc<Vms>) -> Router {
    let one = Router::new()
        .route("/vms/{name}", get(show).delete(delete))
        .route("/vms/{name}/start", post(start))
        .route("/vms/{name}/stop", post(stop))
        .route("/vms/{name}/console", get(console))
        .route(
            "/vms/{name}/migrate",
            post(migrate).delete(cancel_migration),
        )
        .route("/vms/{name}/snapshot", post(snapshot))
        .route("/vms/{name}/explain", get(explain))
        .layer(middleware::from_fn_with_state(
            vms.clone(),
            forward::to_holder,
        ));
    let chosen = Router::new()
        .route("/vms", post(create))
        .route("/vms/{name}/restore", post(restore))
        .layer(middleware::from_fn_with_state(
            vms.clone(),
            forward::to_chosen,
        ));
    Router::new()
        .route("/vms", get(list))
        .merge(one)
        .merge(chosen)
        .layer(DefaultBodyLimit::max(MAX_REQUEST_BYTES))
        .with_state(vms)
}

async fn cluster_vms(State(vms): Shared) -> Answer<ClusterVms> {
    vms.of_cluster().await.map(Json)
}

async fn list(State(vms): Shared) -> Answer<Sorted<Vec<VmView>>> {
    vms.list().await.map(Sorted).map(Json)
}

async fn create(State(vms): Shared, Json(r): Json<CreateVm>) -> Response {
    streamed(move |reporter| async move { vms.create(r, &reporter).await })
}

async fn show(State(vms): Shared, Path(name): Path<String>) -> Answer<Sorted<VmView>> {
    vms.show(&name).await.map(Sorted).map(Json)
}

async fn delete(
    State(vms): Shared,
    Path(name): Path<String>,
    Query(r): Query<Force>,
) -> Answer<VmDeleted> {
    vms.delete(&name, r.force).await.map(Json)
}

pub(crate) async fn start(State(vms): Shared, Path(name): Path<String>) -> Response {
    streamed(move |reporter| async move { vms.start(&name, &reporter).await })
}

pub(crate) async fn stop(
    State(vms): Shared,
    Path(name): Path<String>,
    Query(r): Query<Force>,
) -> Response {
    streamed(move |reporter| async move { vms.stop(&name, r.force, &reporter).await })
}

pub(crate) async fn migrate(
    State(vms): Shared,
    Path(name): Path<String>,
    headers: HeaderMap,
    Json(r): Json<MigrateVm>,
) -> Response {
    let within = traced::within(&headers);
    streamed(move |reporter| async move { vms.migrate(&name, &r, within, &reporter).await })
}

pub(crate) async fn cancel_migration(
    State(vms): Shared,
    Path(name): Path<String>,
) -> Answer<MoveCancelled> {
    vms.cancel_migration(&name).await.map(Json)
}

pub(crate) async fn snapshot(
    State(vms): Shared,
    Path(name): Path<String>,
    Json(r): Json<SnapshotVm>,
) -> Response {
    streamed(move |reporter| async move { vms.snapshot(&name, r.name, &reporter).await })
}

pub(crate) async fn restore(
    State(vms): Shared,
    Path(name): Path<String>,
    Json(r): Json<RestoreVm>,
) -> Response {
    streamed(move |reporter| async move { vms.restore(&name, &r, &reporter).await })
}

pub(crate) async fn explain(
    State(vms): Shared,
    Path(name): Path<String>,
) -> Answer<Sorted<Vec<Explained>>> {
    vms.explain(&name).await.map(Sorted).map(Json)
}

async fn console(
    State(vms): Shared,
    Path(name): Path<String>,
    request: Request,
) -> Outcome<Response> {
    let mut guest = vms.console(&name).await?;
    tokio::spawn(async move {
        match hyper::upgrade::on(request).await {
            // Either end hanging up ends the session; that is how a console is left.
            Ok(upgraded) => {
                drop(tokio::io::copy_bidirectional(&mut TokioIo::new(upgraded), &mut guest).await)
            }
            Err(error) => tracing::debug!(%error, "a console was asked for and not taken"),
        }
    });
    Ok((
        StatusCode::SWITCHING_PROTOCOLS,
        [
            (header::CONNECTION, "upgrade"),
            (header::UPGRADE, "console"),
        ],
    )
        .into_response())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wiring::alone::{Alone, get, post};
    use hyper::StatusCode;
    use serde_json::json;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_vm_that_no_member_has_is_not_found() {
        let alone = Alone::start().await;
        let routes = || routes(alone.services.vms.clone());
        assert_eq!(get(routes(), "/vms").await, (StatusCode::OK, json!([])));
        let (status, said) = get(routes(), "/vms/web").await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{said}");
        assert!(said.to_string().contains("there is no VM 'web'"), "{said}");
        let elsewhere = json!({"name": "web", "image": "/no/image", "on": "cellar"});
        let (status, said) = post(routes(), "/vms", &elsewhere).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{said}");
        assert!(
            said.to_string().contains("no member 'cellar' is known"),
            "{said}"
        );
    }
}
