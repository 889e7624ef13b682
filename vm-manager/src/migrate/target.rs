//! The target's side of a migration: answers the source, and in a task of its own prepares image,
//! disk and a waiting guest, runs the guest the moment it is whole, and has its voters confirm that
//! ([`phases`]). [`crate::handover`] says when it may run.
//!
//! An [`Arrival`] is the state of one migration that both share; [`Arrivals`] has them all and is
//! the service.

use super::{
    tunnel,
    wire::{self, Answer, DiskNeed, Extras, Offer, Request, SERVICE},
};
use crate::{
    Error,
    ballot::{Ground, VmVoters},
    directory::RunGoal,
    error::undecided,
    handover::{TargetInput, TargetOutput},
    host::{Activity, Entry, Host, Operation, Promise, Role, Side, Slot, lock, revoked::checked},
    hypervisor::Progress,
};
use arrival::Arrival;
use async_trait::async_trait;
use p2pvm_overlay::{BoxStream, Epoch, MemberId, Serve, VmId, chain};
use phases::{AnswerSource, Reception};
use places::Places;
use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

mod arrival;
mod phases;
mod places;

/// How long a request for news waits for some. Reason: less than the source waits for an answer.
const NEWS: Duration = Duration::from_secs(1);
/// How many arrivals are remembered before ended ones are forgotten. Reason: sources ask late.
const REMEMBERED: usize = 256;

type ById = Arc<Mutex<BTreeMap<u64, Arc<Arrival>>>>;

/// The migrations towards one host, by id; the service "migrate".
pub(crate) struct Arrivals {
    host: Weak<Host>,
    by_id: ById,
    places: Places,
}

#[async_trait]
impl Serve for Arrivals {
    async fn serve(&self, from: MemberId, body: Vec<u8>) -> Result<Vec<u8>, String> {
        let host = self.host.upgrade().ok_or("this host is shutting down")?;
        let (request, extras) =
            wire::decode(&body).map_err(|e| format!("the request cannot be read: {e}"))?;
        let answer = self
            .answer(&host, from, request, &extras)
            .await
            .map_err(|e| chain(&e))?;
        Ok(postcard::to_allocvec(&answer).expect("plain fields always serialize"))
    }
}

impl Arrivals {
    /// Takes migrations towards `host` from now on.
    pub(crate) fn serve(host: &Arc<Host>) {
        let arrivals = Arc::new(Self {
            host: host.weak(),
            by_id: ById::default(),
            places: Places::default(),
        });
        let fabric = &host.parts.fabric;
        fabric.serve(SERVICE, arrivals.clone());
        let mut streams = fabric.accept_streams(SERVICE);
        host.spawn(async move {
            while let Some((from, stream)) = streams.recv().await {
                let Some(host) = arrivals.host.upgrade() else {
                    return;
                };
                let arrivals = arrivals.clone();
                host.spawn(async move {
                    if let Err(error) = arrivals.deliver(from, stream).await {
                        tracing::info!(from = %from.short(), error = %chain(&error), "a stream of \
                            a migration broke");
                    }
                });
            }
        });
    }

    /// The arrival of that id from that source.
    fn known(&self, id: u64, from: MemberId) -> Option<Arc<Arrival>> {
        let by_id = lock(&self.by_id);
        by_id.get(&id).filter(|a| a.from == from).cloned()
    }

    async fn answer(
        &self,
        host: &Arc<Host>,
        from: MemberId,
        request: Request,
        extras: &Extras,
    ) -> Result<Answer, Error> {
        let known = |id| {
            let arrival = self.known(id, from)?;
            arrival.note_heard(host.now());
            Some(arrival)
        };
        match request {
            Request::Prepare(offer) => match self.known(offer.id, from) {
                Some(arrival) => Ok(arrival.answer()),
                None => self.begin(host, from, *offer, extras).await,
            },
            Request::Progress { id } => Ok(match known(id) {
                Some(arrival) => arrival.progress_answer(),
                None => Answer::Unknown,
            }),
            Request::Arm { id, serial } => match known(id) {
                Some(arrival) => host.arm_arrival(&arrival, serial).await,
                None => Ok(Answer::Unknown),
            },
            Request::Settle { id, vm, running } => {
                let Some(arrival) = known(id) else {
                    return Ok(host.answer_from_entry(vm));
                };
                let old = if running {
                    Answer::Running
                } else {
                    Answer::Waiting
                };
                // Without news in time the present answer is given again.
                let _ = tokio::time::timeout(NEWS, arrival.differs_from(&old)).await;
                Ok(arrival.answer())
            }
            Request::Abort { id, vm, reason } => {
                let Some(arrival) = self.known(id, from) else {
                    return Ok(host.answer_from_entry(vm));
                };
                arrival.give_up(host.now(), &reason);
                Ok(arrival.answer())
            }
        }
    }

    /// Admits a VM and begins to prepare for it.
    async fn begin(
        &self,
        host: &Arc<Host>,
        from: MemberId,
        offer: Offer,
        extras: &Extras,
    ) -> Result<Answer, Error> {
        let root = host.begin_arrival_trace(&extras.within, &offer, from);
        let admission = root.trail().step("admit");
        let admitting = async {
            let place = self.places.take(from)?;
            Ok((place, host.admit(from, &offer, extras).await?))
        };
        let admitted = admitting.await;
        admission.ended(&admitted);
        let (place, admitted) = match admitted {
            Ok(admitted) => admitted,
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
        let arrival = Arc::new(Arrival::new(offer, from, host.now(), root));
        self.remember(&arrival);
        let Admitted {
            slot,
            operation,
            memory,
        } = admitted;
        let guest = Reception {
            host: host.clone(),
            slot,
            arrival,
        };
        let by_id = self.by_id.clone();
        let work = async move {
            let _until_it_is_over = (operation, place);
            if guest.run(memory).await == AnswerSource::Entry {
                lock(&by_id).remove(&guest.arrival.id());
            }
        };
        host.spawn(tracing::Instrument::instrument(work, span));
        Ok(Answer::Preparing(Progress::default()))
    }

    fn remember(&self, arrival: &Arc<Arrival>) {
        let mut by_id = lock(&self.by_id);
        if by_id.len() >= REMEMBERED {
            by_id.retain(|_, a| {
                !matches!(a.answer(), Answer::Gone { .. } | Answer::Confirmed { .. })
            });
        }
        by_id.insert(arrival.id(), arrival.clone());
    }

    /// Joins a stream of the source to the waiting guest.
    async fn deliver(&self, from: MemberId, mut stream: BoxStream) -> io::Result<()> {
        let (id, channel) = tunnel::read_header(&mut stream).await?;
        let socket = self
            .known(id, from)
            .and_then(|arrival| arrival.begin_stream(channel))
            .ok_or_else(|| io::Error::other("no such migration is ready here"))?;
        tunnel::deliver(stream, &socket).await
    }
}

/// What an admitted VM is given here.
struct Admitted {
    slot: Arc<Slot>,
    operation: Operation,
    memory: Promise,
}

impl Host {
    /// The answer about a migration that is forgotten here, from the VM's entry.
    fn answer_from_entry(&self, vm: VmId) -> Answer {
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

    /// Whether this host's disk has room for what comes. A source of an earlier version does not
    /// say how much that is.
    async fn fits(&self, offer: &Offer, need: Option<DiskNeed>) -> Result<(), Error> {
        let Some(DiskNeed { disk, image }) = need else {
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

    /// Gives the VM its place here, if it may come.
    async fn admit(
        &self,
        from: MemberId,
        offer: &Offer,
        extras: &Extras,
    ) -> Result<Admitted, Error> {
        let name = &offer.definition.name;
        self.must_be_open(name)?;
        if offer.secret.keys().vm_id() != offer.definition.vm {
            return Err(Error::Refused(format!(
                "the offer of '{name}' has another VM's key"
            )));
        }
        let is_here = || {
            Error::Refused(format!(
                "'{name}' is on this host already, or still arriving"
            ))
        };
        if self.slot_of(offer.definition.vm).is_some() {
            return Err(is_here());
        }
        if offer.epoch <= Epoch(1) {
            // Its first epoch a VM has where it is made; by that this host knows its own.
            return Err(Error::Refused(format!(
                "the offer of '{name}' names the VM's first epoch"
            )));
        }
        let need = self
            .envelope
            .need_from(&offer.definition, extras.owner, from);
        // Until the VM is listed with a place of its own.
        let _place = self.envelope.stay(&need)?;
        let memory = self.envelope.promise(&need)?;
        self.fits(offer, extras.need).await?;
        self.may_come(&offer.definition).await?;
        let slot = self.insert_if_absent(Entry {
            definition: offer.definition.clone(),
            secret: offer.secret.clone(),
            epoch: offer.epoch,
            arrived: offer.epoch,
            seq: 0,
            role: Role::Arriving { id: offer.id, from },
            wanted: RunGoal::Running,
            snapshots: offer.snapshots.clone(),
            note: None,
            gives_way: None,
            owner: extras.owner,
            user: extras.user,
            revoked: checked(offer.definition.vm, &extras.revoked),
            protection: extras.protection.clone(),
            replica: extras.replica.clone(),
            sending: None,
            leased: extras.leased,
            healed: None,
            bits_per_second: None,
            backups: extras.backups.clone(),
            sealing: extras.sealing.clone().handed_on(offer.epoch),
            restored: extras.restored,
        })?;
        let slot = slot.ok_or_else(is_here)?;
        let operation = slot.begin(Activity::Arriving)?;
        Ok(Admitted {
            slot,
            operation,
            memory,
        })
    }

    /// Opens the arrival's window, once the voters have granted its epoch.
    async fn arm_arrival(&self, arrival: &Arrival, serial: u64) -> Result<Answer, Error> {
        if !arrival.is_ready() {
            return Ok(arrival.answer());
        }
        let mut granted = arrival.granted.lock().await;
        if !*granted {
            let (keys, definition) = (arrival.offer.secret.keys(), &arrival.offer.definition);
            let vm = VmVoters {
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
                .map_err(undecided("asking the VM's voters for the target's epoch"))?;
            *granted = true;
        }
        drop(granted);
        let output = arrival.handle(self.now(), TargetInput::Arm(serial));
        arrival.notify();
        Ok(if output == Some(TargetOutput::Armed) {
            Answer::Armed
        } else {
            arrival.answer()
        })
    }
}
