//! The control API as it is served: the routes of all resources, for this machine's own root, and
//! those about VMs for other members.

use crate::{
    access,
    access::service::Access,
    cluster,
    cluster::service::Cluster,
    machine,
    machine::service::Machine,
    members,
    members::service::Members,
    node,
    node::service::Node,
    placement,
    placement::service::Placement,
    routes,
    routes::subnets::Subnets,
    tokens,
    tokens::service::Tokens,
    vms,
    vms::{rights::Asker, service::Vms},
};
use axum::{
    Extension, Router,
    extract::Request,
    middleware,
    response::{IntoResponse, Response},
};
use p2pvm_api::Failure;
use p2pvm_overlay::MemberId;
use std::{sync::Arc, time::Duration};

/// How long a request waits for the beginning of its answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(140);

/// The services whose routes are served.
pub(crate) struct Services {
    pub access: Arc<Access>,
    pub cluster: Arc<Cluster>,
    pub machine: Arc<Machine>,
    pub members: Arc<Members>,
    pub node: Arc<Node>,
    pub placement: Arc<Placement>,
    pub subnets: Arc<Subnets>,
    pub tokens: Arc<Tokens>,
    pub vms: Arc<Vms>,
}

/// Everything but the dashboard, for this machine's own root.
pub(crate) fn local(services: &Services) -> Router {
    let Services {
        access,
        cluster,
        machine,
        members,
        node,
        placement,
        subnets,
        tokens,
        vms,
    } = services;
    node::http::routes(node.clone())
        .merge(node::http::figures(node.clone(), cluster.clone()))
        .merge(members::http::routes(members.clone()))
        .merge(cluster::http::routes(cluster.clone()))
        .merge(machine::http::routes(machine.clone()))
        .merge(access::http::routes(access.clone()))
        .merge(routes::http::routes(subnets.clone()))
        .merge(tokens::http::routes(tokens.clone()))
        .merge(placement::http::routes(placement.clone()))
        .merge(vms::http::of_cluster(vms.clone()))
        .merge(vms::http::routes(vms.clone()))
        .layer(middleware::from_fn(in_time))
        .layer(Extension(Asker::Root))
}

/// What another member may ask: virtual machines.
pub(crate) fn for_member(vms: Arc<Vms>, member: MemberId) -> Router {
    vms::http::routes(vms).layer(Extension(Asker::Member(member)))
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
