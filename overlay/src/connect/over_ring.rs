//! Meeting a member over the ring: no control connection, no name service, only neighbours that
//! pass packets on.
//!
//! One call carries a Noise handshake with both sides' reachability sealed in it. When its answer
//! is back, the session stands, the ring is its first path, and direct probes are sent at once. The
//! caller shows its certificate inside the handshake, so that the far end, which may not know it,
//! can verify the membership before it answers. The far end proves itself by the link key of its
//! certificate, which the caller asks for first if it does not have it. Forwarders see which two
//! members talk and nothing else.

use super::{
    Shared, examine,
    message::{self, Introduction, Reachability, RingAnswer, RingRequest},
};
use crate::lock;
use crate::{
    id::MemberId,
    identity::LinkKey,
    link::wire::MAX_EXTRA_LEN,
    membership::{Certificate, Trust},
    plane::Error,
    ring::{Header, Position},
    ring_net::RingNet,
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

/// How long a call over the ring may take, its repetitions included.
const CALL_LIMIT: Duration = Duration::from_millis(2500);
/// How many certificates of members met over the ring are kept: some 500 bytes each.
const MAX_MET: usize = 4096;

/// The certificate that a node shows to members that do not know it, and the trust by which it
/// judges theirs.
pub struct Credentials {
    /// This node's certificate.
    pub certificate: Certificate,
    /// The authorities and revocations that it judges others by.
    pub trust: Arc<Trust>,
}

/// The connector's access to the ring.
pub(crate) struct RingAccess {
    pub net: Arc<RingNet>,
    credentials: Credentials,
    met: Mutex<HashMap<MemberId, Certificate>>,
}

impl RingAccess {
    pub fn new(net: Arc<RingNet>, credentials: Credentials) -> Self {
        Self {
            net,
            credentials,
            met: Mutex::default(),
        }
    }

    fn met(&self) -> MutexGuard<'_, HashMap<MemberId, Certificate>> {
        lock(&self.met)
    }

    fn remember(&self, certificate: Certificate) {
        let mut met = self.met();
        if met.len() >= MAX_MET && !met.contains_key(&certificate.member()) {
            // Any other certificate can be asked for again.
            let spare = met.keys().next().copied();
            spare.map(|member| met.remove(&member));
        }
        met.insert(certificate.member(), certificate);
    }

    /// The certificate of a member that was met over the ring.
    pub fn certificate(&self, member: MemberId) -> Option<Certificate> {
        self.met().get(&member).cloned()
    }

    /// Whether the member answers over the ring.
    pub async fn alive(&self, member: MemberId) -> bool {
        let answer = self
            .net
            .call(
                Position::of(&member),
                None,
                message::encode(&RingRequest::Alive),
                CALL_LIMIT,
            )
            .await;
        answer.and_then(|bytes| message::decode(&bytes)) == Some(RingAnswer::Alive)
    }
}

async fn ask(
    ring: &RingAccess,
    member: MemberId,
    via: Option<Position>,
    request: RingRequest,
) -> Result<RingAnswer, Error> {
    let answer = ring
        .net
        .call(
            Position::of(&member),
            via,
            message::encode(&request),
            CALL_LIMIT,
        )
        .await;
    let answer = answer.ok_or(Error::TimedOut(member, CALL_LIMIT))?;
    message::decode(&answer)
        .ok_or_else(|| Error::Handshake(member, "unreadable answer over the ring".into()))
}

async fn key_of(
    shared: &Shared,
    ring: &RingAccess,
    member: MemberId,
    via: Option<Position>,
) -> Result<LinkKey, Error> {
    let known = shared
        .fabric
        .link_key(member)
        .or_else(|| ring.certificate(member).map(|c| c.link_key()));
    if let Some(key) = known {
        return Ok(key);
    }
    let failed = |reason: String| Error::Handshake(member, reason);
    match ask(ring, member, via, RingRequest::Who).await? {
        RingAnswer::Me(certificate) if certificate.member() == member => {
            ring.credentials
                .trust
                .verify(&certificate)
                .map_err(|refusal| failed(refusal.to_string()))?;
            let key = certificate.link_key();
            ring.remember(*certificate);
            Ok(key)
        }
        _ => Err(failed("it does not say who it is".into())),
    }
}

/// Exchanges reachability and handshake over the ring. Afterwards the session stands, and the ring
/// carries it.
pub(crate) async fn meet(
    shared: &Shared,
    ring: &RingAccess,
    member: MemberId,
    via: Option<Position>,
) -> Result<Reachability, Error> {
    let key = key_of(shared, ring, member, via).await?;
    let introduce = |reachability| Introduction {
        certificate: ring.credentials.certificate.clone(),
        reachability,
    };
    let extra = message::encode_within(MAX_EXTRA_LEN, shared.reachability(), introduce);
    let handshake = shared.plane.open_link(member, key, &extra)?;
    let failed = |reason: &str| Error::Handshake(member, reason.to_owned());
    match ask(ring, member, via, RingRequest::Link(handshake)).await? {
        RingAnswer::Linked(answer) => {
            let sealed = shared.plane.finish_over_ring(member, via, &answer)?;
            message::decode(&sealed).ok_or_else(|| failed("it does not say where it is"))
        }
        RingAnswer::Refused => Err(failed("it refused over the ring")),
        _ => Err(failed("answered something else")),
    }
}

/// Answers a call that came over the ring; `None` for an invalid one.
pub(crate) async fn answer(
    shared: &Arc<Shared>,
    ring: &RingAccess,
    asked: &Header,
    body: &[u8],
) -> Option<Vec<u8>> {
    let answer = match message::decode(body)? {
        RingRequest::Alive => RingAnswer::Alive,
        RingRequest::Who => RingAnswer::Me(Box::new(ring.credentials.certificate.clone())),
        RingRequest::Link(handshake) => accept(shared, ring, asked, &handshake).await?,
    };
    Some(message::encode(&answer))
}

async fn accept(
    shared: &Arc<Shared>,
    ring: &RingAccess,
    asked: &Header,
    handshake: &[u8],
) -> Option<RingAnswer> {
    let opened = shared.plane.read_link(handshake).ok()?;
    let Introduction {
        certificate,
        reachability,
    } = message::decode(&opened.extra)?;
    let member = certificate.member();
    if Position::of(&member) != asked.from || certificate.link_key() != opened.peer {
        return None;
    }
    if let Err(refusal) = ring.credentials.trust.verify(&certificate) {
        tracing::debug!(?member, %refusal, "the member gets no link over the ring");
        return Some(RingAnswer::Refused);
    }
    ring.remember(certificate);
    shared.state().retries.hold_off(member, Instant::now());
    examine::look_at_the_counter(shared).await;
    let ours = message::encode_within(MAX_EXTRA_LEN, shared.reachability(), |w| w);
    match shared
        .plane
        .accept_over_ring(member, opened, asked.agent, &ours)
    {
        Ok(answer) => {
            shared.met(member, &reachability);
            Some(RingAnswer::Linked(answer))
        }
        Err(error) => {
            tracing::debug!(
                ?member,
                error = %p2pvm_host::chain(&error),
                "the member gets no link over the ring"
            );
            None
        }
    }
}
