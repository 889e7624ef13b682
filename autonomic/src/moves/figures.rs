//! The figures of one decision, from which its [`Explanation`] is made.

use super::score::Candidate;
use crate::{
    explain::{Decision, Explanation},
    load::Millis,
};
use p2pvm_overlay::{MemberId, VmId};

#[derive(Clone, Copy)]
pub(super) struct Figures {
    source_load: f64,
    vm_cpu: f64,
    peer: Option<MemberId>,
    target_load: Option<f64>,
    affinity: Option<f64>,
}

impl Figures {
    pub(super) fn new(source_load: f64, vm_cpu: f64) -> Self {
        Self {
            source_load,
            vm_cpu,
            peer: None,
            target_load: None,
            affinity: None,
        }
    }

    /// Adds the peer that was considered, with its affinity.
    pub(super) fn at(self, candidate: &Candidate) -> Self {
        Self {
            affinity: Some(candidate.affinity),
            ..self.against(candidate.member, candidate.predicted)
        }
    }

    /// Adds the peer of the move and its load.
    pub(super) fn against(self, peer: MemberId, target_load: f64) -> Self {
        Self {
            peer: Some(peer),
            target_load: Some(target_load),
            ..self
        }
    }

    pub(super) fn explain(
        self,
        at: Millis,
        vm: VmId,
        decision: Decision,
        min_gain: f64,
    ) -> Explanation {
        Explanation {
            at,
            vm,
            decision,
            source_load: self.source_load,
            peer: self.peer,
            target_load: self.target_load,
            vm_cpu: self.vm_cpu,
            gain: self.target_load.map(|target| self.source_load - target),
            affinity: self.affinity,
            min_gain,
            times: 1,
        }
    }
}
