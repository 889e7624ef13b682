//! When a node acts, and how long it relies on a peer's report. Every figure is a field, so that a
//! node's configuration file (or a simulation) can set it; the defaults move a VM off a host that
//! became fully loaded within ten seconds, and leave a calm network alone.

use crate::limits::MAX_ENTRIES;
use serde::{Deserialize, Serialize};

/// The thresholds of one node, `[placement]` in its `node.toml`. Loads are shares of a node's CPU
/// capacity, 0 to 1; times are milliseconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Placement {
    /// Whether this node moves VMs by itself. It answers others' offers and gossips either way.
    pub enabled: bool,
    /// How often the node measures its load and ticks the manager.
    pub tick_ms: u64,
    /// How often a node that is busy or whose load changes gossips.
    pub gossip_period_ms: u64,
    /// How often a calm node gossips; this sets the traffic of an idle network.
    pub calm_gossip_period_ms: u64,
    /// How many peers a busy node gossips with each time; a calm one gossips with one.
    pub fanout: usize,
    /// How many peers' loads a node keeps.
    pub view: usize,
    /// How many entries one gossip message carries, the sender's own included.
    pub shuffle: usize,
    /// How old an entry becomes before it is dropped: its node is presumably gone.
    pub entry_max_age_ms: u64,
    /// The half-life of the smoothing of measured loads.
    pub load_half_life_ms: u64,
    /// The half-life of a VM's peak, the estimate of what the VM would use if it were not starved.
    pub peak_half_life_ms: u64,
    /// Above this load a node begins to offer VMs.
    pub high_watermark: f64,
    /// Below this load the overload is over, and [`Placement::sustained_ms`] counts anew; also the
    /// highest load, the VM included, at which a node accepts a VM.
    pub low_watermark: f64,
    /// How long the overload must last before a VM is offered.
    pub sustained_ms: u64,
    /// How much lower the load of the VM's node must be after the move than before.
    pub min_gain: f64,
    /// How many points of load a place gains if the move would take all of a VM's traffic off the
    /// network, and loses in the reverse case. It chooses among places; load alone decides whether
    /// a move is worth making.
    pub affinity_weight: f64,
    /// How many bytes a second of traffic a VM has before its traffic counts.
    pub affinity_above: u64,
    /// How long a VM that has moved stays where it is.
    pub vm_cooldown_ms: u64,
    /// How long a node that has given a VM away waits for the effect before it offers another.
    pub node_cooldown_ms: u64,
    /// How long to wait for the answer to an offer.
    pub offer_timeout_ms: u64,
    /// How long to wait after no peer took a VM.
    pub retry_ms: u64,
    /// How many peers are asked in one round.
    pub offers_per_round: usize,
    /// How long capacity is reserved for an accepted VM that has not arrived.
    pub reservation_ms: u64,
    /// How long an arrived VM still counts on top of the measured load, until the smoothing has
    /// caught up.
    pub settle_ms: u64,
    /// How many VMs a node takes in at a time.
    pub max_arrivals: usize,
    /// The share of its memory that a node lets VMs and itself fill.
    pub memory_limit: f64,
    /// How many explanations each VM's history keeps.
    pub explanations_per_vm: usize,
}

impl Default for Placement {
    fn default() -> Self {
        Self {
            enabled: true,
            tick_ms: 1000,
            gossip_period_ms: 2000,
            calm_gossip_period_ms: 20_000,
            fanout: 2,
            view: 8,
            shuffle: 4,
            entry_max_age_ms: 45_000,
            load_half_life_ms: 2000,
            peak_half_life_ms: 60_000,
            high_watermark: 0.80,
            low_watermark: 0.65,
            sustained_ms: 4000,
            min_gain: 0.15,
            affinity_weight: 0.10,
            // As much as makes the ring add a shortcut: a copy or a call, not a shell.
            affinity_above: 8000,
            vm_cooldown_ms: 120_000,
            node_cooldown_ms: 15_000,
            offer_timeout_ms: 4000,
            retry_ms: 5000,
            offers_per_round: 3,
            reservation_ms: 600_000,
            settle_ms: 10_000,
            max_arrivals: 2,
            memory_limit: 0.9,
            explanations_per_vm: 32,
        }
    }
}

/// The figures cannot work together.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("[placement] cannot work: {0}")]
pub struct UnusablePlacement(&'static str);

impl Placement {
    /// Checks that the figures can work together.
    ///
    /// # Errors
    /// [`UnusablePlacement`] with the rule that is broken.
    pub fn check(&self) -> Result<(), UnusablePlacement> {
        let shares = [
            self.high_watermark,
            self.low_watermark,
            self.min_gain,
            self.memory_limit,
            self.affinity_weight,
        ];
        let rules = [
            (
                shares
                    .iter()
                    .all(|s| s.is_finite() && (0.0..=1.0).contains(s)),
                "watermarks, min_gain, affinity_weight and memory_limit are shares from 0 to 1",
            ),
            (
                self.low_watermark < self.high_watermark,
                "low_watermark must be below high_watermark",
            ),
            (
                self.min_gain > 0.0,
                "min_gain must be above 0, or VMs would wander between equals",
            ),
            (
                self.affinity_weight <= self.min_gain,
                "affinity_weight must not be above min_gain, or traffic would outweigh load",
            ),
            (
                self.tick_ms > 0 && self.gossip_period_ms > 0,
                "tick_ms and gossip_period_ms must be above 0",
            ),
            (
                self.calm_gossip_period_ms >= self.gossip_period_ms,
                "calm_gossip_period_ms must not be below gossip_period_ms",
            ),
            (
                self.entry_max_age_ms >= 2 * self.calm_gossip_period_ms,
                "entry_max_age_ms must be at least two calm gossip periods",
            ),
            (
                self.load_half_life_ms > 0 && self.peak_half_life_ms > 0,
                "half-lives must be above 0",
            ),
            (
                self.view > 0 && self.fanout > 0 && self.shuffle > 0,
                "view, fanout and shuffle must be above 0",
            ),
            (
                self.view <= 64 && self.shuffle <= MAX_ENTRIES,
                "view is at most 64 and shuffle at most 16",
            ),
        ];
        match rules.iter().find(|(holds, _)| !holds) {
            Some((_, rule)) => Err(UnusablePlacement(rule)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_work_and_survive_a_configuration_file() {
        let placement = Placement::default();
        assert_eq!(placement.check(), Ok(()));
        assert_eq!(
            toml::from_str::<Placement>(&toml::to_string(&placement).unwrap()).unwrap(),
            placement
        );
        assert_eq!(
            toml::from_str::<Placement>("min_gain = 0.3").unwrap(),
            Placement {
                min_gain: 0.3,
                ..placement
            }
        );
        assert!(toml::from_str::<Placement>("min_gian = 0.3").is_err());
    }

    #[test]
    fn figures_that_cannot_work_are_named() {
        let swapped = Placement {
            low_watermark: 0.9,
            ..Placement::default()
        };
        assert!(
            swapped
                .check()
                .unwrap_err()
                .to_string()
                .contains("low_watermark")
        );
        let pulled = Placement {
            affinity_weight: 0.2,
            ..Placement::default()
        };
        assert!(
            pulled
                .check()
                .unwrap_err()
                .to_string()
                .contains("affinity_weight")
        );
        assert!(
            Placement {
                min_gain: f64::NAN,
                ..Placement::default()
            }
            .check()
            .is_err()
        );
    }
}
