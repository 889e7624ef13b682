//! The services of all resources, and their routes.

use crate::{
    access,
    access::service::Access,
    cluster,
    cluster::service::Cluster,
    event_log,
    http::{caller::Owns, server},
    machine,
    machine::service::Machine,
    members,
    members::service::Members,
    node,
    node::service::Node,
    offer,
    offer::service::Offers,
    placement,
    placement::service::Placement,
    routes,
    routes::subnets::Subnets,
    store,
    store::service::Chunks,
    tokens,
    tokens::{revoke::Revoker, service::Tokens},
    usage,
    usage::service::Accounting,
    vms,
    vms::service::Vms,
    web,
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
    pub revoker: Arc<Revoker>,
    pub store: Arc<Chunks>,
    pub subnets: Arc<Subnets>,
    pub tokens: Arc<Tokens>,
    pub usage: Arc<Accounting>,
    pub vms: Arc<Vms>,
}

impl Services {
    /// Routes of which callers without root's rights may ask some: those that the table of
    /// operations lists for them.
    fn common(&self) -> Router {
        node::http::routes(self.node.clone())
            .merge(node::http::figures(self.node.clone(), self.cluster.clone()))
            .merge(members::http::routes(self.members.clone()))
            .merge(cluster::http::routes(self.cluster.clone()))
            .merge(machine::http::routes(self.machine.clone()))
            .merge(access::http::routes(self.access.clone()))
            .merge(routes::http::routes(self.subnets.clone()))
            .merge(placement::http::routes(self.placement.clone()))
            .merge(event_log::http::routes(self.node.parts.clone()))
            .merge(vms::http::of_cluster(self.vms.clone()))
            .merge(vms::http::routes(self.vms.clone()))
    }

    /// The control API for this machine's own root.
    pub(crate) fn routes(&self) -> Router {
        let tokens = tokens::http::routes(self.tokens.clone(), self.revoker.clone());
        let all = self
            .common()
            .merge(tokens)
            .merge(event_log::http::streams(self.node.parts.clone()))
            .merge(usage::http::routes(self.usage.clone()))
            .merge(offer::http::routes(self.offers.clone()))
            .merge(store::http::routes(self.store.clone()))
            .merge(web::http::routes(self.dashboard.clone()));
        server::for_root(all)
    }

    /// Whose VMs are whose, for users of this machine in the group.
    pub(crate) fn owns(&self) -> Owns {
        let vms = self.vms.clone();
        Arc::new(move |uid, vm| {
            let vms = vms.clone();
            Box::pin(async move { vms.is_of(uid, &vm).await })
        })
    }

    /// The control API for callers with a token of the dashboard: what the table of operations
    /// lists for them and the dashboard does not answer itself.
    pub(crate) fn for_tokens(&self) -> Router {
        server::for_tokens(self.common())
    }
}
