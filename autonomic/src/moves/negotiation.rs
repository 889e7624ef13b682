//! The two sides of a negotiation: the one VM that this node gives away, and the VMs that it has
//! promised to take in.

use super::score::Candidate;
use crate::{load::Millis, placement::Placement, wire::Offer};
use p2pvm_overlay::{MemberId, VmId};

/// The stage of an outgoing move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Offered,
    Moving,
}

/// The VM that is being given away.
#[derive(Clone, Debug)]
pub(crate) struct OutgoingMove {
    pub(crate) offer: Offer,
    pub(crate) candidate: Candidate,
    /// The peers that were asked earlier in this round.
    pub(crate) asked: Vec<MemberId>,
    pub(crate) stage: Stage,
    /// When this stage began.
    pub(crate) since: Millis,
}

impl OutgoingMove {
    pub(crate) fn is_offer(&self, to: MemberId, id: u64) -> bool {
        self.candidate.member == to && self.offer.id == id
    }
}

/// Capacity kept for a VM that was accepted.
#[derive(Clone, Debug)]
pub(crate) struct Reservation {
    pub(crate) vm: VmId,
    pub(crate) cpu: f64,
    pub(crate) source_cpu: f64,
    pub(crate) predicted: f64,
    from: MemberId,
    id: u64,
    memory_mib: u64,
    made: Millis,
    arrived: Option<Millis>,
}

/// All reservations. The caller checks [`Placement::max_arrivals`] before it promises.
#[derive(Debug, Default)]
pub(crate) struct Reservations(Vec<Reservation>);

impl Reservations {
    pub(crate) fn promise(&mut self, now: Millis, from: MemberId, offer: &Offer, predicted: f64) {
        assert!(
            self.find(from, offer.id).is_none(),
            "an offer is promised once: a repeated one gets the same answer"
        );
        // A new offer of the same VM replaces the previous reservation, so that it counts once.
        self.0.retain(|r| r.vm != offer.vm);
        let (cpu, source_cpu) = (f64::from(offer.cpu), f64::from(offer.source_cpu));
        let (vm, id, memory_mib) = (offer.vm, offer.id, offer.memory_mib);
        self.0.push(Reservation {
            vm,
            cpu,
            source_cpu,
            predicted,
            from,
            id,
            memory_mib,
            made: now,
            arrived: None,
        });
    }

    pub(crate) fn find(&self, from: MemberId, id: u64) -> Option<&Reservation> {
        self.0.iter().find(|r| r.from == from && r.id == id)
    }

    /// Records that a VM has come. Returns whether it was expected.
    pub(crate) fn mark_arrived(&mut self, now: Millis, vm: VmId) -> bool {
        let expected = self.0.iter_mut().find(|r| r.vm == vm);
        expected.is_some_and(|r| r.arrived.replace(now).is_none())
    }

    /// Drops the reservation of a VM that has not come and will not.
    pub(crate) fn release(&mut self, from: MemberId, id: u64) -> Option<Reservation> {
        let at = self
            .0
            .iter()
            .position(|r| r.from == from && r.id == id && r.arrived.is_none())?;
        Some(self.0.swap_remove(at))
    }

    pub(crate) fn expire(&mut self, now: Millis, placement: &Placement) {
        self.0.retain(|r| match r.arrived {
            Some(at) => now.since(at) < placement.settle_ms,
            None => now.since(r.made) < placement.reservation_ms,
        });
    }

    /// The reservations whose VM has not arrived.
    pub(crate) fn expected(&self) -> impl Iterator<Item = &Reservation> {
        self.0.iter().filter(|r| r.arrived.is_none())
    }

    /// CPUs promised and not yet in the smoothed measurement.
    pub(crate) fn cpu(&self) -> f64 {
        self.0.iter().map(|r| r.cpu).sum()
    }

    /// Memory promised and not yet measured.
    pub(crate) fn memory_mib(&self) -> u64 {
        self.expected()
            .fold(0, |sum, r| sum.saturating_add(r.memory_mib))
    }
}
