//! A model check (stateright) of leases, epochs, moves and take-overs together. It drives the
//! voter's rule, [`Tenure`] and [`Heir`] themselves; only what carries the messages is a model:
//! requests are late, lost or overtaken, answers come late or never, voters and hosts restart, a
//! voter's flush or a guardian may fail if that is the fault to find. Time is in ticks of a second:
//! a lease of three, of which a host uses two, so that its clock may lose one tick a lease.
//!
//! Checked: no two copies of the VM ever run at once. Each run looks at a bounded number of states,
//! breadth first, `P2PVM_MODEL_STATES` at most; see the tests for what is looked at completely.

use super::{
    super::{
        decide::{KeptPromise, Verdict},
        wire::{Promise, Proposal, Step},
    },
    Heir, HeirInput, HeirOutput, LeaseView, Mutant, Renewed, Tenure, TenureInput, TenureOutput,
    Terms,
    heir::Ward,
    rule::{self, Lease},
    wire::RenewAnswer,
};
use crate::votes::NewestEpoch;
use p2pvm_overlay::{Epoch, MemberId};
use std::time::Duration;

mod steps;
mod tests;

const TICK: Duration = Duration::from_secs(1);
/// What every clock shows: a tick moves all times into the past instead.
const NOW: Duration = Duration::from_secs(100);
/// How old a request is when its answer says nothing any more.
const OLD: Duration = Duration::from_secs(97);
/// How long a target may run unconfirmed, in its ticks.
const WINDOW: u32 = 1;
/// How long the source counts for that.
const WINDOW_GUARDED: u32 = 2;
const NODES: usize = 3;
const HOST: usize = 0;

fn id(node: usize) -> MemberId {
    MemberId([node as u8; 32])
}

fn terms(mutant: Option<Mutant>) -> Terms {
    Terms {
        lease: 3 * TICK,
        held: 2 * TICK,
        renew_every: 2 * TICK,
        retry: TICK,
        soft_stop: Duration::ZERO,
        rank_pause: TICK,
        mutant,
    }
}

/// What is not part of the machines and may be wrong around them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// A voter answers before it has flushed.
    Forgetful,
    /// Nothing but the daemon freezes the guest, when it gets to it.
    NoGuardian,
    /// A source takes back without waiting for the target's window.
    TakeBackAtOnce,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct VoterState {
    known: KeptPromise,
    disk: KeptPromise,
    lease: Lease,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Kind {
    Renew,
    TakeOver,
    /// The promise that a source asks for, for its target.
    HandOver(u8),
    Confirm,
    TakeBack,
    /// A promise for the asking member itself, as a member of the previous release asks for one.
    Promise,
}

/// A request to all voters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Round {
    kind: Kind,
    epoch: Epoch,
    sent: Duration,
    /// The sender's clock lost a tick since.
    slow: bool,
    /// Voters that the request may still reach, and those that agreed.
    asked: u8,
    agreed: u8,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Node {
    runs: bool,
    epoch: Epoch,
    tenure: Option<Tenure>,
    heir: Option<Heir>,
    /// Its clock lost a tick since the lease was asked for, or the window opened.
    slow: bool,
    round: Option<Round>,
    /// As a target: until when it may run unconfirmed, and whether it has the guest.
    window: Option<Duration>,
    is_whole: bool,
    /// As a source: the target that was promised the epoch.
    prepared: Option<u8>,
    is_armed: bool,
    handed: bool,
    take_back_at: Option<Duration>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    voters: Vec<VoterState>,
    nodes: [Node; NODES],
    /// The guest's state on its way to a target.
    whole: Option<u8>,
    /// A request that is under way for any time: its node and voter.
    stale: Option<(u8, Round, u8)>,
    restarts: u8,
    crashes: u8,
    moves: u8,
    stales: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    /// Time passes; the nodes in the mask lose the tick.
    Tick(u8),
    Start(usize, Kind),
    /// A request reaches a voter.
    Ask(usize, usize),
    /// A majority's answers are in. A late answer is this action taken late.
    Win(usize),
    /// A majority knows a newer epoch.
    Lose(usize),
    /// The answers are lost.
    GiveUp(usize),
    /// The heir looks at the voters.
    Look(usize),
    Delay(usize, usize),
    Stale,
    Restart(usize),
    Crash(usize),
    Arm(usize),
    /// The source stops the guest and sends its state.
    Whole(usize),
    Arrive,
    /// A daemon that is not helped by a guardian looks at its clock.
    Daemon(usize),
}

/// What one run looks at.
#[derive(Clone, Copy, Debug)]
struct Cluster {
    terms: Terms,
    fault: Option<Fault>,
    voters: usize,
    epochs: u64,
    restarts: u8,
    crashes: u8,
    moves: u8,
    stales: u8,
    renews: bool,
    /// Clocks may lose a tick.
    drifts: bool,
    /// The nodes that take over.
    heirs: u8,
    /// The last node asks as the previous release does.
    has_old_member: bool,
}

impl Cluster {
    fn new(mutant: Option<Mutant>) -> Self {
        Self {
            terms: terms(mutant),
            fault: None,
            voters: 3,
            epochs: 3,
            restarts: 0,
            crashes: 0,
            moves: 0,
            stales: 0,
            renews: true,
            drifts: false,
            heirs: 0b100,
            has_old_member: false,
        }
    }

    fn majority(&self) -> usize {
        self.voters / 2 + 1
    }

    fn begin(&self) -> State {
        let promise = Promise {
            epoch: Epoch(1),
            holder: id(HOST),
            confirmed: true,
        };
        let known = KeptPromise {
            promise,
            was_confirmed: false,
            is_protected: true,
        };
        let lease = Lease {
            free_at: NOW + self.terms.lease,
            holder: Some(id(HOST)),
        };
        let voter = VoterState {
            known,
            disk: known,
            lease,
        };
        let mut nodes: [Node; NODES] = Default::default();
        let mut tenure = Tenure::new(self.terms);
        let armed = tenure.handle(NOW, TenureInput::Granted(NOW));
        nodes[HOST].runs = matches!(armed[..], [TenureOutput::Arm(_)]);
        nodes[HOST].epoch = Epoch(1);
        nodes[HOST].tenure = Some(tenure);
        for (i, node) in nodes.iter_mut().enumerate().skip(1) {
            node.heir = self.heir(i, id(HOST));
        }
        State {
            voters: vec![voter; self.voters],
            nodes,
            whole: None,
            stale: None,
            restarts: 0,
            crashes: 0,
            moves: 0,
            stales: 0,
        }
    }

    fn heir(&self, node: usize, host: MemberId) -> Option<Heir> {
        let ward = Ward {
            me: id(node),
            host,
            lost_after: Duration::ZERO,
            rank: u32::from(node == 1),
        };
        (self.heirs >> node & 1 == 1).then(|| Heir::new(self.terms, ward))
    }

    /// A voter's answer to a request, and what it keeps.
    fn vote(&self, voter: &mut VoterState, from: usize, round: &Round) -> bool {
        let of = (Some(voter.known), voter.lease);
        if round.kind == Kind::Renew {
            let (answer, lease) = rule::renew(&self.terms, of, (id(from), round.epoch), NOW);
            voter.lease = lease;
            return answer == RenewAnswer::Ours;
        }
        let (step, holder) = match round.kind {
            Kind::HandOver(to) => (Step::Promise, usize::from(to)),
            Kind::Promise => (Step::Promise, from),
            Kind::Confirm => (Step::Confirm, from),
            Kind::TakeBack => (Step::TakeBack, from),
            Kind::TakeOver | Kind::Renew => (Step::TakeOver, from),
        };
        let proposal = Proposal {
            step,
            epoch: round.epoch,
            holder: id(holder),
        };
        let judged = rule::judge(&self.terms, of, (id(from), &proposal), NOW);
        match judged.verdict {
            Verdict::Record(promise) => voter.known = voter.known.then(promise, step),
            Verdict::Agree => {}
            _ => return false,
        }
        voter.lease = judged.lease;
        if self.fault != Some(Fault::Forgetful) {
            voter.disk = voter.known;
        }
        true
    }

    /// What an heir is told by the majority that is free first.
    fn view(&self, voters: &[VoterState]) -> LeaseView {
        let mut answers: Vec<_> = voters.iter().collect();
        answers.sort_by_key(|v| (v.lease.free_at, std::cmp::Reverse(v.known.promise.epoch)));
        answers.truncate(self.majority());
        let newest = answers.iter().map(|v| v.known.promise);
        let newest = newest.max_by_key(|p| (p.epoch, p.confirmed));
        let is_it =
            |p: &Promise| newest.is_some_and(|n| (n.epoch, n.holder) == (p.epoch, p.holder));
        let same = answers.iter().filter(|v| is_it(&v.known.promise)).count();
        let free_in = answers.iter().map(|v| v.lease.free_at.saturating_sub(NOW));
        LeaseView {
            newest: newest.map(|n| NewestEpoch {
                epoch: n.epoch,
                holder: n.holder,
                confirmed: n.confirmed,
                granted: same >= self.majority(),
            }),
            protected: true,
            free_in: free_in.max().unwrap_or_default(),
        }
    }

    fn newest_epoch(voters: &[VoterState]) -> Epoch {
        let epochs = voters.iter().map(|v| v.known.promise.epoch);
        epochs.max().unwrap_or_default()
    }

    fn round(&self, kind: Kind, epoch: Epoch) -> Round {
        Round {
            kind,
            epoch,
            sent: NOW,
            slow: false,
            asked: (1 << self.voters) - 1,
            agreed: 0,
        }
    }

    fn is_won(&self, round: &Round) -> bool {
        round.agreed.count_ones() as usize >= self.majority()
    }

    /// Whether a majority would refuse the host's renewal for a newer epoch; the newest of them.
    fn newer(&self, voters: &[VoterState], node: usize, epoch: Epoch) -> Option<Promise> {
        let answers = voters.iter().filter_map(|v| {
            let of = (Some(v.known), v.lease);
            match rule::renew(&self.terms, of, (id(node), epoch), NOW).0 {
                RenewAnswer::Newer(promise) => Some(promise),
                _ => None,
            }
        });
        let mut newer: Vec<_> = answers.collect();
        newer.sort_by_key(|p| p.epoch);
        let is_majority = newer.len() >= self.majority();
        newer.pop().filter(|_| is_majority)
    }
}

impl Node {
    /// Gives its tenure an input, and does what comes of it. A renewal is sent at once.
    fn host(&mut self, me: usize, cluster: &Cluster, input: TenureInput) {
        let Some(mut tenure) = self.tenure.take() else {
            return;
        };
        for output in tenure.handle(NOW, input) {
            match output {
                TenureOutput::Arm(_) | TenureOutput::Thaw(_) => self.runs = true,
                TenureOutput::Froze | TenureOutput::SoftStop => self.runs = false,
                TenureOutput::Renew(serial) if cluster.renews => {
                    tenure.handle(NOW, TenureInput::RenewalSent(serial));
                    self.round = Some(cluster.round(Kind::Renew, self.epoch));
                }
                TenureOutput::Renew(_) => {}
                TenureOutput::Lost { holder, .. } => {
                    self.runs = false;
                    self.heir = cluster.heir(me, holder);
                    return;
                }
            }
        }
        self.tenure = Some(tenure);
    }

    fn answered(&mut self, me: usize, cluster: &Cluster, renewed: Renewed) {
        let serial = self.tenure.as_ref().map_or(0, Tenure::serial);
        self.host(me, cluster, TenureInput::Answer(serial, renewed));
    }

    /// It holds the VM in this epoch, asked for by this round.
    fn settle(&mut self, me: usize, cluster: &Cluster, round: Round) {
        *self = Self {
            epoch: round.epoch,
            slow: round.slow,
            tenure: Some(Tenure::new(cluster.terms)),
            ..Self::default()
        };
        self.host(me, cluster, TenureInput::Granted(round.sent));
    }

    /// Its round has come to nothing.
    fn drop_round(&mut self) {
        let round = self.round.take();
        if let Some(heir) = &mut self.heir
            && round.is_some_and(|r| r.kind == Kind::TakeOver)
        {
            heir.handle(NOW, HeirInput::Refused);
        }
    }

    /// A tick of its clock.
    fn tick(&mut self, me: usize, cluster: &Cluster) {
        let moved = |t: Duration| (t - TICK).max(OLD - TICK);
        if let Some(tenure) = &mut self.tenure {
            tenure.rebase(TICK, OLD);
        }
        if let Some(heir) = &mut self.heir {
            heir.rebase(TICK, NOW);
        }
        self.window = self.window.map(moved);
        self.take_back_at = self.take_back_at.map(moved);
        if let Some(round) = &mut self.round {
            round.sent = moved(round.sent);
            if round.sent < OLD {
                self.drop_round();
            }
        }
        if self.tenure.is_none() && self.window.is_none_or(|t| t <= NOW) {
            self.runs = false;
        }
        if cluster.fault != Some(Fault::NoGuardian) {
            self.host(me, cluster, TenureInput::Tick);
        }
    }

    /// The host loses its power: the guest is gone, and what is on its disk stays.
    fn crash(&mut self, me: usize, cluster: &Cluster) {
        self.drop_round();
        let held = self.tenure.take().is_some();
        (self.runs, self.slow, self.window, self.is_whole) = (false, false, None, false);
        if self.prepared.is_some() {
            (self.handed, self.is_armed) = (true, false);
            let wait = NOW + WINDOW_GUARDED * TICK;
            self.take_back_at = self.take_back_at.max(Some(wait));
        } else if held {
            self.tenure = Some(Tenure::new(cluster.terms));
            self.host(me, cluster, TenureInput::Start);
        }
        if self.heir.is_some() {
            self.heir = cluster.heir(me, id(HOST));
        }
    }
}
