//! What this node holds against whom: the network's revocations, and the verdicts that follow.
//!
//! The set of revocations only grows, verdicts depend on the set alone and not on the order in
//! which it was learned, so members that have exchanged their sets agree.

use super::{Certificate, Invite, Refusal, Revocation, Target};
use crate::{
    durable::Rewritten,
    id::{MemberId, NetworkId, UnixTime},
};
use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{PoisonError, RwLock, RwLockReadGuard},
};

/// More revocations than any network of ours has members; bounds what gossip can make us keep.
const MAX_REVOCATIONS: usize = 65_536;

/// One target may be revoked by the root and by delegates; each is kept once.
type Key = (Target, Option<MemberId>);

/// Verifies certificates and invites against the network's root and the known revocations.
pub struct Trust {
    network: NetworkId,
    file: Option<PathBuf>,
    revocations: RwLock<BTreeMap<Key, Revocation>>,
    rewritten: Rewritten,
}

impl Trust {
    /// Knows of no revocation, keeps them in memory only.
    pub fn new(network: NetworkId) -> Self {
        Self {
            network,
            file: None,
            revocations: RwLock::default(),
            rewritten: Rewritten::default(),
        }
    }

    /// Reads the revocations kept in `file`, which may be missing, and keeps new ones there.
    /// Entries that no longer verify are left out.
    ///
    /// # Errors
    /// What the file system says, or `InvalidData` for a file that is no list of revocations.
    pub fn load(network: NetworkId, file: &Path) -> io::Result<Self> {
        let kept: Vec<Revocation> = match fs::read(file) {
            Ok(raw) => postcard::from_bytes(&raw).map_err(|e| {
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("{} holds no revocations: {e}", file.display()),
                )
            })?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(e),
        };
        let kept = kept
            .into_iter()
            .filter(|r| r.verify(network).is_ok())
            .map(|r| ((r.target(), r.delegate()), r));
        Ok(Self {
            file: Some(file.to_owned()),
            revocations: RwLock::new(kept.collect()),
            ..Self::new(network)
        })
    }

    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<Key, Revocation>> {
        self.revocations
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The network whose root is trusted.
    pub fn network(&self) -> NetworkId {
        self.network
    }

    /// Takes a revocation, on disk before it returns. `Ok(false)` if it was known.
    ///
    /// # Errors
    /// Why it is not valid. A full disk does not hinder its effect, only its keeping, and is
    /// logged.
    pub fn add_revocation(&self, revocation: Revocation) -> Result<bool, Refusal> {
        revocation.verify(self.network)?;
        let mut known = self
            .revocations
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let key = (revocation.target(), revocation.delegate());
        if known.contains_key(&key) || known.len() >= MAX_REVOCATIONS {
            return Ok(false);
        }
        known.insert(key, revocation);
        // It holds from now on; who judges by it does not wait for the disk.
        drop(known);
        let newest =
            || postcard::to_stdvec(&self.read().values().collect::<Vec<_>>()).unwrap_or_default();
        if let Some(file) = &self.file
            && let Err(e) = self.rewritten.write(file, newest, 0o644)
        {
            tracing::error!("revocations cannot be kept in {}: {e}", file.display());
        }
        Ok(true)
    }

    /// All revocations known.
    pub fn revocations(&self) -> Vec<Revocation> {
        self.read().values().cloned().collect()
    }

    /// A hash of the set: two members with the same digest need not exchange it.
    pub fn digest(&self) -> [u8; 32] {
        let mut hasher =
            blake3::Hasher::new_derive_key("p2pvm 2026 digest of the known revocations");
        for key in self.read().keys() {
            hasher.update(&super::certificate::bytes(key));
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
        let known = self.read();
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
        // Who grew out of a copy of another's state falls with that one.
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
        let known = self.read();
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
#[path = "trust_tests.rs"]
mod tests;
