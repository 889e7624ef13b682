//! Opening the sealed part of a snapshot: with this host's own copy of the VM, as the VM's owner,
//! or with the shares of the VM's voters.

use super::{Right, SavedVm};
use crate::{
    Error,
    directory::VmRecord,
    error::undecided,
    host::{
        Host,
        remote::{VmAnswer, VmRequest},
    },
    sealed::Sealed,
};
use futures::{StreamExt, stream::FuturesUnordered};
use p2pvm_overlay::{Epoch, MemberId, chain};
use p2pvm_snapshot_sync::SealKey;
use zeroize::Zeroizing;

fn share_request(envelope: Vec<u8>, right: Right<'_>) -> VmRequest {
    match right {
        Right::Asked(proofs) | Right::Forced(proofs) | Right::HeirAsked(proofs) => {
            VmRequest::Share {
                envelope,
                proofs: proofs.to_vec(),
            }
        }
        Right::Heir(set) => VmRequest::ShareForHeir {
            envelope,
            set: set.clone(),
        },
    }
}

/// What a checkpoint says of its VM, and what opens its memory and disk.
pub(super) struct Opened {
    pub(super) saved: SavedVm,
    pub(super) key: SealKey,
}

impl Opened {
    /// `None` if the key of that holding is not among the VM's.
    fn of(saved: SavedVm, holding: Option<Epoch>) -> Option<Self> {
        let key = saved.sealing.key(holding, &saved.secret)?;
        Some(Self { saved, key })
    }
}

impl Host {
    /// Reads a checkpoint's own part; `None` if it is no VM's.
    ///
    /// # Errors
    /// [`Error::Refused`] if too few of the VM's voters release their shares, [`Error::Agreement`]
    /// if too few answer.
    pub(super) async fn open_saved(
        &self,
        spec: &[u8],
        record: &VmRecord,
        right: Right<'_>,
    ) -> Result<Option<Opened>, Error> {
        let Some(sealed) = Sealed::from_bytes(spec) else {
            // Of a release that sealed nothing.
            return Ok(SavedVm::from_bytes(spec).and_then(|saved| Opened::of(saved, None)));
        };
        if let Some(slot) = self.slot_of(record.definition.vm) {
            let entry = slot.entry();
            let saved = SavedVm {
                definition: record.definition.clone(),
                secret: entry.secret,
                sealing: entry.sealing,
            };
            // A host that restored an older snapshot may lack the key, and one of an earlier
            // version has handed none on: the owner or the voters open it.
            if let Some(opened) = Opened::of(saved, sealed.holding()) {
                return Ok(Some(opened));
            }
        }
        let document = Zeroizing::new(match sealed.open_as(&self.parts.identity) {
            Some(document) => document,
            None => self.ask_voters(&sealed, record, right).await?,
        });
        let saved = SavedVm::from_bytes(&document);
        Ok(saved.and_then(|saved| Opened::of(saved, sealed.holding())))
    }

    async fn ask_voters(
        &self,
        sealed: &Sealed,
        record: &VmRecord,
        right: Right<'_>,
    ) -> Result<Vec<u8>, Error> {
        let ask = |voter: MemberId, envelope: &[u8]| {
            let request = share_request(envelope.to_vec(), right);
            async move {
                let answer = match self.ask_member(voter, &request).await {
                    // As the voters' own requests, not lost with one connection.
                    Err(_) => self.ask_member(voter, &request).await,
                    answer => answer,
                };
                (voter, answer)
            }
        };
        let shares = sealed.shares().iter();
        let mut asked: FuturesUnordered<_> = shares
            .map(|(voter, envelope)| ask(*voter, envelope))
            .collect();
        let (mut released, mut refused) = (Vec::new(), Vec::new());
        let mut is_denied = false;
        while let Some((voter, answer)) = asked.next().await {
            let why = match answer {
                Ok(VmAnswer::Share(Ok(share))) => {
                    released.push(share);
                    match sealed.open(&released) {
                        Some(document) => return Ok(document),
                        None => continue,
                    }
                }
                Ok(VmAnswer::Share(Err(why))) => {
                    is_denied = true;
                    why
                }
                Ok(_) => "it answers something else".to_owned(),
                Err(error) => chain(&error),
            };
            refused.push(format!("{}: {why}", voter.short()));
        }
        let lacking = format!(
            "{} of the {} voters of '{}' have to release its key, and {} did ({}): start those \
                that do not answer, update those that cannot read the request, or restore it on \
                its owner's machine",
            sealed.needed(),
            sealed.shares().len(),
            record.definition.name,
            released.len(),
            refused.join("; ")
        );
        Err(match is_denied {
            true => Error::Refused(format!("the snapshot is sealed: {lacking}")),
            false => undecided("opening the sealed snapshot")(lacking),
        })
    }
}
