//! One node's autonomic manager: a state machine that takes the local load, the time and peers'
//! messages, and gives messages to send and VMs to migrate. It decides for its own VMs alone, by
//! its partial view of the other nodes; a peer that it asks decides by its own load whether to
//! accept.
//!
//! Against oscillation: loads are smoothed and must stay high for a while; a gain must beat a
//! threshold; an accepted VM counts before it arrives; a VM that has moved, and a node that has
//! given one away, rest for a while.

use super::{
    affinity::NodePlace,
    figures::Figures,
    negotiation::{OutgoingMove, Reservations, Stage},
    score::{self, Candidate, Source},
};
use crate::{
    explain::{Decision, Explanation, Histories},
    gossip::View,
    load::{LoadVector, LocalLoad, Meter, Millis},
    placement::Placement,
    wire::{LoadReport, Message},
};
use p2pvm_overlay::{MemberId, VmId};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};

mod source;
mod target;

/// How much a node's load changes before it gossips at the busy rate.
const NEWSWORTHY: f64 = 0.1;

/// How many times a VM's rest is doubled while its migrations fail.
/// Reason: with the default cooldown the rest is then two hours.
const MAX_BACKOFF: u32 = 6;

/// How a migration ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MigrationEnd {
    /// The VM is on the target now.
    Moved,
    /// It is still here: it could not be moved.
    Failed,
    /// It is still here: the migration was cancelled on request.
    Cancelled,
}

/// An event for the manager.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// The node has measured itself.
    LocalLoad(LocalLoad),
    /// The members that the control plane is connected to: gossip starts with them.
    Neighbours(Vec<MemberId>),
    /// A peer's message.
    Received(MemberId, Message),
    /// A migration has ended, whether the manager or a user started it.
    MigrationDone {
        /// The VM.
        vm: VmId,
        /// How.
        end: MigrationEnd,
    },
    /// Whether this node is being drained. Then it takes no VMs, and gives none away: the drain
    /// does.
    Draining(bool),
    /// Whether this node's owner lets VMs of other members come. Where it does not, other nodes
    /// are not told of its load; it may still give VMs away.
    Offering(bool),
    /// Time has passed: due every [`Placement::tick_ms`].
    Tick,
}

/// What the caller has to do.
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

/// A manager's state, for display.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The smoothed load of this node.
    pub cpu: f64,
    /// Since when it has been above the high watermark.
    pub overloaded_since: Option<Millis>,
    /// Whether it is being drained.
    pub draining: bool,
    /// The peers in its view: member, load, and the age of the measurement in milliseconds.
    pub known: Vec<(String, f32, u64)>,
    /// The VM that it is giving away, and the peer that is asked or takes it.
    pub giving: Option<(String, String)>,
    /// VMs that it has promised to take in and that have not arrived.
    pub expected: Vec<String>,
}

/// The state machine of one node.
///
/// The caller
/// - gives [`Input::LocalLoad`] and then [`Input::Tick`] every [`Placement::tick_ms`], other inputs
///   when they happen. Without ticks no offer times out and no reservation expires. `now` never
///   goes back;
/// - calls [`Self::poll`] after each [`Self::handle`] until it gives `None`;
/// - carries out every [`Output::Migrate`] and reports it with one [`Input::MigrationDone`]. Until
///   then, for at most [`Placement::reservation_ms`], no other VM is given away.
///
/// Messages may get lost, be doubled or arrive late.
///
/// ```
/// use p2pvm_autonomic::{Input, LocalLoad, Manager, Millis, Output, Placement, VmLoad};
/// use p2pvm_overlay::{MemberId, VmId};
///
/// let ids = [MemberId([1; 32]), MemberId([2; 32])];
/// let mut nodes = ids.map(|id| Manager::new(id, Placement::default(), 1));
/// let guest = VmLoad {
///     vm: VmId([9; 32]), cpu: 1.0, memory_mib: 512, movable: true, talks: Vec::new(),
/// };
/// let node = |cpu, vms| LocalLoad {
///     cpu, cpus: 4, memory_total_mib: 8192, vms, ..LocalLoad::default()
/// };
/// let mut migrations = Vec::new();
/// for now in (0..10).map(|second| Millis(second * 1000)) {
///     nodes[0].handle(now, Input::LocalLoad(node(1.0, vec![guest.clone()])));
///     nodes[1].handle(now, Input::LocalLoad(node(0.1, Vec::new())));
///     for (at, peer) in [(0, 1), (1, 0)] {
///         nodes[at].handle(now, Input::Neighbours(vec![ids[peer]]));
///         nodes[at].handle(now, Input::Tick);
///     }
///     for (at, peer) in [(0, 1), (1, 0), (0, 1)] {
///         while let Some(output) = nodes[at].poll() {
///             match output {
///                 Output::Send(_, message) => {
///                     nodes[peer].handle(now, Input::Received(ids[at], message))
///                 }
///                 Output::Migrate { vm, to, .. } => migrations.push((vm, to)),
///                 Output::Explain(_) => {}
///             }
///         }
///     }
/// }
/// assert_eq!(migrations, [(guest.vm, ids[1])]);
/// ```
pub struct Manager {
    me: MemberId,
    placement: Placement,
    rng: ChaCha8Rng,
    meter: Meter,
    view: View,
    outgoing: Option<OutgoingMove>,
    arriving: Reservations,
    histories: Histories,
    resting: BTreeMap<VmId, (Millis, u32)>,
    outputs: VecDeque<Output>,
    hot_since: Option<Millis>,
    draining: bool,
    offering: bool,
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
            offering: true,
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

    /// Takes an input. Then the caller calls [`Self::poll`] until it gives `None`.
    pub fn handle(&mut self, now: Millis, input: Input) {
        match input {
            Input::LocalLoad(load) => self.measured(now, load),
            Input::Neighbours(members) => self.view.seed(self.me, members, &mut self.rng),
            Input::Received(from, message) => self.received(now, from, message),
            Input::MigrationDone { vm, end } => self.migrated(now, vm, end),
            Input::Draining(draining) => self.draining = draining,
            Input::Offering(offering) => self.offering = offering,
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

    /// The known peers with room for a VM of this node, best first, for a drain: peers that gain
    /// nothing are included.
    pub fn places_for(&self, vm: VmId) -> Vec<Candidate> {
        let demand = self.meter.vms.get(&vm);
        demand.map_or_else(Vec::new, |demand| {
            score::candidates(self.view.entries(), self.source(), demand, &self.placement)
        })
    }

    /// The manager's state, for display.
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
                .map(|o| (o.offer.vm.to_string(), o.candidate.member.to_string())),
            expected: self.arriving.expected().map(|r| r.vm.to_string()).collect(),
        }
    }

    /// This node's load as it is sent to peers, with the VMs that it has promised to take in.
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
            standing: NodePlace {
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
            if self.arriving.mark_arrived(now, vm) {
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
            // The target no longer waits, so no report will come.
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
        // A fifth of jitter, so that nodes that start together do not gossip together.
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

    fn entries_for(&mut self, now: Millis, to: MemberId) -> Vec<LoadReport> {
        let mut entries = self.view.sample(
            now,
            self.placement.shuffle.saturating_sub(1),
            to,
            &mut self.rng,
        );
        if self.meter.has_measured() && !self.draining && self.offering {
            entries.push(LoadReport {
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
            Message::Release { id } => self.released(now, from, id),
        }
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

    /// Adds a decision to the VM's history, and to the outputs if it is not a repetition.
    fn explain_about(
        &mut self,
        at: Millis,
        vm: VmId,
        decision: Decision,
        figures: Figures,
    ) -> Explanation {
        let explanation = figures.explain(at, vm, decision, self.placement.min_gain);
        let is_new = self
            .histories
            .add(explanation.clone(), self.placement.explanations_per_vm);
        if is_new {
            self.outputs.push_back(Output::Explain(explanation.clone()));
        }
        explanation
    }
}
