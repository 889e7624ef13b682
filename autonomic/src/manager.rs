//! One node's autonomic manager: a state machine that is told of the local load, of time and of
//! what peers say, and tells whom to send what and which VM to migrate. It decides for its own VMs
//! only, by its partial view of the others; the peer that it asks decides by its own load whether
//! to agree.
//!
//! Against oscillation: loads are smoothed and must stay high for a while; a gain must beat a
//! threshold; an accepted VM is reckoned with before it arrives; a VM that moved and a node that
//! gave one away rest for a while.

use crate::{
    affinity::Standing,
    explain::{Decision, Explanation, Histories},
    gossip::View,
    load::{LoadVector, LocalLoad, Meter, Millis},
    negotiation::{Outgoing, Reservations, Stage},
    placement::Placement,
    score::{self, Place, Source},
    wire::{Heard, Message, Offer, Refusal},
};
use p2pvm_overlay::{MemberId, VmId};
use rand::{Rng, SeedableRng, seq::IndexedRandom};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};

/// A change of load that is worth telling at once.
const NEWSWORTHY: f64 = 0.1;

/// After so many failed migrations in a row a VM's rest grows no more.
const MAX_BACKOFF: u32 = 6;

/// How a migration ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MigrationEnd {
    /// The VM is on the target now.
    Moved,
    /// It is still here, as it could not be moved.
    Failed,
    /// It is still here, as somebody wanted.
    Cancelled,
}

/// What a manager is told.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// The node has measured itself.
    LocalLoad(LocalLoad),
    /// The members that the control plane is connected with: where gossip starts.
    Neighbours(Vec<MemberId>),
    /// A peer's message.
    Received(MemberId, Message),
    /// A migration that the manager asked for (or anybody else started) has ended.
    MigrationDone {
        /// The VM.
        vm: VmId,
        /// How.
        end: MigrationEnd,
    },
    /// Whether this node is being drained: it takes no VMs, and leaves giving them away to whoever
    /// drains it.
    Draining(bool),
    /// Time has passed: due every [`Placement::tick_ms`].
    Tick,
}

/// What a manager asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Send this to that member; it may get lost.
    Send(MemberId, Message),
    /// Migrate a VM to a member that has agreed to take it. Answer with [`Input::MigrationDone`].
    Migrate {
        /// The VM.
        vm: VmId,
        /// Where to.
        to: MemberId,
        /// Why.
        reason: Explanation,
    },
    /// A decision, for the log; it is in the VM's history too.
    Explain(Explanation),
}

/// What a manager sees and does now.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The smoothed load of this node.
    pub cpu: f64,
    /// Since when it has been above the high watermark.
    pub overloaded_since: Option<Millis>,
    /// Whether it is being drained.
    pub draining: bool,
    /// The peers whose load it knows: member, load, age of the news in milliseconds.
    pub known: Vec<(String, f32, u64)>,
    /// The VM that it is giving away, and to whom.
    pub giving: Option<(String, String)>,
    /// VMs that it has promised to take in and that have not arrived.
    pub expected: Vec<String>,
}

/// The state machine.
pub struct Manager {
    me: MemberId,
    placement: Placement,
    rng: ChaCha8Rng,
    meter: Meter,
    view: View,
    outgoing: Option<Outgoing>,
    arriving: Reservations,
    histories: Histories,
    resting: BTreeMap<VmId, (Millis, u32)>,
    outputs: VecDeque<Output>,
    hot_since: Option<Millis>,
    draining: bool,
    rest_until: Millis,
    last_gossip: Option<Millis>,
    gossip_wait_ms: u64,
    told_cpu: f64,
    seq: u64,
}

impl Manager {
    /// A manager for the node `me`; the same seed and inputs give the same outputs.
    pub fn new(me: MemberId, placement: Placement, seed: u64) -> Self {
        Self {
            me,
            placement,
            rng: ChaCha8Rng::seed_from_u64(seed),
            meter: Meter::default(),
            view: View::default(),
            outgoing: None,
            arriving: Reservations::default(),
            histories: Histories::default(),
            resting: BTreeMap::new(),
            outputs: VecDeque::new(),
            hot_since: None,
            draining: false,
            rest_until: Millis(0),
            last_gossip: None,
            gossip_wait_ms: 0,
            told_cpu: 0.0,
            seq: 0,
        }
    }

    /// The thresholds it follows.
    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    /// Follows other thresholds from now on.
    pub fn set_placement(&mut self, placement: Placement) {
        self.placement = placement;
    }

    /// Takes an input; then [`Self::poll`] until it gives nothing more.
    pub fn handle(&mut self, now: Millis, input: Input) {
        match input {
            Input::LocalLoad(load) => self.measured(now, load),
            Input::Neighbours(members) => self.view.seed(self.me, members, &mut self.rng),
            Input::Received(from, message) => self.received(now, from, message),
            Input::MigrationDone { vm, end } => self.migrated(now, vm, end),
            Input::Draining(draining) => self.draining = draining,
            Input::Tick => self.tick(now),
        }
    }

    /// The next thing to do.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// What was decided about a VM here, oldest first.
    pub fn explain(&self, vm: VmId) -> Vec<Explanation> {
        self.histories.of(vm)
    }

    /// What was decided here, of all VMs.
    pub fn explanations(&self) -> Vec<Explanation> {
        self.histories.all()
    }

    /// The known peers with room for a VM of this node, best first, whether or not a move is worth
    /// making: for a drain.
    pub fn places_for(&self, vm: VmId) -> Vec<Place> {
        let demand = self.meter.vms.get(&vm);
        demand.map_or_else(Vec::new, |demand| {
            score::places(self.view.entries(), self.source(), demand, &self.placement)
        })
    }

    /// What it sees and does now.
    pub fn status(&self, now: Millis) -> Status {
        Status {
            cpu: self.meter.cpu,
            overloaded_since: self.hot_since,
            draining: self.draining,
            known: self
                .view
                .entries()
                .map(|e| (e.load.member.to_string(), e.load.cpu, now.since(e.at)))
                .collect(),
            giving: self
                .outgoing
                .as_ref()
                .map(|o| (o.offer.vm.to_string(), o.place.member.to_string())),
            expected: self.arriving.expected().map(|r| r.vm.to_string()).collect(),
        }
    }

    /// This node's load as others are told: with what it has promised to take in.
    pub fn load_vector(&self) -> LoadVector {
        let raw = &self.meter.raw;
        LoadVector {
            member: self.me,
            seq: self.seq,
            cpu: self.promised_cpu().min(1.0) as f32,
            cpus: raw.cpus.max(1),
            memory_used_mib: raw
                .memory_used_mib
                .saturating_add(self.arriving.memory_mib()),
            memory_total_mib: raw.memory_total_mib,
            vms: raw.vms.len().try_into().unwrap_or(u32::MAX),
            place: raw.place,
        }
    }

    fn source(&self) -> Source {
        Source {
            load: self.meter.cpu,
            standing: Standing {
                member: self.me,
                place: self.meter.raw.place,
            },
        }
    }

    fn promised_cpu(&self) -> f64 {
        score::predict(self.meter.cpu, self.meter.raw.cpus, self.arriving.cpu())
    }

    fn measured(&mut self, now: Millis, load: LocalLoad) {
        let arrived = self.meter.measure(now, &self.placement, load);
        for vm in arrived {
            // A VM that was started or sent here by its user may move at once.
            if self.arriving.arrived(now, vm) {
                self.rest(now, vm, 0);
            }
        }
        // Larger than before a restart too, as long as the clock does not go back by more than the
        // node was down.
        self.seq = self.seq.saturating_add(1).max(now.0);
        if self.meter.cpu >= self.placement.high_watermark {
            self.hot_since.get_or_insert(now);
        } else if self.meter.cpu < self.placement.low_watermark {
            self.hot_since = None;
        }
    }

    fn tick(&mut self, now: Millis) {
        self.view.expire(now, &self.placement);
        self.arriving.expire(now, &self.placement);
        self.resting.retain(|_, (until, _)| *until > now);
        match self.outgoing.as_ref().map(|o| (o.stage, o.since)) {
            Some((Stage::Offered, since))
                if now.since(since) >= self.placement.offer_timeout_ms =>
            {
                self.unanswered(now)
            }
            // Whoever migrates has not reported for as long as the target would wait: it never
            // will.
            Some((Stage::Moving, since)) if now.since(since) >= self.placement.reservation_ms => {
                self.outgoing = None
            }
            _ => {}
        }
        if self.meter.has_measured() {
            self.gossip(now);
            self.decide(now);
        }
    }

    fn gossip(&mut self, now: Millis) {
        let busy =
            self.hot_since.is_some() || (self.promised_cpu() - self.told_cpu).abs() > NEWSWORTHY;
        let period = if busy {
            self.placement.gossip_period_ms
        } else {
            self.placement.calm_gossip_period_ms
        };
        let due = self
            .last_gossip
            .is_none_or(|last| now.since(last) >= self.gossip_wait_ms.min(period));
        if !due {
            return;
        }
        // A fifth of jitter, so that nodes that start together do not speak together.
        self.gossip_wait_ms = period - period / 10 + self.rng.random_range(0..=period / 5);
        self.last_gossip = Some(now);
        self.told_cpu = self.promised_cpu();
        for to in self
            .view
            .partners(if busy { self.placement.fanout } else { 1 }, &mut self.rng)
        {
            let entries = self.entries_for(now, to);
            self.send(to, Message::Shuffle(entries));
        }
    }

    fn entries_for(&mut self, now: Millis, to: MemberId) -> Vec<Heard> {
        let mut entries = self.view.sample(
            now,
            self.placement.shuffle.saturating_sub(1),
            to,
            &mut self.rng,
        );
        if self.meter.has_measured() && !self.draining {
            entries.push(Heard {
                load: self.load_vector(),
                age_ms: 0,
            });
        }
        entries
    }

    fn received(&mut self, now: Millis, from: MemberId, message: Message) {
        match message {
            Message::Shuffle(entries) => {
                let answer = self.entries_for(now, from);
                self.send(from, Message::ShuffleReply(answer));
                self.view
                    .merge(self.me, now, &self.placement, entries, &mut self.rng);
            }
            Message::ShuffleReply(entries) => {
                self.view
                    .merge(self.me, now, &self.placement, entries, &mut self.rng)
            }
            Message::Offer(offer) => self.consider(now, from, offer),
            Message::Accept { id, predicted } => self.accepted(now, from, id, f64::from(predicted)),
            Message::Reject { id, why, load } => self.rejected(now, from, id, why, load),
            Message::Release { id } => {
                if let Some(gone) = self.arriving.release(from, id) {
                    let figures =
                        Figures::new(gone.source_cpu, gone.cpu).against(from, self.promised_cpu());
                    self.explain_about(now, gone.vm, Decision::CalledOff, figures);
                }
            }
        }
    }

    /// The target's side: whether to take a VM, by what this node knows of itself.
    fn consider(&mut self, now: Millis, from: MemberId, offer: Offer) {
        let (cpu, source) = (f64::from(offer.cpu), f64::from(offer.source_cpu));
        if let Some(promised) = self.arriving.promised(from, offer.id) {
            let predicted = promised.predicted as f32;
            return self.send(
                from,
                Message::Accept {
                    id: offer.id,
                    predicted,
                },
            );
        }
        let raw = &self.meter.raw;
        let predicted = score::predict(self.promised_cpu(), raw.cpus, cpu);
        let used = raw
            .memory_used_mib
            .saturating_add(self.arriving.memory_mib());
        let refusal = if self.draining || !self.meter.has_measured() {
            Some(Refusal::Unavailable)
        } else if self.outgoing.is_some()
            || self.arriving.expected().count() >= self.placement.max_arrivals
        {
            Some(Refusal::Occupied)
        } else if predicted > self.placement.low_watermark {
            Some(Refusal::Busy)
        } else if !score::memory_fits(
            used,
            raw.memory_total_mib,
            offer.memory_mib,
            &self.placement,
        ) {
            Some(Refusal::Memory)
        } else if source - predicted < self.placement.min_gain {
            Some(Refusal::LittleGain)
        } else {
            None
        };
        match refusal {
            Some(why) => self.send(
                from,
                Message::Reject {
                    id: offer.id,
                    why,
                    load: self.load_vector(),
                },
            ),
            None => {
                self.arriving.promise(now, from, &offer, predicted);
                self.send(
                    from,
                    Message::Accept {
                        id: offer.id,
                        predicted: predicted as f32,
                    },
                );
                self.explain_about(
                    now,
                    offer.vm,
                    Decision::TakenIn,
                    Figures::new(source, cpu).against(from, predicted),
                );
            }
        }
    }

    fn accepted(&mut self, now: Millis, from: MemberId, id: u64, predicted: f64) {
        let movable = self.outgoing.as_ref().is_some_and(|o| {
            self.meter
                .vms
                .get(&o.offer.vm)
                .is_some_and(|demand| demand.movable)
        });
        match self.outgoing.as_mut().filter(|o| o.is(from, id)) {
            Some(outgoing) if outgoing.stage == Stage::Moving => {}
            Some(outgoing) if movable && !self.draining => {
                (outgoing.stage, outgoing.since) = (Stage::Moving, now);
                outgoing.place.predicted = predicted;
                let (vm, figures) = (
                    outgoing.offer.vm,
                    Figures::new(self.meter.cpu, f64::from(outgoing.offer.cpu)).at(&outgoing.place),
                );
                let reason = self.explain_about(now, vm, Decision::Migrating, figures);
                self.outputs.push_back(Output::Migrate {
                    vm,
                    to: from,
                    reason,
                });
            }
            // Too late, or the VM is gone or busy by now.
            ours => {
                if ours.is_some() {
                    self.outgoing = None;
                }
                self.send(from, Message::Release { id });
            }
        }
    }

    fn rejected(&mut self, now: Millis, from: MemberId, id: u64, why: Refusal, load: LoadVector) {
        if load.member == from {
            self.view.merge(
                self.me,
                now,
                &self.placement,
                vec![Heard { load, age_ms: 0 }],
                &mut self.rng,
            );
        }
        if self
            .outgoing
            .as_ref()
            .is_some_and(|o| o.is(from, id) && o.stage == Stage::Offered)
        {
            self.next_offer(now, Decision::Refused(why));
        }
    }

    fn unanswered(&mut self, now: Millis) {
        if let Some((to, id)) = self.outgoing.as_ref().map(|o| (o.place.member, o.offer.id)) {
            self.view.forget(to);
            self.send(to, Message::Release { id });
            self.next_offer(now, Decision::Unanswered);
        }
    }

    /// An offer has come to nothing: asks the next best, unless enough have been asked.
    fn next_offer(&mut self, now: Millis, decision: Decision) {
        let Some(failed) = self.outgoing.take() else {
            return;
        };
        let place = failed.place;
        let figures = Figures::new(self.meter.cpu, f64::from(failed.offer.cpu)).at(&place);
        self.explain_about(now, failed.offer.vm, decision, figures);
        let mut asked = failed.asked;
        asked.push(place.member);
        if asked.len() >= self.placement.offers_per_round || !self.offer_best(now, asked) {
            self.rest_until = now.plus(self.placement.retry_ms);
        }
    }

    fn migrated(&mut self, now: Millis, vm: VmId, end: MigrationEnd) {
        let ok = end == MigrationEnd::Moved;
        let failures = if ok {
            0
        } else {
            self.resting.get(&vm).map_or(0, |(_, failures)| *failures) + 1
        };
        self.rest(now, vm, failures);
        let Some(done) = self
            .outgoing
            .take_if(|o| o.offer.vm == vm && o.stage == Stage::Moving)
        else {
            return;
        };
        let to = done.place.member;
        let decision = match end {
            MigrationEnd::Moved => Decision::Moved,
            MigrationEnd::Failed => Decision::Failed,
            MigrationEnd::Cancelled => Decision::Cancelled,
        };
        if ok {
            self.rest_until = now.plus(self.placement.node_cooldown_ms);
        } else {
            self.send(to, Message::Release { id: done.offer.id });
            self.rest_until = now.plus(self.placement.retry_ms);
        }
        self.explain_about(
            now,
            vm,
            decision,
            Figures::new(self.meter.cpu, f64::from(done.offer.cpu)).at(&done.place),
        );
    }

    fn decide(&mut self, now: Millis) {
        let sustained = self
            .hot_since
            .is_some_and(|since| now.since(since) >= self.placement.sustained_ms);
        let hot = sustained && self.meter.cpu >= self.placement.high_watermark;
        let free = self.placement.enabled
            && !self.draining
            && self.outgoing.is_none()
            && self.arriving.expected().next().is_none();
        if hot && free && now >= self.rest_until && !self.offer_best(now, Vec::new()) {
            self.rest_until = now.plus(self.placement.retry_ms);
        }
    }

    /// Offers the VM whose move is worth most to the best peer not yet asked. Returns whether there
    /// was one.
    fn offer_best(&mut self, now: Millis, asked: Vec<MemberId>) -> bool {
        let here = self.meter.cpu;
        let mut best: Option<(f64, VmId, Place)> = None;
        let mut kept = Vec::new();
        for (vm, demand) in self
            .meter
            .vms
            .iter()
            .filter(|(vm, demand)| demand.movable && !self.resting.contains_key(*vm))
        {
            let mut places =
                score::places(self.view.entries(), self.source(), demand, &self.placement);
            places.retain(|place| !asked.contains(&place.member));
            kept.push((*vm, places.first().copied(), demand.cpu));
            places.retain(|place| score::is_worthwhile(place, &self.placement));
            if let Some(place) = places.first() {
                let worth = score::worth(place, demand, &self.placement);
                if best.is_none_or(|(most, ..)| worth > most) {
                    let drawn = score::equally_good(&places, &self.placement)
                        .choose(&mut self.rng)
                        .unwrap_or(place);
                    best = Some((worth, *vm, *drawn));
                }
            }
        }
        let Some((_, vm, place)) = best else {
            for (vm, place, cpu) in kept.into_iter().filter(|_| asked.is_empty()) {
                let figures = Figures::new(here, cpu);
                self.explain_about(
                    now,
                    vm,
                    Decision::Kept,
                    place.map_or(figures, |place| figures.at(&place)),
                );
            }
            return false;
        };
        let demand = &self.meter.vms[&vm];
        let offer = Offer {
            id: self.rng.random(),
            vm,
            cpu: demand.cpu as f32,
            memory_mib: demand.memory_mib,
            source_cpu: here.min(1.0) as f32,
        };
        let figures = Figures::new(here, demand.cpu).at(&place);
        self.send(place.member, Message::Offer(offer.clone()));
        self.outgoing = Some(Outgoing {
            offer,
            place,
            asked,
            stage: Stage::Offered,
            since: now,
        });
        self.explain_about(now, vm, Decision::Offered, figures);
        true
    }

    fn rest(&mut self, now: Millis, vm: VmId, failures: u32) {
        let ms = self
            .placement
            .vm_cooldown_ms
            .saturating_mul(1 << failures.saturating_sub(1).min(MAX_BACKOFF));
        self.resting.insert(vm, (now.plus(ms), failures));
    }

    fn send(&mut self, to: MemberId, message: Message) {
        self.outputs.push_back(Output::Send(to, message));
    }

    fn explain_about(
        &mut self,
        at: Millis,
        vm: VmId,
        decision: Decision,
        figures: Figures,
    ) -> Explanation {
        let Figures {
            source_load,
            vm_cpu,
            peer,
            target_load,
            affinity,
        } = figures;
        let (gain, min_gain) = (
            target_load.map(|target| source_load - target),
            self.placement.min_gain,
        );
        let explanation = Explanation {
            at,
            vm,
            decision,
            source_load,
            peer,
            target_load,
            vm_cpu,
            gain,
            affinity,
            min_gain,
            times: 1,
        };
        if self
            .histories
            .add(explanation.clone(), self.placement.explanations_per_vm)
        {
            self.outputs.push_back(Output::Explain(explanation.clone()));
        }
        explanation
    }
}

/// The figures of one explanation.
#[derive(Clone, Copy)]
struct Figures {
    source_load: f64,
    vm_cpu: f64,
    peer: Option<MemberId>,
    target_load: Option<f64>,
    affinity: Option<f64>,
}

impl Figures {
    fn new(source_load: f64, vm_cpu: f64) -> Self {
        Self {
            source_load,
            vm_cpu,
            peer: None,
            target_load: None,
            affinity: None,
        }
    }

    /// Of a place that came into question.
    fn at(self, place: &Place) -> Self {
        Self {
            affinity: Some(place.affinity),
            ..self.against(place.member, place.predicted)
        }
    }

    /// Of the other side of a move.
    fn against(self, peer: MemberId, target_load: f64) -> Self {
        Self {
            peer: Some(peer),
            target_load: Some(target_load),
            ..self
        }
    }
}
