//! Routes and their handlers. A handler says what the daemon is asked, nothing more.

use super::{
    forward, traced,
    types::{
        Cluster, ClusterVms, CreateVm, Decided, DrainStopping, Explained, FindingView, Force,
        InviteAnswer, InviteRequest, Line, MigrateVm, MoveCancelled, NetCheckView, Peer,
        PingRequest, RestoreVm, RevokeAnswer, RevokeRequest, SnapshotVm, Sorted, Status, Step,
        Traced, Traffic, VmDeleted, VmView,
    },
};
use crate::{
    daemon::Daemon,
    failure::{Failure, Kind, Outcome},
};
use axum::{
    Json, Router,
    body::Body,
    extract::{DefaultBodyLimit, Path, Query, Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use futures::{StreamExt, stream};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use std::{future::Future, sync::Arc, time::Duration};
use tokio::sync::mpsc;

/// Every answer has begun by then.
const ANSWER_LIMIT: Duration = Duration::from_secs(140);
/// Requests are small; an invite is the largest thing in one.
const MAX_REQUEST_BYTES: usize = 256 << 10;

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = match self.kind {
            Kind::Failed => StatusCode::INTERNAL_SERVER_ERROR,
            Kind::Usage => StatusCode::BAD_REQUEST,
            Kind::NotFound => StatusCode::NOT_FOUND,
            Kind::TimedOut => StatusCode::GATEWAY_TIMEOUT,
            Kind::Refused => StatusCode::CONFLICT,
            Kind::NotNow => StatusCode::SERVICE_UNAVAILABLE,
        };
        (status, Json(self)).into_response()
    }
}

type Shared = State<Arc<Daemon>>;
type Answer<T> = Outcome<Json<T>>;

/// Everything, for this machine's own root.
pub fn local(daemon: Arc<Daemon>) -> Router {
    Router::new()
        .route("/status", get(status))
        .route("/findings", get(findings).post(examine))
        .route("/mend", post(mend))
        .route("/peers", get(peers))
        .route("/traffic", get(traffic))
        .route("/netcheck", get(netcheck))
        .route("/metrics", get(metrics))
        .route("/cluster", get(cluster))
        .route("/cluster/vms", get(cluster_vms))
        .route("/ping", post(ping))
        .route("/trace/{member}", get(trace))
        .route("/invite", post(invite))
        .route("/revoke", post(revoke))
        .route("/leave", post(leave))
        .route("/shutdown", post(shutdown))
        .route("/drain", post(drain).delete(stop_draining))
        .route("/decisions", get(decisions))
        .with_state(daemon.clone())
        .merge(super::policy::routes(daemon.clone()))
        .merge(vms(daemon))
        .layer(middleware::from_fn(in_time))
}

/// Ends a request that nothing answers. A streamed answer has begun by then and says itself how it
/// goes.
async fn in_time(request: Request, next: middleware::Next) -> Response {
    let what = request.uri().path().to_owned();
    let late = || {
        Failure::timed_out(format!(
            "the daemon has not done {what} within {} s",
            ANSWER_LIMIT.as_secs()
        ))
        .into_response()
    };
    tokio::time::timeout(ANSWER_LIMIT, next.run(request))
        .await
        .unwrap_or_else(|_| late())
}

/// What other members may ask as well: virtual machines.
pub fn vms(daemon: Arc<Daemon>) -> Router {
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
            daemon.clone(),
            forward::to_holder,
        ));
    let chosen = Router::new()
        .route("/vms", post(create))
        .route("/vms/{name}/restore", post(restore))
        .layer(middleware::from_fn_with_state(
            daemon.clone(),
            forward::to_chosen,
        ));
    Router::new()
        .route("/vms", get(list))
        .merge(one)
        .merge(chosen)
        .layer(DefaultBodyLimit::max(MAX_REQUEST_BYTES))
        .with_state(daemon)
}

/// Where a long operation reports its steps.
#[derive(Clone)]
pub struct Reporter(mpsc::Sender<Line>);

impl Reporter {
    /// Reports a step; a slow reader misses some.
    pub fn step(&self, step: Step) {
        // Progress is a courtesy: where the reader lags or is gone, the work goes on.
        let _ = self.0.try_send(Line::Progress(step));
    }

    /// Reports a phase without figures.
    pub fn phase(&self, phase: &str) {
        self.step(Step {
            phase: phase.to_owned(),
            ..Step::default()
        });
    }

    /// Reports one of several results; fails when nobody reads any more.
    pub async fn item(&self, item: &impl Serialize) -> Outcome<()> {
        let value =
            serde_json::to_value(item).map_err(|e| Failure::new(Kind::Failed, e.to_string()))?;
        self.0
            .send(Line::Item(value))
            .await
            .map_err(|_| Failure::new(Kind::Failed, "nobody listens any more"))
    }
}

/// Runs `work` in a task of its own, which a lost connection does not interrupt half-way, and
/// streams what it reports.
fn streamed<T, F>(work: impl FnOnce(Reporter) -> F) -> Response
where
    T: Serialize,
    F: Future<Output = Outcome<T>> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(64);
    let running = work(Reporter(sender.clone()));
    tokio::spawn(async move {
        let line = match running.await.map(serde_json::to_value) {
            Ok(Ok(value)) => Line::Done(value),
            Ok(Err(e)) => Line::Error(Failure::new(Kind::Failed, e.to_string())),
            Err(failure) => Line::Error(failure),
        };
        // The asker may have gone; the work is done all the same.
        let _ = sender.send(line).await;
    });
    let lines = stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|line| (line, receiver))
    });
    let bytes = lines.map(|line| {
        serde_json::to_vec(&line).map(|mut bytes| {
            bytes.push(b'\n');
            bytes
        })
    });
    (
        [(header::CONTENT_TYPE, "application/x-ndjson")],
        Body::from_stream(bytes),
    )
        .into_response()
}

async fn status(State(daemon): Shared) -> Answer<Status> {
    Ok(Json(daemon.status()))
}

async fn findings(State(daemon): Shared) -> Json<Vec<FindingView>> {
    Json(daemon.findings())
}

/// The same after everything has been looked at anew.
async fn examine(State(daemon): Shared) -> Json<Vec<FindingView>> {
    daemon.prove().await;
    Json(daemon.findings())
}

/// Puts in order what is the daemon's own; what that settled.
async fn mend(State(daemon): Shared) -> Json<Vec<FindingView>> {
    Json(daemon.mend().await)
}

#[derive(Deserialize)]
struct TrafficQuery {
    #[serde(default)]
    all: bool,
}

async fn traffic(State(daemon): Shared, Query(query): Query<TrafficQuery>) -> Json<Vec<Traffic>> {
    Json(daemon.traffic(query.all))
}

async fn peers(State(daemon): Shared) -> Answer<Vec<Peer>> {
    Ok(Json(daemon.living_peers().await))
}

async fn netcheck(State(daemon): Shared) -> Answer<NetCheckView> {
    Ok(Json(daemon.netcheck().await))
}

#[derive(Deserialize)]
struct MetricsQuery {
    scope: Option<String>,
    #[serde(default)]
    json: bool,
}

async fn metrics(State(daemon): Shared, Query(query): Query<MetricsQuery>) -> Outcome<Response> {
    let metrics = match query.scope.as_deref() {
        None | Some("node") => daemon.metrics(),
        Some("cluster") => daemon.cluster_metrics().await?,
        Some(other) => {
            return Err(Failure::usage(format!(
                "scope is node or cluster, not '{other}'"
            )));
        }
    };
    if query.json {
        return Ok(Json(metrics).into_response());
    }
    Ok((
        [(header::CONTENT_TYPE, "text/plain; version=0.0.4")],
        metrics.page(),
    )
        .into_response())
}

async fn cluster(State(daemon): Shared) -> Answer<Cluster> {
    daemon.cluster().await.map(Json)
}

async fn cluster_vms(State(daemon): Shared) -> Answer<ClusterVms> {
    daemon.cluster_vms().await.map(Json)
}

async fn trace(State(daemon): Shared, Path(member): Path<String>) -> Answer<Traced> {
    daemon.trace(&member).await.map(Json)
}

async fn ping(State(daemon): Shared, Json(r): Json<PingRequest>) -> Response {
    streamed(move |reporter| async move {
        daemon
            .ping(
                &r.member,
                r.count,
                Duration::from_millis(r.interval_ms),
                &reporter,
            )
            .await
    })
}

async fn invite(State(daemon): Shared, Json(r): Json<InviteRequest>) -> Answer<InviteAnswer> {
    daemon.invite(&r).await.map(Json)
}

async fn revoke(State(daemon): Shared, Json(r): Json<RevokeRequest>) -> Answer<RevokeAnswer> {
    daemon.revoke(&r.what).await.map(Json)
}

async fn leave(State(daemon): Shared, Json(r): Json<Force>) -> Answer<()> {
    daemon.leave(r.force).await.map(Json)
}

async fn shutdown(State(daemon): Shared) -> Json<()> {
    daemon.stop();
    Json(())
}

async fn decisions(State(daemon): Shared) -> Json<Vec<Decided>> {
    Json(daemon.decisions())
}

async fn drain(State(daemon): Shared) -> Response {
    streamed(move |reporter| async move { daemon.drain(&reporter).await })
}

async fn stop_draining(State(daemon): Shared) -> Json<DrainStopping> {
    Json(daemon.stop_draining())
}

async fn list(State(daemon): Shared) -> Answer<Sorted<Vec<VmView>>> {
    daemon.list_vms().await.map(Sorted).map(Json)
}

async fn create(State(daemon): Shared, Json(r): Json<CreateVm>) -> Response {
    streamed(move |reporter| async move { daemon.create_vm(r, &reporter).await })
}

async fn show(State(daemon): Shared, Path(name): Path<String>) -> Answer<Sorted<VmView>> {
    daemon.show_vm(&name).await.map(Sorted).map(Json)
}

async fn delete(
    State(daemon): Shared,
    Path(name): Path<String>,
    Query(r): Query<Force>,
) -> Answer<VmDeleted> {
    daemon.delete_vm(&name, r.force).await.map(Json)
}

pub(crate) async fn start(State(daemon): Shared, Path(name): Path<String>) -> Response {
    streamed(move |reporter| async move { daemon.start_vm(&name, &reporter).await })
}

pub(crate) async fn stop(
    State(daemon): Shared,
    Path(name): Path<String>,
    Query(r): Query<Force>,
) -> Response {
    streamed(move |reporter| async move { daemon.stop_vm(&name, r.force, &reporter).await })
}

pub(crate) async fn migrate(
    State(daemon): Shared,
    Path(name): Path<String>,
    headers: HeaderMap,
    Json(r): Json<MigrateVm>,
) -> Response {
    let within = traced::within(&headers);
    streamed(move |reporter| async move { daemon.migrate_vm(&name, &r, within, &reporter).await })
}

pub(crate) async fn cancel_migration(
    State(daemon): Shared,
    Path(name): Path<String>,
) -> Answer<MoveCancelled> {
    daemon.cancel_migration(&name).await.map(Json)
}

pub(crate) async fn snapshot(
    State(daemon): Shared,
    Path(name): Path<String>,
    Json(r): Json<SnapshotVm>,
) -> Response {
    streamed(move |reporter| async move { daemon.snapshot_vm(&name, r.name, &reporter).await })
}

pub(crate) async fn restore(
    State(daemon): Shared,
    Path(name): Path<String>,
    Json(r): Json<RestoreVm>,
) -> Response {
    streamed(move |reporter| async move { daemon.restore_vm(&name, &r, &reporter).await })
}

pub(crate) async fn explain(
    State(daemon): Shared,
    Path(name): Path<String>,
) -> Answer<Sorted<Vec<Explained>>> {
    daemon.explain_vm(&name).await.map(Sorted).map(Json)
}

async fn console(
    State(daemon): Shared,
    Path(name): Path<String>,
    request: Request,
) -> Outcome<Response> {
    let mut guest = daemon.console(&name).await?;
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
