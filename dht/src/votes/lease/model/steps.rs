//! What may happen next, and what comes of it.

use super::*;
use stateright::{Model, Property};

impl Model for Cluster {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![self.begin()]
    }

    fn actions(&self, state: &State, out: &mut Vec<Action>) {
        out.push(Action::Tick(0));
        for (i, node) in state.nodes.iter().enumerate() {
            let is_exact = !node.slow && node.round.is_none_or(|r| !r.slow);
            if self.drifts && node.counts() && is_exact {
                out.push(Action::Tick(1 << i));
            }
            self.round_actions(state, i, out);
            self.starts(state, i, out);
            self.moves(state, i, out);
            let may_crash = state.crashes < self.crashes;
            if may_crash && (node.runs || node.round.is_some()) {
                out.push(Action::Crash(i));
            }
            let is_due = node.tenure.as_ref().and_then(Tenure::next_tick);
            if self.fault == Some(Fault::NoGuardian) && is_due.is_some_and(|t| t <= NOW) {
                out.push(Action::Daemon(i));
            }
        }
        if state.whole.is_some() {
            out.push(Action::Arrive);
        }
        if state.stale.is_some() {
            out.push(Action::Stale);
        }
        if state.restarts < self.restarts {
            out.extend((0..self.voters).map(Action::Restart));
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        self.step(&mut state, action)?;
        self.normalize(&mut state);
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let running = |s: &State| s.nodes.iter().filter(|n| n.runs).count();
        assert!(running(&self.begin()) == 1, "the host runs at first");
        vec![
            Property::always("at most one runs", |_, s: &State| {
                s.nodes.iter().filter(|n| n.runs).count() <= 1
            }),
            Property::sometimes("an heir takes over", |_, s: &State| {
                s.nodes[2].runs && s.nodes[2].tenure.is_some()
            }),
            // A voter that is free again has seen more than the first lease pass.
            Property::sometimes("the host runs on after its first lease", |_, s: &State| {
                let host = &s.nodes[HOST];
                let is_free = s.voters.iter().any(|v| v.lease.free_at <= NOW);
                host.runs && host.epoch == Epoch(1) && is_free
            }),
            Property::sometimes("a move ends well", |_, s: &State| {
                s.nodes[1].runs && s.nodes[1].tenure.is_some() && s.nodes[1].epoch == Epoch(2)
            }),
            Property::sometimes("a source takes back", |_, s: &State| {
                s.nodes[HOST].runs && s.nodes[HOST].epoch == Epoch(3)
            }),
        ]
    }
}

impl Node {
    /// Whether a slow clock would change anything.
    fn counts(&self) -> bool {
        self.tenure.as_ref().is_some_and(|t| t.deadline().is_some())
            || self.window.is_some()
            || self.round.is_some()
    }

    /// Whether its last round may be followed by one of this kind.
    fn is_idle(&self, kind: Kind) -> bool {
        self.round.is_none_or(|r| r.kind != kind || r.sent < NOW)
    }
}

impl Cluster {
    fn round_actions(&self, state: &State, i: usize, out: &mut Vec<Action>) {
        let Some(round) = state.nodes[i].round else {
            return;
        };
        for v in (0..self.voters).filter(|v| round.asked >> v & 1 == 1) {
            // A request that is refused changes nothing, and may be refused later as well.
            if self.vote(&mut state.voters[v].clone(), i, &round) {
                out.push(Action::Ask(i, v));
            }
            if state.stales < self.stales && state.stale.is_none() {
                out.push(Action::Delay(i, v));
            }
        }
        if self.is_won(&round) {
            out.push(Action::Win(i));
        }
        match round.kind {
            Kind::Renew => {
                if self.newer(&state.voters, i, round.epoch).is_some() {
                    out.push(Action::Lose(i));
                }
                // Without an answer the tenure only asks again, but for the fault to find.
                if self.terms.has(Mutant::ThawUnasked) {
                    out.push(Action::GiveUp(i));
                }
            }
            Kind::TakeOver if round.sent < NOW => out.push(Action::GiveUp(i)),
            _ => {}
        }
    }

    fn starts(&self, state: &State, i: usize, out: &mut Vec<Action>) {
        let node = &state.nodes[i];
        let newest = Self::newest_epoch(&state.voters);
        let mut start = |kind: Kind| {
            if node.is_idle(kind) {
                out.push(Action::Start(i, kind));
            }
        };
        let may_move = state.moves < self.moves && node.epoch.0 < self.epochs;
        if may_move && node.runs && node.tenure.is_some() && node.prepared.is_none() {
            (0..NODES)
                .filter(|to| *to != i && *to != 2)
                .for_each(|to| start(Kind::HandOver(to as u8)));
        }
        if node.is_whole && node.tenure.is_none() && (node.runs || state.whole.is_none()) {
            start(Kind::Confirm);
        }
        let has_waited = node.take_back_at.is_none_or(|t| t <= NOW);
        if node.prepared.is_some() && has_waited && node.epoch.0 + 2 <= self.epochs {
            start(Kind::TakeBack);
        }
        let is_old = self.has_old_member && i == 2 && node.tenure.is_none() && !node.is_whole;
        if is_old && newest.0 < self.epochs {
            start(Kind::Promise);
        }
        let is_free = self.view(&state.voters).free_in.is_zero();
        let is_due = |heir: &Heir| heir.next_tick().is_some_and(|t| t <= NOW);
        let may_look = node.heir.as_ref().is_some_and(is_due) && newest.0 < self.epochs;
        let is_target = node.window.is_some() || node.is_whole;
        if may_look && is_free && !is_target && node.prepared.is_none() {
            out.push(Action::Look(i));
        }
    }

    fn moves(&self, state: &State, i: usize, out: &mut Vec<Action>) {
        let node = &state.nodes[i];
        let (Some(to), Some(tenure)) = (node.prepared, &node.tenure) else {
            return;
        };
        let target = &state.nodes[usize::from(to)];
        let longest = WINDOW_GUARDED * TICK;
        let is_ready = !target.runs && target.tenure.is_none();
        if node.runs && !node.is_armed && is_ready && tenure.may_hand_over(NOW, longest) {
            out.push(Action::Arm(i));
        }
        if node.runs && node.is_armed && state.whole.is_none() {
            out.push(Action::Whole(i));
        }
    }

    fn step(&self, state: &mut State, action: Action) -> Option<()> {
        match action {
            Action::Tick(slow) => self.tick(state, slow),
            Action::Start(i, kind) => self.start(state, i, kind),
            Action::Ask(i, v) => {
                let round = state.nodes[i].round.as_mut()?;
                round.asked &= !(1 << v);
                if self.vote(&mut state.voters[v], i, round) {
                    round.agreed |= 1 << v;
                }
            }
            Action::Win(i) => self.win(&mut state.nodes[i], i)?,
            Action::Lose(i) => self.lose(state, i)?,
            Action::GiveUp(i) => self.give_up(&mut state.nodes[i], i)?,
            Action::Look(i) => self.look(state, i)?,
            Action::Delay(i, v) => {
                let round = state.nodes[i].round.as_mut()?;
                round.asked &= !(1 << v);
                let alone = Round {
                    asked: 0,
                    agreed: 0,
                    sent: NOW,
                    slow: false,
                    ..*round
                };
                state.stale = Some((i as u8, alone, v as u8));
                state.stales += 1;
            }
            Action::Stale => {
                let (i, round, v) = state.stale.take()?;
                self.vote(&mut state.voters[usize::from(v)], usize::from(i), &round);
            }
            Action::Restart(v) => {
                state.restarts += 1;
                state.voters[v].known = state.voters[v].disk;
                state.voters[v].lease = Lease::after_start(&self.terms, NOW);
            }
            Action::Crash(i) => {
                state.crashes += 1;
                state.nodes[i].crash(i, self);
            }
            Action::Arm(i) => self.arm(state, i)?,
            Action::Whole(i) => {
                let node = &mut state.nodes[i];
                (node.runs, node.handed, node.tenure) = (false, true, None);
                let is_hasty = self.fault == Some(Fault::TakeBackAtOnce);
                let wait = if is_hasty { 0 } else { WINDOW_GUARDED };
                node.take_back_at = Some(NOW + wait * TICK);
                state.whole = node.prepared;
            }
            Action::Arrive => {
                let target = &mut state.nodes[usize::from(state.whole.take()?)];
                if target.window.is_some() && target.tenure.is_none() {
                    (target.runs, target.is_whole) = (true, true);
                }
            }
            Action::Daemon(i) => state.nodes[i].host(i, self, TenureInput::Tick),
        }
        Some(())
    }

    fn tick(&self, state: &mut State, slow: u8) {
        for voter in &mut state.voters {
            voter.lease.free_at = (voter.lease.free_at - TICK).max(NOW);
        }
        for (i, node) in state.nodes.iter_mut().enumerate() {
            if slow >> i & 1 == 0 {
                node.tick(i, self);
                continue;
            }
            node.slow = true;
            if let Some(round) = &mut node.round {
                round.slow = true;
            }
        }
    }

    fn start(&self, state: &mut State, i: usize, kind: Kind) {
        let newest = Self::newest_epoch(&state.voters);
        let node = &mut state.nodes[i];
        let epoch = match kind {
            Kind::Renew | Kind::Confirm => node.epoch,
            Kind::TakeOver | Kind::Promise => newest.next(),
            Kind::HandOver(_) => node.epoch.next(),
            Kind::TakeBack => node.epoch.next().next(),
        };
        match kind {
            Kind::HandOver(_) => {
                state.moves += 1;
                node.host(i, self, TenureInput::HandingOver);
            }
            // It will not hand over any more.
            Kind::TakeBack if !node.handed => {
                (node.is_armed, node.handed) = (false, true);
                (node.runs, node.tenure) = (false, None);
            }
            _ => {}
        }
        node.round = Some(self.round(kind, epoch));
    }

    /// What a majority's answers do.
    fn win(&self, node: &mut Node, me: usize) -> Option<()> {
        let round = node.round.take()?;
        match round.kind {
            Kind::Renew => {
                node.slow = round.slow;
                node.answered(me, self, Renewed::Ours);
            }
            Kind::HandOver(to) => node.prepared = Some(to),
            Kind::Promise => {
                (node.epoch, node.is_whole) = (round.epoch, true);
                node.round = Some(self.round(Kind::Confirm, round.epoch));
            }
            Kind::TakeOver | Kind::Confirm | Kind::TakeBack => node.settle(me, self, round),
        }
        Some(())
    }

    fn lose(&self, state: &mut State, i: usize) -> Option<()> {
        let round = state.nodes[i].round.take()?;
        let newest = self.newer(&state.voters, i, round.epoch)?;
        let renewed = Renewed::Newer {
            epoch: newest.epoch,
            holder: newest.holder,
        };
        state.nodes[i].answered(i, self, renewed);
        Some(())
    }

    fn give_up(&self, node: &mut Node, me: usize) -> Option<()> {
        let renewed = Renewed::Undecided {
            answered: 0,
            asked: self.voters,
        };
        if node.round?.kind == Kind::Renew {
            node.answered(me, self, renewed);
        }
        node.drop_round();
        Some(())
    }

    fn look(&self, state: &mut State, i: usize) -> Option<()> {
        let view = self.view(&state.voters);
        let node = &mut state.nodes[i];
        let heir = node.heir.as_mut()?;
        let mut outputs = heir.handle(NOW, HeirInput::Tick);
        while let Some(output) = outputs.pop() {
            match output {
                HeirOutput::AskHost => outputs.extend(heir.handle(NOW, HeirInput::HostSilent)),
                HeirOutput::AskVoters => {
                    outputs.extend(heir.handle(NOW, HeirInput::View(Some(view))));
                }
                HeirOutput::TakeOver(epoch) if epoch.0 > self.epochs => return None,
                HeirOutput::TakeOver(epoch) => {
                    node.round = Some(self.round(Kind::TakeOver, epoch));
                }
                HeirOutput::Elsewhere { holder, .. } => *heir = self.heir(i, holder)?,
                HeirOutput::Wait(_) => {}
            }
        }
        Some(())
    }

    /// The source lets its target run unconfirmed for a window.
    fn arm(&self, state: &mut State, i: usize) -> Option<()> {
        let to = usize::from(state.nodes[i].prepared?);
        let epoch = state.nodes[i].epoch.next();
        state.nodes[i].is_armed = true;
        let target = &mut state.nodes[to];
        target.drop_round();
        (target.epoch, target.slow, target.is_whole) = (epoch, false, false);
        target.window = Some(NOW + WINDOW * TICK);
        Some(())
    }

    /// One state for all that differ only in what nobody will look at, or in the voters' names.
    fn normalize(&self, state: &mut State) {
        for node in &mut state.nodes {
            node.window = node.window.filter(|t| *t > NOW);
            node.take_back_at = node.take_back_at.map(|t| t.max(NOW));
            node.slow &= node.counts();
            if let Some(tenure) = &mut node.tenure {
                tenure.rebase(Duration::ZERO, OLD);
            }
            if let Some(heir) = &mut node.heir {
                heir.rebase(Duration::ZERO, NOW);
            }
        }
        for voter in &mut state.voters {
            if voter.lease.free_at <= NOW {
                voter.lease = Lease {
                    free_at: NOW,
                    holder: None,
                };
            }
        }
        let nodes = &state.nodes;
        let stale = state.stale;
        let key = |v: usize| {
            let asked = nodes
                .each_ref()
                .map(|n| n.round.map(|r| (r.asked >> v & 1, r.agreed >> v & 1)));
            let of = |k: KeptPromise| {
                let p = k.promise;
                (p.epoch, p.holder, p.confirmed, k.was_confirmed)
            };
            let voter = &state.voters[v];
            let lease = (voter.lease.free_at, voter.lease.holder);
            let is_stale = stale.is_some_and(|(_, _, at)| usize::from(at) == v);
            (of(voter.known), of(voter.disk), lease, asked, is_stale)
        };
        let mut order: Vec<usize> = (0..self.voters).collect();
        order.sort_by_key(|v| key(*v));
        state.voters = order.iter().map(|from| state.voters[*from]).collect();
        let moved = |mask: u8| {
            let bits = order.iter().enumerate();
            bits.fold(0, |m, (to, from)| m | (mask >> from & 1) << to)
        };
        for round in state.nodes.iter_mut().filter_map(|n| n.round.as_mut()) {
            (round.asked, round.agreed) = (moved(round.asked), moved(round.agreed));
        }
        if let Some((_, _, at)) = &mut state.stale {
            let place = order.iter().position(|from| *from == usize::from(*at));
            *at = place.unwrap_or_default() as u8;
        }
    }
}
