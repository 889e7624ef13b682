//! The control API about virtual machines.

use super::{
    admit::{self, TokenRate},
    releases,
    rights::{Asker, Right},
    service::Vms,
    snapshots,
};
use crate::{
    http::{Answer, forward, report::streamed, traced},
    tokens::shares::Share,
};
use axum::{
    Extension, Json, Router,
    extract::{DefaultBodyLimit, Path, Query, Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware,
    response::{IntoResponse, Response},
    routing::{MethodFilter, get, on, post},
};
use hyper_util::rt::TokioIo;
use p2pvm_api::{
    ClusterVms, CreateVm, Explained, Force, MigrateVm, MoveCancelled, Outcome, ProofView,
    ProtectVm, ReplicateVm, RestoreVm, SetVm, Sorted, TakeOverVm, VmDeleted, VmView,
};
use p2pvm_overlay::MemberId;
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

/// What another member may ask.
pub(crate) fn for_member(vms: Arc<Vms>, member: MemberId) -> Router {
    routes(vms).layer(Extension(Asker::Member(member)))
}

/// What other members may ask as well: virtual machines. Each request has its caller in an
/// extension and names the right that it takes; without either there is no answer.
pub(crate) fn routes(vms: Arc<Vms>) -> Router {
    let takes = |right| middleware::from_fn_with_state((vms.clone(), right), admit::check);
    let deleting = on(MethodFilter::DELETE, delete).layer(takes(Right::Delete));
    let moving = post(migrate).delete(cancel_migration);
    let one = Router::new()
        .route(
            "/vms/{name}",
            get(show).layer(takes(Right::See)).merge(deleting),
        )
        .route("/vms/{name}/start", post(start).layer(takes(Right::Start)))
        .route("/vms/{name}/stop", post(stop).layer(takes(Right::Stop)))
        .route(
            "/vms/{name}/console",
            get(console).layer(takes(Right::Console)),
        )
        .route("/vms/{name}/migrate", moving.layer(takes(Right::Move)))
        .route(
            "/vms/{name}/protection",
            post(protect).layer(takes(Right::Move)),
        )
        .route(
            "/vms/{name}/replication",
            post(replicate).layer(takes(Right::Snapshot)),
        )
        .route("/vms/{name}/explain", get(explain).layer(takes(Right::See)))
        .route("/vms/{name}/proof", get(proof).layer(takes(Right::See)))
        .route("/vms/{name}/settings", post(set).layer(takes(Right::Start)))
        .merge(snapshots::http::routes(&vms))
        .layer(middleware::from_fn_with_state(
            vms.clone(),
            forward::to_holder,
        ));
    let chosen = Router::new()
        .route("/vms", post(create).layer(takes(Right::Create)))
        .route(
            "/vms/{name}/restore",
            post(restore).layer(takes(Right::Restore)),
        )
        .route(
            "/vms/{name}/takeover",
            post(take_over).layer(takes(Right::Restore)),
        )
        .layer(middleware::from_fn_with_state(
            vms.clone(),
            forward::to_chosen,
        ));
    Router::new()
        .route("/vms", get(list).layer(takes(Right::See)))
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

async fn create(
    State(vms): Shared,
    Extension(asker): Extension<Asker>,
    share: Option<Extension<Arc<Share>>>,
    rate: Option<Extension<TokenRate>>,
    Json(r): Json<CreateVm>,
) -> Response {
    streamed(move |reporter| async move {
        let _until_made = share;
        let rate = rate.and_then(|Extension(TokenRate(rate))| rate);
        vms.create((asker, rate), r, &reporter).await
    })
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

async fn protect(
    State(vms): Shared,
    Path(name): Path<String>,
    Json(r): Json<ProtectVm>,
) -> Answer<Sorted<VmView>> {
    vms.protect(&name, &r).await.map(Sorted).map(Json)
}

async fn take_over(
    State(vms): Shared,
    Path(name): Path<String>,
    headers: HeaderMap,
    Json(_): Json<TakeOverVm>,
) -> Response {
    let passed = releases::passed(&headers);
    streamed(move |reporter| async move { vms.take_over(&name, passed, &reporter).await })
}

async fn replicate(
    State(vms): Shared,
    Path(name): Path<String>,
    Json(r): Json<ReplicateVm>,
) -> Answer<Sorted<VmView>> {
    vms.replicate(&name, &r).await.map(Sorted).map(Json)
}

pub(crate) async fn restore(
    State(vms): Shared,
    Path(name): Path<String>,
    headers: HeaderMap,
    Json(r): Json<RestoreVm>,
) -> Response {
    let passed = releases::passed(&headers);
    streamed(move |reporter| async move { vms.restore(&name, &r, passed, &reporter).await })
}

pub(crate) async fn explain(
    State(vms): Shared,
    Path(name): Path<String>,
) -> Answer<Sorted<Vec<Explained>>> {
    vms.explain(&name).await.map(Sorted).map(Json)
}

async fn proof(State(vms): Shared, Path(name): Path<String>) -> Answer<ProofView> {
    vms.proof(&name).await.map(Json)
}

pub(crate) async fn set(
    State(vms): Shared,
    Path(name): Path<String>,
    Json(r): Json<SetVm>,
) -> Answer<Sorted<VmView>> {
    vms.set(&name, &r).await.map(Sorted).map(Json)
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
            Err(error) => tracing::debug!(
                error = %p2pvm_host::chain(&error),
                "a console was asked for and not taken"
            ),
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
#[path = "http_tests.rs"]
mod tests;
