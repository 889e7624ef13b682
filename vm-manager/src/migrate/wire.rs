//! The requests of a migration, service "migrate". The source asks, the target answers at once; the
//! source polls for what takes long at the target. A lost request or answer does no harm: each may
//! be repeated.
//!
//! A request may be followed by optional fields: one byte for the kind, one for the length, the
//! bytes. A member skips a field whose kind it cannot read, and goes on without one that is
//! missing. In use are: the span that the move's trace is within, how much disk the move takes, the
//! VM's owner and user, once for each the revoked tokens for the VM, how the VM is protected, the
//! newest replica of its disk, whether its guest runs under a lease, the schedule of its snapshots,
//! the keys of its snapshots, and from what it was restored last.

use crate::{
    Definition,
    backups::Backups,
    definition::VmSecret,
    directory::{Snapshot, checkpoints},
    hypervisor::Progress,
    protection::{Protection, Replica},
    recovery::Restored,
    sealed::HoldingKeys,
    trace::{from_traceparent, traceparent},
};
use opentelemetry::trace::SpanContext;
use p2pvm_authority::{Principal, Revocation, Revocations};
use p2pvm_overlay::{Epoch, Fabric, FabricError, MemberId, VmId};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The service's name, for requests and streams.
pub const SERVICE: &str = "migrate";

/// How long a request may take for which the target asks no other member.
pub const SHORT: Duration = Duration::from_secs(3);
/// How long a request may take for which the target asks voters or records.
pub const LONG: Duration = Duration::from_secs(10);

/// What the source offers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// The migration.
    pub id: u64,
    /// The VM.
    pub definition: Definition,
    /// Its key.
    pub secret: VmSecret,
    /// The epoch in which the target would have it.
    pub epoch: Epoch,
    /// Its snapshots.
    pub snapshots: Vec<Snapshot>,
}

/// A request of the source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Prepare to take the VM.
    Prepare(Box<Offer>),
    /// How far has the preparation come? It also shows that the source lives.
    Progress {
        /// The migration.
        id: u64,
    },
    /// Be ready to run the guest from now on, within the window.
    Arm {
        /// The migration.
        id: u64,
        /// Grows with each arming.
        serial: u64,
    },
    /// The guest was handed over: what became of it? Answered when there is news, or after a
    /// second.
    Settle {
        /// The migration.
        id: u64,
        /// The VM.
        vm: VmId,
        /// Whether the target has told the source already that the guest runs there.
        running: bool,
    },
    /// Give the move up, unless the guest runs there; what became of it?
    Abort {
        /// The migration.
        id: u64,
        /// The VM.
        vm: VmId,
        /// Why.
        reason: String,
    },
}

/// An answer of the target.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Answer {
    /// The preparation goes on.
    Preparing(Progress),
    /// RAM and disk can be sent.
    Ready {
        /// The name of the disk's NBD export.
        export: String,
    },
    /// The voters granted the epoch, and the window is open.
    Armed,
    /// The guest is not whole yet.
    Waiting,
    /// The guest runs here; the voters' confirmation is under way.
    Running,
    /// The VM is this host's for good.
    Confirmed {
        /// In that epoch.
        epoch: Epoch,
    },
    /// The guest ran here, is held still, and waits for the voters.
    Doubtful,
    /// This member has no record of the migration. That proves nothing: it may have been restarted,
    /// or have moved the VM on.
    Unknown,
    /// The guest never ran here and never will.
    Gone {
        /// Why.
        reason: String,
    },
}

/// The optional field that holds a `traceparent`.
const TRACEPARENT: u8 = 1;
/// The optional field that holds a [`DiskNeed`]: two little-endian numbers of 64 bits.
const DISK_NEED: u8 = 2;
/// The optional field that holds a member's id.
const OWNER: u8 = 3;
/// The optional field that holds the key of the VM's user.
const USER: u8 = 4;
/// The optional fields that hold a revoked token each.
const REVOKED: u8 = 8;
/// The optional field that holds how the VM is protected, unless as one of a previous release.
const PROTECTION: u8 = 16;
/// The optional field that holds the newest replica of its disk.
const REPLICA: u8 = 17;
/// The optional field with the schedule of snapshots, and which of them have lost copies.
const BACKUPS: u8 = 20;
/// The optional fields that hold a key of the VM's snapshots each.
const KEY: u8 = 9;

/// The optional field, without bytes, of a VM whose voters have it as protected.
const LEASED: u8 = 18;
/// The optional field that says from what the VM was restored last.
const RESTORED: u8 = 19;

/// How many bytes of the target's disk a move takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskNeed {
    /// Of the VM's own disk, as far as it is written.
    pub disk: u64,
    /// Of its image, which the target may have already.
    pub image: u64,
}

/// The optional fields of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extras {
    /// The span that the move is part of, or [`SpanContext::NONE`].
    pub within: SpanContext,
    /// With an offer: how much disk the move takes.
    pub need: Option<DiskNeed>,
    /// With an offer: the member that the VM was made for.
    pub owner: Option<MemberId>,
    /// With an offer: the user that the VM is for, by the user's key.
    pub user: Option<Principal>,
    /// With an offer: the tokens for the VM that were revoked, not checked.
    pub revoked: Revocations,
    /// With an offer: how well the VM is to outlive its host.
    pub protection: Protection,
    /// With an offer: the newest replica of its disk that all its holders have.
    pub replica: Option<Replica>,
    /// With an offer: whether the VM's voters have it as protected, so that its guest runs under a
    /// lease only.
    pub leased: bool,
    /// With an offer: the schedule of the VM's snapshots, and which of them have lost copies.
    pub backups: Backups,
    /// With an offer: the keys of the VM's snapshots.
    pub sealing: HoldingKeys,
    /// With an offer: from what the VM was restored last.
    pub restored: Option<Restored>,
}

impl Extras {
    /// No field.
    pub fn none() -> Self {
        Self {
            within: SpanContext::NONE,
            need: None,
            owner: None,
            user: None,
            revoked: Revocations::NONE,
            protection: Protection::default(),
            replica: None,
            leased: false,
            backups: Backups::NONE,
            sealing: HoldingKeys::NONE,
            restored: None,
        }
    }
}

/// A request with its optional fields, as it is sent.
fn encode(request: &Request, extras: &Extras) -> Vec<u8> {
    let mut body = postcard::to_allocvec(request).expect("plain fields always serialize");
    if let Some(context) = traceparent(&extras.within) {
        body.extend([TRACEPARENT, context.len() as u8]);
        body.extend(context.as_bytes());
    }
    if let Some(DiskNeed { disk, image }) = extras.need {
        body.extend([DISK_NEED, 16]);
        body.extend(disk.to_le_bytes());
        body.extend(image.to_le_bytes());
    }
    if let Some(MemberId(owner)) = extras.owner {
        body.extend([OWNER, owner.len() as u8]);
        body.extend(owner);
    }
    if let Some(user) = extras.user {
        body.extend([USER, user.len() as u8]);
        body.extend(user);
    }
    for one in extras.revoked.iter().map(Revocation::to_field) {
        body.extend([REVOKED, one.len() as u8]);
        body.extend(one);
    }
    if !extras.protection.is_default() {
        let field = extras.protection.to_field();
        body.extend([PROTECTION, field.len() as u8]);
        body.extend(field);
    }
    if let Some(field) = extras.replica.as_ref().map(Replica::to_field) {
        body.extend([REPLICA, field.len() as u8]);
        body.extend(field);
    }
    if extras.leased {
        body.extend([LEASED, 0]);
    }
    if let Some(field) = extras.backups.to_field(checkpoints(snapshots_of(request))) {
        body.extend([BACKUPS, field.len() as u8]);
        body.extend(field);
    }
    for one in extras.sealing.fields() {
        body.extend([KEY, one.len() as u8]);
        body.extend(one);
    }
    if let Some(field) = extras.restored.as_ref().map(Restored::to_field) {
        body.extend([RESTORED, field.len() as u8]);
        body.extend(field);
    }
    body
}

/// The snapshots that come with a request.
fn snapshots_of(request: &Request) -> &[Snapshot] {
    match request {
        Request::Prepare(offer) => &offer.snapshots,
        _ => &[],
    }
}

/// A request that was received, with its optional fields.
///
/// # Errors
/// What makes the request unreadable; a bad optional field does not.
pub fn decode(body: &[u8]) -> Result<(Request, Extras), postcard::Error> {
    let (request, mut fields) = postcard::take_from_bytes::<Request>(body)?;
    let (mut extras, mut revoked) = (Extras::none(), Vec::new());
    while let [field, length, rest @ ..] = fields {
        let Some((bytes, behind)) = rest.split_at_checked(usize::from(*length)) else {
            break;
        };
        match *field {
            TRACEPARENT => {
                let context = std::str::from_utf8(bytes).ok().and_then(from_traceparent);
                extras.within = context.unwrap_or(extras.within);
            }
            DISK_NEED => {
                let number =
                    |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
                let need = number(0)
                    .zip(number(8))
                    .map(|(disk, image)| DiskNeed { disk, image });
                extras.need = need.or(extras.need);
            }
            OWNER => extras.owner = bytes.try_into().ok().map(MemberId).or(extras.owner),
            USER => extras.user = bytes.try_into().ok().or(extras.user),
            REVOKED => revoked.extend(Revocation::from_field(bytes)),
            PROTECTION => {
                let read = Protection::from_field(bytes);
                extras.protection = read.unwrap_or(extras.protection);
            }
            REPLICA => extras.replica = Replica::from_field(bytes).or(extras.replica),
            LEASED => extras.leased = true,
            RESTORED => extras.restored = Restored::from_field(bytes).or(extras.restored),
            BACKUPS => {
                let told = Backups::from_field(bytes, checkpoints(snapshots_of(&request)));
                extras.backups = told.unwrap_or_default();
            }
            KEY => extras.sealing.add_field(bytes),
            _ => {}
        }
        fields = behind;
    }
    extras.revoked = Revocations::unchecked(revoked);
    Ok((request, extras))
}

/// Sends a request to `to`.
pub async fn ask(
    fabric: &dyn Fabric,
    to: MemberId,
    request: &Request,
    timeout: Duration,
) -> Result<Answer, FabricError> {
    ask_with(fabric, to, request, &Extras::none(), timeout).await
}

/// Sends a request with optional fields to `to`.
pub async fn ask_with(
    fabric: &dyn Fabric,
    to: MemberId,
    request: &Request,
    extras: &Extras,
    timeout: Duration,
) -> Result<Answer, FabricError> {
    let body = encode(request, extras);
    let answer = fabric.call(to, SERVICE, body, timeout).await?;
    postcard::from_bytes(&answer).map_err(|e| {
        FabricError::Refused(
            to,
            format!("its answer cannot be read: {}", p2pvm_overlay::chain(&e)),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2pvm_snapshot_sync::{ChunkId, ManifestId};
    use proptest::prelude::*;

    const CONTEXT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn request() -> Request {
        Request::Abort {
            id: 7,
            vm: VmId([3; 32]),
            reason: "cancelled on request".into(),
        }
    }

    #[test]
    fn a_trace_goes_with_a_request_that_older_members_still_read() {
        let within = from_traceparent(CONTEXT).unwrap();
        let mut sealing = HoldingKeys::NONE;
        sealing.add_field(&[[0, 0, 0, 0, 0, 0, 0, 7].to_vec(), vec![5; 32]].concat());
        let extras = Extras {
            within,
            need: Some(DiskNeed {
                disk: 7 << 30,
                image: 9,
            }),
            owner: Some(MemberId([5; 32])),
            user: None,
            revoked: crate::directory::golden_tests::revoked(),
            protection: crate::protection::tests::chosen(),
            replica: Some(crate::protection::tests::replica(2)),
            leased: true,
            backups: Backups::NONE,
            sealing,
            restored: Some(Restored {
                epoch: Epoch(9),
                checkpoint: ManifestId(ChunkId([8; 32])),
            }),
        };
        let with = encode(&request(), &extras);
        assert_eq!(decode(&with).unwrap(), (request(), extras));
        assert_eq!(
            postcard::from_bytes::<Request>(&with).unwrap(),
            request(),
            "as it was read before there were such fields"
        );
        let without = postcard::to_allocvec(&request()).unwrap();
        assert_eq!(encode(&request(), &Extras::none()), without);
        assert_eq!(decode(&without).unwrap(), (request(), Extras::none()));
    }

    #[test]
    fn a_field_of_a_later_version_is_passed_over() {
        let mut body = postcard::to_allocvec(&request()).unwrap();
        body.extend([
            200,
            3,
            1,
            2,
            3,
            DISK_NEED,
            3,
            1,
            2,
            3,
            REVOKED,
            1,
            0,
            TRACEPARENT,
            55,
        ]);
        body.extend(CONTEXT.as_bytes());
        assert_eq!(
            decode(&body).unwrap().1,
            Extras {
                within: from_traceparent(CONTEXT).unwrap(),
                need: None,
                owner: None,
                ..Extras::none()
            }
        );
    }

    proptest! {
        #[test]
        fn unknown_bytes_after_a_request_do_not_spoil_it(
            junk in proptest::collection::vec(any::<u8>(), 0..300)
        ) {
            let mut body = postcard::to_allocvec(&request()).unwrap();
            body.extend(junk);
            prop_assert_eq!(decode(&body).unwrap().0, request());
        }
    }
}

#[cfg(test)]
#[path = "wire_golden_tests.rs"]
mod golden_tests;
