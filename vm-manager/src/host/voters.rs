//! The voters of a new VM: this member, and the connected members closest to the VM on the ring
//! that answer as voters. They are asked first, in rounds: a member that is connected but serves no
//! votes (its disk is full, it is about to leave, it is of another kind) would count against the
//! majority for the VM's whole life.

use super::Host;
use crate::directory::vm_key;
use p2pvm_overlay::{MemberId, identity::KeyPair};
use std::collections::VecDeque;

/// How many members are asked for each that is missing, in a round.
/// Reason: one that does not answer costs the call's timeout; a spare one mostly saves a round.
const SPARE: usize = 1;
/// How many rounds there are at most. Reason: each may take the timeout of a call.
const MAX_ROUNDS: usize = 3;

impl Host {
    /// The voters of the VM of `keys`: an odd number, since an even one tolerates no more failures;
    /// fewer than wanted if fewer answer.
    pub(super) async fn choose_voters(&self, keys: &KeyPair) -> Vec<MemberId> {
        let mut others = self.parts.fabric.connected();
        others.retain(|other| *other != self.me);
        others.sort_by_key(|m| m.ring_addr().distance(&vm_key(keys.vm_id())));
        let mut choice = Choice::new(self.options.voters, others);
        while let Some(asked) = choice.ask() {
            let answered = self.parts.ballot.answering(keys, &asked).await;
            choice.heard(&asked, &answered);
        }
        choice.voters(self.me)
    }
}

/// Which members to ask next, and which of those that answered vote.
#[derive(Debug)]
struct Choice {
    /// How many other members are wanted.
    wanted: usize,
    /// Those not asked yet, the closest first.
    left: VecDeque<MemberId>,
    /// Those that answered, the closest first.
    answered: Vec<MemberId>,
    rounds: usize,
}

impl Choice {
    /// For `voters` voters in all, the asking member among them.
    fn new(voters: usize, others: Vec<MemberId>) -> Self {
        Self {
            wanted: voters.saturating_sub(1),
            left: others.into(),
            answered: vec![],
            rounds: 0,
        }
    }

    /// The members to ask next; `None` when the choice is made.
    fn ask(&mut self) -> Option<Vec<MemberId>> {
        let missing = self.wanted.saturating_sub(self.answered.len());
        if missing == 0 || self.left.is_empty() || self.rounds == MAX_ROUNDS {
            return None;
        }
        self.rounds += 1;
        let many = (missing + SPARE).min(self.left.len());
        Some(self.left.drain(..many).collect())
    }

    /// Notes which of the members asked have answered.
    fn heard(&mut self, asked: &[MemberId], answered: &[MemberId]) {
        let heard = asked.iter().filter(|member| answered.contains(member));
        self.answered.extend(heard);
    }

    /// The voters, sorted, `me` among them.
    fn voters(self, me: MemberId) -> Vec<MemberId> {
        let many = self.wanted.min(self.answered.len());
        let mut voters = self.answered;
        voters.truncate(many - many % 2);
        voters.push(me);
        voters.sort();
        voters
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn member(n: u8) -> MemberId {
        MemberId([n; 32])
    }

    fn choose(voters: usize, others: &[MemberId], silent: &BTreeSet<MemberId>) -> Vec<MemberId> {
        let mut choice = Choice::new(voters, others.to_vec());
        while let Some(asked) = choice.ask() {
            let heard = asked.iter().filter(|member| !silent.contains(member));
            let heard: Vec<_> = heard.copied().collect();
            choice.heard(&asked, &heard);
        }
        choice.voters(member(0))
    }

    #[test]
    fn members_that_do_not_answer_are_replaced_by_the_next_ones() {
        let others: Vec<_> = (1..=4).map(member).collect();
        let all = BTreeSet::new();
        assert_eq!(choose(3, &others, &all), [0, 1, 2].map(member));
        let silent = BTreeSet::from([member(1), member(3)]);
        assert_eq!(choose(3, &others, &silent), [0, 2, 4].map(member));
    }

    #[test]
    fn with_too_few_that_answer_an_odd_number_votes() {
        let others: Vec<_> = (1..=3).map(member).collect();
        let silent = BTreeSet::from([member(1), member(2)]);
        assert_eq!(choose(3, &others, &silent), [member(0)]);
        assert_eq!(choose(5, &others, &BTreeSet::new()).len(), 3);
        assert_eq!(choose(3, &[], &silent), [member(0)]);
    }

    proptest! {
        #[test]
        fn voters_are_odd_sorted_and_answered(
            wanted in 1usize..8,
            others in proptest::collection::btree_set(1u8..40, 0..20),
            silent in proptest::collection::btree_set(1u8..40, 0..20),
        ) {
            let others: Vec<_> = others.into_iter().map(member).collect();
            let silent: BTreeSet<_> = silent.into_iter().map(member).collect();
            let voters = choose(wanted, &others, &silent);
            prop_assert!(voters.len() % 2 == 1 && voters.len() <= wanted);
            prop_assert!(voters.is_sorted_by(|a, b| a < b) && voters.contains(&member(0)));
            prop_assert!(voters.iter().all(|voter| !silent.contains(voter)));
        }
    }
}
