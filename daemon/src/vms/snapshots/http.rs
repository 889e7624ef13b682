//! The control API about a VM's snapshots. To delete one takes the right to delete the VM, and so
//! does setting a schedule: a narrower rule deletes what an earlier one kept.

use crate::{
    http::{Answer, report::streamed},
    vms::{admit, rights::Right, service::Vms},
};
use axum::{
    Json, Router,
    extract::{Path, State},
    middleware,
    response::Response,
    routing::{get, post},
};
use p2pvm_api::{
    ScheduleAnswer, ScheduleChange, SnapshotDeleted, SnapshotDetail, SnapshotDiff, SnapshotView,
    SnapshotVm, VerifySnapshot,
};
use serde::Deserialize;
use std::sync::Arc;

type Shared = State<Arc<Vms>>;

/// A VM and one of its snapshots in a path.
#[derive(Deserialize)]
pub(crate) struct InPath {
    name: String,
    snapshot: String,
}

/// Two snapshots of a VM in a path.
#[derive(Deserialize)]
struct BothInPath {
    name: String,
    snapshot: String,
    other: String,
}

/// The routes, each with the right that it takes; they go to the VM's holder.
pub(crate) fn routes(vms: &Arc<Vms>) -> Router<Arc<Vms>> {
    let takes = |right| middleware::from_fn_with_state((vms.clone(), right), admit::check);
    let deleting = axum::routing::delete(delete).layer(takes(Right::Delete));
    let scheduling = post(set_schedule).layer(takes(Right::Delete));
    Router::new()
        .route(
            "/vms/{name}/snapshot",
            post(take).layer(takes(Right::Snapshot)),
        )
        .route("/vms/{name}/snapshots", get(list).layer(takes(Right::See)))
        .route(
            "/vms/{name}/snapshots/{snapshot}",
            get(show).layer(takes(Right::See)).merge(deleting),
        )
        .route(
            "/vms/{name}/snapshots/{snapshot}/verify",
            post(verify).layer(takes(Right::Snapshot)),
        )
        .route(
            "/vms/{name}/snapshots/{snapshot}/diff/{other}",
            get(diff).layer(takes(Right::See)),
        )
        .route(
            "/vms/{name}/schedule",
            get(schedule).layer(takes(Right::See)).merge(scheduling),
        )
}

pub(crate) async fn take(
    State(vms): Shared,
    Path(name): Path<String>,
    Json(r): Json<SnapshotVm>,
) -> Response {
    streamed(move |reporter| async move { vms.snapshot(&name, r, &reporter).await })
}

async fn list(State(vms): Shared, Path(name): Path<String>) -> Answer<Vec<SnapshotView>> {
    vms.snapshots(&name).await.map(Json)
}

async fn show(State(vms): Shared, Path(p): Path<InPath>) -> Answer<SnapshotDetail> {
    vms.show_snapshot(&p.name, &p.snapshot).await.map(Json)
}

pub(crate) async fn delete(State(vms): Shared, Path(p): Path<InPath>) -> Answer<SnapshotDeleted> {
    vms.delete_snapshot(&p.name, &p.snapshot).await.map(Json)
}

async fn verify(
    State(vms): Shared,
    Path(p): Path<InPath>,
    Json(r): Json<VerifySnapshot>,
) -> Response {
    streamed(move |reporter| async move {
        vms.verify_snapshot((&p.name, &p.snapshot), r.repair, &reporter)
            .await
    })
}

async fn diff(State(vms): Shared, Path(p): Path<BothInPath>) -> Answer<SnapshotDiff> {
    let both = (p.snapshot.as_str(), p.other.as_str());
    vms.diff_snapshots(&p.name, both).await.map(Json)
}

async fn schedule(State(vms): Shared, Path(name): Path<String>) -> Answer<ScheduleAnswer> {
    vms.schedule(&name).await.map(Json)
}

pub(crate) async fn set_schedule(
    State(vms): Shared,
    Path(name): Path<String>,
    Json(r): Json<ScheduleChange>,
) -> Answer<ScheduleAnswer> {
    vms.set_schedule(&name, r.schedule).await.map(Json)
}
