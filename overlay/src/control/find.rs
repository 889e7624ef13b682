//! Lookups over the control plane: asks members which members they know near a place, accepts
//! signed contacts only, and leaves the decision to [`crate::lookup`]. An answer has ids and the
//! `seq` of their contacts; only contacts that are newer than ours are then fetched.

use super::{
    shared::Shared,
    wire::{CONTACTS_SERVICE, NEAREST_SERVICE, decode},
};
use crate::{
    fabric::FabricError,
    id::{MemberId, RingAddr},
    lookup::{Lookup, LookupError, LookupOptions, NAMED},
};
use crate::{lock, read_lock, write_lock};
use futures::{StreamExt, future::Either, stream::FuturesUnordered};
use std::{
    collections::HashMap,
    sync::Mutex,
    time::{Duration, Instant},
};

/// How many members a lookup starts with, the nearest known: eight for each path.
const SEEDS: usize = 24;
/// How long the result of a lookup is reused. Reason: callers often ask for the same address or VM
/// several times in a row.
const FOUND_LASTS: Duration = Duration::from_secs(5);
/// How many places have a stored result.
const MAX_FOUND: usize = 256;

/// The results by place and number of members wanted: when they were found, and the members.
type Findings = HashMap<(RingAddr, usize), (Instant, Vec<MemberId>)>;

/// The results of recent lookups.
#[derive(Default)]
pub struct LookupCache(Mutex<Findings>);

impl LookupCache {
    fn get(&self, place: RingAddr, n: usize) -> Option<Vec<MemberId>> {
        let found = lock(&self.0);
        found
            .get(&(place, n))
            .filter(|(at, _)| at.elapsed() < FOUND_LASTS)
            .map(|(_, members)| members.clone())
    }

    fn set(&self, place: RingAddr, n: usize, members: Vec<MemberId>) {
        let mut found = lock(&self.0);
        if found.len() >= MAX_FOUND {
            found.retain(|_, (at, _)| at.elapsed() < FOUND_LASTS);
        }
        if found.len() < MAX_FOUND {
            found.insert((place, n), (Instant::now(), members));
        }
    }

    /// Drops the results that name a member that has gone.
    pub fn left(&self, member: MemberId) {
        lock(&self.0).retain(|_, (_, members)| !members.contains(&member));
    }

    /// Drops the results that a new member belongs to.
    pub fn came(&self, member: MemberId) {
        let addr = member.ring_addr();
        let stays = |place: &RingAddr, n: usize, members: &[MemberId]| {
            let farthest = members.last().map(|m| m.ring_addr().distance(place));
            members.contains(&member)
                || (members.len() >= n && farthest.is_some_and(|far| addr.distance(place) > far))
        };
        lock(&self.0).retain(|(place, n), (_, members)| stays(place, *n, members));
    }
}

impl Shared {
    /// The `n` live members closest to `place`, this node among them, by a lookup or the stored
    /// result of one.
    pub async fn closest_by_lookup(
        &self,
        place: RingAddr,
        n: usize,
    ) -> Result<Vec<MemberId>, FabricError> {
        if let Some(members) = self.found.get(place, n) {
            return Ok(members);
        }
        let options = LookupOptions {
            wanted: n,
            ..LookupOptions::default()
        };
        let mut members = match self.look_up(place, options, || false).await {
            Ok(members) => members,
            Err(LookupError::Alone) => Vec::new(),
            Err(e) => return Err(FabricError::NotFound(e)),
        };
        members.push(self.me);
        members.sort_by_cached_key(|m| m.ring_addr().distance(&place));
        members.dedup();
        members.truncate(n);
        self.found.set(place, n, members.clone());
        Ok(members)
    }

    /// Looks up a member's newest contact. Returns whether it is newer than the one known.
    pub async fn search(&self, member: MemberId) -> bool {
        let seq = || read_lock(&self.book).get(member).map(|c| c.seq);
        let before = seq();
        let _ = self
            .look_up(member.ring_addr(), LookupOptions::default(), || {
                seq() > before
            })
            .await;
        seq() > before
    }

    /// Looks a place up to refresh the book and the density, without using a stored result.
    pub async fn refresh(&self, place: RingAddr) -> Result<(), LookupError> {
        self.look_up(place, LookupOptions::default(), || false)
            .await
            .map(drop)
    }

    /// Runs a lookup until its outcome is certain or `enough` is true of the book, which has by
    /// then all contacts found.
    async fn look_up(
        &self,
        place: RingAddr,
        options: LookupOptions,
        enough: impl Fn() -> bool,
    ) -> Result<Vec<MemberId>, LookupError> {
        let seeds: Vec<MemberId> = {
            let book = read_lock(&self.book);
            book.nearest(&place, SEEDS)
                .into_iter()
                .map(|c| c.member())
                .collect()
        };
        let mut lookup = Lookup::new(self.me, place, &seeds, options, Instant::now());
        let mut asking = FuturesUnordered::new();
        loop {
            let now = Instant::now();
            while let Some(member) = lookup.poll(now) {
                asking.push(
                    async move { (member, self.ask(member, place, options.ask_timeout).await) },
                );
            }
            let outcome = lookup.outcome(now, &lock(&self.density));
            if let Some(outcome) = outcome {
                let mut density = lock(&self.density);
                lookup
                    .spread()
                    .into_iter()
                    .for_each(|spread| density.learn(spread));
                return outcome;
            }
            if enough() {
                return Ok(Vec::new());
            }
            let wake = tokio::time::sleep_until(lookup.wake_at(now).into());
            let next = async {
                match asking.next().await {
                    Some(answer) => answer,
                    None => std::future::pending().await,
                }
            };
            match futures::future::select(Box::pin(next), Box::pin(wake)).await {
                Either::Left(((member, Some(named)), _)) => lookup.answered(member, &named),
                Either::Left(((member, None), _)) => lookup.failed(member),
                Either::Right(_) => {}
            }
        }
    }

    /// The members that `member` knows near the place; `None` if it does not answer. Each is proved
    /// to be a member: its contact is in the book or has been verified.
    async fn ask(
        &self,
        member: MemberId,
        place: RingAddr,
        timeout: Duration,
    ) -> Option<Vec<MemberId>> {
        let body = postcard::to_stdvec(&place).ok()?;
        let answer = self
            .call_known(member, NEAREST_SERVICE, body, timeout)
            .await
            .ok()?;
        let mut named: Vec<(MemberId, u64)> = decode(&answer).ok()?;
        named.truncate(NAMED);
        named.retain(|(m, _)| *m != self.me);
        let news: Vec<MemberId> = {
            let book = read_lock(&self.book);
            named
                .iter()
                .filter(|(m, seq)| book.get(*m).is_none_or(|known| known.seq < *seq))
                .map(|(m, _)| *m)
                .collect()
        };
        if !news.is_empty() {
            let body = postcard::to_stdvec(&news).ok()?;
            let contacts = self
                .call_known(member, CONTACTS_SERVICE, body, timeout)
                .await
                .ok();
            let contacts: Vec<super::wire::Contact> =
                contacts.and_then(|c| decode(&c).ok()).unwrap_or_default();
            let mut book = write_lock(&self.book);
            for contact in contacts.into_iter().filter(|c| news.contains(&c.member())) {
                book.insert_found(contact, &self.door.trust);
            }
        }
        let book = read_lock(&self.book);
        Some(
            named
                .into_iter()
                .map(|(m, _)| m)
                .filter(|m| book.get(*m).is_some())
                .collect(),
        )
    }
}
