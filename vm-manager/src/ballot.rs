//! The voters as the moves of a VM use them. A VM's voters are an odd number of members named in
//! its definition, three by default where there are as many; an epoch is *granted* when a majority
//! has promised it to one holder, and *confirmed* when a majority has written down that this holder
//! runs the VM. Together they are the two phases of Paxos (Lamport 1998), the epoch its ballot.

use async_trait::async_trait;
use p2pvm_dht::{
    VoteError, VoterSet, Votes,
    votes::{self, Grant, Holding, LeaseView, Renewed},
};
use p2pvm_overlay::{Epoch, MemberId, identity::KeyPair};
use std::time::Duration;

/// The ground on which an epoch is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ground {
    /// The present holder wants it (it makes the VM, or hands it over): a confirmed epoch gives
    /// way. For a protected VM the request has to come from the present holder, or to name what
    /// was promised already: the source of a move asks first, in the target's name.
    Mandate,
    /// No member is known to run the VM: a voter refuses if another holder has confirmed its newest
    /// epoch.
    Doubt,
    /// A person forces it: also the running lease of a protected VM's host gives way.
    Force,
}

/// The newest epoch by the answers of a majority of voters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewestPromise {
    /// The epoch.
    pub epoch: Epoch,
    /// The member that it was promised to.
    pub holder: MemberId,
    /// Whether any voter of that majority holds it confirmed.
    pub confirmed: bool,
}

/// Why the voters did not decide as asked.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum BallotError {
    /// A voter has promised as new an epoch, or confirmed one, to another.
    #[error("the voters have given epoch {newest} to {}", .holder.short())]
    Refused {
        /// The newest epoch promised.
        newest: Epoch,
        /// The member that it was given to.
        holder: MemberId,
    },
    /// Too few voters answered.
    #[error("only {answered} of {asked} voters answered: a majority is needed")]
    NoMajority {
        /// How many answered.
        answered: usize,
        /// How many there are.
        asked: usize,
    },
    /// Too few voters agreed, and one of them said why it does not decide.
    #[error("{} does not decide: {reason}", .voter.short())]
    Declined {
        /// The voter.
        voter: MemberId,
        /// Its reason.
        reason: String,
    },
    /// The VM is protected, and its host's lease still runs.
    #[error("the host's lease runs for {} s more: ask again then", .free_in.as_secs() + 1)]
    Leased {
        /// For how long.
        free_in: Duration,
    },
    /// No voter can ever agree: the key is wrong, or these are not the VM's voters.
    #[error("the voters do not accept the request: {0}")]
    Invalid(&'static str),
}

/// A VM's voters. The VM's key proves to voters without a record of it that its owner named them.
#[derive(Clone, Copy)]
pub struct VmVoters<'a> {
    /// The VM's keys.
    pub keys: &'a KeyPair,
    /// Its voters.
    pub voters: &'a [MemberId],
}

/// The epoch after one, for a new holder.
///
/// # Errors
/// [`BallotError::Invalid`] after the last.
pub fn after(epoch: Epoch) -> Result<Epoch, BallotError> {
    Ok(votes::after(epoch)?)
}

/// Asks the voters of a VM. Calls end, with success or not, within about five seconds.
#[async_trait]
pub trait Ballot: Send + Sync + 'static {
    /// Asks a majority to promise `epoch` to `holder`. Asking again for the same holder succeeds.
    async fn grant(
        &self,
        vm: VmVoters<'_>,
        epoch: Epoch,
        holder: MemberId,
        ground: Ground,
    ) -> Result<Grant, BallotError>;

    /// Tells a majority that `holder` runs the VM in `epoch`; a voter that has promised a newer one
    /// refuses.
    async fn confirm(
        &self,
        vm: VmVoters<'_>,
        epoch: Epoch,
        holder: MemberId,
    ) -> Result<(), BallotError>;

    /// The newest epoch by the answers of a majority.
    async fn newest(&self, vm: VmVoters<'_>) -> Result<Option<NewestPromise>, BallotError>;

    /// Which of these members answer as voters now. None of them notes anything of the VM of
    /// `keys`, a new one, for which it is asked.
    async fn answering(&self, keys: &KeyPair, members: &[MemberId]) -> Vec<MemberId>;

    /// Tells the voters that `holder`, this member, has deleted the VM, so that they may forget it.
    async fn deleted(
        &self,
        _vm: VmVoters<'_>,
        _epoch: Epoch,
        _holder: MemberId,
    ) -> Result<(), BallotError> {
        Ok(())
    }

    /// Renews the leases of VMs that this member holds, as [`Votes::renew`]: one answer for each,
    /// in their order. A lease counts from when this was called.
    async fn renew(&self, held: &[Holding]) -> Vec<Renewed>;

    /// Takes a protected VM over whose host's lease has run out: `holder`, this member, is promised
    /// `epoch` and has confirmed it. The new lease counts from when this was called.
    async fn take_over(
        &self,
        vm: VmVoters<'_>,
        epoch: Epoch,
        holder: MemberId,
    ) -> Result<Grant, BallotError>;

    /// What a majority says about the VM's lease; changes nothing.
    async fn lease(&self, set: &VoterSet) -> Result<LeaseView, BallotError>;

    /// Confirms `epoch` for `holder`, this member, and sets whether the VM is protected, as
    /// [`Votes::protect`].
    async fn protect(
        &self,
        vm: VmVoters<'_>,
        epoch: Epoch,
        holder: MemberId,
        on: bool,
    ) -> Result<(), BallotError>;
}

/// The network's voters.
#[async_trait]
impl Ballot for Votes {
    async fn grant(
        &self,
        vm: VmVoters<'_>,
        epoch: Epoch,
        holder: MemberId,
        ground: Ground,
    ) -> Result<Grant, BallotError> {
        let set = VoterSet::sign(vm.keys, vm.voters);
        let granted = match ground {
            Ground::Mandate => Votes::grant(self, vm.keys, &set, epoch, holder).await,
            Ground::Doubt => self.take_back(vm.keys, &set, epoch, holder).await,
            Ground::Force => self.force(vm.keys, &set, epoch, holder).await,
        };
        granted.map_err(BallotError::from)
    }

    async fn confirm(
        &self,
        vm: VmVoters<'_>,
        epoch: Epoch,
        holder: MemberId,
    ) -> Result<(), BallotError> {
        Ok(Votes::confirm(
            self,
            vm.keys,
            &VoterSet::sign(vm.keys, vm.voters),
            epoch,
            holder,
        )
        .await?)
    }

    async fn deleted(
        &self,
        vm: VmVoters<'_>,
        epoch: Epoch,
        holder: MemberId,
    ) -> Result<(), BallotError> {
        let set = VoterSet::sign(vm.keys, vm.voters);
        Ok(Votes::deleted(self, vm.keys, &set, epoch, holder).await?)
    }

    async fn newest(&self, vm: VmVoters<'_>) -> Result<Option<NewestPromise>, BallotError> {
        let newest = Votes::newest(self, &VoterSet::sign(vm.keys, vm.voters)).await?;
        Ok(newest.map(|n| NewestPromise {
            epoch: n.epoch,
            holder: n.holder,
            confirmed: n.confirmed,
        }))
    }

    async fn answering(&self, keys: &KeyPair, members: &[MemberId]) -> Vec<MemberId> {
        Votes::answering(self, keys, members).await
    }

    async fn renew(&self, held: &[Holding]) -> Vec<Renewed> {
        Votes::renew(self, held).await
    }

    async fn take_over(
        &self,
        vm: VmVoters<'_>,
        epoch: Epoch,
        holder: MemberId,
    ) -> Result<Grant, BallotError> {
        let set = VoterSet::sign(vm.keys, vm.voters);
        Ok(Votes::take_over(self, vm.keys, &set, epoch, holder).await?)
    }

    async fn lease(&self, set: &VoterSet) -> Result<LeaseView, BallotError> {
        Ok(Votes::lease(self, set).await?)
    }

    async fn protect(
        &self,
        vm: VmVoters<'_>,
        epoch: Epoch,
        holder: MemberId,
        on: bool,
    ) -> Result<(), BallotError> {
        let set = VoterSet::sign(vm.keys, vm.voters);
        Ok(Votes::protect(self, vm.keys, &set, epoch, holder, on).await?)
    }
}

impl From<VoteError> for BallotError {
    fn from(error: VoteError) -> Self {
        match error {
            VoteError::Refused { newest, holder } => Self::Refused { newest, holder },
            VoteError::NoMajority { answered, asked } => Self::NoMajority { answered, asked },
            VoteError::Declined { voter, reason } => Self::Declined { voter, reason },
            VoteError::Leased { free_in } => Self::Leased { free_in },
            VoteError::Invalid(why) => Self::Invalid(why),
        }
    }
}
