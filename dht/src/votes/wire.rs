//! The messages between a caller and a voter: one version byte, then postcard. Parsing never
//! panics, takes no more than [`MAX_BYTES`] and leaves nothing unread.

use super::VoterSet;
use p2pvm_overlay::{
    Epoch, MemberId, VmId,
    identity::{self, KeyPair, Signature},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

const VERSION: u8 = 1;
/// How long a message is at most.
/// Reason: seven voters and all signatures take under 500 bytes.
const MAX_BYTES: usize = 1024;
const ASK_DOMAIN: &str = "p2pvm vote request 1";

/// A request to one voter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The VM and its voters, signed by the VM's key.
    pub set: VoterSet,
    /// What is asked.
    pub question: Question,
}

/// What is asked of a voter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Question {
    /// Promise or confirm an epoch; the signature is the VM key's over the proposal.
    Change(Proposal, Signature),
    /// Answer with the newest promise.
    Newest,
}

/// A step of a VM's holder, as the VM's key signs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proposal {
    /// Which step of the change.
    pub step: Step,
    /// The epoch wanted.
    pub epoch: Epoch,
    /// The holder.
    pub holder: MemberId,
}

/// The steps of a change of holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// Promise the epoch.
    Promise,
    /// Promise it, unless another member holds the newest epoch and has confirmed it or an older
    /// one.
    TakeBack,
    /// The holder runs: from now on no take-back is granted.
    Confirm,
    /// The holder has deleted the VM: its promise may be forgotten some time later. A voter of the
    /// first release does not answer it.
    Deleted,
    /// The asking member takes a protected VM over whose lease has run out: promise and
    /// confirmation in one. It and the steps below are refused by voters of the previous release.
    TakeOver,
    /// As [`Self::Confirm`], and from now on the VM is protected.
    Protect,
    /// As [`Self::Confirm`], and the VM is not protected any more.
    Unprotect,
    /// A person wants the asking member to have the VM although another may still run it.
    Forced,
}

/// A voter's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// Promised, with the voter's signature for the grant.
    Promised(Signature),
    /// Confirmed, durably.
    Confirmed,
    /// The newest promise here.
    Newest(Option<Promise>),
    /// Refused because of this promise.
    Refused(Promise),
    /// The voter pinned other voters for this VM.
    OtherVoters,
    /// The asked member is no voter of this VM, or a signature is wrong.
    Invalid,
    /// The VM's lease still runs here for this many milliseconds. It and the answers below are
    /// given to the steps that the previous release does not know.
    Leased(u32),
    /// The VM is not protected here: nobody takes it over unasked.
    Unprotected,
}

/// A voter's newest promise for a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Promise {
    /// The epoch promised.
    pub epoch: Epoch,
    /// The member that may run the VM.
    pub holder: MemberId,
    /// Whether the holder confirmed it.
    pub confirmed: bool,
}

impl Request {
    /// A proposal, signed with the VM's key.
    pub fn change(keys: &KeyPair, set: &VoterSet, proposal: Proposal) -> Self {
        let signature = keys.sign(ASK_DOMAIN, &super::bytes(&(set.vm, proposal)));
        Self {
            set: set.clone(),
            question: Question::Change(proposal, signature),
        }
    }
}

/// Whether `signature` is the VM key's over the proposal.
pub fn is_proposal_of(vm: VmId, proposal: &Proposal, signature: &Signature) -> bool {
    identity::verify(&vm.0, ASK_DOMAIN, &super::bytes(&(vm, proposal)), signature)
}

/// The bytes on the wire.
pub fn emit<T: Serialize>(message: &T) -> Vec<u8> {
    postcard::to_extend(message, vec![VERSION]).expect("plain fields always serialize")
}

/// Reads a message; `None` for anything but exactly one of this version.
pub fn parse<T: DeserializeOwned>(body: &[u8]) -> Option<T> {
    let (&VERSION, rest) = body.split_first()? else {
        return None;
    };
    let (message, rest) = postcard::take_from_bytes(rest).ok()?;
    (body.len() <= MAX_BYTES && rest.is_empty()).then_some(message)
}
