//! Publishes this member's offer to the others, and withdraws it at the end.

use super::{PublishedOffer, Subnets, lock};
use p2pvm_api::{Doing, Outcome};
use p2pvm_overlay::{
    UnixTime,
    membership::{Cidr, Notice, Offer},
    network_time::{NetworkTime, next_number},
};
use std::time::{Duration, Instant};

/// How long before an offer that is not renewed is forgotten. Reason: its host is gone.
const OFFER_SECONDS: u64 = 1800;
/// How long before an offer is published again: the first time, the second, then always. Reason: a
/// member that was just connecting may have missed it; then it has three chances to get it in time.
const RENEW_AFTER: [Duration; 3] = [
    Duration::from_secs(4),
    Duration::from_secs(30),
    Duration::from_secs(600),
];
/// How long the withdrawal may take when the daemon ends.
const FAREWELL: Duration = Duration::from_millis(700);

impl Subnets {
    /// Publishes this member's offer, if it has changed or is due.
    pub(super) fn publish(&self, subnets: Vec<Cidr>, multicast: bool, since: u64) -> Outcome<()> {
        let mut published = lock(&self.published);
        let news = published
            .as_ref()
            .is_none_or(|last| last.subnets != subnets || last.multicast != multicast);
        let due = match &*published {
            Some(last) => {
                // Others may hold an offer of ours with a higher number, from a clock that was
                // ahead.
                let (told, time) = *lock(&self.told);
                let overtaken = self.parts.notices.offer_number(self.parts.me()) > told
                    || time != NetworkTime::of_process().times_set();
                news || overtaken
                    || last.at.elapsed() >= RENEW_AFTER[last.times.min(RENEW_AFTER.len() - 1)]
            }
            // A previous run may have been killed before it could withdraw its offer.
            None => {
                multicast
                    || !subnets.is_empty()
                    || self
                        .parts
                        .notices
                        .offers()
                        .iter()
                        .any(|o| o.member() == self.parts.me())
            }
        };
        if due {
            let offer = self.notice(subnets.clone(), multicast, since);
            self.parts
                .spread
                .publish(offer)
                .doing("telling what this member offers")?;
            let times = published
                .as_ref()
                .filter(|_| !news)
                .map_or(0, |last| last.times + 1);
            *published = Some(PublishedOffer {
                at: Instant::now(),
                subnets,
                multicast,
                times,
            });
        }
        Ok(())
    }

    fn notice(&self, subnets: Vec<Cidr>, multicast: bool, since: u64) -> Notice {
        let parts = &self.parts;
        let seq = next_number(parts.notices.offer_number(parts.me()));
        *lock(&self.told) = (Some(seq), NetworkTime::of_process().times_set());
        let ends = UnixTime::now().plus(OFFER_SECONDS);
        let offer = Offer::sign(
            parts.identity.keys(),
            parts.certificate.clone(),
            (subnets, multicast),
            UnixTime(since),
            (seq, ends),
        );
        Notice::Offer(Box::new(offer))
    }

    /// Withdraws the offers: the daemon ends.
    pub async fn close(&self) {
        let offers = lock(&self.published)
            .take()
            .is_some_and(|last| !last.subnets.is_empty() || last.multicast);
        if offers
            && let Err(refusal) = self
                .parts
                .spread
                .publish_now(self.notice(Vec::new(), false, 0), FAREWELL)
                .await
        {
            tracing::warn!(%refusal, "what this member offers is not taken back; it runs out by \
                itself");
        }
    }
}
