//! Lookups over the control plane: asks members for whom they know near a place, takes only what is
//! signed, and lets [`crate::lookup`] decide. Answers name members and the `seq` of their contacts;
//! the contacts themselves are asked for only where they are news here.

use super::{
    shared::Shared,
    wire::{CONTACTS_SERVICE, NEAREST_SERVICE, decode},
};
use crate::{
    fabric::FabricError,
    id::{MemberId, RingAddr},
    lookup::{Lookup, LookupError, LookupOptions, NAMED},
};
use futures::{StreamExt, future::Either, stream::FuturesUnordered};
use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Members that a lookup begins with, the nearest known: eight for each path.
const SEEDS: usize = 24;
/// How long what a lookup found is used again: an address or a VM is often asked for several times
/// in a row.
const FOUND_LASTS: Duration = Duration::from_secs(5);
/// Places whose members are remembered.
const MAX_FOUND: usize = 256;

/// A place, and how many were wanted there; when they were found, and who.
type Findings = HashMap<(RingAddr, usize), (Instant, Vec<MemberId>)>;

/// What recent lookups found.
#[derive(Default)]
pub struct Found(Mutex<Findings>);

impl Found {
    fn get(&self, place: RingAddr, n: usize) -> Option<Vec<MemberId>> {
        let found = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        found
            .get(&(place, n))
            .filter(|(at, _)| at.elapsed() < FOUND_LASTS)
            .map(|(_, members)| members.clone())
    }

    fn set(&self, place: RingAddr, n: usize, members: Vec<MemberId>) {
        let mut found = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if found.len() >= MAX_FOUND {
            found.retain(|_, (at, _)| at.elapsed() < FOUND_LASTS);
        }
        if found.len() < MAX_FOUND {
            found.insert((place, n), (Instant::now(), members));
        }
    }

    /// Forgets the places where a member that is gone was found.
    pub fn left(&self, member: MemberId) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|_, (_, members)| !members.contains(&member));
    }

    /// Forgets the places where a member that came belongs.
    pub fn came(&self, member: MemberId) {
        let addr = member.ring_addr();
        let stays = |place: &RingAddr, n: usize, members: &[MemberId]| {
            let farthest = members.last().map(|m| m.ring_addr().distance(place));
            members.contains(&member)
                || (members.len() >= n && farthest.is_some_and(|far| addr.distance(place) > far))
        };
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|(place, n), (_, members)| stays(place, *n, members));
    }
}

impl Shared {
    /// The `n` live members closest to `place`, this node among them, as a lookup or a recent one
    /// found them.
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

    /// Finds the newest contact of a member. True if it is newer than what was known.
    pub async fn search(&self, member: MemberId) -> bool {
        let seq = || {
            self.book
                .read()
                .unwrap_or_else(PoisonError::into_inner)
                .get(member)
                .map(|c| c.seq)
        };
        let before = seq();
        let _ = self
            .look_up(member.ring_addr(), LookupOptions::default(), || {
                seq() > before
            })
            .await;
        seq() > before
    }

    /// Looks a place up for the book's and the density's sake, whatever was found there just now.
    pub async fn refresh(&self, place: RingAddr) -> Result<(), LookupError> {
        self.look_up(place, LookupOptions::default(), || false)
            .await
            .map(drop)
    }

    /// Runs a lookup until its outcome is certain or `enough` says so of the book, which is then up
    /// to date.
    async fn look_up(
        &self,
        place: RingAddr,
        options: LookupOptions,
        enough: impl Fn() -> bool,
    ) -> Result<Vec<MemberId>, LookupError> {
        let seeds: Vec<MemberId> = {
            let book = self.book.read().unwrap_or_else(PoisonError::into_inner);
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
            let outcome = lookup.outcome(
                now,
                &self.density.lock().unwrap_or_else(PoisonError::into_inner),
            );
            if let Some(outcome) = outcome {
                let mut density = self.density.lock().unwrap_or_else(PoisonError::into_inner);
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

    /// Whom a member knows near the place; `None` if it does not answer. All named are members:
    /// their contacts are in the book or have been verified.
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
            let book = self.book.read().unwrap_or_else(PoisonError::into_inner);
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
            let mut book = self.book.write().unwrap_or_else(PoisonError::into_inner);
            for contact in contacts.into_iter().filter(|c| news.contains(&c.member())) {
                book.insert_found(contact, &self.door.trust);
            }
        }
        let book = self.book.read().unwrap_or_else(PoisonError::into_inner);
        Some(
            named
                .into_iter()
                .map(|(m, _)| m)
                .filter(|m| book.get(*m).is_some())
                .collect(),
        )
    }
}
