//! The services of a member that is alone in a network of its own, made without privileges: an idle
//! packet plane, the control plane on loopback, the records on a temporary disk, and a hypervisor
//! that starts nothing. For tests of the routes.

use super::{LowerParts, RunParts, Services, planes::Planes, records, wire};
use crate::{
    access::policy::Policies,
    addresses::{kept::SavedLease, ports::Ports, reach::Reach},
    config::Config,
    layout::Layout,
    lifecycle::Lifecycle,
    members::admission::EarlyAdmission,
    membership::{self, Membership},
    offer::{KeptOffer, settings::Offer},
    parts::{MTU, Parts},
    routes::subnets::{Kernel, Subnets},
    usage::service::Accounting,
    vms::releases::Releases,
};
use async_trait::async_trait;
use axum::{Router, body::Body, http::Request};
use http_body_util::BodyExt;
use hyper::{StatusCode, service::Service};
use hyper_util::service::TowerToHyperService;
use p2pvm_api::{Failure, Line};
use p2pvm_dhcp::Resolver;
use p2pvm_dht::votes::Votes;
use p2pvm_host::{Finding, NetworkNeeds, keeper::Report};
use p2pvm_overlay::{
    control::{Control, ControlConfig},
    membership::Trust,
    plane::{Plane, PlaneConfig},
    ring_driver::RingDriver,
};
use p2pvm_snapshot_sync::{ChunkStore, Exchange, ExchangeOptions, Images};
use p2pvm_vm_manager::{
    Error, Traces,
    clock::ThisMachine,
    guardian::NoGuardian,
    host::{self, Host, HostOptions},
    hypervisor::{Accel, Hypervisor, Machine, MachineSpec, Start},
    vault::ChunkVault,
};
use serde::{
    Serialize,
    de::{DeserializeOwned, IgnoredAny},
};
use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::{Arc, Weak},
    time::Instant,
};
use tempfile::TempDir;
use tokio::sync::mpsc;

/// A kernel that accepts everything.
struct Obedient;

impl Kernel for Obedient {
    fn report(&self) -> Report {
        Report::default()
    }

    fn settle(&self, _wanted: NetworkNeeds) -> Report {
        Report::default()
    }

    fn add_findings(&self, _findings: Vec<Finding>) {}
}

/// A hypervisor that starts nothing.
struct NoGuests;

fn none<T>() -> Result<T, Error> {
    Err(Error::Hypervisor {
        step: "starting",
        detail: "there is no hypervisor".to_owned(),
    })
}

#[async_trait]
impl Hypervisor for NoGuests {
    async fn accel(&self) -> Result<Accel, Error> {
        none()
    }
    async fn create_disk(&self, _: &Path, _: &Path, _: Option<u64>) -> Result<(), Error> {
        none()
    }
    async fn rebase_disk(&self, _: &Path, _: &Path) -> Result<(), Error> {
        none()
    }
    async fn check_image(&self, _: &Path) -> Result<u64, Error> {
        none()
    }
    async fn virtual_size(&self, _: &Path) -> Result<u64, Error> {
        none()
    }
    async fn launch(&self, _: &MachineSpec, _: Start) -> Result<Arc<dyn Machine>, Error> {
        none()
    }
    async fn end(&self, _: &MachineSpec) -> Result<(), Error> {
        Ok(())
    }
    async fn adopt(&self, _: &MachineSpec) -> Result<Option<Arc<dyn Machine>>, Error> {
        Ok(None)
    }
}

/// A member that is alone.
pub(crate) struct Alone {
    pub services: Services,
    pub reach: Arc<Reach>,
    pub lifecycle: Arc<Lifecycle>,
    pub layout: Layout,
    _ring: RingDriver,
    _dir: TempDir,
}

impl Alone {
    /// The founder of the network "lab", called "attic".
    pub async fn start() -> Self {
        Self::open(Vec::new(), |_| ()).await
    }

    /// The same, whose other members may name the files of these directories as images.
    pub async fn offering(images: Vec<PathBuf>) -> Self {
        Self::open(images, |_| ()).await
    }

    /// The same, whose state a daemon before it left so.
    pub async fn after(state: impl FnOnce(&Layout)) -> Self {
        Self::open(Vec::new(), state).await
    }

    async fn open(images: Vec<PathBuf>, state: impl FnOnce(&Layout)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::at(dir.path());
        membership::found(&layout, ("lab", Some("10.83.0.0/16")), ("attic", &[]), true).unwrap();
        state(&layout);
        let membership = membership::load(&layout).unwrap();
        let config = Config {
            upnp: false,
            offer: Offer {
                images,
                ..Offer::default()
            },
            ..Config::default()
        };
        let planes = planes(&layout, membership).await;
        let (parts, ring) = records::open(&layout, &config, planes).unwrap();
        let policies = Policies::start(parts.clone(), true);
        let kernel = (
            Arc::new(Obedient) as Arc<dyn Kernel>,
            NetworkNeeds::default(),
        );
        let subnets =
            Subnets::open(parts.clone(), policies.clone(), &layout, kernel, false).unwrap();
        let reach = Reach::start(parts.clone(), SavedLease::new(layout.lease()));
        let lifecycle = Lifecycle::new(Instant::now());
        let host = host(&layout, &parts, (&reach, &policies)).await;
        let below = LowerParts {
            subnets,
            usage: Accounting::open((parts.clone(), host.clone(), Weak::new()), layout.usage()),
            chunks: Weak::new(),
            host,
            policies,
            reach: reach.clone(),
        };
        let own = RunParts {
            lifecycle: lifecycle.clone(),
            layout: layout.clone(),
            exporter: None,
            traces: Traces::default(),
            offer: KeptOffer::open(layout.offer(), &config.offer).unwrap(),
        };
        Self {
            services: wire(&config, &parts, below, own).unwrap().services,
            reach,
            lifecycle,
            layout,
            _ring: ring,
            _dir: dir,
        }
    }
}

async fn planes(layout: &Layout, membership: Membership) -> Planes {
    let Membership {
        network,
        certificate,
        identity,
        root,
        ..
    } = membership;
    let settings = PlaneConfig {
        me: identity.member_id(),
        link_secret: identity.link_secret(),
        udp_port: 0,
        device: "none".to_owned(),
        mtu: MTU,
        traffic: true,
        network: network.id.to_string(),
        control_port: 0,
    };
    let plane = Plane::start_idle(settings, mpsc::channel(8).0).unwrap();
    let identity = Arc::new(identity);
    let trust = Arc::new(Trust::load(network.id, &layout.revocations()).unwrap());
    let control = Control::start(ControlConfig {
        listen_on: vec![Ipv4Addr::LOCALHOST.into()],
        issuer_key: root,
        underlay: plane.underlay(),
        ..ControlConfig::new(
            identity.clone(),
            certificate.clone(),
            network.clone(),
            trust.clone(),
            layout.dir().to_owned(),
            Arc::new(EarlyAdmission),
        )
    })
    .await
    .unwrap();
    Planes {
        identity,
        certificate,
        network,
        trust,
        plane,
        control,
        founder: true,
        has_bootstrap: false,
    }
}

async fn host(
    layout: &Layout,
    parts: &Arc<Parts>,
    (reach, policies): (&Arc<Reach>, &Arc<Policies>),
) -> Arc<Host> {
    let chunks = ChunkStore::open(layout.chunks()).unwrap();
    let exchange = Exchange::start(parts.fabric(), chunks, ExchangeOptions::default());
    let images = Images::open(exchange.clone(), layout.images()).unwrap();
    let resolver = Resolver::new(&parts.domain(), parts.addresses.subnet()).unwrap();
    let host_parts = host::Parts {
        fabric: parts.fabric(),
        records: parts.records.clone(),
        ballot: Arc::new(Votes::new(parts.fabric())),
        vault: ChunkVault::new(exchange, Arc::new(images)),
        hypervisor: Arc::new(NoGuests),
        port: Ports::new(parts.clone(), reach.clone(), resolver),
        traces: Traces::default(),
        sleep: Arc::new(ThisMachine),
        identity: parts.identity.clone(),
        guardian: Arc::new(NoGuardian("this test has none")),
        releases: Releases::new(parts.clone(), policies.clone()),
    };
    Host::open(host_parts, HostOptions::default(), layout.dir())
        .await
        .unwrap()
}

/// The answer to a request.
#[derive(Debug)]
pub(crate) struct Answered {
    pub status: StatusCode,
    pub text: String,
}

impl Answered {
    /// The value that answers a successful request.
    pub fn value<T: DeserializeOwned>(&self) -> T {
        assert_eq!(self.status, StatusCode::OK, "{}", self.text);
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {}", self.text))
    }

    /// The lines of a streamed answer.
    pub fn lines<T: DeserializeOwned, I: DeserializeOwned>(&self) -> Vec<Line<T, I>> {
        assert_eq!(self.status, StatusCode::OK, "{}", self.text);
        let lines = self.text.lines().map(serde_json::from_str);
        lines.map(|line| line.expect("a line of the API")).collect()
    }

    /// Why the request failed.
    pub fn failure(&self) -> Failure {
        assert!(!self.status.is_success(), "{}", self.text);
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {}", self.text))
    }

    /// Why a request failed whose answer is streamed.
    pub fn late_failure(&self) -> Failure {
        match self.lines::<IgnoredAny, IgnoredAny>().pop() {
            Some(Line::Error(failure)) => failure,
            _ => panic!("it did not fail: {}", self.text),
        }
    }
}

/// Sends a request to a router.
pub(crate) async fn send(router: Router, request: Request<Body>) -> Answered {
    let answer = TowerToHyperService::new(router)
        .call(request)
        .await
        .unwrap();
    let status = answer.status();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    let text = String::from_utf8_lossy(&body).into_owned();
    Answered { status, text }
}

/// Sends a GET request to a router.
pub(crate) async fn get(router: Router, path: &str) -> Answered {
    send(router, Request::get(path).body(Body::empty()).unwrap()).await
}

/// Sends a DELETE request to a router.
pub(crate) async fn delete(router: Router, path: &str) -> Answered {
    send(router, Request::delete(path).body(Body::empty()).unwrap()).await
}

/// Sends a POST request to a router.
pub(crate) async fn post(router: Router, path: &str, body: &impl Serialize) -> Answered {
    let request = Request::post(path).header("content-type", "application/json");
    let body = Body::from(serde_json::to_vec(body).unwrap());
    send(router, request.body(body).unwrap()).await
}
