//! The requests of a migration, service "migrate". The source asks, the target answers at once; what takes
//! long at the target is asked for again. Losing a request or an answer loses nothing: each may be repeated.
//!
//! Behind a request may stand fields that a member need not know: a byte that says which, a byte for the length, the bytes.
//! Who knows none reads the request all the same, and who misses one goes on without. One is in use: what the move's trace is within.

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
    /// The guest was handed over: what became of it? Answered when there is news, or after a second.
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
    /// This member knows nothing of it, which says nothing: it may have forgotten, or passed the VM on.
    Unknown,
    /// It never ran here and never will.
    Gone {
        /// Why.
        reason: String,
    },
}

/// The optional field that holds a `traceparent`.
const TRACEPARENT: u8 = 1;

/// A request as it is sent, with the span that the move is part of.
fn encode(ask: &Ask, within: &SpanContext) -> Vec<u8> {
    let mut body = postcard::to_allocvec(ask).expect("plain fields always serialize");
    if let Some(context) = traceparent(within) {
        body.extend([TRACEPARENT, context.len() as u8]);
        body.extend(context.as_bytes());
    }
    body
}

/// A request as it came, with the span that the move is part of, or [`SpanContext::NONE`].
///
/// # Errors
/// What makes the request unreadable; a bad optional field does not.
pub fn decode(body: &[u8]) -> Result<(Ask, SpanContext), postcard::Error> {
    let (ask, mut fields) = postcard::take_from_bytes::<Ask>(body)?;
    while let [field, length, rest @ ..] = fields {
        let Some((bytes, behind)) = rest.split_at_checked(usize::from(*length)) else { break };
        if *field == TRACEPARENT
            && let Some(context) = std::str::from_utf8(bytes).ok().and_then(from_traceparent)
        {
            return Ok((ask, context));
        }
        fields = behind;
    }
    Ok((ask, SpanContext::NONE))
}

/// Asks `to`.
pub async fn ask(fabric: &dyn Fabric, to: MemberId, ask: &Ask, timeout: Duration) -> Result<Answer, FabricError> {
    ask_within(fabric, to, ask, &SpanContext::NONE, timeout).await
}

/// Asks `to`, and says which span that is part of.
pub async fn ask_within(
    fabric: &dyn Fabric,
    to: MemberId,
    ask: &Ask,
    within: &SpanContext,
    timeout: Duration,
) -> Result<Answer, FabricError> {
    let body = encode(ask, within);
    let answer = fabric.call(to, SERVICE, body, timeout).await?;
    postcard::from_bytes(&answer).map_err(|e| FabricError::Refused(to, format!("its answer cannot be read: {e}")))
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
        Ask::Abort { id: 7, vm: VmId([3; 32]), reason: "cancelled on request".into() }
    }

    #[test]
    fn a_trace_goes_with_a_request_and_a_member_that_knows_none_reads_it_all_the_same() {
        let within = from_traceparent(CONTEXT).unwrap();
        let with = encode(&request(), &within);
        assert_eq!(decode(&with).unwrap(), (request(), within));
        assert_eq!(postcard::from_bytes::<Ask>(&with).unwrap(), request(), "as it was read before there were such fields");
        let without = postcard::to_allocvec(&request()).unwrap();
        assert_eq!(encode(&request(), &SpanContext::NONE), without);
        assert_eq!(decode(&without).unwrap(), (request(), SpanContext::NONE));
    }

    #[test]
    fn a_field_of_a_later_version_is_passed_over() {
        let mut body = postcard::to_allocvec(&request()).unwrap();
        body.extend([200, 3, 1, 2, 3, TRACEPARENT, 55]);
        body.extend(CONTEXT.as_bytes());
        assert_eq!(decode(&body).unwrap().1, from_traceparent(CONTEXT).unwrap());
    }

    proptest! {
        #[test]
        fn whatever_stands_behind_a_request_does_not_spoil_it(junk in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut body = postcard::to_allocvec(&request()).unwrap();
            body.extend(junk);
            prop_assert_eq!(decode(&body).unwrap().0, request());
        }
    }
}
