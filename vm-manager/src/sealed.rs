//! The sealed part of a snapshot about its VM: the VM's definition and key, and the keys that open
//! its snapshots' memory and disk ([`HoldingKeys`]).
//!
//! The bytes are sealed with a key of their own, which is cut into shares ([`shamir`]), one in an
//! envelope for each of the VM's voters: a majority of the voters together can open the snapshot,
//! fewer learn nothing. A restore needs this majority in any case, since it grants the new epoch,
//! so a snapshot opens wherever it can be used. The VM's owner has an envelope with the whole key.
//! The envelopes lie in the snapshot: voters keep nothing.
//!
//! A voter releases its share to a member that may restore the VM ([`ReleaseRule`]). Members of
//! earlier releases refuse the formats that they cannot read: first the plain one alone, then also
//! the one of a VM's first holding.

use p2pvm_authority::Revocations;
use p2pvm_overlay::{
    Epoch, MemberId, VmId,
    identity::{Identity, open_once, seal_for, seal_once},
};
use serde::{Deserialize, Serialize};
use std::fmt;
use zeroize::Zeroizing;

mod keys;
mod shamir;

pub use keys::HoldingKeys;

/// The format after that of [`crate::framed`]: a key derived from the VM's seals the content.
const FORMAT: u8 = 2;
/// The next one: the key of a later holding does, whose epoch follows in eight bytes.
const FORMAT_OF_HOLDING: u8 = 3;
/// How many voters a sealed document names at most; as [`crate::Definition`]s.
const MAX_SHARES: usize = 15;
/// The domains of envelopes.
const SHARE: &str = "p2pvm share of a snapshot's key 1";
const OWNER: &str = "p2pvm owner of a snapshot 1";

/// Decides on a voter's host which members may open a VM's snapshots.
pub trait ReleaseRule: Send + Sync + 'static {
    /// Whether `asker`, as its connection proves, may restore a VM of `owner`; `proofs` are what it
    /// shows for that, and `revoked` are the revoked tokens for the VM.
    ///
    /// # Errors
    /// Why not, for the asker's user.
    fn may_open(
        &self,
        asker: MemberId,
        vm: VmId,
        owner: MemberId,
        proofs: &[Vec<u8>],
        revoked: &Revocations,
    ) -> Result<(), String>;
}

/// A voter's part of a snapshot's key.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyShare {
    /// Its number, from one.
    pub(crate) number: u8,
    pub(crate) value: [u8; 32],
}

impl fmt::Debug for KeyShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyShare({})", self.number)
    }
}

/// What is in a voter's envelope.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ShareLetter {
    pub(crate) vm: VmId,
    /// The VM's owner when the snapshot was taken.
    pub(crate) owner: MemberId,
    pub(crate) share: KeyShare,
}

impl ShareLetter {
    /// Reads the envelope with the key of the voter that it is for; `None` for anything else.
    pub(crate) fn open(voter: &Identity, envelope: &[u8]) -> Option<Self> {
        let letter = Zeroizing::new(voter.open_envelope(SHARE, envelope)?);
        postcard::from_bytes(&letter).ok()
    }
}

/// A sealed document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sealed {
    /// The holding whose key seals memory and disk; `None` for the key derived from the VM's.
    #[serde(skip)]
    holding: Option<Epoch>,
    /// How many shares open it.
    needed: u8,
    /// The whole key, for the owner.
    owner: Vec<u8>,
    /// The voters, each with its envelope.
    shares: Vec<(MemberId, Vec<u8>)>,
    body: Vec<u8>,
}

impl Sealed {
    /// Seals a document of `vm` in a snapshot whose content the key of `holding` seals.
    pub(crate) fn seal(
        (vm, holding): (VmId, Option<Epoch>),
        owner: MemberId,
        voters: &[MemberId],
        document: &[u8],
    ) -> Self {
        let mut key = Zeroizing::new([0u8; 32]);
        rand::fill(&mut key[..]);
        let needed = voters.len() / 2 + 1;
        let shares = shamir::split(&key, needed, voters.len());
        let shares = voters.iter().zip(shares).filter_map(|(voter, share)| {
            let letter = ShareLetter { vm, owner, share };
            let letter = Zeroizing::new(postcard::to_allocvec(&letter).ok()?);
            Some((*voter, seal_for(*voter, SHARE, &letter)?))
        });
        Self {
            holding,
            needed: needed as u8,
            owner: seal_for(owner, OWNER, &key[..]).unwrap_or_default(),
            shares: shares.collect(),
            body: seal_once(&key, document),
        }
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut head = match self.holding {
            Some(_) => vec![FORMAT_OF_HOLDING],
            None => vec![FORMAT],
        };
        head.extend(self.holding.iter().flat_map(|epoch| epoch.0.to_be_bytes()));
        postcard::to_extend(self, head).expect("plain fields always serialize into memory")
    }

    /// Reads one; `None` for anything else, such as a document that is not sealed.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (holding, body) = match bytes.split_first()? {
            (&FORMAT, body) => (None, body),
            (&FORMAT_OF_HOLDING, rest) => {
                let (epoch, body) = rest.split_first_chunk()?;
                (Some(Epoch(u64::from_be_bytes(*epoch))), body)
            }
            _ => return None,
        };
        let sealed: Self = postcard::from_bytes(body).ok()?;
        let sealed = Self { holding, ..sealed };
        let needed = usize::from(sealed.needed);
        (needed > 0 && sealed.shares.len() <= MAX_SHARES).then_some(sealed)
    }

    /// The holding whose key opens the snapshot's memory and disk.
    pub(crate) fn holding(&self) -> Option<Epoch> {
        self.holding
    }

    /// How many voters have to release their shares.
    pub(crate) fn needed(&self) -> usize {
        usize::from(self.needed)
    }

    /// The voters with their envelopes.
    pub(crate) fn shares(&self) -> &[(MemberId, Vec<u8>)] {
        &self.shares
    }

    /// The document, for its owner.
    pub(crate) fn open_as(&self, owner: &Identity) -> Option<Vec<u8>> {
        let key = Zeroizing::new(owner.open_envelope(OWNER, &self.owner)?);
        open_once(key.as_slice().try_into().ok()?, &self.body)
    }

    /// The document, by the last of some shares with enough of those before it. A share may be
    /// wrong, or have another's number: every selection is tried.
    pub(crate) fn open(&self, shares: &[KeyShare]) -> Option<Vec<u8>> {
        let (last, before) = shares.split_last()?;
        if before.len() >= MAX_SHARES {
            return None;
        }
        let mut selections = (0u16..1 << before.len())
            .filter(|chosen| chosen.count_ones() as usize + 1 == self.needed());
        selections.find_map(|chosen| {
            let chosen = (0..before.len()).filter(|at| (chosen >> at) & 1 == 1);
            let mut some: Vec<_> = chosen.map(|at| before[at]).collect();
            some.push(*last);
            let key = shamir::join(&some)?;
            open_once(&key, &self.body)
        })
    }
}

/// Reads a sealed document as a member may have made it, and opens it with wrong shares, for the
/// fuzzer.
#[cfg(fuzzing)]
pub fn parse(bytes: &[u8]) {
    if let Some(sealed) = Sealed::from_bytes(bytes) {
        let share = |number| KeyShare {
            number,
            value: [number; 32],
        };
        let shares: Vec<_> = (0..4).map(share).collect();
        assert!(sealed.open(&shares).is_none());
    }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
#[path = "sealed_golden_tests.rs"]
mod golden_tests;
