//! The services of all resources, and their routes.

use crate::{
    access, access::service::Access, cluster, cluster::service::Cluster, http::server, machine,
    machine::service::Machine, members, members::service::Members, node, node::service::Node,
    offer, offer::service::Offers, placement, placement::service::Placement, routes,
    routes::subnets::Subnets, tokens, tokens::service::Tokens, vms, vms::service::Vms, web,
    web::Dashboard,
};
use axum::Router;
use std::sync::Arc;

/// The services whose routes are served.
pub(crate) struct Services {
    pub access: Arc<Access>,
    pub cluster: Arc<Cluster>,
    pub dashboard: Arc<Dashboard>,
    pub machine: Arc<Machine>,
    pub members: Arc<Members>,
    pub node: Arc<Node>,
    pub offers: Arc<Offers>,
    pub placement: Arc<Placement>,
    pub subnets: Arc<Subnets>,
    pub tokens: Arc<Tokens>,
    pub vms: Arc<Vms>,
}

impl Services {
    /// The control API for this machine's own root.
    pub(crate) fn routes(&self) -> Router {
        let Self {
            access,
            cluster,
            dashboard,
            machine,
            members,
            node,
            offers,
            placement,
            subnets,
            tokens,
            vms,
        } = self;
        let all = node::http::routes(node.clone())
            .merge(node::http::figures(node.clone(), cluster.clone()))
            .merge(members::http::routes(members.clone()))
            .merge(cluster::http::routes(cluster.clone()))
            .merge(machine::http::routes(machine.clone()))
            .merge(access::http::routes(access.clone()))
            .merge(routes::http::routes(subnets.clone()))
            .merge(tokens::http::routes(tokens.clone()))
            .merge(placement::http::routes(placement.clone()))
            .merge(offer::http::routes(offers.clone()))
            .merge(vms::http::of_cluster(vms.clone()))
            .merge(vms::http::routes(vms.clone()))
            .merge(web::http::routes(dashboard.clone()));
        server::for_root(all)
    }
}
