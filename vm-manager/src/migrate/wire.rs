//! The requests of a migration, service "migrate". The source asks, the target answers at once;
//! what takes long at the target is asked for again. Losing a request or an answer loses nothing:
//! each may be repeated.
//!
//! Behind a request may stand fields that a member need not know: a byte that says which, a byte
//! for the length, the bytes. Who knows none reads the request all the same, and who misses one
//! goes on without. Two are in use: what the move's trace is within, and how many bytes come.

use crate::{
    Definition, Error,
    definition::VmSecret,
    directory::Snapshot,
    hypervisor::Progress,
    trace::{from_traceparent, traceparent},
};
use opentelemetry::trace::SpanContext;
use p2pvm_overlay::{Epoch, Fabric, FabricError, MemberId, VmId};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The service's name, for requests and streams.
pub const SERVICE: &str = "migrate";

/// How long a request that is answered from memory may take.
pub const SHORT: Duration = Duration::from_secs(3);
/// How long a request that asks voters or starts a guest may take.
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
pub enum Ask {
    /// Prepare to take the VM.
    Prepare(Box<Offer>),
    /// How far is the preparation? Also says that the source lives.
    Progress {
        /// The migration.
        id: u64,
    },
    /// Be ready to run the guest from now, within the window.
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
        /// The source knows already that it runs.
        running: bool,
    },
    /// Give it up, unless it runs; what became of it?
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
    /// Work goes on.
    Preparing(Progress),
    /// RAM and disk can be sent.
    Ready {
        /// The name of the disk's NBD export.
        export: String,
    },
    /// The voters granted the epoch, and the window is open.
    Armed,
    /// Not whole yet.
    Waiting,
    /// It runs here; the voters' confirmation is under way.
    Running,
    /// It is this host's for good.
    Confirmed {
        /// In that epoch.
        epoch: Epoch,
    },
    /// It ran here, is held still, and waits for the voters.
    Doubtful,
    /// This member knows nothing of it, which says nothing: it may have forgotten, or passed the VM
    /// on.
    Unknown,
    /// It never ran here and never will.
    Gone {
        /// Why.
        reason: String,
    },
}

/// The optional field that holds a `traceparent`.
const TRACEPARENT: u8 = 1;
/// The optional field that holds a [`Burden`]: two little-endian numbers of 64 bits.
const BURDEN: u8 = 2;

/// How many bytes of the target's disk a move takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Burden {
    /// Of the VM's own disk, as far as it is written.
    pub disk: u64,
    /// Of its image, which the target may have already.
    pub image: u64,
}

/// What goes with a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beside {
    /// The span that the move is part of, or [`SpanContext::NONE`].
    pub within: SpanContext,
    /// With an offer: what comes.
    pub burden: Option<Burden>,
}

impl Beside {
    /// Nothing.
    pub const NOTHING: Self = Self {
        within: SpanContext::NONE,
        burden: None,
    };
}

/// A request as it is sent, with what goes with it.
fn encode(ask: &Ask, beside: &Beside) -> Vec<u8> {
    let mut body = postcard::to_allocvec(ask).expect("plain fields always serialize");
    if let Some(context) = traceparent(&beside.within) {
        body.extend([TRACEPARENT, context.len() as u8]);
        body.extend(context.as_bytes());
    }
    if let Some(Burden { disk, image }) = beside.burden {
        body.extend([BURDEN, 16]);
        body.extend(disk.to_le_bytes());
        body.extend(image.to_le_bytes());
    }
    body
}

/// A request as it came, with what went with it.
///
/// # Errors
/// What makes the request unreadable; a bad optional field does not.
pub fn decode(body: &[u8]) -> Result<(Ask, Beside), postcard::Error> {
    let (ask, mut fields) = postcard::take_from_bytes::<Ask>(body)?;
    let mut beside = Beside::NOTHING;
    while let [field, length, rest @ ..] = fields {
        let Some((bytes, behind)) = rest.split_at_checked(usize::from(*length)) else {
            break;
        };
        match *field {
            TRACEPARENT => {
                let context = std::str::from_utf8(bytes).ok().and_then(from_traceparent);
                beside.within = context.unwrap_or(beside.within);
            }
            BURDEN => {
                let number =
                    |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
                let burden = number(0)
                    .zip(number(8))
                    .map(|(disk, image)| Burden { disk, image });
                beside.burden = burden.or(beside.burden);
            }
            _ => {}
        }
        fields = behind;
    }
    Ok((ask, beside))
}

/// Asks `to`.
pub async fn ask(
    fabric: &dyn Fabric,
    to: MemberId,
    ask: &Ask,
    timeout: Duration,
) -> Result<Answer, FabricError> {
    ask_beside(fabric, to, ask, &Beside::NOTHING, timeout).await
}

/// Asks `to`, and says what goes with it.
pub async fn ask_beside(
    fabric: &dyn Fabric,
    to: MemberId,
    ask: &Ask,
    beside: &Beside,
    timeout: Duration,
) -> Result<Answer, FabricError> {
    let body = encode(ask, beside);
    let answer = fabric.call(to, SERVICE, body, timeout).await?;
    postcard::from_bytes(&answer)
        .map_err(|e| FabricError::Refused(to, format!("its answer cannot be read: {e}")))
}

/// A failed request as this crate's error.
pub fn peer(step: &'static str) -> impl FnOnce(FabricError) -> Error {
    move |source| Error::Peer { step, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CONTEXT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn request() -> Ask {
        Ask::Abort {
            id: 7,
            vm: VmId([3; 32]),
            reason: "cancelled on request".into(),
        }
    }

    #[test]
    fn a_trace_goes_with_a_request_and_a_member_that_knows_none_reads_it_all_the_same() {
        let within = from_traceparent(CONTEXT).unwrap();
        let beside = Beside {
            within,
            burden: Some(Burden {
                disk: 7 << 30,
                image: 9,
            }),
        };
        let with = encode(&request(), &beside);
        assert_eq!(decode(&with).unwrap(), (request(), beside));
        assert_eq!(
            postcard::from_bytes::<Ask>(&with).unwrap(),
            request(),
            "as it was read before there were such fields"
        );
        let without = postcard::to_allocvec(&request()).unwrap();
        assert_eq!(encode(&request(), &Beside::NOTHING), without);
        assert_eq!(decode(&without).unwrap(), (request(), Beside::NOTHING));
    }

    #[test]
    fn a_field_of_a_later_version_is_passed_over() {
        let mut body = postcard::to_allocvec(&request()).unwrap();
        body.extend([200, 3, 1, 2, 3, BURDEN, 3, 1, 2, 3, TRACEPARENT, 55]);
        body.extend(CONTEXT.as_bytes());
        assert_eq!(
            decode(&body).unwrap().1,
            Beside {
                within: from_traceparent(CONTEXT).unwrap(),
                burden: None
            }
        );
    }

    proptest! {
        #[test]
        fn whatever_stands_behind_a_request_does_not_spoil_it(
            junk in proptest::collection::vec(any::<u8>(), 0..300)
        ) {
            let mut body = postcard::to_allocvec(&request()).unwrap();
            body.extend(junk);
            prop_assert_eq!(decode(&body).unwrap().0, request());
        }
    }
}
