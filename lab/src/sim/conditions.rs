//! The present state of the network: loss, jitter that reorders, duplication, one-way cuts,
//! partitions.

use super::queue::Micros;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use std::collections::HashSet;

/// The mean delay of queues (exponential), in microseconds.
const QUEUE_US: f64 = 300.0;
/// The largest jitter, as a share of the one-way delay.
const JITTER: f64 = 0.02;

/// The state of the network, for all members; cuts and partitions name members.
#[derive(Clone, Debug)]
pub struct Conditions {
    /// Probability that a datagram is lost.
    pub loss: f64,
    /// Probability that it comes twice.
    pub duplicate: f64,
    /// Probability that it is held up by `hold_up` at most, and so overtaken by later ones.
    pub reorder: f64,
    /// Longest time that a reordered datagram is held up.
    pub hold_up: Micros,
    /// Pairs of members: datagrams from the first to the second are lost, those back are not.
    pub cuts: HashSet<(u32, u32)>,
    /// The part of the network that each member is in; members of different parts do not reach each
    /// other. Members beyond its end are in part 0.
    pub parts: Vec<u8>,
}

impl Default for Conditions {
    /// A quiet day on the internet: one datagram in 2 000 is lost.
    fn default() -> Self {
        Self {
            loss: 0.0005,
            duplicate: 0.0,
            reorder: 0.0,
            hold_up: 0,
            cuts: HashSet::new(),
            parts: Vec::new(),
        }
    }
}

impl Conditions {
    /// Whether anything at all passes from `a` to `b`.
    pub fn open(&self, a: u32, b: u32) -> bool {
        let part = |m: u32| self.parts.get(m as usize).copied().unwrap_or(0);
        part(a) == part(b) && (self.cuts.is_empty() || !self.cuts.contains(&(a, b)))
    }

    /// The delays of the copies of a datagram that is sent now over a path of `one_way`
    /// microseconds: none, one or two.
    pub fn fate(&self, rng: &mut ChaCha8Rng, one_way: Micros) -> [Option<Micros>; 2] {
        if rng.random_bool(self.loss) {
            return [None, None];
        }
        let mut delay = || {
            let queue = -QUEUE_US * rng.random_range(f64::MIN_POSITIVE..1.0f64).ln();
            let jitter = one_way as f64 * JITTER * rng.random::<f64>();
            let held = if self.reorder > 0.0 && rng.random_bool(self.reorder) {
                rng.random_range(0..=self.hold_up)
            } else {
                0
            };
            one_way + queue as Micros + jitter as Micros + held
        };
        let first = delay();
        let again = delay();
        let twice = self.duplicate > 0.0 && rng.random_bool(self.duplicate);
        [Some(first), twice.then_some(again)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn a_cut_goes_one_way_and_a_partition_both() {
        let mut c = Conditions {
            parts: vec![0, 0, 1],
            ..Conditions::default()
        };
        c.cuts.insert((0, 1));
        assert!(!c.open(0, 1) && c.open(1, 0));
        assert!(!c.open(0, 2) && !c.open(2, 0) && c.open(1, 7));
    }

    #[test]
    fn loss_and_duplication_happen_as_often_as_said() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let c = Conditions {
            loss: 0.2,
            duplicate: 0.5,
            ..Conditions::default()
        };
        let fates: Vec<_> = (0..10_000).map(|_| c.fate(&mut rng, 50_000)).collect();
        let lost = fates.iter().filter(|f| f[0].is_none()).count();
        let twice = fates.iter().filter(|f| f[1].is_some()).count();
        assert!((1800..2200).contains(&lost), "{lost} lost");
        assert!((3700..4300).contains(&twice), "{twice} twice");
        assert!(
            fates
                .iter()
                .flatten()
                .flatten()
                .all(|d| (50_000..60_000).contains(d))
        );
    }
}
