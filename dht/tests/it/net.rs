//! A [`MemoryNet`] with the faults of a real network: uneven delays, lost answers, and replica sets
//! that may stay the same while members are away. All random numbers come from one seed.

use async_trait::async_trait;
use p2pvm_dht::{Dht, DhtOptions, MemoryStore};
use p2pvm_overlay::{
    BoxStream, Fabric, FabricError, MemberId, RingAddr, Serve, UnixTime,
    fabric::memory::{MemoryFabric, MemoryNet},
    identity::{Identity, KeyPair, LinkKey},
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{sync::mpsc, time::Instant};

pub type Chance = Arc<Mutex<ChaCha8Rng>>;

pub fn chance(seed: u64) -> Chance {
    Arc::new(Mutex::new(ChaCha8Rng::seed_from_u64(seed)))
}

pub fn key(n: u8) -> RingAddr {
    RingAddr::of("test key", &[n])
}

pub fn owner(n: u8) -> KeyPair {
    KeyPair::from_seed(&[n; 32])
}

/// One member's fabric, with faults.
pub struct Rough {
    pub inner: Arc<MemoryFabric>,
    pub chance: Chance,
    /// How many milliseconds a request waits at most before it leaves.
    pub jitter_ms: u64,
    /// How many percent of the answers are lost, after the request had its effect.
    pub lost_percent: u32,
    /// If set, the closest members are chosen among these, dead or alive.
    pub fixed: Option<Vec<MemberId>>,
}

#[async_trait]
impl Fabric for Rough {
    fn me(&self) -> MemberId {
        self.inner.me()
    }

    fn connected(&self) -> Vec<MemberId> {
        self.inner.connected()
    }

    fn link_key(&self, member: MemberId) -> Option<LinkKey> {
        self.inner.link_key(member)
    }

    async fn closest(&self, place: RingAddr, n: usize) -> Result<Vec<MemberId>, FabricError> {
        let Some(mut all) = self.fixed.clone() else {
            return self.inner.closest(place, n).await;
        };
        all.sort_by_key(|m| m.ring_addr().distance(&place));
        all.truncate(n);
        Ok(all)
    }

    async fn call(
        &self,
        to: MemberId,
        service: &'static str,
        body: Vec<u8>,
        timeout: Duration,
    ) -> Result<Vec<u8>, FabricError> {
        let (wait, lost) = {
            let mut chance = self.chance.lock().unwrap();
            (
                chance.random_range(0..=self.jitter_ms),
                chance.random_range(0..100) < self.lost_percent,
            )
        };
        tokio::time::sleep(Duration::from_millis(wait)).await;
        let answer = self.inner.call(to, service, body, timeout).await;
        if lost {
            tokio::time::sleep(timeout).await;
            return Err(FabricError::TimedOut(to, timeout));
        }
        answer
    }

    fn serve(&self, service: &'static str, handler: Arc<dyn Serve>) {
        self.inner.serve(service, handler);
    }

    async fn open_stream(
        &self,
        to: MemberId,
        service: &'static str,
    ) -> Result<BoxStream, FabricError> {
        self.inner.open_stream(to, service).await
    }

    fn accept_streams(&self, service: &'static str) -> mpsc::Receiver<(MemberId, BoxStream)> {
        self.inner.accept_streams(service)
    }
}

/// A member that can die and come back with its disk.
pub struct Node {
    pub id: MemberId,
    pub store: Arc<MemoryStore>,
    pub dht: Option<Arc<Dht>>,
}

/// Members with a DHT each.
pub struct World {
    pub net: MemoryNet,
    pub nodes: Vec<Node>,
    pub chance: Chance,
    pub jitter_ms: u64,
    pub lost_percent: u32,
    pub fixed: bool,
    began: Instant,
}

impl World {
    /// `n` members one way 20 ms apart.
    pub fn new(seed: u64, n: usize) -> Self {
        let mut world = Self {
            net: MemoryNet::new(Duration::from_millis(20)),
            nodes: Vec::new(),
            chance: chance(seed),
            jitter_ms: 0,
            lost_percent: 0,
            fixed: false,
            began: Instant::now(),
        };
        for _ in 0..n {
            world.join();
        }
        world
    }

    /// As [`Self::new`], with faults, and replica sets that stay the same.
    pub fn rough(seed: u64, n: usize, jitter_ms: u64, lost_percent: u32) -> Self {
        let mut world = Self::new(seed, n);
        (world.fixed, world.jitter_ms, world.lost_percent) = (true, jitter_ms, lost_percent);
        for i in 0..n {
            world.restart(i);
        }
        world
    }

    pub fn join(&mut self) -> usize {
        let id = MemberId(owner(100 + self.nodes.len() as u8).public());
        self.nodes.push(Node {
            id,
            store: Arc::new(MemoryStore::default()),
            dht: None,
        });
        self.restart(self.nodes.len() - 1);
        self.nodes.len() - 1
    }

    pub fn restart(&mut self, i: usize) {
        let fixed = self
            .fixed
            .then(|| self.nodes.iter().map(|n| n.id).collect());
        let fabric = Rough {
            inner: self.net.add(self.nodes[i].id),
            chance: self.chance.clone(),
            jitter_ms: self.jitter_ms,
            lost_percent: self.lost_percent,
            fixed,
        };
        let began = self.began;
        let options = DhtOptions {
            clock: Arc::new(move || UnixTime(1_800_000_000 + began.elapsed().as_secs())),
            seed: Some(self.chance.lock().unwrap().random()),
            ..DhtOptions::default()
        };
        let node = &mut self.nodes[i];
        node.dht = Some(Dht::start(Arc::new(fabric), node.store.clone(), options));
    }

    pub fn kill(&mut self, i: usize) {
        self.net.kill(self.nodes[i].id);
        self.nodes[i].dht = None;
    }

    pub fn cut(&self, a: usize, b: usize, cut: bool) {
        self.net.set_cut(self.nodes[a].id, self.nodes[b].id, cut);
    }

    pub fn dht(&self, i: usize) -> Arc<Dht> {
        self.nodes[i].dht.clone().expect("alive")
    }

    pub fn churned(&self) {
        for node in &self.nodes {
            node.dht.iter().for_each(|dht| dht.membership_changed());
        }
    }
}

/// The identity of voter `n`, the same in each run.
pub fn identity(n: usize) -> Arc<Identity> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("identity");
    std::fs::write(&path, [[150 + n as u8; 32], [n as u8 + 1; 32]].concat()).unwrap();
    Arc::new(Identity::load_or_create(&path).unwrap())
}
