//! Network coordinates: where a member stands in a space in which distance predicts round-trip
//! time, learnt from the round trips that a member measures anyway. Vivaldi with height vectors
//! (Dabek, Cox, Kaashoek, Morris: "Vivaldi: A Decentralized Network Coordinate System", SIGCOMM
//! 2004): every sample is a spring between two members, pulled by a timestep that adapts to how
//! sure both are (§3.4); the height is the way from a member to the core of the internet, which all
//! of its packets go (§5.4).
//!
//! Three things are added for a network that has liars and runs for months. The pull of one sample
//! is bounded by a multiple of the usual one (Huber 1964), so that one neighbour cannot throw a
//! member across the map. A weak gravity keeps the whole from drifting away from the origin
//! (Ledlie, Gardner, Seltzer: "Network Coordinates in the Wild", NSDI 2007, §5.3). On the wire a
//! coordinate is whole microseconds, so that there is no NaN, and what lies outside of [`MAX_AXIS`]
//! and [`MAX_HEIGHT`] is refused while decoding.
//!
//! It does not smooth the round trips of a link (callers hand in what they trust) and does not say
//! who is near: compare estimates.

use rand::{Rng, SeedableRng, rngs::StdRng};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Axes beside the height. Dabek et al. found two enough and three slightly better between
/// continents.
const AXES: usize = 3;
/// Farthest that a coordinate may be from the origin on one axis. The longest terrestrial round
/// trips are 400 ms, geostationary ones 700 ms.
pub const MAX_AXIS: Duration = Duration::from_secs(3);
/// Greatest height: a very bad last mile.
pub const MAX_HEIGHT: Duration = Duration::from_secs(3);
/// Round trips longer than this are queues or sleep, not distance.
pub const MAX_RTT: Duration = Duration::from_secs(5);
/// Shorter round trips count as this: below it, timers are measured and not the network, and
/// relative errors mean nothing.
const MIN_RTT_MS: f64 = 0.1;
/// A height of nothing would never grow, as the pull on the height is in proportion to it.
const MIN_HEIGHT_MS: f64 = 0.05;
/// Share of the spring's length that one sample moves a member of average certainty (c_c of §3.4,
/// value of §4.2).
const STEP: f64 = 0.25;
/// Weight of one sample in the error estimate (c_e of §3.4, value of §4.2).
const ERROR_STEP: f64 = 0.25;
/// Greatest error: a member that knows nothing.
const MAX_ERROR: f64 = 1.5;
/// Estimates that are expected to be off by as much as they say are no estimates.
const UNKNOWN_ERROR: f32 = 1.0;
/// Least error that is believed of another member: who claims to be perfect does not get the whole
/// say.
const MIN_ERROR: f64 = 0.02;
/// A sample pulls at most this many times as strongly as samples usually do.
const MAX_PULL: f64 = 3.0;
/// No sample pulls more strongly than this.
const HARDEST_PULL_MS: f64 = 250.0;
/// The usual pull is never taken to be less than this, so that a member at rest still follows a
/// change of route.
const SOFTEST_PULL_MS: f64 = 2.0;
/// Weight of one sample in the usual pull: a few dozen samples (a minute or two of keepalives) make
/// a new habit.
const PULL_STEP: f64 = 1.0 / 32.0;
/// Distance from the origin at which gravity moves a member 1 ms a sample; it falls with the square
/// of the distance.
const GRAVITY_MS: f64 = 1000.0;

/// A place in the coordinate space, as members tell it to each other: 8 to 22 bytes on the wire.
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

/// A coordinate as decoded, before it is believed.
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

    /// Expected relative error of its estimates: 0.1 means 10 % off.
    pub fn error(&self) -> f32 {
        f32::from(self.error) / 1e3
    }

    /// Whether its estimates say anything: a member that has just come knows nothing yet.
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

/// A member's own coordinate and how it learns.
#[derive(Clone, Debug)]
pub struct Vivaldi {
    here: Point,
    error: f64,
    /// Average strength of the pull of a sample, in milliseconds.
    usual_pull: f64,
    rng: StdRng,
}

impl Vivaldi {
    /// At the origin and sure of nothing. `seed` chooses the direction in which it leaves a
    /// neighbour that stands at the same point.
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
    /// (§5.4), then feels gravity.
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

    /// What to tell others.
    pub fn mine(&self) -> Coordinate {
        // Bounded by `step` and `observe`: the conversions below lose only fractions.
        Coordinate {
            at: self.here.at.map(|axis| (axis * 1e3).round() as i32),
            height: (self.here.height * 1e3).round() as u32,
            error: (self.error * 1e3).round() as u16,
        }
    }

    /// Expected relative error of its estimates: 0.1 means 10 % off; 1.5 that nothing is known.
    pub fn error(&self) -> f32 {
        self.error as f32
    }
}

#[cfg(test)]
#[path = "coordinates_tests.rs"]
mod tests;
