//! The phases of an arrival, each a type that its step consumes: the guest is prepared, becomes
//! whole, runs, and is confirmed or stands still. A failure before it runs leaves nothing behind;
//! the source has the guest then.

use super::arrival::Arrival;
use crate::{
    Error,
    ballot::{BallotError, VmVoters},
    handover::{CONFIRM_GRACE, TargetInput, TargetOutput},
    host::{Guest, Host, Promise, Role, Side, Slot},
    hypervisor::{Machine, Start},
    trace::Step,
};
use p2pvm_api::EventKind;
use p2pvm_overlay::chain;
use std::{future::Future, path::Path, sync::Arc, time::Duration};

/// How long between two attempts at a confirmation.
const CONFIRM_PAUSE: Duration = Duration::from_millis(200);
/// Why the spans of an arrival without a confirmation end.
const STANDS_STILL: &str = "the guest stands still here until the VM's voters decide";

/// What all phases of one arrival share.
pub(super) struct Reception {
    pub(super) host: Arc<Host>,
    pub(super) slot: Arc<Slot>,
    pub(super) arrival: Arc<Arrival>,
}

/// What answers the source from now on.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum AnswerSource {
    /// The remembered arrival.
    Arrival,
    /// The VM's entry, which the voters have decided on.
    Entry,
}

/// A guest waits for disk and RAM.
struct Waiting<'r> {
    here: &'r Reception,
    machine: Arc<dyn Machine>,
}

/// The guest is whole, within its window.
struct Whole<'r> {
    here: &'r Reception,
    machine: Arc<dyn Machine>,
}

/// The guest runs, unconfirmed.
struct Running<'r>(&'r Reception);

impl Reception {
    fn note_arrival(&self) {
        let entry = self.slot.entry();
        let fields = [
            ("from", self.arrival.from.to_string()),
            ("epoch", entry.epoch.0.to_string()),
        ];
        let text = format!("{} moved to this host.", entry.definition.name);
        self.host.note(&entry, EventKind::VmMoved, &fields, text);
    }

    /// Receives the guest until it is confirmed here, gone, or left to the voters.
    pub(super) async fn run(&self, memory: Promise) -> AnswerSource {
        let running = match self.reach_running(memory).await {
            Ok(running) => running,
            Err(e) => {
                self.leave_nothing(&chain(&e)).await;
                return AnswerSource::Arrival;
            }
        };
        self.arrival.notify();
        tracing::info!("the guest runs here");
        let answers = running.confirm().await;
        self.arrival.notify();
        answers
    }

    async fn reach_running(&self, memory: Promise) -> Result<Running<'_>, Error> {
        let waiting = self.unless_given_up(self.prepare(memory)).await?;
        tracing::info!("ready to receive");
        let whole = waiting.receive().await?;
        whole.run().await
    }

    /// Does `work`, unless the migration is given up meanwhile.
    async fn unless_given_up<T>(
        &self,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        tokio::select! {
            done = work => done,
            reason = self.arrival.given_up(|| self.host.now()) => Err(Error::Refused(reason)),
        }
    }

    /// Fetches the image and starts a guest that waits.
    async fn prepare(&self, memory: Promise) -> Result<Waiting<'_>, Error> {
        let (host, arrival) = (&self.host, &self.arrival);
        let image = arrival.offer.definition.image;
        arrival.progress.send_modify(|p| p.phase = "image".into());
        let mut providers = host.parts.fabric.connected();
        providers.retain(|m| *m != arrival.from);
        providers.insert(0, arrival.from);
        let fetching = host
            .parts
            .vault
            .ensure_image(image, &providers, &arrival.progress);
        let image = arrival.trail.through("fetch image", fetching).await?;
        let machine = arrival
            .trail
            .through(
                "start the waiting guest",
                self.start_waiting(&image, memory),
            )
            .await?;
        Ok(Waiting {
            here: self,
            machine,
        })
    }

    async fn start_waiting(
        &self,
        image: &Path,
        memory: Promise,
    ) -> Result<Arc<dyn Machine>, Error> {
        let (host, definition) = (&self.host, &self.arrival.offer.definition);
        let hypervisor = &host.parts.hypervisor;
        let spec = host.registry.spec(&self.slot.entry());
        hypervisor
            .create_disk(image, &spec.disk, Some(definition.disk_bytes))
            .await?;
        let machine = hypervisor.launch(&spec, Start::Incoming).await?;
        host.install(&self.slot, Guest::new(machine.clone(), memory));
        self.arrival.set_ready(machine.incoming().await?);
        Ok(machine)
    }

    /// The VM does not come: its guest, disk and entry here are removed before the source is told.
    async fn leave_nothing(&self, reason: &str) {
        let (host, arrival) = (&self.host, &self.arrival);
        tracing::info!(reason, "the VM does not come here");
        arrival.end_streams::<()>(&Err(Error::Refused(reason.to_owned())));
        arrival.handle(host.now(), TargetInput::Abandon);
        let removed = async {
            host.kill_guest(&self.slot).await?;
            host.parts.port.detach(arrival.offer.definition.vm).await?;
            host.remove(&self.slot)
        };
        match removed.await {
            Ok(()) => arrival.set_gone(reason),
            Err(e) => {
                tracing::error!(error = %chain(&e), "what was prepared could not be removed; the \
                    source waits until its time is over")
            }
        }
        arrival.end(Err(reason));
        arrival.notify();
        host.drop_unused(arrival.offer.definition.image).await;
    }
}

impl<'r> Waiting<'r> {
    /// Waits until the guest is whole.
    async fn receive(self) -> Result<Whole<'r>, Error> {
        let Self { here, machine } = self;
        let whole = here.unless_given_up(machine.finish_incoming()).await;
        here.arrival.end_streams(&whole);
        whole?;
        Ok(Whole { here, machine })
    }
}

impl<'r> Whole<'r> {
    /// Runs the guest if its window is open, and tells the network where it is now.
    async fn run(self) -> Result<Running<'r>, Error> {
        let Self { here, machine } = self;
        let (host, offer, trail) = (&here.host, &here.arrival.offer, &here.arrival.trail);
        let spec = host.registry.spec(&here.slot.entry());
        let resuming = async {
            host.parts
                .port
                .attach(&spec, &offer.definition.address, offer.epoch)
                .await?;
            here.guard(&*machine).await?;
            // The window is read last: from here on only the guest itself is waited for.
            let window = here.arrival.handle(host.now(), TargetInput::Whole);
            if window != Some(TargetOutput::Resume) {
                return Err(Error::Refused(
                    "it became whole after its window had closed".into(),
                ));
            }
            machine.resume().await
        };
        trail.through("resume", resuming).await?;
        let keys = offer.secret.keys();
        let announcing = host
            .parts
            .port
            .announce(&keys, &offer.definition, host.me, offer.epoch);
        // The guest runs: also in this step its time may end, by a sleep of this machine say.
        tokio::select! {
            biased;
            () = here.time_is_over() => {}
            announced = trail.through("announce", announcing) => if let Err(e) = announced {
                tracing::warn!(error = %chain(&e), "the new place could not be announced; the old \
                    host forwards");
            }
        }
        Ok(Running(here))
    }
}

impl Running<'_> {
    /// Asks for confirmations until a majority gave them or the time is over.
    async fn confirm(self) -> AnswerSource {
        let Self(here) = self;
        let (host, slot, arrival) = (&here.host, &here.slot, &here.arrival);
        let confirming = arrival.trail.step("confirm with the voters");
        let (output, sent) = here.ask_voters().await;
        if output != TargetOutput::Settle {
            return here.stand_still(Some(confirming)).await;
        }
        confirming.done();
        if let Err(e) = host.update(slot, |e| e.role = Role::Held) {
            tracing::error!(error = %chain(&e), "the VM's arrival could not be written down: it \
                stands still");
            return here.stand_still(None).await;
        }
        if slot.entry().leased {
            host.begin_lease(slot, sent);
        }
        arrival.end(Ok(()));
        arrival.set_settled();
        arrival.notify();
        tracing::info!(epoch = %arrival.offer.epoch, "confirmed");
        here.note_arrival();
        host.publish(slot).await;
        // The heirs still watch the source, which is there whatever becomes of this host.
        let (telling, of) = (host.clone(), slot.clone());
        host.spawn(async move { telling.tell_heirs(&of, true).await });
        AnswerSource::Arrival
    }
}

impl Reception {
    /// Waits until the window is due, the machine's sleep included.
    async fn time_is_over(&self) {
        let due = self.arrival.next_tick().unwrap_or_default();
        loop {
            let left = due.saturating_sub(self.host.now());
            if left.is_zero() {
                return;
            }
            self.host.clock.passed(left).await;
        }
    }

    /// Has the guardian freeze the guest of a protected VM when its unconfirmed run is over.
    async fn guard(&self, machine: &dyn Machine) -> Result<(), Error> {
        let host = &self.host;
        if !self.slot.entry().leased {
            return Ok(());
        }
        let closes = self.arrival.next_tick().unwrap_or_default();
        let left = (closes + CONFIRM_GRACE).saturating_sub(host.now());
        match host
            .arm(&self.slot, machine, host.boottime() + left)
            .await?
        {
            true => Ok(()),
            false => Err(Error::Refused("its guest stands frozen here".into())),
        }
    }

    /// Asks the voters until the window has an output; also when they were asked last.
    async fn ask_voters(&self) -> (TargetOutput, Duration) {
        let (host, offer) = (&self.host, &self.arrival.offer);
        let keys = offer.secret.keys();
        let vm = VmVoters {
            keys: &keys,
            voters: &offer.definition.voters,
        };
        loop {
            let sent = host.boottime();
            let confirming = async {
                match host.parts.ballot.confirm(vm, offer.epoch, host.me).await {
                    Ok(()) => TargetInput::Confirmed,
                    Err(BallotError::Refused { .. }) => TargetInput::Refused,
                    Err(e) => {
                        tracing::info!(error = %chain(&e), "not confirmed yet");
                        tokio::time::sleep(CONFIRM_PAUSE).await;
                        TargetInput::Tick
                    }
                }
            };
            let input = tokio::select! {
                biased;
                () = self.time_is_over() => TargetInput::Tick,
                input = confirming => input,
            };
            if let Some(output) = self.arrival.handle(host.now(), input) {
                return (output, sent);
            }
        }
    }

    /// The guest ran here without a confirmation: it stands still until the voters decide.
    async fn stand_still(&self, confirming: Option<Step>) -> AnswerSource {
        let (host, slot, arrival) = (&self.host, &self.slot, &self.arrival);
        host.hold_still(slot).await;
        if let Some(confirming) = confirming {
            confirming.failed(&STANDS_STILL);
        }
        arrival.end(Err(STANDS_STILL));
        tracing::warn!(
            "no majority confirmed in time: the guest stands still until the voters decide"
        );
        let role = Role::Doubtful {
            id: arrival.id(),
            side: Side::Target,
            other: arrival.from,
        };
        if let Err(e) = host.update(slot, |e| e.role = role) {
            tracing::error!(error = %chain(&e), "the doubt could not be written down");
        }
        arrival.notify();
        host.settle(slot, Duration::ZERO).await;
        if slot.entry().role == Role::Held {
            arrival.set_settled();
        }
        AnswerSource::Entry
    }
}
