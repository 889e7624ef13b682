//! The network's revocations, and the verdicts on members and invites that follow.
//!
//! The set of revocations only grows, verdicts depend on the set alone and not on the order in
//! which it was learned, so members that have exchanged their sets agree. A delegate's share of it
//! is bounded, so that it cannot keep anybody from being revoked; the root's always fit, also that
//! of the delegate, with which all of its own fall. What a delegate signs beyond its share is
//! dropped by each member as it comes: displacing others would bring back members they expelled.

mod difference;
mod file;

pub use difference::{DifferingRevocations, KnownRevocations, RevocationDigests};

use super::{Certificate, Invite, Refusal, Revocation, Target};
use crate::{
    durable::apart,
    id::{MemberId, NetworkId, UnixTime},
};
use crate::{lock, read_lock, write_lock};
use file::RevocationFile;
use std::{
    collections::{BTreeMap, HashMap},
    io,
    path::Path,
    sync::{
        Arc, Mutex, RwLock, RwLockReadGuard,
        atomic::{AtomicBool, Ordering},
    },
};

/// How many revocations of one delegate are kept. Reason: more than a delegate has members to
/// expel, and few enough to tell; the root can always revoke more.
pub const MAX_OF_DELEGATE: usize = 1024;

/// One target may be revoked by the root and by delegates; each is kept once.
type Key = (Target, Option<MemberId>);

#[derive(Default)]
struct RevocationSet {
    all: BTreeMap<Key, Revocation>,
    /// How many of them are each delegate's.
    of_delegates: HashMap<MemberId, usize>,
}

impl RevocationSet {
    fn is_full(&self, delegate: &MemberId) -> bool {
        self.of_delegates
            .get(delegate)
            .is_some_and(|n| *n >= MAX_OF_DELEGATE)
    }

    fn insert(&mut self, revocation: Revocation) {
        let by = revocation.delegate();
        let before = self.all.insert((revocation.target(), by), revocation);
        if let (Some(delegate), None) = (by, before) {
            *self.of_delegates.entry(delegate).or_default() += 1;
        }
    }
}

/// Verifies certificates and invites against the network's root and the known revocations.
pub struct Trust {
    network: NetworkId,
    file: Option<Mutex<RevocationFile>>,
    revocations: RwLock<RevocationSet>,
    /// Those that are not in the file yet.
    unkept: Mutex<Vec<Revocation>>,
    /// Somebody is about to write them.
    keeping: AtomicBool,
}

impl Trust {
    /// Knows of no revocation, keeps them in memory only.
    pub fn new(network: NetworkId) -> Self {
        Self {
            network,
            file: None,
            revocations: RwLock::default(),
            unkept: Mutex::default(),
            keeping: AtomicBool::new(false),
        }
    }

    /// Reads the revocations kept in `file`, which may be missing, and keeps new ones there.
    /// Entries that no longer verify are left out.
    ///
    /// # Errors
    /// What the file system says, or `InvalidData` for a file that is no list of revocations.
    pub fn load(network: NetworkId, file: &Path) -> io::Result<Self> {
        let (file, kept) = RevocationFile::open(file)?;
        let mut known = RevocationSet::default();
        kept.into_iter()
            .filter(|r| r.verify(network).is_ok())
            .for_each(|r| known.insert(r));
        Ok(Self {
            file: Some(Mutex::new(file)),
            revocations: RwLock::new(known),
            ..Self::new(network)
        })
    }

    fn read(&self) -> RwLockReadGuard<'_, RevocationSet> {
        read_lock(&self.revocations)
    }

    /// The network whose root is trusted.
    pub fn network(&self) -> NetworkId {
        self.network
    }

    /// Takes a revocation, on disk before it returns. `Ok(false)` if it was known, or its delegate
    /// has revoked as many as one may.
    ///
    /// # Errors
    /// Why it is not valid. A full disk does not hinder its effect, only its keeping, and is
    /// logged.
    pub fn add_revocation(&self, revocation: Revocation) -> Result<bool, Refusal> {
        let is_new = self.hear(revocation)?;
        if is_new {
            apart(|| self.keep());
        }
        Ok(is_new)
    }

    /// As [`Trust::add_revocation`], but leaves the disk to [`Trust::keep_beside`].
    ///
    /// # Errors
    /// Why it is not valid.
    pub fn hear(&self, revocation: Revocation) -> Result<bool, Refusal> {
        let key = (revocation.target(), revocation.delegate());
        let has_place = |known: &RevocationSet| {
            !known.all.contains_key(&key) && key.1.is_none_or(|by| !known.is_full(&by))
        };
        // What is not kept costs no signature.
        if !has_place(&self.read()) {
            return Ok(false);
        }
        revocation.verify(self.network)?;
        let mut known = write_lock(&self.revocations);
        if !has_place(&known) {
            return Ok(false);
        }
        known.insert(revocation.clone());
        if self.file.is_some() {
            self.unkept().push(revocation);
        }
        Ok(true)
    }

    fn unkept(&self) -> std::sync::MutexGuard<'_, Vec<Revocation>> {
        lock(&self.unkept)
    }

    /// Writes what was heard to the file.
    pub fn keep(&self) {
        let Some(file) = &self.file else { return };
        let mut file = lock(file);
        let new = std::mem::take(&mut *self.unkept());
        if !new.is_empty()
            && let Err(e) = file.keep(&new, || self.revocations())
        {
            tracing::error!("revocations cannot be kept: {}", p2pvm_host::chain(&e));
        }
    }

    /// Writes what was heard to the file, beside the caller: a disk may take seconds for it.
    pub fn keep_beside(self: &Arc<Self>) {
        if self.unkept().is_empty() || self.keeping.swap(true, Ordering::SeqCst) {
            return;
        }
        let this = self.clone();
        tokio::task::spawn_blocking(move || {
            // What is heard from now on has the next one begun.
            this.keeping.store(false, Ordering::SeqCst);
            this.keep();
        });
    }

    /// All revocations known.
    pub fn revocations(&self) -> Vec<Revocation> {
        self.read().all.values().cloned().collect()
    }

    /// The revocations known, the root's first.
    pub fn weightiest(&self) -> Vec<Revocation> {
        let mut all = self.revocations();
        all.sort_by_key(|revocation| revocation.delegate().is_some());
        all
    }

    /// Whether this delegate has revoked as many members and invites as one may.
    pub fn is_used_up(&self, delegate: &MemberId) -> bool {
        self.read().is_full(delegate)
    }

    /// A hash of the set: two members with the same digest need not exchange it. Of a delegate that
    /// has revoked as many as one may, which ones does not count: others dropped others.
    pub fn digest(&self) -> [u8; 32] {
        let mut hasher =
            blake3::Hasher::new_derive_key("p2pvm 2026 digest of the known revocations");
        let known = self.read();
        let is_counted = |by: &Option<MemberId>| by.is_none_or(|by| !known.is_full(&by));
        for key in known.all.keys().filter(|(_, by)| is_counted(by)) {
            hasher.update(&super::certificate::bytes(key));
        }
        let mut full: Vec<_> = known.of_delegates.keys().collect();
        full.retain(|delegate| known.is_full(delegate));
        full.sort_unstable();
        for delegate in full {
            hasher.update(&delegate.0);
        }
        *hasher.finalize().as_bytes()
    }

    /// Whether a certificate makes its bearer a member now.
    ///
    /// # Errors
    /// As [`Certificate::verify_signatures`], or [`Refusal::Revoked`].
    pub fn verify(&self, certificate: &Certificate) -> Result<(), Refusal> {
        // A certificate lasts for years. It has ended only if the wall clock and the network's time
        // agree on that: neither a wall clock that is ahead nor members that lie about theirs turn
        // members away.
        self.verify_at(certificate, UnixTime::now().min(UnixTime::wall()))
    }

    /// The same at a time given.
    ///
    /// # Errors
    /// As [`Trust::verify`].
    pub fn verify_at(&self, certificate: &Certificate, now: UnixTime) -> Result<(), Refusal> {
        certificate.verify_signatures(self.network, now)?;
        let known = &self.read().all;
        let by_root = |member| known.contains_key(&(Target::Member(member), None));
        let by_delegate = |member| {
            let of_member = known
                .range((Target::Member(member), None)..)
                .take_while(|((target, _), _)| *target == Target::Member(member));
            of_member
                .into_iter()
                .any(|((_, by), _)| by.is_some_and(|delegate| !by_root(delegate)))
        };
        let fallen = certificate.delegate().is_some_and(by_root);
        let revoked = by_root(certificate.member())
            || (certificate.falls_to_delegates() && by_delegate(certificate.member()));
        // A member that grew out of a copy of another's state falls with that one.
        let origin_revoked = certificate
            .groups()
            .copied_from()
            .any(|member| by_root(member) || by_delegate(member));
        if fallen || revoked || origin_revoked {
            Err(Refusal::Revoked)
        } else {
            Ok(())
        }
    }

    /// Whether an invite may still admit somebody into this network, its uses aside.
    ///
    /// # Errors
    /// The reason why not.
    pub fn check_invite(&self, invite: &Invite, now: UnixTime) -> Result<(), Refusal> {
        if invite.network().id != self.network {
            return Err(Refusal::OtherNetwork);
        }
        invite.check(now)?;
        let known = &self.read().all;
        let by_root = |target| known.contains_key(&(target, None));
        let target = Target::Invite(invite.id());
        let by_delegate = known
            .range((target, None)..)
            .take_while(|((other, _), _)| *other == target)
            .any(|((_, by), _)| by.is_some_and(|delegate| !by_root(Target::Member(delegate))));
        let issuer_fallen = invite
            .delegate()
            .is_some_and(|delegate| by_root(Target::Member(delegate)));
        if by_root(target) || by_delegate || issuer_fallen {
            Err(Refusal::Revoked)
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod bound_tests;
#[cfg(test)]
#[path = "trust_tests.rs"]
mod tests;
