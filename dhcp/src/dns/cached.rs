//! Caches the answers of a [`Names`] for their TTL: a program that asks for the same name again and
//! again makes one DHT lookup a minute. That a name does not exist is cached for seconds; a failed
//! lookup is not cached.

use super::{NEGATIVE_TTL_SECONDS, Names, TTL_SECONDS, Unavailable};
use crate::entry::{NameEntry, NameKind};
use async_trait::async_trait;
use p2pvm_host::lock;
use std::{
    collections::HashMap,
    hash::Hash,
    net::IpAddr,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::time::Instant;

/// How long to wait before each retry of a failed lookup.
/// Reason: programs wait five seconds in all (resolv.conf(5), `timeout`).
const PAUSES: [Duration; 3] = [
    Duration::from_millis(200),
    Duration::from_millis(500),
    Duration::from_millis(1000),
];
/// How many answers of each kind are cached.
/// Reason: a scan of a subnet's names must not fill the memory.
const MAX_ANSWERS: usize = 4096;

/// How long an expired answer still serves if the lookup fails.
const STALE: Duration = Duration::from_secs(24 * 3600);

struct Answers<K, V>(Mutex<HashMap<K, (Instant, Option<V>)>>);

impl<K: Eq + Hash + Clone, V: Clone> Answers<K, V> {
    fn get(&self, key: &K) -> Option<Option<V>> {
        let answers = lock(&self.0);
        answers
            .get(key)
            .filter(|(ends, _)| *ends > Instant::now())
            .map(|(_, value)| value.clone())
    }

    /// The last positive answer, expired or not.
    fn stale(&self, key: &K) -> Option<V> {
        let answers = lock(&self.0);
        answers
            .get(key)
            .filter(|(ends, _)| ends.elapsed() < STALE)
            .and_then(|(_, value)| value.clone())
    }

    fn set(&self, key: K, value: Option<V>) {
        let seconds = if value.is_some() {
            TTL_SECONDS
        } else {
            NEGATIVE_TTL_SECONDS
        };
        let now = Instant::now();
        let mut answers = lock(&self.0);
        if answers.len() >= MAX_ANSWERS {
            answers.retain(|_, (ends, _)| *ends > now);
            if answers.len() >= MAX_ANSWERS {
                answers.clear();
            }
        }
        answers.insert(key, (now + Duration::from_secs(u64::from(seconds)), value));
    }
}

impl<K, V> Default for Answers<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

/// [`Names`] with a cache.
pub struct CachedNames {
    inner: Arc<dyn Names>,
    forward: Answers<(NameKind, String), NameEntry>,
    reverse: Answers<IpAddr, (NameKind, String)>,
}

impl CachedNames {
    /// Caches the answers of `inner`.
    pub fn new(inner: Arc<dyn Names>) -> Self {
        Self {
            inner,
            forward: Answers::default(),
            reverse: Answers::default(),
        }
    }
}

/// Retries a failed lookup, as while members connect: a program that gets a failure asks a name
/// server that does not know this network.
async fn persist<T, F: Future<Output = Result<T, Unavailable>>>(
    ask: impl Fn() -> F,
) -> Result<T, Unavailable> {
    for pause in PAUSES {
        if let Ok(found) = ask().await {
            return Ok(found);
        }
        tokio::time::sleep(pause).await;
    }
    ask().await
}

#[async_trait]
impl Names for CachedNames {
    async fn forward(&self, kind: NameKind, label: &str) -> Result<Option<NameEntry>, Unavailable> {
        let key = (kind, label.to_owned());
        if let Some(known) = self.forward.get(&key) {
            return Ok(known);
        }
        match persist(|| self.inner.forward(kind, label)).await {
            Ok(found) => {
                self.forward.set(key, found.clone());
                Ok(found)
            }
            Err(why) => self.forward.stale(&key).map(Some).ok_or(why),
        }
    }

    async fn reverse(&self, ip: IpAddr) -> Result<Option<(NameKind, String)>, Unavailable> {
        if let Some(known) = self.reverse.get(&ip) {
            return Ok(known);
        }
        match persist(|| self.inner.reverse(ip)).await {
            Ok(found) => {
                self.reverse.set(ip, found.clone());
                Ok(found)
            }
            Err(why) => self.reverse.stale(&ip).map(Some).ok_or(why),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;
    use p2pvm_dht::RecordError;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn no_quorum() -> Unavailable {
        Unavailable(Error::Records(RecordError::Disagreement))
    }

    /// Knows that 10.0.0.1 is "a", cannot say anything of 10.0.0.9, and counts how often it is
    /// asked.
    #[derive(Default)]
    struct Counting(AtomicUsize);

    #[async_trait]
    impl Names for Counting {
        async fn forward(&self, _: NameKind, _: &str) -> Result<Option<NameEntry>, Unavailable> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Ok(None)
        }

        async fn reverse(&self, ip: IpAddr) -> Result<Option<(NameKind, String)>, Unavailable> {
            self.0.fetch_add(1, Ordering::Relaxed);
            match ip.to_string().as_str() {
                "10.0.0.1" => Ok(Some((NameKind::Host, "a".into()))),
                "10.0.0.9" => Err(no_quorum()),
                _ => Ok(None),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn names_are_kept_a_minute_absences_shorter_failures_never() {
        let counting = Arc::new(Counting::default());
        let names = CachedNames::new(counting.clone());
        let ip = |last: u8| IpAddr::from([10, 0, 0, last]);
        let asked = || counting.0.swap(0, Ordering::Relaxed);
        for _ in 0..3 {
            assert_eq!(
                names.reverse(ip(1)).await.unwrap(),
                Some((NameKind::Host, "a".to_owned()))
            );
            assert_eq!(names.reverse(ip(2)).await.unwrap(), None);
            assert_eq!(names.forward(NameKind::Vm, "x").await.unwrap(), None);
        }
        assert_eq!(asked(), 3);
        tokio::time::advance(Duration::from_secs(6)).await;
        let _ = (names.reverse(ip(1)).await, names.reverse(ip(2)).await);
        assert_eq!(
            asked(),
            1,
            "the absence was asked for again, the name was not"
        );
        tokio::time::advance(Duration::from_secs(60)).await;
        let _ = names.reverse(ip(1)).await;
        assert_eq!(asked(), 1);
        for _ in 0..2 {
            assert!(names.reverse(ip(9)).await.is_err());
        }
        assert_eq!(asked(), 2 * (PAUSES.len() + 1));
    }

    /// Knows everybody until it is cut off.
    #[derive(Default)]
    struct CutOff(std::sync::atomic::AtomicBool);

    #[async_trait]
    impl Names for CutOff {
        async fn forward(&self, _: NameKind, _: &str) -> Result<Option<NameEntry>, Unavailable> {
            Err(no_quorum())
        }

        async fn reverse(&self, _: IpAddr) -> Result<Option<(NameKind, String)>, Unavailable> {
            if self.0.load(Ordering::Relaxed) {
                Err(no_quorum())
            } else {
                Ok(Some((NameKind::Host, "a".into())))
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_known_serves_on_where_nothing_can_be_looked_up() {
        let inner = Arc::new(CutOff::default());
        let names = CachedNames::new(inner.clone());
        let ip = IpAddr::from([10, 0, 0, 1]);
        let known = names.reverse(ip).await.unwrap();
        inner.0.store(true, Ordering::Relaxed);
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!(names.reverse(ip).await.unwrap(), known);
        tokio::time::advance(STALE).await;
        assert!(names.reverse(ip).await.is_err());
    }
}
