//! The driver of the autonomic manager: measures this host and its guests, carries its gossip and
//! offers, and starts the migrations that it and the chosen peer have agreed on. Decides nothing
//! itself.

use crate::config::Config;
use crate::{
    parts::Parts, placement::drained::Drained, placement::figures::figures, placement::load::Meter,
    placement::moves::Moves,
};
use async_trait::async_trait;
use p2pvm_api::{Decided, Explained};
use p2pvm_autonomic::{
    Explanation, Input, LocalLoad, Manager as Machine, Message, MigrationEnd, Millis, OfferRefusal,
    Output, Talk, VmLoad,
};
use p2pvm_host::lock;
use p2pvm_overlay::{Fabric, MemberId, Serve, VmId};
use p2pvm_vm_manager::{
    host::{Host, VmState},
    hypervisor::MigrateOptions,
    migrate::{Occasion, RunningSide},
};
use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};
use tokio::sync::{mpsc, watch};

/// The service that carries load and offers.
const SERVICE: &str = "load";
/// The service that answers why a VM was moved.
const EXPLAIN: &str = "why";
/// How long before a message that has not arrived counts as lost.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);

/// The manager and its inputs.
pub struct Manager {
    parts: Arc<Parts>,
    host: Arc<Host>,
    machine: Arc<Mutex<Machine>>,
    outputs: mpsc::Sender<Output>,
    waiting: Mutex<Option<mpsc::Receiver<Output>>>,
    tick: Duration,
    cpus: u32,
    /// The last measured load, as the bits of an f64.
    cpu: AtomicU64,
    /// How many processors each guest here keeps busy, as last measured.
    guests: Mutex<HashMap<VmId, f64>>,
    /// After a drain, until VMs are accepted again.
    drained: Mutex<Option<Drained>>,
    /// Moves from here that are under way.
    pub moves: Moves,
}

/// The ages of loads and rests are measured by it, so it must not jump with the wall clock.
fn now() -> Millis {
    Millis(p2pvm_overlay::network_time::steady_millis())
}

fn steady() -> Duration {
    Duration::from_millis(now().0)
}

impl Manager {
    /// Starts to answer peers. [`Manager::run`] does the rest.
    pub fn start(parts: Arc<Parts>, host: Arc<Host>, config: &Config) -> Arc<Self> {
        let (outputs, waiting) = mpsc::channel(256);
        let mut placement = config.placement.clone();
        placement.enabled &= config.autonomic;
        let tick = Duration::from_millis(placement.tick_ms);
        let machine = Arc::new(Mutex::new(Machine::new(
            parts.me(),
            placement,
            rand::random(),
        )));
        let manager = Arc::new(Self {
            parts,
            host,
            machine,
            outputs,
            waiting: Mutex::new(Some(waiting)),
            tick,
            cpus: config.cpus,
            cpu: AtomicU64::default(),
            guests: Mutex::default(),
            drained: Mutex::default(),
            moves: Moves::default(),
        });
        manager
            .parts
            .fabric()
            .serve(SERVICE, Arc::new(PlacementService(manager.clone())));
        manager
            .parts
            .fabric()
            .serve(EXPLAIN, Arc::new(ExplainService(manager.clone())));
        manager
    }

    fn lock(&self) -> MutexGuard<'_, Machine> {
        lock(&self.machine)
    }

    /// Passes inputs to the manager and carries out its outputs.
    fn tell(&self, inputs: impl IntoIterator<Item = Input>) {
        let wanted: Vec<Output> = {
            let mut machine = self.lock();
            for input in inputs {
                machine.handle(now(), input);
            }
            std::iter::from_fn(|| machine.poll()).collect()
        };
        for output in wanted {
            // Gossip and offers may get lost; a move that does not start is offered again.
            if self.outputs.try_send(output).is_err() {
                tracing::warn!("the autonomic manager asks for more than is carried out");
            }
        }
    }

    /// Measures, ticks and carries out until the daemon ends.
    pub async fn run(self: Arc<Self>) {
        let Some(mut outputs) = lock(&self.waiting).take() else {
            return;
        };
        let mut meter = Meter::new(self.cpus);
        let mut guests = Guests::default();
        let mut every = tokio::time::interval(self.tick);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = every.tick() => {
                    let load = self.measure(&mut meter, &mut guests).await;
                    self.end_rest();
                    self.tell(
                        [
                            Input::LocalLoad(load),
                            Input::Neighbours(self.parts.fabric().connected()), Input::Tick
                        ]
                    );
                }
                Some(output) = outputs.recv() => self.carry_out(output),
            }
        }
    }

    async fn measure(&self, meter: &mut Meter, guests: &mut Guests) -> LocalLoad {
        let busy: HashMap<VmId, bool> = self
            .host
            .list()
            .iter()
            .map(|vm| {
                (
                    vm.definition.vm,
                    vm.state != VmState::Running || vm.activity.is_some(),
                )
            })
            .collect();
        let used: Vec<_> = self
            .host
            .stats()
            .await
            .vms
            .into_iter()
            .map(|vm| (vm.vm, vm.machine.cpu_time, vm.memory_mib))
            .collect();
        let mut vms = guests.sample(&used, &busy);
        self.note_traffic(&mut vms);
        *lock(&self.guests) = vms.iter().map(|vm| (vm.vm, vm.cpu)).collect();
        let load = meter.sample(vms.iter().map(|vm| vm.cpu).sum());
        self.cpu.store(load.cpu.to_bits(), Ordering::Relaxed);
        LocalLoad {
            cpu: load.cpu,
            cpus: load.cpus.round().max(1.0) as u32,
            // What guests were given counts, though they do not use all of it yet.
            memory_used_mib: load.memory_used_mib.max(self.host.promised_mib()),
            memory_total_mib: load.memory_total_mib,
            vms,
            place: self.parts.connector.coordinate(self.parts.me()),
        }
    }

    /// The members that the guests talk with, by the packet plane's matrix, and their coordinates.
    fn note_traffic(&self, vms: &mut [VmLoad]) {
        let traffic = self.parts.plane.traffic();
        let guests: HashMap<VmId, [IpAddr; 2]> = self
            .host
            .list()
            .iter()
            .map(|vm| {
                (
                    vm.definition.vm,
                    [
                        vm.definition.address.v4.into(),
                        vm.definition.address.v6.into(),
                    ],
                )
            })
            .collect();
        for vm in vms {
            let mut rates: HashMap<MemberId, f64> = HashMap::new();
            let addresses = guests.get(&vm.vm).into_iter().flatten();
            for (member, _, rate) in addresses.flat_map(|address| traffic.peers_of(*address)) {
                *rates.entry(member).or_default() += rate;
            }
            let talk = |(member, rate)| Talk {
                member,
                rate,
                place: self.parts.connector.coordinate(member),
            };
            vm.talks = rates.into_iter().map(talk).collect();
        }
    }

    fn carry_out(self: &Arc<Self>, output: Output) {
        let this = self.clone();
        match output {
            Output::Send(to, message) => drop(tokio::spawn(async move {
                if let Err(error) = this
                    .parts
                    .fabric()
                    .call(to, SERVICE, message.encode(), SEND_TIMEOUT)
                    .await
                {
                    tracing::debug!(
                        ?to,
                        error = %p2pvm_host::chain(&error),
                        "a member did not take gossip about load"
                    );
                }
            })),
            Output::Migrate { vm, to, reason } => drop(tokio::spawn(async move {
                let end = this.migrate(vm, to, &reason).await;
                this.tell([Input::MigrationDone { vm, end }]);
            })),
            Output::Explain(explanation) => {
                tracing::info!(vm = %explanation.vm.short(), "{explanation}")
            }
        }
    }

    async fn migrate(&self, vm: VmId, to: MemberId, reason: &Explanation) -> MigrationEnd {
        let Some(name) = self
            .host
            .list()
            .into_iter()
            .find(|status| status.definition.vm == vm)
            .map(|status| status.name)
        else {
            return MigrationEnd::Failed;
        };
        tracing::info!(vm = %name, to = %to.short(), "moving: {reason}");
        let progress = watch::Sender::default();
        let certificate = self.parts.control.certificate(to);
        let called = certificate.map_or_else(|| to.short(), |c| c.name().to_owned());
        self.moves.follow(&name, called.clone(), &progress);
        let why = Occasion {
            cause: "autonomic",
            reason: Some(self.named(reason)),
            called: Some(called),
            ..Occasion::default()
        };
        match self
            .host
            .migrate_because(why, &name, to, MigrateOptions::default(), progress)
            .await
        {
            Ok(outcome) if outcome.runs_on == RunningSide::Target => MigrationEnd::Moved,
            Ok(outcome) if outcome.cancelled => MigrationEnd::Cancelled,
            Ok(_) => MigrationEnd::Failed,
            Err(error) => {
                tracing::warn!(
                    vm = %name,
                    error = %p2pvm_host::chain(&error),
                    "the VM was not moved"
                );
                MigrationEnd::Failed
            }
        }
    }

    /// The last measured processor load, 0 to 1.
    pub fn cpu(&self) -> f64 {
        f64::from_bits(self.cpu.load(Ordering::Relaxed))
    }

    /// How many processors a guest here keeps busy, as last measured.
    pub fn cpu_of(&self, vm: VmId) -> Option<f64> {
        lock(&self.guests).get(&vm).copied()
    }

    /// The member with the least load among those this one knows of.
    pub fn least_loaded(&self) -> Option<MemberId> {
        self.by_load().into_iter().next()
    }

    /// The members that this one knows of, the least busy first.
    pub fn by_load(&self) -> Vec<MemberId> {
        let known = self.lock().status(now()).known;
        let connected = self.parts.fabric().connected();
        let mut best: Vec<(MemberId, f32)> = known
            .into_iter()
            .filter_map(|(member, load, _)| Some((member.parse().ok()?, load)))
            .collect();
        best.retain(|(member, _)| connected.contains(member));
        best.sort_by(|a, b| a.1.total_cmp(&b.1));
        best.into_iter().map(|(member, _)| member).collect()
    }

    /// The members with room for a VM, best first.
    pub fn places_for(&self, vm: VmId) -> Vec<MemberId> {
        self.lock()
            .places_for(vm)
            .into_iter()
            .map(|place| place.member)
            .collect()
    }

    /// Sets whether VMs are accepted: not while this host is being drained.
    pub fn accept(&self, accept: bool) {
        *lock(&self.drained) = None;
        self.tell([Input::Draining(!accept)]);
    }

    /// Notes that a drain is done: VMs are accepted again once this host is in use.
    pub fn rest(&self) {
        *lock(&self.drained) = Some(Drained::new(steady(), self.states()));
    }

    /// Accepts VMs again if the time after a drain is over.
    fn end_rest(&self) {
        if lock(&self.drained).is_none() {
            return;
        }
        let states = self.states();
        let is_over = |drained: &mut Drained| drained.is_over(steady(), states);
        let ended = lock(&self.drained).take_if(is_over);
        if ended.is_some() {
            tracing::info!("VMs are accepted again after the drain of this host");
            self.accept(true);
        }
    }

    fn states(&self) -> Vec<(VmId, VmState)> {
        let vms = self.host.list().into_iter();
        vms.map(|vm| (vm.definition.vm, vm.state)).collect()
    }

    /// Sets whether VMs of other members may come: other members hear of this one only then.
    pub fn offer(&self, is_open: bool) {
        self.tell([Input::Offering(is_open)]);
    }

    /// Whether an offered VM is refused because of what this host's owner offers. Its source is
    /// told.
    fn is_not_offered(self: &Arc<Self>, from: MemberId, message: &Message) -> bool {
        let Message::Offer(offer) = message else {
            return false;
        };
        let Err(error) = self.host.would_take(offer.vm, from, offer.memory_mib) else {
            return false;
        };
        tracing::debug!(?from, error = %p2pvm_host::chain(&error), "refused an offered VM");
        let load = self.lock().load_vector();
        let answer = Message::Reject {
            id: offer.id,
            why: OfferRefusal::Unavailable,
            load,
        };
        self.carry_out(Output::Send(from, answer));
        true
    }

    /// The decisions of this member about a VM.
    pub fn explain(&self, vm: VmId) -> Vec<Explained> {
        let told = self.lock().explain(vm);
        told.iter().map(|e| self.explained(e)).collect()
    }

    /// The last decisions of this member about all VMs, the newest first.
    pub fn decisions(&self, most: usize) -> Vec<Decided> {
        let mut told = self.lock().explanations();
        told.sort_by_key(|e| std::cmp::Reverse(e.at));
        told.iter()
            .take(most)
            .map(|e| Decided {
                vm: e.vm.to_string().into(),
                explained: self.explained(e),
            })
            .collect()
    }

    fn explained(&self, e: &Explanation) -> Explained {
        Explained {
            at: humantime::format_rfc3339_millis(
                SystemTime::UNIX_EPOCH + Duration::from_millis(e.at.0),
            )
            .to_string(),
            host: String::new(),
            text: self.named(e),
            details: Some(figures(e)),
        }
    }

    /// The explanation with the peer's name instead of its id.
    fn named(&self, explanation: &Explanation) -> String {
        let text = explanation.to_string();
        match explanation.peer.and_then(|peer| {
            Some((
                peer.short(),
                self.parts.control.certificate(peer)?.name().to_owned(),
            ))
        }) {
            Some((short, name)) => text.replace(&short, &name),
            None => text,
        }
    }

    /// The decisions of connected members about a VM.
    pub async fn ask_explanations(
        &self,
        fabric: &dyn Fabric,
        vm: VmId,
    ) -> Vec<(MemberId, Vec<Explained>)> {
        let members = fabric.connected();
        let asked = members.into_iter().map(|member| async move {
            let answer = fabric
                .call(member, EXPLAIN, vm.0.to_vec(), SEND_TIMEOUT)
                .await
                .ok()?;
            Some((
                member,
                serde_json::from_slice::<Vec<Explained>>(&answer).ok()?,
            ))
        });
        futures::future::join_all(asked)
            .await
            .into_iter()
            .flatten()
            .collect()
    }
}

/// Processor use of guests between two samples.
#[derive(Default)]
struct Guests(HashMap<VmId, (Instant, Duration)>);

impl Guests {
    fn sample(
        &mut self,
        used: &[(VmId, Duration, u64)],
        busy: &HashMap<VmId, bool>,
    ) -> Vec<VmLoad> {
        let now = Instant::now();
        let mut fresh = HashMap::new();
        let mut loads = Vec::new();
        for (vm, cpu_time, memory_mib) in used {
            let cpu = match self.0.get(vm) {
                Some((then, before)) if now > *then => {
                    cpu_time.saturating_sub(*before).as_secs_f64() / (now - *then).as_secs_f64()
                }
                _ => 0.0,
            };
            fresh.insert(*vm, (now, *cpu_time));
            loads.push(VmLoad {
                vm: *vm,
                cpu,
                memory_mib: *memory_mib,
                movable: !busy.get(vm).copied().unwrap_or(true),
                talks: Vec::new(),
            });
        }
        self.0 = fresh;
        loads
    }
}

struct PlacementService(Arc<Manager>);

#[async_trait]
impl Serve for PlacementService {
    async fn serve(&self, from: MemberId, body: Vec<u8>) -> Result<Vec<u8>, String> {
        let message = Message::decode(&body).map_err(|e| e.to_string())?;
        if !self.0.is_not_offered(from, &message) {
            self.0.tell([Input::Received(from, message)]);
        }
        Ok(Vec::new())
    }
}

struct ExplainService(Arc<Manager>);

#[async_trait]
impl Serve for ExplainService {
    async fn serve(&self, _from: MemberId, body: Vec<u8>) -> Result<Vec<u8>, String> {
        let vm = VmId(body.try_into().map_err(|_| "not a VM's id".to_owned())?);
        serde_json::to_vec(&self.0.explain(vm)).map_err(|e| e.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guests_use_is_what_it_consumed_since_the_last_sample() {
        let vm = VmId([1; 32]);
        let mut guests = Guests::default();
        assert_eq!(
            guests.sample(&[(vm, Duration::from_secs(10), 128)], &HashMap::new())[0].cpu,
            0.0
        );
        std::thread::sleep(Duration::from_millis(50));
        let load = &guests.sample(
            &[(vm, Duration::from_secs(10) + Duration::from_millis(25), 128)],
            &HashMap::from([(vm, false)]),
        )[0];
        assert!(
            load.cpu > 0.05 && load.cpu <= 0.5 && load.movable,
            "{load:?}"
        );
    }
}

#[cfg(test)]
#[path = "manager_golden_tests.rs"]
mod golden_tests;
