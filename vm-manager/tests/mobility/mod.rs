//! A network of hosts in one process: real records, voters and chunks over an in-memory fabric;
//! fake ports; fake guests in virtual time, or QEMU's in real time.
#![allow(
    dead_code,
    missing_docs,
    reason = "shared by several test programs, each of which uses a part"
)]

pub mod fake;
pub mod spans;

use async_trait::async_trait;
use fake::{FakeHypervisor, Step, Strike, World};
use p2pvm_authority::Revocations;
use p2pvm_dht::{Dht, DhtOptions, MemoryStore, Voter, VoterLog, Votes};
use p2pvm_overlay::{
    Epoch, Fabric, MemberId, VmId,
    fabric::memory::MemoryNet,
    identity::{Identity, KeyPair},
};
use p2pvm_snapshot_sync::{ChunkStore, Exchange, ExchangeOptions, Images};
use p2pvm_vm_manager::{
    Definition, Error, GuestAddress, Host, HostOptions, ImageSource, NewVm, Parts, Port,
    ReleaseRule, Traces,
    checkpoint::RestoreOptions,
    clock::Sleep,
    guardian::{FakeGuardian, Guardian, NoGuardian},
    host::{VmState, VmStatus},
    hypervisor::{Accel, Hypervisor, MachineSpec, MigrateOptions},
    migrate::{MigrationOutcome, Occasion},
    qemu::Qemu,
    vault::{ChunkVault, Durability},
};
use spans::Spans;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv6Addr,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::Instant,
};

/// A move that was begun.
pub type Moving = JoinHandle<Result<MigrationOutcome, Error>>;
/// A restore that was begun.
pub type Restoring = JoinHandle<Result<VmStatus, Error>>;

/// What the overlay has been told: the newest announcement of each VM.
#[derive(Default)]
pub struct Peers {
    pub announced: Mutex<BTreeMap<VmId, (Epoch, MemberId)>>,
}

pub struct FakePort {
    peers: Arc<Peers>,
    pub attached: Mutex<BTreeMap<VmId, (Epoch, bool)>>,
    /// Guests that are about to leave: their packets are kept back.
    pub leaving: Mutex<BTreeSet<VmId>>,
}

#[async_trait]
impl Port for FakePort {
    async fn claim(
        &self,
        keys: &KeyPair,
        _name: &str,
        _epoch: Epoch,
    ) -> Result<GuestAddress, Error> {
        let id = keys.vm_id().0;
        let mac = [2, 0, id[0], id[1], id[2], id[3]];
        Ok(GuestAddress {
            v4: [10, 7, id[0], id[1]].into(),
            prefix: 16,
            v6: Ipv6Addr::from(u128::from_be_bytes(id[..16].try_into().unwrap())),
            mac,
            mtu: 1340,
        })
    }
    async fn owns(&self, vm: &Definition) -> Result<(), Error> {
        let id = vm.vm.0;
        match vm.address.v4.octets() == [10, 7, id[0], id[1]] {
            true => Ok(()),
            false => Err(Error::Refused(format!("{} is another's", vm.address.v4))),
        }
    }
    async fn renew(&self, _: &KeyPair, _: &Definition, _: Epoch) -> Result<(), Error> {
        Ok(())
    }
    async fn renamed(&self, _: &KeyPair, _: &Definition, _: Epoch, _: &str) -> Result<(), Error> {
        Ok(())
    }
    async fn release(&self, _: &KeyPair, _: &Definition) -> Result<(), Error> {
        Ok(())
    }
    async fn attach(
        &self,
        spec: &MachineSpec,
        _: &GuestAddress,
        epoch: Epoch,
    ) -> Result<(), Error> {
        self.attached
            .lock()
            .unwrap()
            .insert(spec.vm, (epoch, false));
        self.leaving.lock().unwrap().remove(&spec.vm);
        Ok(())
    }
    async fn detach(&self, vm: VmId) -> Result<(), Error> {
        self.attached.lock().unwrap().remove(&vm);
        self.leaving.lock().unwrap().remove(&vm);
        Ok(())
    }
    async fn frozen(&self, vm: VmId, frozen: bool) -> Result<(), Error> {
        if let Some(port) = self.attached.lock().unwrap().get_mut(&vm) {
            port.1 = frozen;
        }
        Ok(())
    }
    async fn leaving(&self, vm: VmId, _: MemberId) {
        self.leaving.lock().unwrap().insert(vm);
    }
    async fn held(&self, vm: VmId, held: bool) {
        let mut leaving = self.leaving.lock().unwrap();
        if held {
            leaving.insert(vm);
        } else {
            leaving.remove(&vm);
        }
    }
    async fn forward(&self, _: &GuestAddress, _: MemberId, _: Epoch) -> Result<(), Error> {
        Ok(())
    }
    async fn recall(&self, _: &GuestAddress, _: Epoch) -> Result<(), Error> {
        Ok(())
    }
    async fn announce(
        &self,
        keys: &KeyPair,
        _: &Definition,
        holder: MemberId,
        epoch: Epoch,
    ) -> Result<(), Error> {
        let mut announced = self.peers.announced.lock().unwrap();
        let known = announced.entry(keys.vm_id()).or_insert((epoch, holder));
        if epoch > known.0 {
            *known = (epoch, holder);
        }
        Ok(())
    }
}

/// A machine's clock and sleep, as a test makes it.
pub struct FakeSleep {
    begun: Instant,
    slept: watch::Sender<Duration>,
}

impl Default for FakeSleep {
    fn default() -> Self {
        Self {
            begun: Instant::now(),
            slept: watch::Sender::default(),
        }
    }
}

impl FakeSleep {
    /// The machine has slept, and wakes up.
    pub fn sleep(&self, time: Duration) {
        self.slept.send_modify(|slept| *slept += time);
    }
}

#[async_trait]
impl Sleep for FakeSleep {
    fn slept(&self) -> Duration {
        *self.slept.borrow()
    }
    fn boottime(&self) -> Duration {
        self.begun.elapsed() + self.slept()
    }
    async fn passed(&self, time: Duration) {
        let until = self.slept() + time;
        let mut slept = self.slept.subscribe();
        let _ = slept.wait_for(|slept| *slept >= until).await;
    }
}

/// A voter's rule for snapshots: any member may have them opened, or none.
#[derive(Default)]
pub struct FakeReleases {
    pub refuses: AtomicBool,
    /// The members that asked, each with how many proofs it showed.
    pub asked: Mutex<Vec<(MemberId, usize)>>,
}

impl ReleaseRule for FakeReleases {
    fn may_open(
        &self,
        asker: MemberId,
        _: VmId,
        _: MemberId,
        proofs: &[Vec<u8>],
        _: &Revocations,
    ) -> Result<(), String> {
        self.asked.lock().unwrap().push((asker, proofs.len()));
        match self.refuses.load(Ordering::SeqCst) {
            true => Err("it lacks the right to restore it".to_owned()),
            false => Ok(()),
        }
    }
}

/// One member.
pub struct Site {
    pub identity: Arc<Identity>,
    pub dir: PathBuf,
    store: Arc<MemoryStore>,
    pub port: Arc<FakePort>,
    pub sleep: Arc<FakeSleep>,
    pub releases: Arc<FakeReleases>,
    guardian: Arc<dyn Guardian>,
    /// The daemon and what lives as long as it.
    pub daemon: Option<(Arc<Host>, Arc<Dht>, Arc<Voter>)>,
}

impl Site {
    pub fn me(&self) -> MemberId {
        self.identity.member_id()
    }
    pub fn host(&self) -> &Arc<Host> {
        &self.daemon.as_ref().expect("the daemon runs").0
    }
}

/// The network, its members, and what tests see of them.
pub struct Lab {
    pub net: MemoryNet,
    pub world: Arc<World>,
    pub peers: Arc<Peers>,
    pub sites: Vec<Site>,
    pub spans: Spans,
    /// The maker of each member's spans, from its next start on.
    pub traces: Vec<Traces>,
    pub image: PathBuf,
    real_guests: bool,
    pub options: HostOptions,
    _dir: tempfile::TempDir,
}

impl Lab {
    /// `n` members, all up.
    pub async fn new(n: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image.raw");
        std::fs::write(&image, vec![7; 100_000]).unwrap();
        Self::build(n, dir, image, false).await
    }

    /// The same, each of which may give its guests so many MiB.
    pub async fn with_memory(n: usize, mib: u64) -> Self {
        let mut lab = Self::new(n).await;
        lab.options.memory_mib = Some(mib);
        for i in 0..n {
            lab.kill_daemon(i);
            lab.up(i).await;
        }
        lab
    }

    /// The same, each of which asks the keepers of its snapshots so often.
    pub async fn with_keepers_asked_every(n: usize, every: Duration) -> Self {
        let mut lab = Self::new(n).await;
        lab.options.ask_keepers_every = every;
        for i in 0..n {
            lab.kill_daemon(i);
            lab.up(i).await;
        }
        lab
    }

    /// `n` members, all up, whose guests a guardian of each freezes.
    pub async fn guarded(n: usize) -> Self {
        let mut lab = Self::new(n).await;
        for i in 0..n {
            lab.kill_daemon(i);
            let (world, me) = (lab.world.clone(), lab.me(i));
            let sleep = lab.sites[i].sleep.clone();
            let guardian = FakeGuardian::new(
                move || sleep.boottime(),
                move |vm, stands| world.freeze(vm, me, stands),
            );
            lab.sites[i].guardian = Arc::new(guardian);
            lab.up(i).await;
        }
        lab
    }

    /// `n` members, all up, whose guests are real ones of `image`.
    pub async fn with_qemu(n: usize, image: PathBuf) -> Self {
        Self::build(n, tempfile::tempdir().unwrap(), image, true).await
    }

    async fn build(n: usize, dir: tempfile::TempDir, image: PathBuf, real_guests: bool) -> Self {
        let (net, world, peers) = (
            MemoryNet::new(Duration::from_millis(25)),
            Arc::new(World::default()),
            Arc::new(Peers::default()),
        );
        let sites = (0..n).map(|i| Site {
            identity: Arc::new(Identity::generate()),
            dir: dir.path().join(i.to_string()),
            store: Arc::default(),
            port: Arc::new(FakePort {
                peers: peers.clone(),
                attached: Mutex::default(),
                leaving: Mutex::default(),
            }),
            sleep: Arc::default(),
            releases: Arc::default(),
            guardian: Arc::new(NoGuardian("this test has none")),
            daemon: None,
        });
        let sites: Vec<_> = sites.collect();
        let spans = Spans::default();
        let traces = (0..n).map(|i| spans.of(i)).collect();
        let mut lab = Self {
            net,
            world,
            peers,
            sites,
            spans,
            traces,
            image,
            real_guests,
            options: HostOptions::default(),
            _dir: dir,
        };
        let ids: Vec<_> = lab.sites.iter().map(Site::me).collect();
        for id in ids {
            lab.net.add(id);
        }
        for i in 0..n {
            lab.up(i).await;
        }
        lab
    }

    pub fn me(&self, i: usize) -> MemberId {
        self.sites[i].me()
    }

    pub fn host(&self, i: usize) -> Arc<Host> {
        self.sites[i].host().clone()
    }

    /// Restores the VM "web" from its snapshot "one" on member `i`, which needs force since its
    /// holder is dead.
    pub async fn restore_by_force(&self, i: usize) -> VmStatus {
        let (host, progress) = (self.host(i), watch::Sender::default());
        let refused = host
            .restore("web", "one", RestoreOptions::default(), &progress)
            .await
            .unwrap_err();
        assert!(
            matches!(&refused, Error::Refused(why) if why.contains("--force")),
            "{refused}"
        );
        let back = host
            .restore("web", "one", RestoreOptions { force: true }, &progress)
            .await
            .unwrap();
        assert_eq!((back.state, back.holder), (VmState::Running, self.me(i)));
        back
    }

    /// Starts member `i`'s daemon.
    pub async fn up(&mut self, i: usize) {
        let (net, world) = (self.net.clone(), self.world.clone());
        let site = &mut self.sites[i];
        let fabric: Arc<dyn Fabric> = net.add(site.me());
        let dht = Dht::start(fabric.clone(), site.store.clone(), DhtOptions::default());
        std::fs::create_dir_all(&site.dir).unwrap();
        let voter = Voter::start(
            &fabric,
            site.identity.clone(),
            VoterLog::open(&site.dir.join("votes")).unwrap(),
        );
        let exchange = Exchange::start(
            fabric.clone(),
            ChunkStore::open(site.dir.join("chunks")).unwrap(),
            ExchangeOptions::default(),
        );
        let images = Arc::new(Images::open(exchange.clone(), site.dir.join("images")).unwrap());
        let hypervisor: Arc<dyn Hypervisor> = match self.real_guests {
            true => Arc::new(Qemu::new(&site.dir, Some(Accel::Tcg), None)),
            false => Arc::new(FakeHypervisor {
                host: site.identity.member_id(),
                world,
            }),
        };
        let parts = Parts {
            fabric: fabric.clone(),
            records: dht.clone(),
            ballot: Arc::new(Votes::new(fabric)),
            vault: ChunkVault::new(exchange, images),
            hypervisor,
            guardian: site.guardian.clone(),
            port: site.port.clone(),
            traces: self.traces[i].clone(),
            sleep: site.sleep.clone(),
            identity: site.identity.clone(),
            releases: site.releases.clone(),
        };
        let host = Host::open(parts, self.options.clone(), &site.dir)
            .await
            .unwrap();
        site.daemon = Some((host, dht, voter));
        self.world.unheard.lock().unwrap().remove(&self.me(i));
    }

    /// Kills the daemon alone; the guests' processes go on.
    pub fn kill_daemon(&mut self, i: usize) {
        self.world.unheard.lock().unwrap().insert(self.me(i));
        let site = &mut self.sites[i];
        if let Some((host, ..)) = site.daemon.take() {
            host.halt();
        }
        self.net.kill(site.identity.member_id());
    }

    /// The host loses power.
    pub fn power_off(&mut self, i: usize) {
        self.kill_daemon(i);
        self.world.power_off(self.me(i));
    }

    /// Cuts member `i` off from all others, or joins it to them again.
    pub fn isolate(&self, i: usize, cut: bool) {
        for j in (0..self.sites.len()).filter(|j| *j != i) {
            self.net.set_cut(self.me(i), self.me(j), cut);
        }
    }

    /// A VM of the lab's image, still to be made.
    pub fn new_vm(&self, name: &str) -> NewVm {
        NewVm {
            name: name.into(),
            image: ImageSource::File(self.image.clone()),
            cpus: 1,
            memory_mib: 64,
            disk_bytes: None,
            bits_per_second: None,
            user: None,
        }
    }

    /// A running VM on member `i`, its memory 42.
    pub async fn vm(&self, i: usize, name: &str) -> VmId {
        let vm = self
            .host(i)
            .create(self.new_vm(name), &watch::Sender::default())
            .await
            .unwrap()
            .definition
            .vm;
        self.host(i).start(name).await.unwrap();
        self.world
            .machine(vm, self.me(i))
            .unwrap()
            .memory
            .store(42, std::sync::atomic::Ordering::SeqCst);
        vm
    }

    /// Takes the snapshot "one" of the VM "web" on member `i`; waits until it is durable.
    pub async fn take_snapshot(&self, i: usize) {
        let mut taken = self
            .host(i)
            .snapshot("web", "one", &watch::Sender::default())
            .await
            .unwrap();
        taken
            .copies
            .wait_for(|c| c.durability == Durability::Durable)
            .await
            .unwrap();
        // The record with the providers follows.
        tokio::time::sleep(Duration::from_secs(5)).await;
    }

    /// How many pins and image files member `i` has.
    pub fn kept(&self, i: usize) -> (usize, usize) {
        let dir = &self.sites[i].dir;
        let pins = ChunkStore::open(dir.join("chunks"))
            .unwrap()
            .pins()
            .unwrap()
            .len();
        (pins, std::fs::read_dir(dir.join("images")).unwrap().count())
    }

    /// Waits until member `i` has nothing that keeps bytes on its disk.
    pub async fn keeps_nothing(&self, i: usize, context: &str) {
        for _ in 0..100 {
            if self.kept(i) == (0, 0) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        panic!("{context}: pins and image files {:?}", self.kept(i));
    }

    /// Sets a trap at `step`.
    pub fn trap(&self, step: Step) -> mpsc::Receiver<Strike> {
        let (sender, receiver) = mpsc::channel(4);
        *self.world.trap.lock().unwrap() = Some((step, sender));
        receiver
    }

    /// Moves "web" from member 0 to 1; the move stands at `step`.
    pub async fn moving(&self, step: Step) -> (Moving, Strike) {
        self.moving_because(Occasion::default(), step).await
    }

    /// The same, and says why.
    pub async fn moving_because(&self, why: Occasion, step: Step) -> (Moving, Strike) {
        let mut trap = self.trap(step);
        let (host, to) = (self.host(0), self.me(1));
        let moving = tokio::spawn(async move {
            let (options, progress) = (MigrateOptions::default(), watch::Sender::default());
            host.migrate_because(why, "web", to, options, progress)
                .await
        });
        (moving, trap.recv().await.unwrap())
    }

    /// Restores "web" from "one" on member `i`; the restore stands at `step`.
    pub async fn restoring(
        &self,
        i: usize,
        options: RestoreOptions,
        step: Step,
    ) -> (Restoring, Strike) {
        let (mut trap, host) = (self.trap(step), self.host(i));
        let restoring = tokio::spawn(async move {
            host.restore("web", "one", options, &watch::Sender::default())
                .await
        });
        (restoring, trap.recv().await.unwrap())
    }

    /// Waits until one of `wanted` alone runs the VM and has announced it, at most ten minutes of
    /// virtual time; returns which.
    pub async fn settles_on(&self, vm: VmId, wanted: &[usize], context: &str) -> usize {
        for _ in 0..1200 {
            let running = self.world.running(vm);
            assert!(running.len() <= 1, "{context}: {running:?}");
            if let Some(i) = wanted.iter().copied().find(|i| running == [self.me(*i)])
                && self.peers.announced.lock().unwrap()[&vm].1 == self.me(i)
                && self.sites[i].daemon.as_ref().is_some_and(|(h, ..)| {
                    h.list()
                        .iter()
                        .any(|s| s.definition.vm == vm && s.activity.is_none())
                })
            {
                return i;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        let lists: Vec<_> = self
            .sites
            .iter()
            .filter_map(|s| Some(s.daemon.as_ref()?.0.list()))
            .collect();
        panic!(
            "{context}: runs on {:?}, wanted one of {wanted:?}; {lists:#?}",
            self.world.running(vm)
        );
    }

    /// Never two guests of one VM at once.
    pub fn assert_never_double(&self, context: &str) {
        assert!(
            self.world.doubles.lock().unwrap().is_empty(),
            "{context}: {:?}",
            self.world.doubles.lock().unwrap()
        );
    }
}
