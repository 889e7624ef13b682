use super::*;
use proptest::prelude::*;
use rand::Rng;

/// Round trips in milliseconds between eight cities on five continents, as in
/// lab/sites/planetlab.toml.
const CITIES: [[f64; 8]; 8] = [
    [1.0, 72.0, 120.0, 78.0, 95.0, 225.0, 165.0, 205.0],
    [72.0, 1.0, 185.0, 140.0, 155.0, 165.0, 105.0, 150.0],
    [120.0, 185.0, 1.0, 195.0, 205.0, 340.0, 265.0, 315.0],
    [78.0, 140.0, 195.0, 1.0, 24.0, 215.0, 225.0, 270.0],
    [95.0, 155.0, 205.0, 24.0, 1.0, 205.0, 240.0, 285.0],
    [225.0, 165.0, 340.0, 215.0, 205.0, 1.0, 60.0, 195.0],
    [165.0, 105.0, 265.0, 225.0, 240.0, 60.0, 1.0, 115.0],
    [205.0, 150.0, 315.0, 270.0, 285.0, 195.0, 115.0, 1.0],
];

/// Members in those cities, each with a last mile of its own, and what they have learnt.
struct World {
    members: Vec<(usize, f64, Vivaldi)>,
    rng: StdRng,
}

impl World {
    fn new(members: usize, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let members = (0..members)
            .map(|i| {
                (
                    i % 8,
                    rng.random_range(0.5..15.0),
                    Vivaldi::new(rng.random()),
                )
            })
            .collect();
        Self { members, rng }
    }

    fn rtt(&self, a: usize, b: usize) -> f64 {
        let ((city, height, _), (other, other_height, _)) = (&self.members[a], &self.members[b]);
        CITIES[*city][*other] + height + other_height
    }

    /// Each member measures `neighbours` others, fixed ones, once a round. What a liar (the first
    /// `liars`) says is left to `lie`.
    fn rounds(
        &mut self,
        rounds: usize,
        neighbours: usize,
        liars: usize,
        lie: impl Fn(usize) -> (Duration, Coordinate),
    ) {
        let n = self.members.len();
        for round in 0..rounds {
            for a in liars..n {
                for k in 1..=neighbours {
                    let b = (a + k * (k + a % 5) + k / 3 + a % 3) % n;
                    if b == a {
                        continue;
                    }
                    let jitter = self.rng.random_range(0.98..1.06);
                    let (rtt, remote) = if b < liars {
                        lie(round)
                    } else {
                        (
                            Duration::from_secs_f64(self.rtt(a, b) * jitter / 1e3),
                            self.members[b].2.mine(),
                        )
                    };
                    self.members[a].2.observe(rtt, &remote);
                }
            }
        }
    }

    /// Relative errors of all pairs of honest members, sorted.
    fn errors(&self, liars: usize) -> Vec<f64> {
        let mut errors = vec![];
        for a in liars..self.members.len() {
            for b in liars..a {
                let estimate = self.members[a]
                    .2
                    .mine()
                    .estimate(&self.members[b].2.mine())
                    .as_secs_f64()
                    * 1e3;
                errors.push((estimate - self.rtt(a, b)).abs() / self.rtt(a, b));
            }
        }
        errors.sort_by(f64::total_cmp);
        errors
    }
}

fn no_lie(_: usize) -> (Duration, Coordinate) {
    unreachable!("there are no liars")
}

#[test]
fn estimates_come_close_to_the_round_trips_of_the_world() {
    let mut world = World::new(96, 1);
    world.rounds(60, 12, 0, no_lie);
    let errors = world.errors(0);
    let (median, p90) = (errors[errors.len() / 2], errors[errors.len() * 9 / 10]);
    // The tenth is pairs within a city, whose few milliseconds are all last mile.
    assert!(median < 0.12 && p90 < 0.6, "median {median}, p90 {p90}");
    let claimed: f32 = world.members.iter().map(|m| m.2.error()).sum::<f32>() / 96.0;
    assert!(
        (0.03..0.3).contains(&claimed),
        "they believe to be {claimed} off"
    );
}

#[test]
fn a_tenth_of_liars_costs_the_others_little() {
    let liar = |round: usize| {
        let side = if round.is_multiple_of(2) {
            3_000_000
        } else {
            -3_000_000
        };
        (
            Duration::from_millis(1),
            Coordinate {
                at: [side, -side, side],
                height: 0,
                error: 0,
            },
        )
    };
    let mut world = World::new(100, 2);
    world.rounds(60, 12, 10, liar);
    let errors = world.errors(10);
    assert!(
        errors[errors.len() / 2] < 0.3,
        "median {}",
        errors[errors.len() / 2]
    );
}

#[test]
fn a_member_that_moves_is_found_at_its_new_place() {
    let mut world = World::new(64, 3);
    world.rounds(60, 12, 0, no_lie);
    world.members[5].0 = 2;
    world.rounds(60, 12, 0, no_lie);
    let errors: Vec<f64> = (0..64)
        .filter(|b| *b != 5)
        .map(|b| {
            (world.members[5]
                .2
                .mine()
                .estimate(&world.members[b].2.mine())
                .as_secs_f64()
                * 1e3
                - world.rtt(5, b))
            .abs()
                / world.rtt(5, b)
        })
        .collect();
    let mean = errors.iter().sum::<f64>() / errors.len() as f64;
    assert!(mean < 0.35, "{mean}");
}

#[test]
fn absurd_round_trips_change_nothing() {
    let mut v = Vivaldi::new(1);
    for rtt in [Duration::ZERO, Duration::from_secs(6), Duration::MAX] {
        assert!(!v.observe(rtt, &Coordinate::default()));
    }
    assert_eq!(v.mine(), Vivaldi::new(2).mine());
}

#[test]
fn a_coordinate_out_of_bounds_is_refused_while_decoding() {
    let encode = |w: Wire| postcard::to_stdvec(&w).unwrap();
    assert!(
        postcard::from_bytes::<Coordinate>(&encode(Wire(
            [3_000_000, 0, -3_000_000],
            3_000_000,
            1500
        )))
        .is_ok()
    );
    for absurd in [
        Wire([3_000_001, 0, 0], 0, 0),
        Wire([0, i32::MIN, 0], 0, 0),
        Wire([0; 3], 3_000_001, 0),
        Wire([0; 3], 0, 1501),
    ] {
        assert!(postcard::from_bytes::<Coordinate>(&encode(absurd)).is_err());
    }
}

/// The places along one axis that a member may say.
const AXIS: std::ops::RangeInclusive<i32> = -3_000_000..=3_000_000;

proptest! {
    /// Whatever is told and measured, one sample moves a member by a bounded way and leaves it at a
    /// place that others accept.
    #[test]
    fn no_sample_throws_a_member_far(samples in proptest::collection::vec(
        (0u64..5_500_000, [AXIS, AXIS, AXIS], 0u32..=3_000_000, 0u16..=1500), 1..200))
    {
        let mut v = Vivaldi::new(7);
        for (rtt, at, height, error) in samples {
            let before = v.here;
            v.observe(Duration::from_micros(rtt), &Coordinate { at, height, error });
            let moved = length(&v.here.minus(&before));
            let gravity = (length(&before.at) + HARDEST_PULL_MS).powi(2) / GRAVITY_MS.powi(2);
            prop_assert!(moved <= HARDEST_PULL_MS * STEP + gravity, "moved {moved} ms");
            prop_assert!((v.here.height - before.height).abs() <= HARDEST_PULL_MS * STEP);
            let wire = postcard::to_stdvec(&v.mine()).unwrap();
            prop_assert!(wire.len() <= 22);
            prop_assert_eq!(postcard::from_bytes::<Coordinate>(&wire).unwrap(), v.mine());
        }
    }

    #[test]
    fn any_bytes_decode_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
        if let Ok(c) = postcard::from_bytes::<Coordinate>(&bytes) {
            prop_assert!(c.estimate(&Coordinate::default()) <= MAX_AXIS * 2 + MAX_HEIGHT * 2);
        }
    }
}
