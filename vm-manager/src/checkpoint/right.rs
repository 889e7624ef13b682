//! By which right a VM is brought back, and how.

use p2pvm_dht::VoterSet;

/// Choices of a restore.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RestoreOptions {
    /// Restores though the holder does not answer: the user says that it is dead or may be fenced.
    pub force: bool,
}

/// By which right a VM is brought back here.
#[derive(Clone, Copy)]
pub(crate) enum Right<'r> {
    /// A person asked for it, with these proofs that this host may do it.
    Asked(&'r [Vec<u8>]),
    /// A person forced it, with such proofs: the VM's host does not answer.
    Forced(&'r [Vec<u8>]),
    /// A person asked an heir for it, with these proofs: the lease of the VM's host has run out.
    HeirAsked(&'r [Vec<u8>]),
    /// Nobody: this host is an heir of the VM with these voters, and its host's lease has run out.
    Heir(&'r VoterSet),
}

impl<'r> Right<'r> {
    /// What shows that this host may restore the VM.
    pub(super) fn proofs(&self) -> &'r [Vec<u8>] {
        match *self {
            Self::Asked(proofs) | Self::Forced(proofs) | Self::HeirAsked(proofs) => proofs,
            Self::Heir(_) => &[],
        }
    }

    /// Whether the lease of the VM's host must have run out.
    pub(super) fn waits_for_lease(&self) -> bool {
        matches!(self, Self::HeirAsked(_) | Self::Heir(_))
    }
}
