//! How many events of a kind that others can cause are kept: so many a minute. Without a clock.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// How many events of one kind are kept a minute.
const A_MINUTE: u32 = 30;
const MINUTE: Duration = Duration::from_secs(60);

/// The present minute of each kind.
#[derive(Debug, Default)]
pub(super) struct Bound(BTreeMap<String, (Instant, u32)>);

impl Bound {
    /// Whether one more event of the kind is kept.
    pub fn admits(&mut self, now: Instant, kind: &str) -> bool {
        let (began, count) = self.0.entry(kind.to_owned()).or_insert((now, 0));
        if now.saturating_duration_since(*began) >= MINUTE {
            (*began, *count) = (now, 0);
        }
        *count += 1;
        *count <= A_MINUTE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_one_kind_keeps_thirty_a_minute() {
        let (mut bound, now) = (Bound::default(), Instant::now());
        let mut kept = |at, kind| (0..1000).filter(|_| bound.admits(at, kind)).count();
        assert_eq!(kept(now, "request-refused"), 30);
        assert_eq!(kept(now, "member-lost"), 30, "each kind for itself");
        assert_eq!(kept(now + MINUTE, "request-refused"), 30);
    }
}
