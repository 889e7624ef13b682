//! Probes whether the members that offer subnets answer, so that another offer is used if one does
//! not. The choice changes slowly, because packets of one connection should not alternate between
//! two routers. The state shown follows the last answer.

use p2pvm_overlay::MemberId;
use std::collections::{BTreeMap, BTreeSet};

/// How many probes in a row without an answer before a member counts as silent.
const GONE_AFTER: u32 = 2;
/// How many answers in a row before a silent member counts again.
const BACK_AFTER: u32 = 3;

#[derive(Clone, Copy, Debug, Default)]
struct Row {
    answered: u32,
    missed: u32,
    silent: bool,
}

/// The results of the probes.
#[derive(Debug, Default)]
pub(super) struct Answers(BTreeMap<MemberId, Row>);

impl Answers {
    /// Takes the result of one round of probes; members that were not probed are forgotten. True if
    /// a member fell silent, answered again or came back.
    pub fn round(&mut self, results: &[(MemberId, bool)]) -> bool {
        let before = (self.silent(), self.recovering());
        self.0
            .retain(|member, _| results.iter().any(|(probed, _)| probed == member));
        for (member, answered) in results {
            let row = self.0.entry(*member).or_default();
            if *answered {
                (row.answered, row.missed) = (row.answered.saturating_add(1), 0);
                row.silent &= row.answered < BACK_AFTER;
            } else {
                (row.answered, row.missed) = (0, row.missed.saturating_add(1));
                row.silent |= row.missed >= GONE_AFTER;
            }
        }
        (self.silent(), self.recovering()) != before
    }

    /// Silent members that have just answered again.
    pub fn recovering(&self) -> BTreeSet<MemberId> {
        self.0
            .iter()
            .filter(|(_, row)| row.silent && row.answered > 0)
            .map(|(member, _)| *member)
            .collect()
    }

    /// Those that do not answer.
    pub fn silent(&self) -> BTreeSet<MemberId> {
        self.0
            .iter()
            .filter(|(_, row)| row.silent)
            .map(|(member, _)| *member)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_lost_probe_changes_nothing_and_a_return_takes_several_answers() {
        let member = MemberId([1; 32]);
        let mut answers = Answers::default();
        let changed: Vec<bool> = [
            true, false, true, false, false, true, false, true, true, true, false,
        ]
        .map(|answered| answers.round(&[(member, answered)]))
        .into();
        assert_eq!(
            changed,
            [
                false, false, false, false, true, true, true, true, false, true, false
            ]
        );
        answers.round(&[(member, false)]);
        assert_eq!(
            (answers.silent(), answers.recovering()),
            (BTreeSet::from([member]), BTreeSet::new())
        );
        assert!(
            answers.round(&[(member, true)]),
            "what is shown follows the first answer"
        );
        assert_eq!(
            (answers.silent(), answers.recovering()),
            (BTreeSet::from([member]), BTreeSet::from([member]))
        );
        assert!(answers.round(&[]), "whose offer is gone is forgotten");
        assert!(answers.silent().is_empty());
    }
}
