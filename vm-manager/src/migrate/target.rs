//! The target's side of a migration: prepares image, disk and a waiting guest, is armed, runs the
//! guest the moment it is whole, and has its voters confirm that. See [`super::handover`] for when
//! it may run.

use super::{
    handover::{TargetInput, TargetOutput, TargetState, TargetWindow},
    tunnel::{self, Channel},
    wire::{self, Answer, Ask, Beside, Burden, Offer, SERVICE},
};
use crate::{
    Error,
    ballot::{BallotError, Ground, Voted},
    directory::Wanted,
    host::{Busy, Entry, Host, Role, Side, Slot, lock},
    hypervisor::{IncomingSockets, Machine, Progress, Start},
    trace::{Step, Trail},
};
use async_trait::async_trait;
use p2pvm_overlay::{BoxStream, MemberId, Serve, VmId, chain};
use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex, OnceLock, Weak},
    time::Duration,
};
use tokio::sync::{Notify, watch};

/// A target whose source has said nothing for so long, and has not armed it, gives up.
const SILENCE: Duration = Duration::from_secs(30);
/// How long a request for news waits for some.
const NEWS: Duration = Duration::from_secs(1);
/// Between two attempts at a confirmation.
const CONFIRM_PAUSE: Duration = Duration::from_millis(200);
/// How many ended arrivals are remembered, for sources that ask late.
const REMEMBERED: usize = 256;

/// The migrations towards this host, by id.
#[derive(Default)]
pub struct Arrivals(Mutex<BTreeMap<u64, Arc<Arrival>>>);

/// How far the preparation is.
#[derive(Clone, Debug)]
enum Stage {
    Preparing,
    Ready {
        export: String,
    },
    /// Over, and nothing of the VM is left here.
    Gone {
        reason: String,
    },
}

struct Arrival {
    offer: Offer,
    from: MemberId,
    stage: Mutex<Stage>,
    window: Mutex<TargetWindow>,
    reason: Mutex<String>,
    heard: Mutex<Duration>,
    /// Whether the outcome that the window names has been carried out and written down.
    settled: Mutex<bool>,
    granted: tokio::sync::Mutex<bool>,
    sockets: OnceLock<IncomingSockets>,
    progress: watch::Sender<Progress>,
    news: Notify,
    trail: Trail,
    /// The span of the whole arrival, until it is over.
    root: Mutex<Option<Step>>,
    /// The memory's and the disk's coming in, since the first stream of each.
    coming: Mutex<[Option<Step>; 2]>,
}

impl Arrival {
    fn id(&self) -> u64 {
        self.offer.id
    }

    fn answer(&self) -> Answer {
        if let Stage::Gone { reason } = &*lock(&self.stage) {
            return Answer::Gone {
                reason: reason.clone(),
            };
        }
        match (lock(&self.window).state(), *lock(&self.settled)) {
            (TargetState::Confirmed, true) => Answer::Confirmed {
                epoch: self.offer.epoch,
            },
            (TargetState::Frozen, _) => Answer::Doubtful,
            (TargetState::Running | TargetState::Confirmed, _) => Answer::Running,
            (TargetState::Waiting | TargetState::GaveUp, _) => Answer::Waiting,
        }
    }

    /// A stream of it began.
    fn stream_began(&self, channel: Channel) {
        let mut coming = lock(&self.coming);
        let (at, name) = if channel == Channel::Ram {
            (0, "receive memory")
        } else {
            (1, "receive disk")
        };
        if coming[at].is_none() && !matches!(*lock(&self.stage), Stage::Gone { .. }) {
            coming[at] = Some(self.trail.step(name));
        }
    }

    /// All has come in, or will not any more.
    fn streams_ended<T>(&self, outcome: &Result<T, Error>) {
        for step in std::mem::take(&mut *lock(&self.coming))
            .into_iter()
            .flatten()
        {
            step.ended(outcome);
        }
    }

    /// It is over, for its trace.
    fn over(&self, outcome: Result<(), &str>) {
        if let Some(root) = lock(&self.root).take() {
            match outcome {
                Ok(()) => root.done(),
                Err(why) => root.failed(&why),
            }
        }
    }

    fn give_up(&self, now: Duration, reason: &str) {
        let output = lock(&self.window).handle(now, TargetInput::Abandon);
        if output == Some(TargetOutput::GiveUp) {
            *lock(&self.reason) = reason.to_owned();
        }
        self.news.notify_waiters();
    }
}

/// Answers the service "migrate".
pub(crate) struct Doorman(pub(crate) Weak<Host>);

#[async_trait]
impl Serve for Doorman {
    async fn serve(&self, from: MemberId, body: Vec<u8>) -> Result<Vec<u8>, String> {
        let host = self.0.upgrade().ok_or("this host is shutting down")?;
        let (ask, beside) =
            wire::decode(&body).map_err(|e| format!("the request cannot be read: {e}"))?;
        let answer = host
            .answer(from, ask, &beside)
            .await
            .map_err(|e| chain(&e))?;
        Ok(postcard::to_allocvec(&answer).expect("plain fields always serialize"))
    }
}

impl Host {
    /// Takes the streams of migrations towards this host.
    pub(crate) fn accept_migration_streams(&self) {
        let mut streams = self.parts.fabric.accept_streams(SERVICE);
        let Some(this) = self.strong().map(|h| Arc::downgrade(&h)) else {
            return;
        };
        self.spawn(async move {
            while let Some((from, stream)) = streams.recv().await {
                let Some(host) = this.upgrade() else { return };
                let weak = this.clone();
                host.spawn(async move {
                    if let Err(error) = deliver(weak, from, stream).await {
                        tracing::info!(from = %from.short(), error = %chain(&error), "a stream of \
                            a migration broke");
                    }
                });
            }
        });
    }

    async fn answer(
        self: &Arc<Self>,
        from: MemberId,
        ask: Ask,
        beside: &Beside,
    ) -> Result<Answer, Error> {
        let known = |id: &u64| {
            lock(&self.arrivals.0)
                .get(id)
                .filter(|a| a.from == from)
                .cloned()
        };
        let heard = |arrival: &Arrival| *lock(&arrival.heard) = self.now();
        match ask {
            Ask::Prepare(offer) => match known(&offer.id) {
                Some(arrival) => Ok(arrival.answer()),
                None => self.begin_arrival(from, *offer, beside).await,
            },
            Ask::Progress { id } => {
                let Some(arrival) = known(&id) else {
                    return Ok(Answer::Unknown);
                };
                heard(&arrival);
                let stage = lock(&arrival.stage).clone();
                Ok(match stage {
                    Stage::Preparing => Answer::Preparing(arrival.progress.borrow().clone()),
                    Stage::Ready { export } => Answer::Ready { export },
                    Stage::Gone { reason } => Answer::Gone { reason },
                })
            }
            Ask::Arm { id, serial } => {
                let Some(arrival) = known(&id) else {
                    return Ok(Answer::Unknown);
                };
                heard(&arrival);
                self.arm_arrival(&arrival, serial).await
            }
            Ask::Settle { id, vm, running } => {
                let Some(arrival) = known(&id) else {
                    return Ok(self.remembered(vm));
                };
                heard(&arrival);
                let old = if running {
                    Answer::Running
                } else {
                    Answer::Waiting
                };
                let news = async {
                    loop {
                        let notified = arrival.news.notified();
                        if arrival.answer() != old {
                            return;
                        }
                        notified.await;
                    }
                };
                // No news within the time is an answer too.
                let _ = tokio::time::timeout(NEWS, news).await;
                Ok(arrival.answer())
            }
            Ask::Abort { id, vm, reason } => {
                let Some(arrival) = known(&id) else {
                    return Ok(self.remembered(vm));
                };
                arrival.give_up(self.now(), &reason);
                Ok(arrival.answer())
            }
        }
    }

    /// What this host can say of a migration that it no longer remembers.
    fn remembered(&self, vm: VmId) -> Answer {
        match self.slot_of(vm).map(|slot| slot.entry()) {
            Some(Entry {
                role: Role::Held | Role::Leaving { .. },
                epoch,
                ..
            }) => Answer::Confirmed { epoch },
            Some(Entry {
                role: Role::Doubtful {
                    side: Side::Target, ..
                },
                ..
            }) => Answer::Doubtful,
            _ => Answer::Unknown,
        }
    }

    /// Whether this host's disk has room for what comes. A source of a former version does not say
    /// how much that is.
    async fn fits(&self, offer: &Offer, burden: Option<Burden>) -> Result<(), Error> {
        let Some(Burden { disk, image }) = burden else {
            return Ok(());
        };
        let image = if self.parts.vault.has_image(offer.definition.image).await {
            0
        } else {
            image
        };
        // An image arrives as chunks, of which its file is then made.
        self.room_on_disk(disk.saturating_add(image.saturating_mul(2)))
    }

    /// Whether the VM may come here; if so it has its place.
    fn admit(&self, from: MemberId, offer: &Offer) -> Result<(Arc<Slot>, Busy), Error> {
        let name = &offer.definition.name;
        if offer.secret.keys().vm_id() != offer.definition.vm {
            return Err(Error::Refused(format!(
                "the offer of '{name}' has another VM's key"
            )));
        }
        if self.slot_of(offer.definition.vm).is_some() {
            return Err(Error::Refused(format!(
                "'{name}' is on this host already, or still arriving"
            )));
        }
        self.room_for(offer.definition.memory_mib)?;
        let slot = self.insert(Entry {
            definition: offer.definition.clone(),
            secret: offer.secret.clone(),
            epoch: offer.epoch,
            arrived: offer.epoch,
            seq: 0,
            role: Role::Arriving { id: offer.id, from },
            wanted: Wanted::Running,
            snapshots: offer.snapshots.clone(),
            note: None,
            gives_way: None,
        })?;
        let busy = slot.begin("arriving")?;
        Ok((slot, busy))
    }

    async fn begin_arrival(
        self: &Arc<Self>,
        from: MemberId,
        offer: Offer,
        beside: &Beside,
    ) -> Result<Answer, Error> {
        let root = self.receive_trace(&beside.within, &offer, from);
        let trail = root.trail();
        let admission = trail.step("admit");
        let admitted = self
            .fits(&offer, beside.burden)
            .await
            .and_then(|()| self.admit(from, &offer));
        admission.ended(&admitted);
        let (slot, busy) = match admitted {
            Ok(place) => place,
            Err(e) => {
                root.failed(&chain(&e));
                return Err(e);
            }
        };
        let trace = root.trace_id().map(tracing::field::display);
        let span = tracing::info_span!(
            "migrate",
            id = %format_args!("{:016x}", offer.id),
            vm = %offer.definition.name,
            from = %from.short(),
            trace,
        );
        let arrival = Arc::new(Arrival {
            offer,
            from,
            stage: Mutex::new(Stage::Preparing),
            window: Mutex::default(),
            reason: Mutex::default(),
            heard: Mutex::new(self.now()),
            settled: Mutex::new(false),
            granted: tokio::sync::Mutex::new(false),
            sockets: OnceLock::new(),
            progress: watch::Sender::default(),
            news: Notify::new(),
            trail,
            root: Mutex::new(Some(root)),
            coming: Mutex::default(),
        });
        {
            let mut arrivals = lock(&self.arrivals.0);
            if arrivals.len() >= REMEMBERED {
                arrivals.retain(|_, a| {
                    !matches!(a.answer(), Answer::Gone { .. } | Answer::Confirmed { .. })
                });
            }
            arrivals.insert(arrival.id(), arrival.clone());
        }
        let host = self.clone();
        let work = async move {
            let _busy = busy;
            host.arrive(&slot, &arrival).await;
        };
        self.spawn(tracing::Instrument::instrument(work, span));
        Ok(Answer::Preparing(Progress::default()))
    }

    async fn arm_arrival(&self, arrival: &Arrival, serial: u64) -> Result<Answer, Error> {
        if !matches!(*lock(&arrival.stage), Stage::Ready { .. }) {
            return Ok(arrival.answer());
        }
        let mut granted = arrival.granted.lock().await;
        if !*granted {
            let (keys, definition) = (arrival.offer.secret.keys(), &arrival.offer.definition);
            let vm = Voted {
                keys: &keys,
                voters: &definition.voters,
            };
            let grant = self
                .parts
                .ballot
                .grant(vm, arrival.offer.epoch, self.me, Ground::Mandate);
            arrival
                .trail
                .through("ask the voters", grant)
                .await
                .map_err(|e| Error::Agreement {
                    step: "asking the VM's voters for the target's epoch",
                    detail: chain(&e),
                })?;
            *granted = true;
        }
        drop(granted);
        let output = lock(&arrival.window).handle(self.now(), TargetInput::Arm(serial));
        arrival.news.notify_waiters();
        Ok(if output == Some(TargetOutput::Armed) {
            Answer::Armed
        } else {
            arrival.answer()
        })
    }

    async fn arrive(&self, slot: &Arc<Slot>, arrival: &Arc<Arrival>) {
        let ready = tokio::select! {
            ready = self.prepare(slot, arrival) => ready,
            reason = self.given_up(arrival) => Err(Error::Refused(reason)),
        };
        let machine = match ready {
            Ok(machine) => machine,
            Err(e) => return self.leave_nothing(slot, arrival, &chain(&e)).await,
        };
        tracing::info!("ready to receive");
        let whole = tokio::select! {
            whole = machine.finish_incoming() => whole,
            reason = self.given_up(arrival) => Err(Error::Refused(reason)),
        };
        arrival.streams_ended(&whole);
        if let Err(e) = whole {
            return self.leave_nothing(slot, arrival, &chain(&e)).await;
        }
        let may_run = lock(&arrival.window).handle(self.now(), TargetInput::Whole);
        if may_run != Some(TargetOutput::Resume) {
            return self
                .leave_nothing(slot, arrival, "it became whole after its window had closed")
                .await;
        }
        if let Err(e) = self.run_arrived(slot, arrival, &*machine).await {
            return self.leave_nothing(slot, arrival, &chain(&e)).await;
        }
        arrival.news.notify_waiters();
        tracing::info!("the guest runs here");
        self.confirm_arrived(slot, arrival).await;
        arrival.news.notify_waiters();
    }

    async fn prepare(
        &self,
        slot: &Arc<Slot>,
        arrival: &Arrival,
    ) -> Result<Arc<dyn Machine>, Error> {
        let definition = &arrival.offer.definition;
        arrival.progress.send_modify(|p| p.phase = "image".into());
        let mut providers = self.parts.fabric.connected();
        providers.retain(|m| *m != arrival.from);
        providers.insert(0, arrival.from);
        let fetching =
            self.parts
                .vault
                .ensure_image(definition.image, &providers, &arrival.progress);
        let image = arrival.trail.through("fetch image", fetching).await?;
        let waiting = self.start_waiting(slot, arrival, &image);
        arrival
            .trail
            .through("start the waiting guest", waiting)
            .await
    }

    async fn start_waiting(
        &self,
        slot: &Arc<Slot>,
        arrival: &Arrival,
        image: &Path,
    ) -> Result<Arc<dyn Machine>, Error> {
        let (definition, hypervisor) = (&arrival.offer.definition, &self.parts.hypervisor);
        let spec = self.registry.spec(&slot.entry());
        hypervisor
            .create_disk(image, &spec.disk, Some(definition.disk_bytes))
            .await?;
        let machine = hypervisor.launch(&spec, Start::Incoming).await?;
        self.install(slot, machine.clone());
        let sockets = machine.incoming().await?;
        let export = sockets.export.clone();
        // Set once: an arrival is prepared once.
        let _ = arrival.sockets.set(sockets);
        *lock(&arrival.stage) = Stage::Ready { export };
        Ok(machine)
    }

    async fn run_arrived(
        &self,
        slot: &Slot,
        arrival: &Arrival,
        machine: &dyn Machine,
    ) -> Result<(), Error> {
        let (spec, address) = (
            self.registry.spec(&slot.entry()),
            &arrival.offer.definition.address,
        );
        let resuming = async {
            self.parts
                .port
                .attach(&spec, address, arrival.offer.epoch)
                .await?;
            machine.resume().await
        };
        arrival.trail.through("resume", resuming).await?;
        let (keys, definition) = (arrival.offer.secret.keys(), &arrival.offer.definition);
        let announcing = self
            .parts
            .port
            .announce(&keys, definition, self.me, arrival.offer.epoch);
        if let Err(e) = arrival.trail.through("announce", announcing).await {
            tracing::warn!(error = %chain(&e), "the new place could not be announced; the old \
                host forwards");
        }
        Ok(())
    }

    /// Asks for confirmations until a majority gave them or the time is over.
    async fn confirm_arrived(&self, slot: &Arc<Slot>, arrival: &Arc<Arrival>) {
        let (keys, offer) = (arrival.offer.secret.keys(), &arrival.offer);
        let vm = Voted {
            keys: &keys,
            voters: &offer.definition.voters,
        };
        let confirming = arrival.trail.step("confirm with the voters");
        let output = loop {
            let due = lock(&arrival.window).next_tick().unwrap_or_default();
            let left = due.saturating_sub(self.now());
            let input = match tokio::time::timeout(
                left,
                self.parts.ballot.confirm(vm, offer.epoch, self.me),
            )
            .await
            {
                Ok(Ok(())) => TargetInput::Confirmed,
                Ok(Err(BallotError::Refused { .. })) => TargetInput::Refused,
                Ok(Err(e)) => {
                    tracing::info!(error = %chain(&e), "not confirmed yet");
                    tokio::time::sleep(CONFIRM_PAUSE.min(due.saturating_sub(self.now()))).await;
                    TargetInput::Tick
                }
                Err(_) => TargetInput::Tick,
            };
            if let Some(output) = lock(&arrival.window).handle(self.now(), input) {
                break output;
            }
        };
        if output == TargetOutput::Settle {
            confirming.done();
            match self.update(slot, |e| e.role = Role::Held) {
                Ok(_) => {
                    arrival.over(Ok(()));
                    *lock(&arrival.settled) = true;
                    arrival.news.notify_waiters();
                    tracing::info!(epoch = %offer.epoch, "confirmed");
                    return self.publish(slot).await;
                }
                Err(e) => {
                    tracing::error!(error = %chain(&e), "the VM's arrival could not be written \
                        down: it stands still")
                }
            }
        }
        self.hold_still(slot).await;
        arrival.over(Err(
            "the guest stands still here until the VM's voters decide",
        ));
        tracing::warn!(
            "no majority confirmed in time: the guest stands still until the voters decide"
        );
        let role = Role::Doubtful {
            id: offer.id,
            side: Side::Target,
            other: arrival.from,
        };
        if let Err(e) = self.update(slot, |e| e.role = role) {
            tracing::error!(error = %chain(&e), "the doubt could not be written down");
        }
        arrival.news.notify_waiters();
        self.settle(slot, Duration::ZERO).await;
        if slot.entry().role == Role::Held {
            *lock(&arrival.settled) = true;
        }
        // What became of it is now said by the entry, not by this arrival.
        lock(&self.arrivals.0).remove(&offer.id);
    }

    /// Ends when the source has given the migration up, or said nothing for long.
    async fn given_up(&self, arrival: &Arrival) -> String {
        loop {
            let notified = arrival.news.notified();
            let (state, tick) = {
                let window = lock(&arrival.window);
                (window.state(), window.next_tick())
            };
            if state == TargetState::GaveUp {
                let reason = lock(&arrival.reason).clone();
                return if reason.is_empty() {
                    "its window closed".into()
                } else {
                    reason
                };
            }
            let due = tick.unwrap_or(*lock(&arrival.heard) + SILENCE);
            tokio::select! {
                () = notified => {}
                () = tokio::time::sleep(due.saturating_sub(self.now())) => {
                    if tick.is_some() {
                        lock(&arrival.window).handle(self.now(), TargetInput::Tick);
                    } else if self.now() >= *lock(&arrival.heard) + SILENCE {
                        arrival.give_up(self.now(), "the source said nothing for too long");
                    }
                }
            }
        }
    }

    /// The VM does not come: its guest, disk and entry here go before anyone is told.
    async fn leave_nothing(&self, slot: &Arc<Slot>, arrival: &Arrival, reason: &str) {
        tracing::info!(reason, "the VM does not come here");
        arrival.streams_ended::<()>(&Err(Error::Refused(reason.to_owned())));
        lock(&arrival.window).handle(self.now(), TargetInput::Abandon);
        let removed = async {
            self.kill_guest(slot).await?;
            self.parts.port.detach(arrival.offer.definition.vm).await?;
            self.remove(slot)
        };
        match removed.await {
            Ok(()) => {
                *lock(&arrival.stage) = Stage::Gone {
                    reason: reason.to_owned(),
                }
            }
            Err(e) => {
                tracing::error!(error = %chain(&e), "what was prepared could not be removed; the \
                    source waits its time out")
            }
        }
        arrival.over(Err(reason));
        arrival.news.notify_waiters();
        self.drop_unused(arrival.offer.definition.image).await;
    }
}

async fn deliver(host: Weak<Host>, from: MemberId, mut stream: BoxStream) -> std::io::Result<()> {
    let (id, channel) = tunnel::read_header(&mut stream).await?;
    let sockets = {
        let Some(host) = host.upgrade() else {
            return Ok(());
        };
        let arrival = lock(&host.arrivals.0)
            .get(&id)
            .filter(|a| a.from == from)
            .cloned();
        if let Some(arrival) = &arrival {
            arrival.stream_began(channel);
        }
        arrival
            .and_then(|a| a.sockets.get().cloned())
            .ok_or_else(|| std::io::Error::other("no such migration is ready here"))?
    };
    let path = if channel == Channel::Ram {
        &sockets.ram
    } else {
        &sockets.disk
    };
    tunnel::deliver(stream, path).await
}
