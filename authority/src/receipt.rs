//! A receipt: how much one owner's VMs used of one host in a period, signed by the host. The owner
//! checks it and signs the same bytes in another domain, so that each side has the other's
//! signature.
//!
//! Wire format of the terms, version 1: the byte 1, then postcard of [`Terms`]. Signatures cover
//! these bytes as they came, so a field that a later version adds at the end is signed too and not
//! read here.

use crate::usage::{Size, Usage, most_kept};
use p2pvm_overlay::{
    MemberId, UnixTime, VmId,
    identity::{KeyPair, Signature, verify},
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// The domain of the host's signature.
const DOMAIN: &str = "p2pvm receipt 1";
/// The domain of the owner's signature.
const CONFIRMED: &str = "p2pvm receipt confirmed 1";
const VERSION: u8 = 1;
/// How many VMs a receipt names at most, and one line more for replicas.
/// Reason: the owner looks up each VM that it does not know.
pub const MAX_LINES: usize = 65;
/// How many bytes the terms have at most.
/// Reason: the lines of the largest receipt have about 7000.
const MAX_BYTES: usize = 8192;
/// How short a period may be, in seconds.
/// Reason: it bounds how many receipts one host can make an owner check.
pub const MIN_PERIOD: u64 = 60;
/// How long a period may be, and how long ago it may have begun, in seconds.
pub const MAX_AGE: u64 = 400 * 86_400;
/// By how much the network's time may differ between the two members, in seconds.
const SKEW: u64 = 600;
/// How many seconds the amounts may be above what the period allows.
/// Reason: a period has whole seconds.
const SLACK: u64 = 2;

/// What one VM used, or the replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// The VM; `None` for replicas that the host keeps for the owner.
    pub vm: Option<VmId>,
    /// How much.
    pub used: Usage,
}

/// What a receipt says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// The member whose host was used.
    pub host: MemberId,
    /// The member that the VMs were made for.
    pub owner: MemberId,
    /// Larger than that of the host's previous receipt for this owner.
    pub seq: u64,
    /// The beginning of the period, by the network's time.
    pub from: UnixTime,
    /// The end of the period.
    pub to: UnixTime,
    /// One line a VM, and one for replicas.
    pub lines: Vec<Line>,
}

/// Terms as they are signed, with the host's signature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    terms: Vec<u8>,
    signature: Signature,
}

/// The answer to a receipt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// The owner's signature over the same terms.
    Confirmed(Signature),
    /// The owner does not sign these terms, for this reason.
    Refused(String),
    /// The owner cannot decide now, for this reason: ask again.
    Later(String),
}

/// Why a receipt is not confirmed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReceiptRefusal {
    /// It cannot be read, or has too many lines.
    #[error("the receipt is damaged, or of a version that this member cannot read")]
    Unreadable,
    /// Another member sent it.
    #[error("the receipt is for the use of another host than its sender")]
    OtherHost,
    /// It is another owner's.
    #[error("the receipt is for another member")]
    OtherOwner,
    /// Its signature does not fit.
    #[error("the receipt is forged: its signature is not its host's")]
    Forged,
    /// Its period is impossible.
    #[error("the receipt's period is shorter than a minute, too long ago or in the future")]
    Period,
    /// A part of the period is in an earlier receipt.
    #[error("the receipt's period begins before the end of the previous receipt's")]
    Overlap,
    /// The network has no such VM.
    #[error("there is no VM {}", .0.short())]
    NoVm(VmId),
    /// The VM is another owner's.
    #[error("the VM {} is not this member's", .0.short())]
    OthersVm(VmId),
    /// An amount is more than is possible.
    #[error("more {what} than is possible in the period{}", of(.vm))]
    Absurd {
        /// The VM; `None` for replicas.
        vm: Option<VmId>,
        /// The amount.
        what: &'static str,
    },
}

fn of(vm: &Option<VmId>) -> String {
    vm.map_or_else(String::new, |vm| format!(" for the VM {}", vm.short()))
}

impl Terms {
    /// How many seconds the period has.
    pub fn seconds(&self) -> u64 {
        self.to.0.saturating_sub(self.from.0)
    }

    /// Checks the period at the time `now`; `previous` is the end of the previous receipt's.
    ///
    /// # Errors
    /// [`ReceiptRefusal::Period`], [`ReceiptRefusal::Overlap`].
    pub fn check_period(&self, now: UnixTime, previous: UnixTime) -> Result<(), ReceiptRefusal> {
        if !(MIN_PERIOD..=MAX_AGE).contains(&self.seconds())
            || self.to > now.plus(SKEW)
            || self.from.plus(MAX_AGE) < now
        {
            return Err(ReceiptRefusal::Period);
        }
        if self.from < previous {
            return Err(ReceiptRefusal::Overlap);
        }
        Ok(())
    }

    /// Checks that the amounts are possible. `known` has the owner's VMs: a VM's size, and when it
    /// was made.
    ///
    /// # Errors
    /// [`ReceiptRefusal::NoVm`] where `known` has none, [`ReceiptRefusal::Absurd`].
    pub fn check_amounts(
        &self,
        known: impl Fn(VmId) -> Option<(Size, UnixTime)>,
    ) -> Result<(), ReceiptRefusal> {
        for Line { vm, used } in &self.lines {
            let known = vm.map(|vm| known(vm).ok_or(ReceiptRefusal::NoVm(vm)));
            let most = match known.transpose()? {
                Some((size, made)) => {
                    let age = self.to.plus(SKEW).0.saturating_sub(made.0);
                    possible(Some(size), self.seconds().min(age))
                }
                None => possible(None, self.seconds()),
            };
            if let Some(what) = used.excess(&most) {
                return Err(ReceiptRefusal::Absurd { vm: *vm, what });
            }
        }
        Ok(())
    }
}

/// The most that a line of a receipt may say for a period of `seconds`: of a VM of that size, or
/// of replicas.
pub fn possible(size: Option<Size>, seconds: u64) -> Usage {
    let seconds = seconds.saturating_add(SLACK);
    size.map_or_else(|| most_kept(seconds), |size| size.most(seconds))
}

impl Receipt {
    /// Signs terms with the host's key.
    pub fn sign(host: &KeyPair, terms: &Terms) -> Self {
        let mut bytes = vec![VERSION];
        let body = postcard::to_stdvec(terms);
        bytes.extend(body.expect("terms have nothing that postcard cannot write"));
        Self {
            signature: host.sign(DOMAIN, &bytes),
            terms: bytes,
        }
    }

    /// The request that carries it.
    pub fn to_bytes(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("a receipt has nothing that postcard cannot write")
    }

    /// Reads a request.
    ///
    /// # Errors
    /// [`ReceiptRefusal::Unreadable`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ReceiptRefusal> {
        if bytes.len() > MAX_BYTES + 128 {
            return Err(ReceiptRefusal::Unreadable);
        }
        postcard::from_bytes(bytes).map_err(|_| ReceiptRefusal::Unreadable)
    }

    /// What it says. Its signature is not checked.
    ///
    /// # Errors
    /// [`ReceiptRefusal::Unreadable`] also for two lines about one VM.
    pub fn terms(&self) -> Result<Terms, ReceiptRefusal> {
        const UNREADABLE: ReceiptRefusal = ReceiptRefusal::Unreadable;
        if self.terms.len() > MAX_BYTES {
            return Err(UNREADABLE);
        }
        let Some((&VERSION, rest)) = self.terms.split_first() else {
            return Err(UNREADABLE);
        };
        let terms: Terms = postcard::from_bytes(rest).map_err(|_| UNREADABLE)?;
        let vms: BTreeSet<_> = terms.lines.iter().map(|line| line.vm).collect();
        if terms.lines.len() > MAX_LINES || vms.len() != terms.lines.len() {
            return Err(UNREADABLE);
        }
        Ok(terms)
    }

    /// What it says to `owner`, if `sender` is the host and signed it.
    ///
    /// # Errors
    /// A [`ReceiptRefusal`].
    pub fn open(&self, sender: MemberId, owner: MemberId) -> Result<Terms, ReceiptRefusal> {
        let terms = self.terms()?;
        if terms.host != sender {
            return Err(ReceiptRefusal::OtherHost);
        }
        if terms.owner != owner {
            return Err(ReceiptRefusal::OtherOwner);
        }
        if !verify(&terms.host.0, DOMAIN, &self.terms, &self.signature) {
            return Err(ReceiptRefusal::Forged);
        }
        Ok(terms)
    }

    /// The owner's signature.
    pub fn confirm(&self, owner: &KeyPair) -> Signature {
        owner.sign(CONFIRMED, &self.terms)
    }

    /// Whether `signature` is the owner's.
    pub fn is_confirmed(&self, owner: MemberId, signature: &Signature) -> bool {
        verify(&owner.0, CONFIRMED, &self.terms, signature)
    }
}

impl Reply {
    /// Its bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("a reply has nothing that postcard cannot write")
    }

    /// Reads an answer; `None` for anything else.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.len() > MAX_BYTES {
            return None;
        }
        postcard::from_bytes(bytes).ok()
    }
}

#[cfg(test)]
#[path = "receipt_tests.rs"]
mod tests;
