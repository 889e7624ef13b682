//! How often a source may ask, and how often it may show a wrong token: a token bucket for each
//! source, without IO or clock.
//!
//! A bucket is one instant, as in the generic cell rate algorithm (ATM Forum, Traffic Management
//! 4.1): the time at which it is full again. A bucket that is full again is forgotten. Sources
//! beyond [`MOST_SOURCES`] share one bucket, so that neither memory nor the rate of all of them
//! grows with their number.

use p2pvm_api::Role;
use std::{
    collections::HashMap,
    hash::Hash,
    net::{IpAddr, Ipv6Addr},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// How many sources have buckets of their own. Reason: a network of some hundred members, each with
/// a browser.
const MOST_SOURCES: usize = 1024;
/// The wrong tokens of one source: ten at once, then one in six seconds.
const WRONG_TOKENS: Rate = Rate::new(10, Duration::from_secs(6));
/// The requests of one source. Reason: a page asks once a second, and loads a dozen files at once.
const REQUESTS: Rate = Rate::new(100, Duration::from_millis(20));
/// The requests with one token, from all sources. Reason: a hundred open pages.
const OF_TOKEN: Rate = Rate::new(200, Duration::from_millis(10));
/// How many bits of an IPv6 address outside the network tell sources apart. Reason: one host has all
/// addresses of a /64.
const V6_BITS: u32 = 64;

/// How much a bucket holds, and how fast it fills.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    most: u32,
    each: Duration,
}

impl Rate {
    /// `most` at once, and one more every `each`.
    const fn new(most: u32, each: Duration) -> Self {
        assert!(most > 0);
        Self { most, each }
    }

    /// How long after a bucket is full again the next one may still be taken out.
    fn slack(self) -> Duration {
        self.each * (self.most - 1)
    }
}

/// A bucket for each key.
#[derive(Debug)]
struct Buckets<K> {
    rate: Rate,
    most: usize,
    /// When each bucket that is not full will be.
    full_at: HashMap<K, Instant>,
    /// The same of the bucket that the others share.
    shared: Option<Instant>,
}

impl<K: Eq + Hash> Buckets<K> {
    fn new(rate: Rate, most: usize) -> Self {
        Self {
            rate,
            most,
            full_at: HashMap::new(),
            shared: None,
        }
    }

    /// Takes one out of the key's bucket; if it is empty, says how long until there is one.
    fn take(&mut self, key: K, now: Instant) -> Result<(), Duration> {
        if !self.full_at.contains_key(&key) && self.full_at.len() >= self.most {
            self.full_at.retain(|_, full_at| *full_at > now);
        }
        let place = if self.full_at.contains_key(&key) || self.full_at.len() < self.most {
            self.full_at.entry(key).or_insert(now)
        } else {
            self.shared.get_or_insert(now)
        };
        let full_at = (*place).max(now);
        let early = full_at.duration_since(now);
        if early > self.rate.slack() {
            return Err(early - self.rate.slack());
        }
        *place = full_at + self.rate.each;
        Ok(())
    }
}

/// Where a connection comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// The unix socket.
    Local,
    /// An address; of IPv6 outside the network only its prefix.
    Address(IpAddr),
}

impl Source {
    /// A connection from an address of the network. Reason: a member has only addresses that it
    /// claimed.
    pub fn in_network(address: IpAddr) -> Self {
        Self::Address(address)
    }

    /// A connection from elsewhere, as on a LAN.
    pub fn outside(address: IpAddr) -> Self {
        let address = match address.to_canonical() {
            IpAddr::V6(v6) => {
                let prefix = v6.to_bits() & (u128::MAX << (128 - V6_BITS));
                IpAddr::V6(Ipv6Addr::from_bits(prefix))
            }
            v4 => v4,
        };
        Self::Address(address)
    }
}

/// The limits of the dashboard.
pub struct Limits {
    wrong_tokens: Mutex<Buckets<Source>>,
    requests: Mutex<Buckets<Source>>,
    with_operators: Mutex<Buckets<()>>,
    with_readers: Mutex<Buckets<()>>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            wrong_tokens: Mutex::new(Buckets::new(WRONG_TOKENS, MOST_SOURCES)),
            requests: Mutex::new(Buckets::new(REQUESTS, MOST_SOURCES)),
            with_operators: Mutex::new(Buckets::new(OF_TOKEN, 1)),
            with_readers: Mutex::new(Buckets::new(OF_TOKEN, 1)),
        }
    }
}

impl Limits {
    /// Counts a request of a source.
    pub fn request(&self, source: Source) -> Result<(), Duration> {
        take(&self.requests, source)
    }

    /// Counts a wrong token of a source.
    pub fn wrong_token(&self, source: Source) -> Result<(), Duration> {
        take(&self.wrong_tokens, source)
    }

    /// Counts a request with the token of a role.
    pub fn with_token(&self, role: &Role) -> Result<(), Duration> {
        match role {
            Role::Operator => take(&self.with_operators, ()),
            _ => take(&self.with_readers, ()),
        }
    }
}

fn take<K: Eq + Hash>(buckets: &Mutex<Buckets<K>>, key: K) -> Result<(), Duration> {
    let mut buckets = buckets.lock().unwrap_or_else(PoisonError::into_inner);
    buckets.take(key, Instant::now())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RATE: Rate = Rate::new(3, Duration::from_secs(2));

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let mut buckets = Buckets::new(RATE, 8);
        let start = Instant::now();
        for _ in 0..3 {
            assert_eq!(buckets.take("a", start), Ok(()));
        }
        assert_eq!(buckets.take("a", start), Err(Duration::from_secs(2)));
        assert_eq!(
            buckets.take("b", start),
            Ok(()),
            "another source has its own"
        );
        let later = start + Duration::from_millis(1500);
        assert_eq!(buckets.take("a", later), Err(Duration::from_millis(500)));
        assert_eq!(buckets.take("a", start + Duration::from_secs(2)), Ok(()));
        assert!(buckets.take("a", start + Duration::from_secs(2)).is_err());
        let rested = start + Duration::from_secs(60);
        let taken = (0..9).filter(|_| buckets.take("a", rested).is_ok()).count();
        assert_eq!(taken, 3, "a rest earns no more than a burst");
    }

    #[test]
    fn sources_beyond_the_most_share_one_bucket_until_others_rest() {
        let mut buckets = Buckets::new(RATE, 4);
        let start = Instant::now();
        let taken = (0..100).filter(|n| buckets.take(*n, start).is_ok()).count();
        assert_eq!(taken, 4 + 3);
        assert_eq!(buckets.full_at.len(), 4);
        assert_eq!(
            buckets.take(0, start),
            Ok(()),
            "a known source keeps its own"
        );
        let later = start + Duration::from_secs(30);
        assert_eq!(buckets.take(200, later), Ok(()));
        assert_eq!(buckets.full_at.len(), 1, "what is full again is forgotten");
    }

    #[test]
    fn one_host_on_a_lan_is_one_source_with_all_its_addresses() {
        let of = |text: &str| Source::outside(text.parse().unwrap());
        assert_eq!(of("fd00:1:2:3::1"), of("fd00:1:2:3:ffff::9"));
        assert_ne!(of("fd00:1:2:3::1"), of("fd00:1:2:4::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
        let member = |text: &str| Source::in_network(text.parse().unwrap());
        assert_ne!(member("fd00:1:2:3::1"), member("fd00:1:2:3::2"));
    }

    proptest! {
        #[test]
        fn no_sequence_of_requests_gets_more_than_the_rate(
            steps in prop::collection::vec((0u64..5000, 0u8..3), 1..200),
        ) {
            let start = Instant::now();
            let mut buckets = Buckets::new(RATE, 2);
            let (mut now, mut taken) = (start, [0u32; 3]);
            for (wait, key) in steps {
                now += Duration::from_millis(wait);
                match buckets.take(key, now) {
                    Ok(()) => taken[usize::from(key)] += 1,
                    Err(wait) => prop_assert!(wait > Duration::ZERO && wait <= RATE.each),
                }
                prop_assert!(buckets.full_at.len() <= 2);
            }
            let earned = 3 + (now - start).as_millis() / RATE.each.as_millis();
            // A source may have used its own bucket and the shared one.
            prop_assert!(taken.iter().all(|taken| u128::from(*taken) <= 2 * earned));
        }
    }
}
