//! The source's side of a move: which VM this node offers to which peer, and what it does after the
//! answer. It gives away one VM at a time.

use super::{Manager, MigrationEnd, Output};
use crate::{
    explain::Decision,
    load::{Demand, LoadVector, Millis},
    moves::{
        figures::Figures,
        negotiation::{OutgoingMove, Stage},
        score::{self, Candidate},
    },
    wire::{LoadReport, Message, Offer, OfferRefusal},
};
use p2pvm_overlay::{MemberId, VmId};
use rand::{Rng, seq::IndexedRandom};

impl Manager {
    pub(super) fn accepted(&mut self, now: Millis, from: MemberId, id: u64, predicted: f64) {
        let movable = self.outgoing.as_ref().is_some_and(|o| {
            self.meter
                .vms
                .get(&o.offer.vm)
                .is_some_and(|demand| demand.movable)
        });
        match self.outgoing.as_mut().filter(|o| o.is_offer(from, id)) {
            Some(outgoing) if outgoing.stage == Stage::Moving => {}
            Some(outgoing) if movable && !self.draining => {
                (outgoing.stage, outgoing.since) = (Stage::Moving, now);
                outgoing.candidate.predicted = predicted;
                let (vm, figures) = (
                    outgoing.offer.vm,
                    Figures::new(self.meter.cpu, f64::from(outgoing.offer.cpu))
                        .at(&outgoing.candidate),
                );
                let reason = self.explain_about(now, vm, Decision::Migrating, figures);
                self.outputs.push_back(Output::Migrate {
                    vm,
                    to: from,
                    reason,
                });
            }
            // Too late, or the VM is gone or busy by now: the peer is told not to wait for it.
            ours => {
                if ours.is_some() {
                    self.outgoing = None;
                }
                self.send(from, Message::Release { id });
            }
        }
    }

    pub(super) fn rejected(
        &mut self,
        now: Millis,
        from: MemberId,
        id: u64,
        why: OfferRefusal,
        load: LoadVector,
    ) {
        if load.member == from {
            self.view.merge(
                self.me,
                now,
                &self.placement,
                vec![LoadReport { load, age_ms: 0 }],
                &mut self.rng,
            );
        }
        if self
            .outgoing
            .as_ref()
            .is_some_and(|o| o.is_offer(from, id) && o.stage == Stage::Offered)
        {
            self.next_offer(now, Decision::Refused(why));
        }
    }

    pub(super) fn unanswered(&mut self, now: Millis) {
        if let Some((to, id)) = self
            .outgoing
            .as_ref()
            .map(|o| (o.candidate.member, o.offer.id))
        {
            self.view.forget(to);
            self.send(to, Message::Release { id });
            self.next_offer(now, Decision::Unanswered);
        }
    }

    /// Asks the next best peer after an offer has failed, unless enough have been asked.
    fn next_offer(&mut self, now: Millis, decision: Decision) {
        let Some(failed) = self.outgoing.take() else {
            return;
        };
        let candidate = failed.candidate;
        let figures = Figures::new(self.meter.cpu, f64::from(failed.offer.cpu)).at(&candidate);
        self.explain_about(now, failed.offer.vm, decision, figures);
        let mut asked = failed.asked;
        asked.push(candidate.member);
        if asked.len() >= self.placement.offers_per_round || !self.offer_best(now, asked) {
            self.rest_until = now.plus(self.placement.retry_ms);
        }
    }

    pub(super) fn migrated(&mut self, now: Millis, vm: VmId, end: MigrationEnd) {
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
        let to = done.candidate.member;
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
            Figures::new(self.meter.cpu, f64::from(done.offer.cpu)).at(&done.candidate),
        );
    }

    pub(super) fn decide(&mut self, now: Millis) {
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

    /// Offers the VM whose move is worth most to the best peer that was not asked yet. Returns
    /// whether there was one.
    fn offer_best(&mut self, now: Millis, asked: Vec<MemberId>) -> bool {
        let mut best: Option<(f64, VmId, Candidate)> = None;
        let mut kept = Vec::new();
        let movable =
            |(vm, demand): &(&VmId, &Demand)| demand.movable && !self.resting.contains_key(*vm);
        for (vm, demand) in self.meter.vms.iter().filter(movable) {
            let mut candidates =
                score::candidates(self.view.entries(), self.source(), demand, &self.placement);
            candidates.retain(|candidate| !asked.contains(&candidate.member));
            kept.push((*vm, candidates.first().copied(), demand.cpu));
            candidates.retain(|candidate| score::is_worthwhile(candidate, &self.placement));
            if let Some(candidate) = candidates.first() {
                let worth = score::worth(candidate, demand, &self.placement);
                if best.is_none_or(|(most, ..)| worth > most) {
                    let drawn = score::equally_good(&candidates, &self.placement)
                        .choose(&mut self.rng)
                        .unwrap_or(candidate);
                    best = Some((worth, *vm, *drawn));
                }
            }
        }
        if let Some((_, vm, candidate)) = best {
            self.offer(now, vm, candidate, asked);
            return true;
        }
        for (vm, candidate, cpu) in kept.into_iter().filter(|_| asked.is_empty()) {
            let figures = Figures::new(self.meter.cpu, cpu);
            let figures = candidate.map_or(figures, |candidate| figures.at(&candidate));
            self.explain_about(now, vm, Decision::Kept, figures);
        }
        false
    }

    fn offer(&mut self, now: Millis, vm: VmId, candidate: Candidate, asked: Vec<MemberId>) {
        assert!(
            self.outgoing.is_none(),
            "a node gives one VM away at a time"
        );
        let here = self.meter.cpu;
        let demand = &self.meter.vms[&vm];
        let offer = Offer {
            id: self.rng.random(),
            vm,
            cpu: demand.cpu as f32,
            memory_mib: demand.memory_mib,
            source_cpu: here.min(1.0) as f32,
        };
        let figures = Figures::new(here, demand.cpu).at(&candidate);
        self.send(candidate.member, Message::Offer(offer.clone()));
        self.outgoing = Some(OutgoingMove {
            offer,
            candidate,
            asked,
            stage: Stage::Offered,
            since: now,
        });
        self.explain_about(now, vm, Decision::Offered, figures);
    }
}
