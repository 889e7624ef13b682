//! A hypervisor whose guests are a number each, and a world that sees all of them: it counts how
//! many guests of one VM run at any instant, and lets a test strike at any step of a move.

use async_trait::async_trait;
use p2pvm_overlay::{BoxStream, MemberId, UnixTime, VmId};
use p2pvm_snapshot_sync::{Block, FilePatch};
use p2pvm_vm_manager::{
    Error,
    guardian::GuardedProcess,
    hypervisor::{
        Accel, ChangedDisk, CheckpointFiles, Halt, Hypervisor, IncomingSockets, Machine,
        MachineSpec, MachineStats, MigrateOptions, MigrationReport, Progress, RunState, Start,
    },
};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::{mpsc, oneshot, watch},
};

/// Where a test may strike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Step {
    Launch,
    Mirror,
    Ram,
    Paused,
    /// A disk is brought to its image.
    Rebase,
    /// Before anything is handed over.
    SwitchOver,
    /// After the last byte left, before the source is told.
    HandedOver,
    FinishIncoming,
    Resume,
    Resumed,
    /// Memory and disk of a running guest are copied for a snapshot.
    Checkpoint,
}

pub type Strike = (Step, MemberId, oneshot::Sender<bool>);

/// All guests of all hosts.
#[derive(Default)]
pub struct World {
    machines: Mutex<Vec<Arc<FakeMachine>>>,
    /// The step to stop at, and the way to the test, which decides whether it fails (`true`).
    pub trap: Mutex<Option<(Step, mpsc::Sender<Strike>)>>,
    /// Hosts whose daemon is dead: a guest there has no port, so no packet of it leaves.
    pub unheard: Mutex<BTreeSet<MemberId>>,
    /// Guests that run although another of the same VM does: must stay empty.
    pub doubles: Mutex<Vec<String>>,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap()
}

impl World {
    /// The hosts, their daemons alive, on which a guest of the VM executes.
    pub fn running(&self, vm: VmId) -> Vec<MemberId> {
        let unheard = lock(&self.unheard).clone();
        let running =
            |m: &&Arc<FakeMachine>| m.spec.vm == vm && m.executes() && !unheard.contains(&m.host);
        lock(&self.machines)
            .iter()
            .filter(running)
            .map(|m| m.host)
            .collect()
    }

    pub fn machine(&self, vm: VmId, host: MemberId) -> Option<Arc<FakeMachine>> {
        lock(&self.machines)
            .iter()
            .rev()
            .find(|m| m.spec.vm == vm && m.host == host && *m.state.borrow() != RunState::Stopped)
            .cloned()
    }

    /// The host loses power.
    pub fn power_off(&self, host: MemberId) {
        for machine in lock(&self.machines).iter().filter(|m| m.host == host) {
            machine.state.send_replace(RunState::Stopped);
        }
    }

    /// A guardian freezes the VM's guest on a host, or thaws it.
    pub fn freeze(&self, vm: VmId, host: MemberId, frozen: bool) {
        let Some(machine) = self.machine(vm, host) else {
            return;
        };
        machine.frozen.store(frozen, Ordering::SeqCst);
        if !frozen && *machine.state.borrow() == RunState::Running {
            machine.check();
        }
    }

    /// Whether the VM's guest on a host is frozen.
    pub fn is_frozen(&self, vm: VmId, host: MemberId) -> bool {
        let machine = self.machine(vm, host);
        machine.is_some_and(|machine| machine.frozen.load(Ordering::SeqCst))
    }

    /// The hosts on which a guest of the VM executes, whether their daemons live or not.
    pub fn executes(&self, vm: VmId) -> Vec<MemberId> {
        let runs = |m: &&Arc<FakeMachine>| m.spec.vm == vm && m.executes();
        let machines = lock(&self.machines);
        machines.iter().filter(runs).map(|m| m.host).collect()
    }

    async fn at(&self, step: Step, host: MemberId) -> Result<(), Error> {
        let trap = {
            let mut trap = lock(&self.trap);
            if trap.as_ref().is_some_and(|(s, _)| *s == step) {
                trap.take()
            } else {
                None
            }
        };
        if let Some((_, sender)) = trap {
            let (answer, decision) = oneshot::channel();
            sender.send((step, host, answer)).await.unwrap();
            match decision.await {
                Ok(true) => {
                    return Err(Error::Hypervisor {
                        step: "striking",
                        detail: format!("{step:?} fails"),
                    });
                }
                Ok(false) => {}
                // The daemon that waits here is dead.
                Err(_) => std::future::pending().await,
            }
        }
        Ok(())
    }
}

pub struct FakeHypervisor {
    pub host: MemberId,
    pub world: Arc<World>,
}

pub struct FakeMachine {
    pub host: MemberId,
    world: Arc<World>,
    spec: MachineSpec,
    state: watch::Sender<RunState>,
    halt: Mutex<Option<Halt>>,
    /// The guest's memory.
    pub memory: AtomicU64,
    incoming: tokio::sync::Mutex<Option<(UnixListener, UnixListener)>>,
    outgoing: tokio::sync::Mutex<Option<UnixStream>>,
    handed_over: AtomicBool,
    /// A guardian has frozen its process.
    frozen: AtomicBool,
}

impl FakeMachine {
    fn executes(&self) -> bool {
        *self.state.borrow() == RunState::Running && !self.frozen.load(Ordering::SeqCst)
    }

    /// The guest stands still, or ends, by itself.
    pub fn halt(&self, why: Halt) {
        *lock(&self.halt) = Some(why);
        self.state.send_replace(if why == Halt::PoweredOff {
            RunState::Stopped
        } else {
            RunState::Paused
        });
    }

    /// The hypervisor lets the guest run on by itself: its last bytes could not be written.
    pub fn runs_on(&self) {
        self.state.send_replace(RunState::Running);
    }

    /// The guest is held.
    pub fn hold(&self) {
        self.state.send_replace(RunState::Paused);
    }

    fn run(&self) {
        *lock(&self.halt) = None;
        self.state.send_replace(RunState::Running);
        self.check();
    }

    /// Notes a guest that executes beside another one.
    fn check(&self) {
        let running = self.world.running(self.spec.vm);
        if running.len() > 1 {
            lock(&self.world.doubles).push(format!("{running:?}"));
        }
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.spec.run_dir.join(name)
    }
}

#[async_trait]
impl Hypervisor for FakeHypervisor {
    async fn accel(&self) -> Result<Accel, Error> {
        Ok(Accel::Tcg)
    }
    async fn create_disk(
        &self,
        image: &Path,
        disk: &Path,
        _size: Option<u64>,
    ) -> Result<(), Error> {
        assert!(image.exists());
        fs::write(disk, b"a disk").unwrap();
        Ok(())
    }
    async fn rebase_disk(&self, disk: &Path, image: &Path) -> Result<(), Error> {
        assert!(image.exists() && disk.exists());
        self.world.at(Step::Rebase, self.host).await
    }
    async fn check_image(&self, image: &Path) -> Result<u64, Error> {
        self.virtual_size(image).await
    }
    async fn virtual_size(&self, image: &Path) -> Result<u64, Error> {
        Ok(fs::metadata(image).unwrap().len())
    }
    async fn launch(&self, spec: &MachineSpec, start: Start) -> Result<Arc<dyn Machine>, Error> {
        self.world.at(Step::Launch, self.host).await?;
        fs::create_dir_all(&spec.run_dir).unwrap();
        let machine = Arc::new(FakeMachine {
            host: self.host,
            world: self.world.clone(),
            spec: spec.clone(),
            state: watch::Sender::new(RunState::Paused),
            halt: Mutex::default(),
            memory: AtomicU64::new(0),
            incoming: Default::default(),
            outgoing: Default::default(),
            handed_over: AtomicBool::default(),
            frozen: AtomicBool::default(),
        });
        lock(&self.world.machines).push(machine.clone());
        match start {
            Start::Boot => machine.run(),
            Start::Held => {}
            Start::Incoming => {
                machine.state.send_replace(RunState::Incoming);
                let bind = |name| UnixListener::bind(machine.socket(name)).unwrap();
                *machine.incoming.lock().await = Some((bind("in-ram.sock"), bind("in-disk.sock")));
            }
            Start::Checkpoint(ram) => {
                let bytes = fs::read(ram).unwrap();
                machine.memory.store(
                    u64::from_be_bytes(bytes[..8].try_into().unwrap()),
                    Ordering::SeqCst,
                );
            }
        }
        Ok(machine)
    }
    async fn end(&self, spec: &MachineSpec) -> Result<(), Error> {
        if let Some(machine) = self.alive(spec) {
            machine.state.send_replace(RunState::Stopped);
        }
        Ok(())
    }
    async fn adopt(&self, spec: &MachineSpec) -> Result<Option<Arc<dyn Machine>>, Error> {
        Ok(self.alive(spec).map(|m| m as Arc<dyn Machine>))
    }
    fn guarded(&self, spec: &MachineSpec) -> Option<GuardedProcess> {
        self.alive(spec)?.guarded()
    }
}

impl FakeHypervisor {
    fn alive(&self, spec: &MachineSpec) -> Option<Arc<FakeMachine>> {
        let alive = |m: &&Arc<FakeMachine>| {
            m.host == self.host && m.spec == *spec && *m.state.borrow() != RunState::Stopped
        };
        lock(&self.world.machines).iter().find(alive).cloned()
    }
}

fn broken(e: std::io::Error) -> Error {
    Error::Hypervisor {
        step: "the migration's stream",
        detail: e.to_string(),
    }
}

#[async_trait]
impl Machine for FakeMachine {
    fn spec(&self) -> &MachineSpec {
        &self.spec
    }
    fn guarded(&self) -> Option<GuardedProcess> {
        let lives = *self.state.borrow() != RunState::Stopped;
        // Not a process: for the fake guardian, which only compares numbers.
        let address = std::ptr::from_ref(self).addr() as u64;
        lives.then_some(GuardedProcess {
            pid: 1,
            started: address,
            freeze: None,
        })
    }
    fn watch(&self) -> watch::Receiver<RunState> {
        self.state.subscribe()
    }
    fn halted(&self) -> Option<Halt> {
        *lock(&self.halt)
    }
    async fn stop(&self, _patience: Duration) -> Result<(), Error> {
        self.kill().await
    }
    async fn kill(&self) -> Result<(), Error> {
        self.state.send_replace(RunState::Stopped);
        Ok(())
    }
    async fn pause(&self) -> Result<(), Error> {
        if *self.state.borrow() == RunState::Running {
            self.state.send_replace(RunState::Paused);
        }
        Ok(())
    }
    async fn resume(&self) -> Result<(), Error> {
        self.world.at(Step::Resume, self.host).await?;
        self.run();
        self.world.at(Step::Resumed, self.host).await
    }
    async fn stats(&self) -> Result<MachineStats, Error> {
        Ok(MachineStats::default())
    }
    async fn console(&self) -> Result<BoxStream, Error> {
        Ok(Box::new(tokio::io::duplex(64).0))
    }
    async fn incoming(&self) -> Result<IncomingSockets, Error> {
        Ok(IncomingSockets {
            ram: self.socket("in-ram.sock"),
            disk: self.socket("in-disk.sock"),
            export: "disk".into(),
        })
    }
    async fn finish_incoming(&self) -> Result<(), Error> {
        self.world.at(Step::FinishIncoming, self.host).await?;
        let (ram, disk) = self.incoming.lock().await.take().unwrap();
        let mirror = async {
            let (mut stream, _) = disk.accept().await.map_err(broken)?;
            let mut word = [0; 4];
            stream.read_exact(&mut word).await.map_err(broken)?;
            stream.write_all(&word).await.map_err(broken)?;
            std::future::pending::<Result<(), Error>>().await
        };
        let memory = async {
            let (mut stream, _) = ram.accept().await.map_err(broken)?;
            let mut word = [0; 8];
            stream.read_exact(&mut word).await.map_err(broken)?;
            stream.read_exact(&mut word).await.map_err(broken)?;
            self.memory
                .store(u64::from_be_bytes(word), Ordering::SeqCst);
            self.state.send_replace(RunState::Paused);
            Ok(())
        };
        tokio::select! { done = memory => done, failed = mirror => failed }
    }
    async fn mirror(
        &self,
        disk: &Path,
        export: &str,
        _progress: &watch::Sender<Progress>,
    ) -> Result<(), Error> {
        assert_eq!(export, "disk");
        self.world.at(Step::Mirror, self.host).await?;
        let mut stream = UnixStream::connect(disk).await.map_err(broken)?;
        stream.write_all(b"disk").await.map_err(broken)?;
        let mut word = [0; 4];
        stream.read_exact(&mut word).await.map_err(broken)?;
        Ok(())
    }
    async fn migrate_until_paused(
        &self,
        ram: &Path,
        _options: MigrateOptions,
        _progress: &watch::Sender<Progress>,
    ) -> Result<(), Error> {
        let mut stream = UnixStream::connect(ram).await.map_err(broken)?;
        stream.write_all(&[1; 8]).await.map_err(broken)?;
        self.world.at(Step::Ram, self.host).await?;
        tokio::time::sleep(Duration::from_secs(20)).await;
        self.state.send_replace(RunState::Paused);
        *self.outgoing.lock().await = Some(stream);
        self.world.at(Step::Paused, self.host).await
    }
    async fn switch_over(&self) -> Result<MigrationReport, Error> {
        self.world.at(Step::SwitchOver, self.host).await?;
        let mut outgoing = self.outgoing.lock().await;
        let stream = outgoing.as_mut().unwrap();
        stream
            .write_all(&self.memory.load(Ordering::SeqCst).to_be_bytes())
            .await
            .map_err(broken)?;
        stream.flush().await.map_err(broken)?;
        self.handed_over.store(true, Ordering::SeqCst);
        self.world.at(Step::HandedOver, self.host).await?;
        Ok(MigrationReport {
            total_ms: 20_000,
            downtime_ms: 5,
            ram_bytes: 16,
            rounds: 1,
        })
    }
    async fn may_be_handed_over(&self) -> Result<bool, Error> {
        Ok(self.handed_over.load(Ordering::SeqCst))
    }
    async fn cancel_migration(&self) -> Result<(), Error> {
        self.handed_over.store(false, Ordering::SeqCst);
        *self.outgoing.lock().await = None;
        self.run();
        Ok(())
    }
    async fn checkpoint(
        &self,
        dir: &Path,
        _progress: &watch::Sender<Progress>,
    ) -> Result<CheckpointFiles, Error> {
        self.world.at(Step::Checkpoint, self.host).await?;
        let (ram, disk) = (dir.join("ram"), dir.join("disk"));
        let memory = self.memory.load(Ordering::SeqCst).to_be_bytes();
        fs::write(&ram, memory).unwrap();
        fs::write(&disk, [b"disk ", &memory[..]].concat()).unwrap();
        Ok(CheckpointFiles {
            ram,
            disk,
            pause: Duration::from_millis(3),
        })
    }
    /// All of the disk each time.
    async fn changed_blocks(&self, dir: &Path, _whole: bool) -> Result<ChangedDisk, Error> {
        fs::create_dir_all(dir).unwrap();
        let file = dir.join("disk");
        let memory = self.memory.load(Ordering::SeqCst).to_be_bytes();
        let content = [b"disk ", &memory[..]].concat();
        fs::write(&file, &content).unwrap();
        Ok(ChangedDisk {
            file,
            patch: FilePatch {
                size: content.len() as u64,
                blocks: vec![(0, Block::At(0))],
            },
            begun: UnixTime::now(),
            whole: true,
        })
    }
}
