//! The web dashboard: a page that shows the network and moves its VMs, and the part of the control
//! API that the page needs.
//!
//! The daemon always serves it on a unix socket of its own (`p2pvm dashboard --listen` makes it a
//! local port), and on this host's address in the network only if it is switched on. Either way
//! each API request carries a token, which only root can read in the state directory; it has the
//! role of an operator or of a reader. The allowed requests are a list ([`routes`]), not the
//! control API minus some: none of them ends the daemon, leaves the network, invites, revokes, sets
//! rules, creates or deletes; an operator may change what this host offers. [`access`], [`limits`]
//! and [`serve`] keep it safe; `docs/dashboard.md` explains it to users.

mod access;
mod certificate;
mod console;
mod files;
mod gather;
pub(crate) mod http;
mod lan;
mod limits;
mod routes;
mod serve;
mod switch;

use crate::{
    addresses::reach::Reach, cluster::service::Cluster, config::Config, members::service::Members,
    node::service::Node, offer::service::Offers, parts::Parts, vms::service::Vms,
};
use axum::Router;
use gather::Gather;
use lan::Lan;
use limits::Limits;
use p2pvm_api::{DashboardChange, DashboardView, Outcome, Role, Sight};
use p2pvm_host::lock;
use std::{
    path::PathBuf,
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};
use switch::Switch;
use tokio::sync::Semaphore;

/// How many consoles may be open at once.
const MAX_CONSOLES: usize = 16;
/// How often all members' VMs are asked for while a page is open, as in `p2pvm top`. Reason: that
/// is a broadcast over the ring.
const VMS_EVERY: Duration = Duration::from_secs(2);
/// How often all members' links and decisions are asked for. Reason: they change more slowly.
const SIGHTS_EVERY: Duration = Duration::from_secs(5);

/// The dashboard of one daemon.
pub struct Dashboard {
    parts: Arc<Parts>,
    reach: Arc<Reach>,
    node: Arc<Node>,
    members: Arc<Members>,
    vms: Arc<Vms>,
    offers: Arc<Offers>,
    switch: Switch,
    port: u16,
    socket: PathBuf,
    seen_vms: Gather<p2pvm_api::ClusterVms>,
    sights: Gather<Vec<Sight>>,
    consoles: Arc<Semaphore>,
    limits: Limits,
    lan: Option<Lan>,
    /// What `/v1` serves beside the page's requests.
    more: OnceLock<Router>,
    /// Why the dashboard is not served on the network although it is on.
    trouble: Mutex<Option<String>>,
}

impl Dashboard {
    /// The dashboard of this node and its cluster; [`Dashboard::serve`] starts it. `config` says
    /// whether it is on until `p2pvm dashboard` switches it.
    pub(crate) fn open(
        (node, offers): (Arc<Node>, Arc<Offers>),
        cluster: Arc<Cluster>,
        config: &Config,
    ) -> Outcome<Arc<Self>> {
        let asked = node.vms.clone();
        let seen_vms = Gather::new(VMS_EVERY, move || {
            let vms = asked.clone();
            async move { vms.of_cluster().await }
        });
        let sights = Gather::new(SIGHTS_EVERY, move || {
            let cluster = cluster.clone();
            async move { cluster.sights().await }
        });
        Ok(Arc::new(Self {
            switch: Switch::open(&node.layout, config.dashboard)?,
            port: config.dashboard_port,
            socket: node.layout.dashboard_socket(),
            seen_vms,
            sights,
            consoles: Arc::new(Semaphore::new(MAX_CONSOLES)),
            limits: Limits::default(),
            more: OnceLock::new(),
            lan: Lan::open(&node.layout, config)?,
            trouble: Mutex::default(),
            parts: node.parts.clone(),
            reach: node.reach.clone(),
            members: node.members.clone(),
            vms: node.vms.clone(),
            offers,
            node,
        }))
    }

    /// Serves these routes too below `/v1`, from the next listener on.
    pub(crate) fn offer(&self, more: Router) {
        // Only the first counts: the wiring calls it once.
        let _ = self.more.set(more);
    }

    /// The answer for `p2pvm dashboard`.
    pub fn state(&self) -> DashboardView {
        let address = self.reach.address().filter(|_| self.switch.is_on());
        let url = |token: &str| {
            let address = address.as_ref()?;
            Some(format!("http://{address}:{}/#token={token}", self.port))
        };
        let (token, reader_token) = (self.switch.token(), self.switch.reader_token());
        DashboardView {
            on: self.switch.is_on(),
            url: url(&token),
            reader_url: url(&reader_token),
            trouble: lock(&self.trouble).clone(),
            token,
            reader_token,
            port: self.port,
            socket: self.socket.display().to_string(),
            has_page: files::built(),
            lan: self.lan.as_ref().map(Lan::urls).unwrap_or_default(),
            lan_trouble: self.lan.as_ref().and_then(Lan::trouble),
            fingerprint: self.lan.as_ref().map(Lan::fingerprint),
        }
    }

    /// Switches it on or off, or makes a new token.
    pub fn change(&self, change: &DashboardChange) -> Outcome<DashboardView> {
        if change.new_token {
            self.switch
                .renew(change.role.as_ref().unwrap_or(&Role::Operator))?;
        }
        if let Some(on) = change.on {
            self.switch.set(on)?;
        }
        Ok(self.state())
    }

    fn note_trouble(&self, trouble: Option<String>) {
        if let Some(trouble) = &trouble {
            tracing::warn!("the dashboard is not served on the network: {trouble}");
        }
        *lock(&self.trouble) = trouble;
    }
}
