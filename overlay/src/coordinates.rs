//! Network coordinates: a member's position in a space in which distance predicts round-trip time,
//! learnt from the round trips that a member measures anyway. Vivaldi with height vectors (Dabek,
//! Cox, Kaashoek, Morris: "Vivaldi: A Decentralized Network Coordinate System", SIGCOMM 2004):
//! every sample is a spring between two members, pulled by a timestep that adapts to how certain
//! both are (§3.4); the height is the way from a member to the core of the internet, which all of
//! its packets take (§5.4).
//!
//! Three things are added for a network that has liars and runs for months. The pull of one sample
//! is bounded by a multiple of the usual one (Huber 1964), so that one neighbour cannot throw a
//! member across the map. A weak gravity keeps the whole from drifting away from the origin
//! (Ledlie, Gardner, Seltzer: "Network Coordinates in the Wild", NSDI 2007, §5.3). On the wire a
//! coordinate is whole microseconds, so that there is no NaN, and what lies outside of [`MAX_AXIS`]
//! and [`MAX_HEIGHT`] is refused while decoding.
//!
//! It does not smooth the round trips of a link (callers filter them) and does not rank members:
//! compare estimates.

use rand::{Rng, SeedableRng, rngs::StdRng};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How many axes there are besides the height. Reason: Dabek et al. found two enough and three
/// slightly better between continents.
const AXES: usize = 3;
/// How far a coordinate may be from the origin on one axis. Reason: the longest terrestrial round
/// trips are 400 ms, geostationary ones 700 ms.
pub const MAX_AXIS: Duration = Duration::from_secs(3);
/// How large a height may be: that of a very bad last mile.
pub const MAX_HEIGHT: Duration = Duration::from_secs(3);
/// How long a round trip may be to count. Reason: longer ones are queues or sleep, not distance.
pub const MAX_RTT: Duration = Duration::from_secs(5);
/// How long a round trip counts at least. Reason: shorter ones measure timers and not the network,
/// and their relative errors mean nothing.
const MIN_RTT_MS: f64 = 0.1;
/// How small a height may be. Reason: a height of zero would never grow, because the pull on the
/// height is in proportion to it.
const MIN_HEIGHT_MS: f64 = 0.05;
/// The share of the spring's length that one sample moves a member of average certainty (c_c of
/// §3.4, value of §4.2).
const STEP: f64 = 0.25;
/// The weight of one sample in the error estimate (c_e of §3.4, value of §4.2).
const ERROR_STEP: f64 = 0.25;
/// The greatest error: that of a member without samples.
const MAX_ERROR: f64 = 1.5;
/// The error from which an estimate counts as unknown. Reason: it is expected to be off by its own
/// value.
const UNKNOWN_ERROR: f32 = 1.0;
/// The least error that another member is credited with. Reason: a member that claims to be perfect
/// would decide alone.
const MIN_ERROR: f64 = 0.02;
/// How many times as strong as the usual pull the pull of one sample may be.
const MAX_PULL: f64 = 3.0;
/// How strong the pull of one sample may be at most.
const HARDEST_PULL_MS: f64 = 250.0;
/// How weak the usual pull counts at least. Reason: a member at rest must still follow a change of
/// route.
const SOFTEST_PULL_MS: f64 = 2.0;
/// The weight of one sample in the usual pull. Reason: a few dozen samples (a minute or two of
/// keepalives) then change it.
const PULL_STEP: f64 = 1.0 / 32.0;
/// The distance from the origin at which gravity moves a member 1 ms a sample; the pull falls with
/// the square of the distance.
const GRAVITY_MS: f64 = 1000.0;

/// A position in the coordinate space, as members send it: 8 to 22 bytes on the wire.
///
/// ```
/// # use p2pvm_overlay::coordinates::{Coordinate, Vivaldi};
/// # use std::time::Duration;
/// let (mut here, mut there) = (Vivaldi::new(1), Vivaldi::new(2));
/// for _ in 0..50 {
///     here.observe(Duration::from_millis(80), &there.mine());
///     there.observe(Duration::from_millis(80), &here.mine());
/// }
/// let estimate = here.mine().estimate(&there.mine());
/// assert!(estimate.abs_diff(Duration::from_millis(80)) < Duration::from_millis(4));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Wire", into = "Wire")]
pub struct Coordinate {
    /// Microseconds along each axis.
    at: [i32; AXES],
    /// Microseconds between the member and the core of the internet.
    height: u32,
    /// Expected relative error of an estimate, in thousandths.
    error: u16,
}

/// A coordinate as decoded, before its bounds are checked.
#[derive(Serialize, Deserialize)]
struct Wire([i32; AXES], u32, u16);

/// A coordinate that no member can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a network coordinate out of bounds")]
pub struct OutOfBounds;

impl TryFrom<Wire> for Coordinate {
    type Error = OutOfBounds;

    fn try_from(Wire(at, height, error): Wire) -> Result<Self, OutOfBounds> {
        let bounded = at
            .iter()
            .all(|axis| u128::from(axis.unsigned_abs()) <= MAX_AXIS.as_micros())
            && u128::from(height) <= MAX_HEIGHT.as_micros()
            && f64::from(error) <= MAX_ERROR * 1e3;
        if bounded {
            Ok(Self { at, height, error })
        } else {
            Err(OutOfBounds)
        }
    }
}

impl From<Coordinate> for Wire {
    fn from(c: Coordinate) -> Self {
        Wire(c.at, c.height, c.error)
    }
}

impl Coordinate {
    /// The round trip to expect between the members at `self` and at `other`.
    pub fn estimate(&self, other: &Self) -> Duration {
        Duration::from_secs_f64(Point::from(self).distance(&Point::from(other)) / 1e3)
    }

    /// The expected relative error of its estimates: 0.1 means 10 % off.
    pub fn error(&self) -> f32 {
        f32::from(self.error) / 1e3
    }

    /// Whether its estimates are of use: a new member has no samples yet.
    pub fn is_known(&self) -> bool {
        self.error() < UNKNOWN_ERROR
    }
}

/// A coordinate to calculate with, in milliseconds.
#[derive(Clone, Copy, Debug)]
struct Point {
    at: [f64; AXES],
    height: f64,
}

impl Point {
    fn distance(&self, other: &Self) -> f64 {
        length(&self.minus(other)) + self.height + other.height
    }

    fn minus(&self, other: &Self) -> [f64; AXES] {
        std::array::from_fn(|i| self.at[i] - other.at[i])
    }
}

impl From<&Coordinate> for Point {
    fn from(c: &Coordinate) -> Self {
        Self {
            at: c.at.map(|axis| f64::from(axis) / 1e3),
            height: f64::from(c.height) / 1e3,
        }
    }
}

fn length(v: &[f64; AXES]) -> f64 {
    v.iter().map(|axis| axis * axis).sum::<f64>().sqrt()
}

/// A member's own coordinate, and its state of learning.
#[derive(Clone, Debug)]
pub struct Vivaldi {
    here: Point,
    error: f64,
    /// The average strength of a sample's pull, in milliseconds.
    usual_pull: f64,
    rng: StdRng,
}

impl Vivaldi {
    /// At the origin, without certainty. `seed` selects the direction in which it leaves a
    /// neighbour at the same point.
    pub fn new(seed: u64) -> Self {
        Self {
            here: Point {
                at: [0.0; AXES],
                height: 1.0,
            },
            error: MAX_ERROR,
            usual_pull: HARDEST_PULL_MS,
            rng: StdRng::seed_from_u64(seed),
        }
    }

    /// Learns from a round trip of `rtt` to a member that says it is at `remote`. False if the
    /// sample is of no use and changed nothing.
    pub fn observe(&mut self, rtt: Duration, remote: &Coordinate) -> bool {
        if rtt.is_zero() || rtt > MAX_RTT {
            return false;
        }
        let rtt = (rtt.as_secs_f64() * 1e3).max(MIN_RTT_MS);
        let there = Point::from(remote);
        let distance = self.here.distance(&there);
        let off = rtt - distance;

        let remote_error = f64::from(remote.error()).max(MIN_ERROR);
        let weight = self.error / (self.error + remote_error);
        let sample_error = (off.abs() / rtt).min(MAX_ERROR);
        let share = ERROR_STEP * weight;
        self.error =
            (sample_error * share + self.error * (1.0 - share)).clamp(MIN_ERROR, MAX_ERROR);

        let limit = (self.usual_pull * MAX_PULL).min(HARDEST_PULL_MS);
        let pull = off.clamp(-limit, limit);
        self.usual_pull += (pull.abs() - self.usual_pull) * PULL_STEP;
        self.usual_pull = self.usual_pull.max(SOFTEST_PULL_MS);
        self.step(&there, distance, STEP * weight * pull);
        true
    }

    /// Moves by `step` ms away from `there` (towards it if negative), along the height as well
    /// (§5.4), then applies gravity.
    fn step(&mut self, there: &Point, distance: f64, step: f64) {
        let mut away = self.here.minus(there);
        let apart = length(&away);
        if apart < 1e-3 {
            // Two members at one point push each other apart in some direction (§3.3).
            away = std::array::from_fn(|_| self.rng.random_range(-1.0..1.0));
            let unit = length(&away).max(1e-3);
            away = away.map(|axis| axis / unit * distance);
        }
        let distance = distance.max(1e-3);
        self.here.height += step * (self.here.height + there.height) / distance;
        for (axis, away) in self.here.at.iter_mut().zip(away) {
            *axis += step * away / distance;
        }
        let far = length(&self.here.at);
        let fall = 1.0 - (far / GRAVITY_MS / GRAVITY_MS).min(1.0);
        let (axis_bound, height_bound) =
            (MAX_AXIS.as_secs_f64() * 1e3, MAX_HEIGHT.as_secs_f64() * 1e3);
        self.here.at = self
            .here
            .at
            .map(|axis| (axis * fall).clamp(-axis_bound, axis_bound));
        self.here.height = self.here.height.clamp(MIN_HEIGHT_MS, height_bound);
    }

    /// The coordinate to send to others.
    pub fn mine(&self) -> Coordinate {
        // Bounded by `step` and `observe`: the conversions below lose only fractions.
        Coordinate {
            at: self.here.at.map(|axis| (axis * 1e3).round() as i32),
            height: (self.here.height * 1e3).round() as u32,
            error: (self.error * 1e3).round() as u16,
        }
    }

    /// The expected relative error of its estimates: 0.1 means 10 % off; 1.5 means that nothing is
    /// known.
    pub fn error(&self) -> f32 {
        self.error as f32
    }
}

#[cfg(test)]
#[path = "coordinates_golden_tests.rs"]
pub(crate) mod golden_tests;
#[cfg(test)]
#[path = "coordinates_tests.rs"]
mod tests;
