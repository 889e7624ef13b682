//! Which revocations a member lacks, found with messages of bounded length: one sends a digest of
//! each of 256 parts of its set, the other answers, for the parts that differ, with the names of
//! what it knows. So thousands of revocations that both know cost some kilobytes.
//!
//! Names are hashes of 16 bytes: a delegate that wants its own revocation to be taken for one that
//! is known would have to find a second one of the same name.

use super::{Key, Revocation, RevocationSet, Trust};
use crate::membership::certificate::bytes;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

const PARTS: usize = 256;
/// How many names one answer has at most, unless a single part has more. Reason: with 16 bytes each
/// they take an eighth of a message.
const MAX_NAMES: usize = if cfg!(test) { 512 } else { 16_384 };

type Name = [u8; 16];

/// A question: digests of the set of the member that asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevocationDigests {
    /// The first part that is asked about.
    from: u16,
    /// A digest of each part.
    parts: Vec<Name>,
}

/// The answer: the parts in which the sets differ.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DifferingRevocations {
    /// The parts that differ, each with the names of what is known of it.
    parts: Vec<(u8, Vec<Name>)>,
    /// The first part that did not fit.
    next: Option<u16>,
}

impl DifferingRevocations {
    /// The part to ask about next, after those asked about from `from` on.
    pub fn next(&self, from: u16) -> Option<u16> {
        self.next
            .filter(|next| *next > from && usize::from(*next) < PARTS)
    }
}

fn hash(key: &Key) -> Name {
    let mut hasher = blake3::Hasher::new_derive_key("p2pvm 2026 name of a revocation");
    short(hasher.update(&bytes(key)))
}

fn short(hasher: &blake3::Hasher) -> Name {
    let hash = hasher.finalize();
    let (first, _) = hash.as_bytes().split_at(16);
    first.try_into().expect("sixteen bytes")
}

/// The names of what is known, by part; in each part in the order of their keys.
fn by_part(known: &RevocationSet) -> Vec<Vec<(Name, Key)>> {
    let mut parts = vec![Vec::new(); PARTS];
    for key in known.all.keys() {
        let name = hash(key);
        parts[usize::from(name[0])].push((name, *key));
    }
    parts
}

fn digest(part: &[(Name, Key)]) -> Name {
    let mut hasher = blake3::Hasher::new_derive_key("p2pvm 2026 digest of a part of revocations");
    for (name, _) in part {
        hasher.update(name);
    }
    short(&hasher)
}

/// What this member knew when it began to ask another one, hashed once for all its questions.
#[derive(Debug)]
pub struct KnownRevocations {
    parts: Vec<Vec<(Name, Key)>>,
    digests: Vec<Name>,
}

impl KnownRevocations {
    /// What this member knows, for another to compare with; it is asked about the parts from `from`
    /// on.
    pub fn digests(&self, from: u16) -> RevocationDigests {
        RevocationDigests {
            from,
            parts: self.digests.clone(),
        }
    }
}

impl Trust {
    /// What this member knows now, to ask another about it.
    pub fn known_revocations(&self) -> KnownRevocations {
        let parts = by_part(&self.read());
        KnownRevocations {
            digests: parts.iter().map(|part| digest(part)).collect(),
            parts,
        }
    }

    /// What this member knows of the parts that differ from another's.
    pub fn differing(&self, theirs: &RevocationDigests) -> DifferingRevocations {
        let known = self.read();
        let (mut parts, mut names) = (Vec::new(), 0);
        let both = by_part(&known).into_iter().zip(&theirs.parts).enumerate();
        for (at, (part, their)) in both.skip(theirs.from.into()) {
            if digest(&part) == *their {
                continue;
            }
            if names > 0 && names + part.len() > MAX_NAMES {
                let next = u16::try_from(at).ok();
                return DifferingRevocations { parts, next };
            }
            names += part.len();
            let at = u8::try_from(at).expect("there are 256 parts");
            parts.push((at, part.into_iter().map(|(name, _)| name).collect()));
        }
        DifferingRevocations { parts, next: None }
    }

    /// What this member knows and a member that answered so, asked from `from` on, does not. Each
    /// part counts once, whatever the other says.
    pub fn lacked(
        &self,
        mine: &KnownRevocations,
        from: u16,
        theirs: &DifferingRevocations,
    ) -> Vec<Revocation> {
        let known = self.read();
        let (mut lacked, mut least) = (Vec::new(), from);
        let end = theirs.next(from).unwrap_or(u16::MAX);
        for (at, names) in &theirs.parts {
            if !(least..end).contains(&u16::from(*at)) {
                continue;
            }
            least = u16::from(*at) + 1;
            let names: HashSet<&Name> = names.iter().collect();
            let part = mine.parts[usize::from(*at)].iter();
            let missing = part.filter(|(name, _)| !names.contains(name));
            lacked.extend(missing.filter_map(|(_, key)| known.all.get(key).cloned()));
        }
        lacked
    }
}

#[cfg(test)]
impl RevocationDigests {
    pub(crate) fn sample() -> Self {
        Self {
            from: 3,
            parts: vec![[1; 16], [2; 16]],
        }
    }
}

#[cfg(test)]
impl DifferingRevocations {
    pub(crate) fn sample() -> Self {
        Self {
            parts: vec![(7, vec![[3; 16]])],
            next: Some(9),
        }
    }

    pub(crate) fn none_before(next: u16) -> Self {
        Self {
            parts: Vec::new(),
            next: Some(next),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        id::MemberId,
        membership::{
            Issuer, Target,
            trust::tests::{NOW, world},
        },
    };

    fn revocations(many: u32) -> (Trust, Trust, Vec<Revocation>) {
        let world = world(1);
        let issuer = Issuer::root(&world.root);
        let target = |n: u32| {
            let mut id = [0; 32];
            id[..4].copy_from_slice(&n.to_be_bytes());
            Target::Member(MemberId(id))
        };
        let all = (0..many)
            .map(|n| Revocation::issue(&issuer, world.network.id, target(n), NOW))
            .collect();
        let trust = || Trust::new(world.network.id);
        (trust(), trust(), all)
    }

    fn learn<'a>(trust: &Trust, all: impl IntoIterator<Item = &'a Revocation>) {
        for revocation in all {
            assert_eq!(trust.hear(revocation.clone()), Ok(true));
        }
    }

    /// What `there` lacks, and how many questions that took.
    fn asked(here: &Trust, there: &Trust) -> (Vec<Revocation>, usize) {
        let (mut lacked, mut from, mut questions) = (Vec::new(), 0, 0);
        let known = here.known_revocations();
        loop {
            questions += 1;
            let theirs = there.differing(&known.digests(from));
            lacked.extend(here.lacked(&known, from, &theirs));
            match theirs.next(from) {
                Some(next) => from = next,
                None => return (lacked, questions),
            }
        }
    }

    #[test]
    fn exactly_what_a_member_lacks_is_found_in_both_directions() {
        let (here, there, all) = revocations(600);
        learn(&here, &all[..590]);
        learn(&there, all[3..].iter().filter(|r| **r != all[100]));
        let (mut lacked, questions) = asked(&here, &there);
        let mut wanted = vec![
            all[0].clone(),
            all[1].clone(),
            all[2].clone(),
            all[100].clone(),
        ];
        lacked.sort_by_key(Revocation::target);
        wanted.sort_by_key(Revocation::target);
        assert_eq!((lacked, questions), (wanted, 1));
        let (back, _) = asked(&there, &here);
        assert_eq!(back.len(), 10);
        learn(&here, &back);
        assert!(asked(&there, &here).0.is_empty());
    }

    #[test]
    fn what_both_know_costs_a_few_kilobytes() {
        let (here, there, all) = revocations(3000);
        learn(&here, &all);
        learn(&there, &all[1..]);
        let known = here.known_revocations();
        let digests = known.digests(0);
        let answer = there.differing(&digests);
        let length = postcard::to_stdvec(&digests).unwrap().len()
            + postcard::to_stdvec(&answer).unwrap().len();
        assert!(length < 6000, "{length}");
        assert_eq!(here.lacked(&known, 0, &answer), [all[0].clone()]);
    }

    #[test]
    fn an_answer_is_bounded_and_says_where_to_go_on() {
        let (here, there, all) = revocations(MAX_NAMES as u32 + 200);
        learn(&there, &all);
        let answer = there.differing(&here.known_revocations().digests(0));
        let names: usize = answer.parts.iter().map(|(_, names)| names.len()).sum();
        assert!(names <= MAX_NAMES && answer.next(0).is_some());
        assert_eq!(answer.next(255), None, "an answer that goes back ends it");
        let (lacked, questions) = asked(&here, &there);
        assert_eq!((lacked.len(), questions), (0, 2));
        assert_eq!(asked(&there, &here).0.len(), all.len());
    }

    #[test]
    fn digests_of_any_number_of_parts_are_taken() {
        let (_, there, all) = revocations(9);
        learn(&there, &all);
        for (from, parts) in [(0, 0), (999, 256), (3, 3), (0, 999)] {
            let theirs = RevocationDigests {
                from,
                parts: vec![[7; 16]; parts],
            };
            let answer = there.differing(&theirs);
            assert!(answer.parts.len() <= PARTS);
            there.lacked(&there.known_revocations(), from, &answer);
        }
    }

    #[test]
    fn a_part_that_is_told_again_and_again_counts_once() {
        let (here, _, all) = revocations(300);
        learn(&here, &all);
        let known = here.known_revocations();
        let nothing = |at| (at, Vec::new());
        let parts = (0..=255).chain(0..=255).map(nothing).collect();
        let flood = DifferingRevocations { parts, next: None };
        assert_eq!(here.lacked(&known, 0, &flood).len(), all.len());
        let ahead = DifferingRevocations {
            next: Some(9),
            ..flood
        };
        let few = here.lacked(&known, 3, &ahead).len();
        assert!(few < all.len() / 8, "the parts from 3 to 8 only: {few}");
    }
}
