//! A member without a daemon: the control plane of a machine that has joined, with which a test
//! sends any bytes to any service and answers what it likes.

use super::flood::Tally;
use async_trait::async_trait;
use p2pvm_daemon::{layout::Layout, membership};
use p2pvm_dhcp::{Addresses, Subnet};
use p2pvm_dht::{Dht, DhtOptions, MemoryStore};
use p2pvm_lab::lab::Lab;
use p2pvm_overlay::{
    Fabric, FabricError, MemberId, Serve,
    control::{Control, ControlConfig},
    identity::Identity,
    membership::{Certificate, LocalAdmission, NetworkConfig, Trust},
    network_time::ClockReport,
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    runtime::Runtime,
};

/// How long an attacked member may take to answer.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// How long the rogue's clock is ahead.
const AHEAD_MS: i64 = 10 * 365 * 86_400_000;

/// See the module.
pub struct Member {
    pub control: Arc<Control>,
    pub records: Arc<Dht>,
    pub addresses: Arc<Addresses>,
    pub identity: Arc<Identity>,
    pub certificate: Certificate,
    pub network: NetworkConfig,
    runtime: Runtime,
}

/// A clock ten years ahead, which claims to rest on very many others.
struct WrongClock;

#[async_trait]
impl Serve for WrongClock {
    async fn serve(&self, _from: MemberId, _body: Vec<u8>) -> Result<Vec<u8>, String> {
        let wall = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let wall_ms = wall.map_or(0, |since| since.as_millis() as i64) + AHEAD_MS;
        let report = ClockReport {
            wall_ms,
            net_ms: wall_ms,
            clocks: u16::MAX,
        };
        postcard::to_stdvec(&report).map_err(|e| e.to_string())
    }
}

impl Member {
    /// Ends the daemon of a host and speaks in its place. With `lies` its clock is wrong.
    pub fn take_over(lab: &Lab, host: &str, lies: bool) -> Self {
        lab.p2pvm(host, &["down"]).unwrap();
        let layout = Layout::at(lab.dir(host).unwrap());
        let found = membership::load(&layout).unwrap();
        let identity = Arc::new(found.identity);
        let trust = Trust::load(found.network.id, &layout.revocations()).unwrap();
        let config = ControlConfig {
            bootstrap: found.bootstrap,
            ..ControlConfig::new(
                identity.clone(),
                found.certificate.clone(),
                found.network.clone(),
                Arc::new(trust),
                layout.dir().to_owned(),
                Arc::new(LocalAdmission::default()),
            )
        };
        // Its threads are made on the host's network, and all its sockets in them.
        let made = lab.testbed().inside(host, || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .unwrap();
            let starting = runtime.spawn(start(config, lies));
            let parts = runtime.block_on(starting).unwrap();
            (runtime, parts)
        });
        let (runtime, (control, records)) = made.unwrap();
        let subnet = found.network.subnet;
        let cache = layout.dir().join("rogue-leases");
        let subnet = Subnet::new(subnet.addr, subnet.prefix);
        let addresses = Addresses::new(records.clone(), subnet, cache);
        Self {
            control,
            records,
            addresses: Arc::new(addresses),
            identity,
            certificate: found.certificate,
            network: found.network,
            runtime,
        }
    }

    pub fn me(&self) -> MemberId {
        self.control.me()
    }

    pub fn fabric(&self) -> Arc<dyn Fabric> {
        self.control.clone()
    }

    /// Runs work on this member's network.
    pub fn run<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> T {
        let running = self.runtime.spawn(work);
        self.runtime.block_on(running).expect("the work ends")
    }

    /// Waits until it is connected with all of these.
    pub fn wait_for(&self, members: &[MemberId]) {
        let began = Instant::now();
        let is_there = |m: &MemberId| self.control.connected().contains(m);
        while !members.iter().all(is_there) {
            assert!(began.elapsed() < PATIENCE, "it finds no members");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// One request with any body.
    pub fn call(
        &self,
        to: MemberId,
        service: &'static str,
        body: Vec<u8>,
    ) -> Result<Vec<u8>, FabricError> {
        let fabric = self.fabric();
        self.run(async move { fabric.call(to, service, body, PATIENCE).await })
    }

    /// Why a member refuses a request.
    pub fn refused(&self, to: MemberId, service: &'static str, body: Vec<u8>) -> String {
        match self.call(to, service, body) {
            Err(FabricError::Refused(_, why)) => why,
            other => panic!("'{service}' did not refuse: {other:?}"),
        }
    }

    /// Sends all of these at once, so many at a time, and counts the answers.
    pub fn flood(
        &self,
        to: MemberId,
        service: &'static str,
        bodies: Vec<Vec<u8>>,
        at_once: usize,
    ) -> Tally {
        self.run(super::flood::send(
            self.fabric(),
            to,
            service,
            bodies,
            at_once,
        ))
    }

    /// Sends bytes over a stream of a service; gives what comes back until the stream ends.
    pub fn talk(&self, to: MemberId, service: &'static str, bytes: Vec<u8>) -> Vec<u8> {
        let fabric = self.fabric();
        self.run(async move {
            let Ok(mut stream) = fabric.open_stream(to, service).await else {
                return Vec::new();
            };
            let mut back = Vec::new();
            // The other end may hang up before it has all: then there is nothing more to say.
            let _ = stream.write_all(&bytes).await;
            let _ = stream.flush().await;
            let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut back)).await;
            back
        })
    }

    /// Sends bytes over a stream of a service and hangs up.
    pub fn poke(&self, to: MemberId, service: &'static str, bytes: Vec<u8>) {
        let fabric = self.fabric();
        self.run(async move {
            if let Ok(mut stream) = fabric.open_stream(to, service).await {
                let _ = stream.write_all(&bytes).await;
                let _ = stream.flush().await;
                let mut back = [0; 64];
                let moment = Duration::from_millis(20);
                let _ = tokio::time::timeout(moment, stream.read(&mut back)).await;
            }
        });
    }

    /// One request to the VM part of another member's control API: the status and the whole answer.
    pub fn http(&self, to: MemberId, request: &str, headers: &str, body: &str) -> (u16, String) {
        let text = format!(
            "{request} HTTP/1.1\r\nhost: p2pvm\r\nconnection: close\r\ncontent-type: \
             application/json\r\ncontent-length: {}\r\n{headers}\r\n{body}",
            body.len()
        );
        let back = self.talk(to, "api", text.into_bytes());
        let back = String::from_utf8_lossy(&back).into_owned();
        let status = back.split(' ').nth(1).and_then(|word| word.parse().ok());
        (status.unwrap_or(0), back)
    }
}

async fn start(config: ControlConfig, lies: bool) -> (Arc<Control>, Arc<Dht>) {
    let control = Control::start(config).await.expect("a control plane");
    if lies {
        control.serve("clock", Arc::new(WrongClock));
    }
    let store = Arc::new(MemoryStore::default());
    // It keeps its share of the records as it should, so that the network has its replicas.
    let records = Dht::start(control.clone(), store, DhtOptions::default());
    (control, records)
}
