//! The world that simulated members live in: cities with intercontinental round trips, a last mile
//! of each member's own, and NATs.
//!
//! Round trips are not copied from a data set but drawn from the seed so that they behave as
//! measured ones do. The core round trip between two cities is light in fibre (200 km a
//! millisecond) over the great circle times a detour of 1.3 to 2.5, drawn for each pair: the eight
//! cities of `lab/sites/planetlab.toml` span about that range (Berkeley–Tokyo 1.27, Berlin–Beijing
//! 2.8), and independent detours break the triangle inequality as often as real routes do. Two
//! members in a city are 2 ms apart. To that comes the last mile: 0.3 to 1.5 ms for the 40 % of
//! members in data centres, log-normal around 8 ms for the rest (cable, DSL, radio), at most 100
//! ms.

use p2pvm_overlay::connect::NatKind;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::time::Duration;

/// Kilometres that light in fibre goes in a millisecond.
const KM_PER_MS: f64 = 200.0;
/// Round trip between two routers of one city.
const CITY_MS: f64 = 2.0;
const EARTH_RADIUS_KM: f64 = 6371.0;

/// Name, latitude, longitude, and how many members live there relative to the others.
const CITIES: [(&str, f64, f64, u32); 32] = [
    ("Princeton", 40.3, -74.7, 3),
    ("Berkeley", 37.9, -122.3, 4),
    ("Chicago", 41.9, -87.6, 4),
    ("Dallas", 32.8, -96.8, 3),
    ("Toronto", 43.7, -79.4, 2),
    ("Mexico City", 19.4, -99.1, 2),
    ("Bogotá", 4.7, -74.1, 1),
    ("São Paulo", -23.5, -46.6, 3),
    ("Buenos Aires", -34.6, -58.4, 1),
    ("London", 51.5, -0.1, 4),
    ("Paris", 48.9, 2.4, 4),
    ("Amsterdam", 52.4, 4.9, 3),
    ("Berlin", 52.5, 13.4, 4),
    ("Zürich", 47.4, 8.5, 2),
    ("Madrid", 40.4, -3.7, 2),
    ("Milan", 45.5, 9.2, 2),
    ("Stockholm", 59.3, 18.1, 2),
    ("Warsaw", 52.2, 21.0, 2),
    ("Moscow", 55.8, 37.6, 2),
    ("Istanbul", 41.0, 29.0, 2),
    ("Cairo", 30.0, 31.2, 1),
    ("Lagos", 6.5, 3.4, 1),
    ("Johannesburg", -26.2, 28.0, 1),
    ("Dubai", 25.2, 55.3, 1),
    ("Mumbai", 19.1, 72.9, 3),
    ("Singapore", 1.3, 103.8, 2),
    ("Jakarta", -6.2, 106.8, 1),
    ("Hong Kong", 22.3, 114.2, 2),
    ("Beijing", 39.9, 116.4, 3),
    ("Seoul", 37.6, 127.0, 2),
    ("Tokyo", 35.7, 139.7, 3),
    ("Sydney", -33.9, 151.2, 2),
];

/// The NAT of a member, as far as it decides which links are possible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A public address.
    Public,
    /// A NAT with endpoint-independent mapping and address-dependent filtering.
    Cone,
    /// As `Cone`, with address- and port-dependent filtering.
    PortRestricted,
    /// A mapping for each destination: no punch between two of these, nor with a port-restricted
    /// one.
    Symmetric,
    /// No UDP at all: a stream to public members, relays for the rest.
    NoUdp,
}

impl Access {
    /// Of 100 members 25 are public, 25 and 30 behind cones, 15 behind symmetric NATs, 5 without
    /// UDP. A guess in the range of published surveys (Ford et al. 2005: 82 % of NATs can be
    /// punched; DCUtR's 2023 measurement: 70 %), on the hard side.
    fn draw(rng: &mut ChaCha8Rng) -> Self {
        match rng.random_range(0..100) {
            0..25 => Self::Public,
            25..50 => Self::Cone,
            50..80 => Self::PortRestricted,
            80..95 => Self::Symmetric,
            _ => Self::NoUdp,
        }
    }

    /// Whether two members can have a direct path, by punching, mapping or (to a public one) a
    /// stream: as the daemon's connector decides it.
    pub fn direct(self, other: Self) -> bool {
        [self, other].contains(&Self::Public) || self.nat().may_punch(other.nat())
    }

    fn nat(self) -> NatKind {
        match self {
            Self::Public => NatKind::Open,
            Self::Cone => NatKind::AddressCone,
            Self::PortRestricted => NatKind::Cone,
            Self::Symmetric => NatKind::Symmetric,
            Self::NoUdp => NatKind::Blocked,
        }
    }
}

/// Where a member lives.
#[derive(Clone, Copy, Debug)]
pub struct Home {
    /// Index of its city.
    pub city: u8,
    /// Its NAT.
    pub access: Access,
    /// Milliseconds that its last mile adds to every round trip.
    pub last_mile_ms: f32,
}

/// Round trips between cities, and how members settle.
pub struct World {
    core_ms: Vec<f32>,
    total_weight: u32,
}

impl World {
    /// The world of a seed.
    pub fn new(seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0x776f_726c_6400);
        let n = CITIES.len();
        let mut core_ms = vec![CITY_MS as f32; n * n];
        for a in 0..n {
            for b in 0..a {
                let detour = 1.3 + 0.6 * (rng.random::<f64>() + rng.random::<f64>());
                let rtt = (2.0 * kilometres(a, b) / KM_PER_MS * detour).max(CITY_MS) as f32;
                core_ms[a * n + b] = rtt;
                core_ms[b * n + a] = rtt;
            }
        }
        Self {
            core_ms,
            total_weight: CITIES.iter().map(|c| c.3).sum(),
        }
    }

    /// A new member's home.
    pub fn settle(&self, rng: &mut ChaCha8Rng) -> Home {
        let mut ticket = rng.random_range(0..self.total_weight);
        let city = CITIES.iter().position(|c| {
            let won = ticket < c.3;
            ticket = ticket.saturating_sub(c.3);
            won
        });
        let access = Access::draw(rng);
        let hosted = rng.random_bool(0.4);
        let last_mile_ms = if hosted {
            rng.random_range(0.3..1.5)
        } else {
            (8.0 * (0.7 * normal(rng)).exp()).clamp(1.0, 100.0)
        };
        Home {
            city: city.unwrap_or(0) as u8,
            access,
            last_mile_ms: last_mile_ms as f32,
        }
    }

    /// A home with a public address in a data centre: what bootstraps have.
    pub fn settle_publicly(&self, rng: &mut ChaCha8Rng) -> Home {
        Home {
            access: Access::Public,
            last_mile_ms: rng.random_range(0.3..1.5),
            ..self.settle(rng)
        }
    }

    /// Round trip in microseconds, without jitter.
    pub fn rtt_us(&self, a: &Home, b: &Home) -> u64 {
        let core = self.core_ms[usize::from(a.city) * CITIES.len() + usize::from(b.city)];
        (f64::from(core + a.last_mile_ms + b.last_mile_ms) * 1e3) as u64
    }

    /// Round trip without jitter.
    pub fn rtt(&self, a: &Home, b: &Home) -> Duration {
        Duration::from_micros(self.rtt_us(a, b))
    }
}

/// How many cities there are.
pub fn cities() -> usize {
    CITIES.len()
}

/// Great-circle distance (haversine).
fn kilometres(a: usize, b: usize) -> f64 {
    let ((_, lat_a, lon_a, _), (_, lat_b, lon_b, _)) = (CITIES[a], CITIES[b]);
    let (half_lat, half_lon) = (
        (lat_a - lat_b).to_radians() / 2.0,
        (lon_a - lon_b).to_radians() / 2.0,
    );
    let h = half_lat.sin().powi(2)
        + lat_a.to_radians().cos() * lat_b.to_radians().cos() * half_lon.sin().powi(2);
    2.0 * EARTH_RADIUS_KM * h.sqrt().asin()
}

/// A standard normal draw (Box and Muller 1958).
fn normal(rng: &mut ChaCha8Rng) -> f64 {
    let (u, v): (f64, f64) = (rng.random_range(f64::MIN_POSITIVE..1.0), rng.random());
    (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_are_those_of_the_real_world_within_its_spread() {
        let world = World::new(1);
        let home = |name: &str| {
            let city = CITIES.iter().position(|c| c.0 == name).unwrap() as u8;
            Home {
                city,
                access: Access::Public,
                last_mile_ms: 1.0,
            }
        };
        // Typical values of lab/sites/planetlab.toml; detours are drawn, so within a factor of
        // two.
        for (a, b, typical_ms) in [
            ("Princeton", "Berkeley", 72),
            ("Princeton", "Berlin", 95),
            ("Tokyo", "Sydney", 115),
            ("São Paulo", "Beijing", 340),
        ] {
            let rtt = world.rtt(&home(a), &home(b)).as_millis();
            assert!(
                (typical_ms / 2..typical_ms * 2).contains(&rtt),
                "{a}–{b}: {rtt} ms"
            );
        }
    }

    #[test]
    fn the_same_seed_is_the_same_world() {
        let draw = |seed| {
            let (world, mut rng) = (World::new(seed), ChaCha8Rng::seed_from_u64(seed));
            let homes: Vec<Home> = (0..50).map(|_| world.settle(&mut rng)).collect();
            homes
                .iter()
                .map(|h| world.rtt_us(&homes[0], h))
                .collect::<Vec<_>>()
        };
        assert_eq!(draw(3), draw(3));
        assert_ne!(draw(3), draw(4));
    }

    #[test]
    fn two_symmetric_nats_need_a_relay_and_a_public_address_never_does() {
        use Access::*;
        for access in [Public, Cone, PortRestricted, Symmetric, NoUdp] {
            assert!(Public.direct(access) && access.direct(Public));
        }
        assert!(Cone.direct(Symmetric) && PortRestricted.direct(PortRestricted));
        assert!(
            !Symmetric.direct(Symmetric)
                && !PortRestricted.direct(Symmetric)
                && !NoUdp.direct(Cone)
        );
    }
}
