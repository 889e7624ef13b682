//! The two ends of a negotiation: the one VM that this node is giving away, and those that it has
//! promised to take in.

use crate::{load::Millis, placement::Placement, score::Place, wire::Offer};
use p2pvm_overlay::{MemberId, VmId};

/// How far giving a VM away has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Offered,
    Moving,
}

/// The VM that is being given away.
#[derive(Clone, Debug)]
pub(crate) struct Outgoing {
    pub(crate) offer: Offer,
    pub(crate) place: Place,
    /// Who was asked before in this round.
    pub(crate) asked: Vec<MemberId>,
    pub(crate) stage: Stage,
    /// Since when it has been at this stage.
    pub(crate) since: Millis,
}

impl Outgoing {
    pub(crate) fn is(&self, to: MemberId, id: u64) -> bool {
        self.place.member == to && self.offer.id == id
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

/// All that was promised. Bounded by [`Placement::max_arrivals`], which is checked before a promise
/// is made.
#[derive(Debug, Default)]
pub(crate) struct Reservations(Vec<Reservation>);

impl Reservations {
    pub(crate) fn promise(&mut self, now: Millis, from: MemberId, offer: &Offer, predicted: f64) {
        // The same VM offered anew replaces what was promised for it before.
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

    pub(crate) fn promised(&self, from: MemberId, id: u64) -> Option<&Reservation> {
        self.0.iter().find(|r| r.from == from && r.id == id)
    }

    /// A VM has come. Returns whether it was expected.
    pub(crate) fn arrived(&mut self, now: Millis, vm: VmId) -> bool {
        let expected = self.0.iter_mut().find(|r| r.vm == vm);
        expected.is_some_and(|r| r.arrived.replace(now).is_none())
    }

    /// The source calls a VM off that has not come.
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

    /// Those that have not arrived.
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
