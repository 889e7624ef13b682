//! The figures of a decision as the control API tells them.

use p2pvm_api::{DecisionFigures, DecisionWord, RefusalWord};
use p2pvm_autonomic::{Decision, Explanation, OfferRefusal};

/// The figures behind an explanation.
pub(super) fn figures(explanation: &Explanation) -> DecisionFigures {
    DecisionFigures {
        affinity: explanation.affinity,
        at: explanation.at.0,
        decision: word(explanation.decision),
        gain: explanation.gain,
        min_gain: explanation.min_gain,
        peer: explanation.peer.map(|peer| peer.to_string().into()),
        source_load: explanation.source_load,
        target_load: explanation.target_load,
        times: explanation.times,
        vm: explanation.vm.to_string().into(),
        vm_cpu: explanation.vm_cpu,
    }
}

fn word(decision: Decision) -> DecisionWord {
    match decision {
        Decision::Kept => DecisionWord::Kept,
        Decision::Offered => DecisionWord::Offered,
        Decision::Refused(why) => DecisionWord::Refused(match why {
            OfferRefusal::Busy => RefusalWord::Busy,
            OfferRefusal::Memory => RefusalWord::Memory,
            OfferRefusal::LittleGain => RefusalWord::LittleGain,
            OfferRefusal::Occupied => RefusalWord::Occupied,
            OfferRefusal::Unavailable => RefusalWord::Unavailable,
        }),
        Decision::Unanswered => DecisionWord::Unanswered,
        Decision::Migrating => DecisionWord::Migrating,
        Decision::Moved => DecisionWord::Moved,
        Decision::Failed => DecisionWord::Failed,
        Decision::Cancelled => DecisionWord::Cancelled,
        Decision::TakenIn => DecisionWord::TakenIn,
        Decision::CalledOff => DecisionWord::CalledOff,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2pvm_api::Sorted;
    use p2pvm_autonomic::Millis;
    use p2pvm_overlay::{MemberId, VmId};

    /// A previous version tells an explanation as it is written, with its keys sorted.
    #[test]
    fn every_decision_is_told_as_previous_versions_do() {
        use OfferRefusal::*;
        let refused = [Busy, Memory, LittleGain, Occupied, Unavailable].map(Decision::Refused);
        let others = [
            Decision::Kept,
            Decision::Offered,
            Decision::Unanswered,
            Decision::Migrating,
            Decision::Moved,
            Decision::Failed,
            Decision::Cancelled,
            Decision::TakenIn,
            Decision::CalledOff,
        ];
        for (n, decision) in refused.into_iter().chain(others).enumerate() {
            let has_peer = n % 2 == 0;
            let explanation = Explanation {
                at: Millis(1_795_953_720_000),
                vm: VmId([1; 32]),
                decision,
                source_load: 0.9,
                peer: has_peer.then_some(MemberId([3; 32])),
                target_load: has_peer.then_some(0.3),
                vm_cpu: 0.25,
                gain: has_peer.then_some(0.6),
                affinity: has_peer.then_some(-0.5),
                min_gain: 0.15,
                times: 2,
            };
            let told = serde_json::to_string(&figures(&explanation)).unwrap();
            let before = serde_json::to_string(&Sorted(&explanation)).unwrap();
            assert_eq!(told, before);
        }
    }

    /// Both crates name the decisions: each word of one is a word of the other.
    #[test]
    fn the_words_of_decisions_are_the_same_in_both_crates() {
        let decided = [
            DecisionWord::Kept,
            DecisionWord::Offered,
            DecisionWord::Unanswered,
            DecisionWord::Migrating,
            DecisionWord::Moved,
            DecisionWord::Failed,
            DecisionWord::Cancelled,
            DecisionWord::TakenIn,
            DecisionWord::CalledOff,
        ];
        let refused = RefusalWord::KNOWN.iter().map(|(why, _)| why.clone());
        for told in decided
            .into_iter()
            .chain(refused.map(DecisionWord::Refused))
        {
            let text = serde_json::to_string(&told).unwrap();
            let decision: Decision = serde_json::from_str(&text).unwrap();
            assert_eq!(word(decision), told);
            assert_eq!(serde_json::to_string(&decision).unwrap(), text);
        }
    }
}
