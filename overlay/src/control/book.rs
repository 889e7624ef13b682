//! The address book: the newest contact of each member that this node uses, kept in a file so that
//! the node finds its network again when the member it first joined through is gone.
//!
//! In a small network the book holds every member. In a large one it holds at most [`MAX_BOOK`]:
//! the nearest, a few of each doubling of the distance (Kademlia's buckets), those used last and a
//! random sample. Any other member is found by a lookup.

use super::wire::{Contact, MAX_CONTACTS};
use crate::{
    id::{MemberId, RingAddr},
    membership::{Refusal, Trust},
};
use data_encoding::BASE32_NOPAD;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// How many members the book holds, besides those with a connection: some 100 kB. A longer book is
/// trimmed to the classes below, about 150 members in a network of 10 000.
pub const MAX_BOOK: usize = 192;
/// How many of the nearest members are kept. Reason: a lookup of a place near this node asks for
/// them.
const NEAR_KEPT: usize = 24;
/// How many of each doubling of the distance are kept. Reason: if one of four is dead, the others
/// still lead on.
const BUCKET_KEPT: usize = 4;
/// How many of the members used last are kept.
const USED_KEPT: usize = 48;
/// How many others are kept, at random. Reason: they lead back when all near members are gone.
const SAMPLE_KEPT: usize = 16;
/// How many of the members that could not be reached are kept.
const FAILING_KEPT: usize = 16;
/// How many failed dials before a member is no longer named to others.
const FAILING: u32 = 2;
/// How many unreachable members are dialled in each round.
const LOST_TRIED: usize = 3;
/// How many contacts near its place a member with few contacts is told.
const TOLD_NEAR: usize = 16;

/// One entry of the file: the signed contact, and what a person wants to read in plain text.
#[derive(Serialize, Deserialize)]
struct SavedContact {
    member: String,
    name: String,
    addresses: Vec<String>,
    contact: String,
}

struct Entry {
    contact: Contact,
    /// How many dials in a row have failed.
    failures: u32,
    /// When the member was last connected or found, as a count of such events.
    used: u64,
}

impl Entry {
    /// Whether to ask the member or to name it to others: it has not left the network, and its last
    /// dials did not fail.
    fn may_answer(&self) -> bool {
        self.failures < FAILING && !self.contact.is_farewell()
    }
}

/// The contacts, and which of them to keep.
pub struct Book {
    me: MemberId,
    bound: usize,
    contacts: BTreeMap<MemberId, Entry>,
    /// Members that are never dropped: those with a connection and the ring's neighbours.
    pinned: BTreeSet<MemberId>,
    clock: u64,
    file: PathBuf,
    dirty: bool,
}

impl Book {
    /// Reads the file. It is a cache: missing, damaged or no longer trusted entries are skipped.
    pub fn load(file: &Path, trust: &Trust, me: MemberId, full_mesh: usize) -> Self {
        let kept: Vec<SavedContact> = fs::read(file)
            .ok()
            .and_then(|raw| serde_json::from_slice(&raw).ok())
            .unwrap_or_default();
        let (contacts, pinned, bound) = (BTreeMap::new(), BTreeSet::new(), MAX_BOOK.max(full_mesh));
        let mut book = Self {
            me,
            bound,
            contacts,
            pinned,
            clock: 0,
            file: file.to_owned(),
            dirty: false,
        };
        for entry in kept {
            let raw = BASE32_NOPAD
                .decode(entry.contact.as_bytes())
                .unwrap_or_default();
            if let Ok(contact) = super::wire::decode(&raw) {
                book.insert(contact, trust);
            }
        }
        book.dirty = false;
        book
    }

    /// The file and its new content, if the book has changed since the last call.
    pub fn changed(&mut self) -> Option<(PathBuf, Vec<u8>)> {
        if !std::mem::take(&mut self.dirty) {
            return None;
        }
        let kept: Vec<SavedContact> = self
            .contacts
            .values()
            .map(|entry| &entry.contact)
            .map(|c| SavedContact {
                member: c.member().to_string(),
                name: c.certificate.name().to_owned(),
                addresses: c.addresses.clone(),
                contact: BASE32_NOPAD.encode(&postcard::to_stdvec(c).unwrap_or_default()),
            })
            .collect();
        Some((
            self.file.clone(),
            serde_json::to_vec_pretty(&kept).unwrap_or_default(),
        ))
    }

    /// Makes the next [`Self::changed`] return the content again, because writing it failed.
    pub fn unsaved(&mut self) {
        self.dirty = true;
    }

    /// Adds a contact if it is valid and newer than the one known. Returns whether the book keeps
    /// it; a book that is full is trimmed.
    pub fn insert(&mut self, contact: Contact, trust: &Trust) -> bool {
        let used = self
            .contacts
            .get(&contact.member())
            .map_or(0, |known| known.used);
        self.take(contact, trust, used)
    }

    /// As [`Self::insert`], for a contact that a lookup found and is about to use: it counts as
    /// just used.
    pub fn insert_found(&mut self, contact: Contact, trust: &Trust) -> bool {
        self.clock += 1;
        self.take(contact, trust, self.clock)
    }

    fn take(&mut self, contact: Contact, trust: &Trust, used: u64) -> bool {
        let member = contact.member();
        let known = self.contacts.get(&member);
        if known.is_some_and(|k| k.contact.seq >= contact.seq) || contact.verify(trust).is_err() {
            return false;
        }
        self.contacts.insert(
            member,
            Entry {
                contact,
                failures: 0,
                used,
            },
        );
        self.dirty = true;
        if self.contacts.len() > self.bound {
            self.trim();
        }
        self.contacts.contains_key(&member)
    }

    /// Drops all but these members: of the reachable ones the nearest, some of each doubling of the
    /// distance, those used last and a random sample; of the others a few, so that they are found
    /// again after a partition.
    fn trim(&mut self) {
        let place = self.me.ring_addr();
        let (alive, failing): (Vec<_>, Vec<_>) =
            self.contacts.iter().partition(|(_, e)| e.may_answer());
        let mut near: Vec<([u8; 32], MemberId)> = alive
            .iter()
            .map(|(m, _)| (m.ring_addr().distance(&place), **m))
            .collect();
        near.sort_unstable();
        let mut keep: BTreeSet<MemberId> = near.iter().take(NEAR_KEPT).map(|(_, m)| *m).collect();
        let mut buckets: BTreeMap<u32, usize> = BTreeMap::new();
        for (distance, member) in &near {
            let there = buckets.entry(doubling(distance)).or_default();
            *there += 1;
            if *there <= BUCKET_KEPT {
                keep.insert(*member);
            }
        }
        let mut used: Vec<(u64, MemberId)> = alive
            .iter()
            .filter(|(_, e)| e.used > 0)
            .map(|(m, e)| (e.used, **m))
            .collect();
        used.sort_unstable_by_key(|(used, _)| std::cmp::Reverse(*used));
        keep.extend(used.iter().take(USED_KEPT).map(|(_, m)| *m));
        keep.extend(self.sample(alive.iter().map(|(m, _)| **m), SAMPLE_KEPT));
        keep.extend(self.sample(failing.iter().map(|(m, _)| **m), FAILING_KEPT));
        keep.insert(self.me);
        self.contacts
            .retain(|member, _| keep.contains(member) || self.pinned.contains(member));
    }

    /// A random sample, by the smallest hashes: different for each node, and the same as long as
    /// the members are.
    fn sample(&self, of: impl Iterator<Item = MemberId>, n: usize) -> Vec<MemberId> {
        let mut hashed: Vec<([u8; 32], MemberId)> = of
            .map(|m| {
                (
                    blake3::derive_key(
                        "p2pvm 2026 sample of the known members",
                        &[self.me.0, m.0].concat(),
                    ),
                    m,
                )
            })
            .collect();
        hashed.sort_unstable();
        hashed.into_iter().take(n).map(|(_, m)| m).collect()
    }

    /// Sets the members that are never dropped. The caller bounds their number.
    pub fn pin(&mut self, members: BTreeSet<MemberId>) {
        self.pinned = members;
    }

    /// Notes that a member has answered.
    pub fn alive(&mut self, member: MemberId) {
        self.clock += 1;
        if let Some(entry) = self.contacts.get_mut(&member) {
            (entry.failures, entry.used) = (0, self.clock);
        }
    }

    /// Notes that a dial to a member failed.
    pub fn failed(&mut self, member: MemberId) {
        if let Some(entry) = self.contacts.get_mut(&member) {
            entry.failures = entry.failures.saturating_add(1);
        }
    }

    #[cfg(test)]
    pub fn forget(&mut self, member: MemberId) {
        self.contacts.remove(&member);
    }

    /// Drops the members that the network no longer trusts. Returns those that were revoked,
    /// themselves or with another.
    pub fn retain_trusted(&mut self, trust: &Trust) -> Vec<MemberId> {
        let (before, mut fallen) = (self.contacts.len(), Vec::new());
        self.contacts.retain(|member, e| {
            let verdict = trust.verify(&e.contact.certificate);
            fallen.extend((verdict == Err(Refusal::Revoked)).then_some(*member));
            verdict.is_ok()
        });
        self.dirty |= self.contacts.len() != before;
        fallen
    }

    /// A member's contact.
    pub fn get(&self, member: MemberId) -> Option<&Contact> {
        self.contacts.get(&member).map(|e| &e.contact)
    }

    /// All contacts.
    pub fn iter(&self) -> impl Iterator<Item = &Contact> {
        self.contacts.values().map(|e| &e.contact)
    }

    /// How many members are known.
    pub fn len(&self) -> usize {
        self.contacts.len()
    }

    /// The members nearest to `place` that have not left and whose last dials did not fail.
    pub fn nearest(&self, place: &RingAddr, n: usize) -> Vec<&Contact> {
        let alive = self.contacts.iter().filter(|(_, e)| e.may_answer());
        let mut near: Vec<([u8; 32], &Contact)> = alive
            .map(|(m, e)| (m.ring_addr().distance(place), &e.contact))
            .collect();
        near.sort_unstable_by_key(|(distance, _)| *distance);
        near.into_iter()
            .take(n)
            .map(|(_, contact)| contact)
            .collect()
    }

    /// The members that a node of a large network keeps connections to: the `near` nearest, and
    /// `far` others, one in each doubling of the distance. Also some unreachable ones, different in
    /// each `round`. Reason: otherwise a partition would last.
    pub fn worth_connecting(&self, near: usize, far: usize, round: u64) -> Vec<MemberId> {
        let place = self.me.ring_addr();
        // A member that has left cannot be found; it dials by itself when it returns.
        let others = self
            .contacts
            .iter()
            .filter(|(m, e)| **m != self.me && !e.contact.is_farewell());
        let (alive, failing): (Vec<_>, Vec<_>) = others.partition(|(_, e)| e.may_answer());
        let mut by_distance: Vec<([u8; 32], MemberId)> = alive
            .iter()
            .map(|(m, _)| (m.ring_addr().distance(&place), **m))
            .collect();
        by_distance.sort_unstable();
        let rest = by_distance.split_off(near.min(by_distance.len()));
        let mut wanted: Vec<MemberId> = by_distance.into_iter().map(|(_, m)| m).collect();
        let mut doublings: BTreeMap<u32, MemberId> = BTreeMap::new();
        for (distance, member) in rest {
            // The first one is as good as any, and stays the same from round to round.
            doublings.entry(doubling(&distance)).or_insert(member);
        }
        wanted.extend(doublings.into_values().take(far));
        let turn = |m: &MemberId| {
            blake3::derive_key(
                "p2pvm 2026 turn of a lost member",
                &[&m.0[..], &round.to_be_bytes()].concat(),
            )
        };
        let mut lost: Vec<([u8; 32], MemberId)> =
            failing.iter().map(|(m, _)| (turn(m), **m)).collect();
        lost.sort_unstable();
        wanted.extend(lost.into_iter().take(LOST_TRIED).map(|(_, m)| m));
        wanted
    }

    /// Contacts to send to a member with few contacts: those near its place and a sample of the
    /// others.
    pub fn to_tell(&self, place: &RingAddr) -> Vec<Contact> {
        let mut members: BTreeSet<MemberId> = self
            .nearest(place, TOLD_NEAR)
            .into_iter()
            .map(Contact::member)
            .collect();
        members.extend(self.sample(self.contacts.keys().copied(), MAX_CONTACTS - TOLD_NEAR));
        members
            .into_iter()
            .filter_map(|m| self.get(m).cloned())
            .collect()
    }

    /// A hash of the known members and their contacts' `seq`.
    pub fn digest(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key("p2pvm 2026 digest of the known contacts");
        for (member, entry) in &self.contacts {
            hasher.update(&member.0);
            hasher.update(&entry.contact.seq.to_be_bytes());
        }
        *hasher.finalize().as_bytes()
    }
}

/// How many leading bits two places share, by their distance: the doubling of the distance that
/// separates them.
fn doubling(distance: &[u8; 32]) -> u32 {
    u64::from_be_bytes(distance[..8].try_into().unwrap_or_default()).leading_zeros()
}

#[cfg(test)]
#[path = "book_tests.rs"]
mod tests;
