//! A partial view of the other nodes' loads. After Cyclon (Voulgaris et al. 2005): each period a
//! node shuffles a few entries with the peer whose entry is oldest, so that news spread
//! epidemically and dead nodes age out. Unlike in Cyclon, half of the view is kept for the least
//! loaded nodes known, which are the candidates for a move; the other half is random and keeps the
//! graph connected.

use crate::{
    load::{LoadVector, Millis},
    placement::Placement,
    wire::LoadReport,
};
use p2pvm_overlay::MemberId;
use rand::{Rng, seq::IteratorRandom, seq::SliceRandom};
use std::collections::BTreeMap;

/// How many neighbours of the control plane are kept as entry points.
const MAX_SEEDS: usize = 16;

#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) load: LoadVector,
    /// When it was measured, by this node's clock.
    pub(crate) at: Millis,
}

#[derive(Debug, Default)]
pub(crate) struct View {
    entries: BTreeMap<MemberId, Entry>,
    seeds: Vec<MemberId>,
}

impl View {
    /// Members to start from, or to reconnect with after a partition.
    pub(crate) fn seed(&mut self, me: MemberId, members: Vec<MemberId>, rng: &mut impl Rng) {
        self.seeds = members
            .into_iter()
            .filter(|m| *m != me)
            .choose_multiple(rng, MAX_SEEDS);
    }

    /// Adds a peer's entries; newer measurements replace older ones, and too old ones are left out.
    pub(crate) fn merge(
        &mut self,
        me: MemberId,
        now: Millis,
        placement: &Placement,
        heard: Vec<LoadReport>,
        rng: &mut impl Rng,
    ) {
        for LoadReport { load, age_ms } in heard {
            let at = Millis(now.0.saturating_sub(u64::from(age_ms)));
            let known = self
                .entries
                .get(&load.member)
                .is_some_and(|old| old.load.seq >= load.seq);
            if load.member != me && !known && now.since(at) <= placement.entry_max_age_ms {
                self.entries.insert(load.member, Entry { load, at });
            }
        }
        self.trim(placement, rng);
    }

    pub(crate) fn expire(&mut self, now: Millis, placement: &Placement) {
        self.entries
            .retain(|_, entry| now.since(entry.at) <= placement.entry_max_age_ms);
    }

    /// Drops a peer that did not answer, until another peer sends an entry of it.
    pub(crate) fn forget(&mut self, member: MemberId) {
        self.entries.remove(&member);
    }

    /// The peers to gossip with: the one with the oldest entry, and others at random, entry points
    /// among them.
    pub(crate) fn partners(&self, count: usize, rng: &mut impl Rng) -> Vec<MemberId> {
        let oldest = self
            .entries
            .iter()
            .min_by_key(|(_, entry)| entry.at)
            .map(|(member, _)| *member);
        let mut others: Vec<MemberId> = self
            .entries
            .keys()
            .chain(&self.seeds)
            .copied()
            .filter(|m| Some(*m) != oldest)
            .collect();
        others.sort_unstable();
        others.dedup();
        others.shuffle(rng);
        // One time in four an entry point comes first, so that two halves of a healed network find
        // each other.
        let seed = self
            .seeds
            .iter()
            .copied()
            .choose(rng)
            .filter(|_| rng.random_ratio(1, 4));
        let mut partners = Vec::with_capacity(count.max(1));
        for member in seed.into_iter().chain(oldest).chain(others) {
            if partners.len() < count.max(1) && !partners.contains(&member) {
                partners.push(member);
            }
        }
        partners
    }

    /// Some entries for a peer, none about itself.
    pub(crate) fn sample(
        &self,
        now: Millis,
        count: usize,
        except: MemberId,
        rng: &mut impl Rng,
    ) -> Vec<LoadReport> {
        let tell = |entry: &Entry| LoadReport {
            load: entry.load.clone(),
            age_ms: now.since(entry.at).min(3_600_000) as u32,
        };
        self.entries
            .values()
            .filter(|e| e.load.member != except)
            .map(tell)
            .choose_multiple(rng, count)
    }

    pub(crate) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    fn trim(&mut self, placement: &Placement, rng: &mut impl Rng) {
        if self.entries.len() <= placement.view {
            return;
        }
        let mut by_load: Vec<(f32, MemberId)> = self
            .entries
            .iter()
            .map(|(member, entry)| (entry.load.cpu, *member))
            .collect();
        by_load.shuffle(rng);
        by_load.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut rest = by_load.split_off((placement.view / 2).min(by_load.len()));
        rest.shuffle(rng);
        for (_, member) in rest.into_iter().skip(placement.view - placement.view / 2) {
            self.entries.remove(&member);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    const ME: MemberId = MemberId([0; 32]);

    fn heard(n: u8, seq: u64, cpu: f32, age_ms: u32) -> LoadReport {
        let load = LoadVector {
            member: MemberId([n; 32]),
            seq,
            cpu,
            cpus: 1,
            memory_used_mib: 0,
            memory_total_mib: 0,
            vms: 0,
            place: None,
        };
        LoadReport { load, age_ms }
    }

    #[test]
    fn a_view_stays_small_and_keeps_the_least_loaded() {
        let (mut view, placement, mut rng) = (
            View::default(),
            Placement::default(),
            ChaCha8Rng::seed_from_u64(1),
        );
        for n in 1..=200 {
            view.merge(
                ME,
                Millis(1000),
                &placement,
                vec![heard(n, 1, f32::from(n) / 255.0, 0)],
                &mut rng,
            );
        }
        let known: Vec<u8> = view.entries().map(|e| e.load.member.0[0]).collect();
        assert_eq!(known.len(), placement.view);
        assert!([1, 2, 3, 4].iter().all(|n| known.contains(n)), "{known:?}");
    }

    #[test]
    fn news_replace_what_is_older_and_the_silent_age_out() {
        let (mut view, placement, mut rng) = (
            View::default(),
            Placement::default(),
            ChaCha8Rng::seed_from_u64(1),
        );
        view.merge(
            ME,
            Millis(100_000),
            &placement,
            vec![heard(1, 5, 0.5, 1000), heard(0, 9, 0.1, 0)],
            &mut rng,
        );
        view.merge(
            ME,
            Millis(100_000),
            &placement,
            vec![heard(1, 4, 0.9, 0)],
            &mut rng,
        );
        assert_eq!(
            view.entries().map(|e| e.load.cpu).collect::<Vec<_>>(),
            [0.5],
            "neither an older measurement nor the node itself"
        );
        view.expire(Millis(100_000 + placement.entry_max_age_ms), &placement);
        assert_eq!(view.entries().count(), 0);
        view.merge(
            ME,
            Millis(100_000),
            &placement,
            vec![heard(1, 5, 0.5, 3_600_000)],
            &mut rng,
        );
        assert_eq!(view.entries().count(), 0);
    }

    #[test]
    fn gossip_goes_to_the_peer_with_the_oldest_entry() {
        let (mut view, placement, mut rng) = (
            View::default(),
            Placement::default(),
            ChaCha8Rng::seed_from_u64(1),
        );
        view.merge(
            ME,
            Millis(50_000),
            &placement,
            vec![
                heard(1, 1, 0.5, 10),
                heard(2, 1, 0.5, 9000),
                heard(3, 1, 0.5, 20),
            ],
            &mut rng,
        );
        assert_eq!(view.partners(1, &mut rng), [MemberId([2; 32])]);
        view.seed(ME, vec![ME, MemberId([9; 32])], &mut rng);
        let met = (0..50).any(|_| view.partners(1, &mut rng) == [MemberId([9; 32])]);
        assert!(met, "entry points are met now and then");
    }
}
