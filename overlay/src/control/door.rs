//! The proof of membership on a new connection. libp2p has proved the other end's key; this
//! exchange proves that the key is a member's, or makes it one.
//!
//! The dialler says [`Hello`], the listener [`Reply`]s, the dialler confirms with one byte. So the
//! dialler may use the connection after one round trip and the listener after one and a half, and
//! neither ever uses it while the other still refuses. A new member is admitted on its first
//! connection and uses that one from then on.

use super::{
    admit::{JoinRequest, SignedAdmit},
    wire::{
        AdmitRequest, ByClock, Contact, Gossip, Hello, MAX_BY_CLOCK_BYTES, MAX_HELLO_BYTES,
        MAX_REPLY_BYTES, Presentation, Reply, read_bytes, read_value, write_value,
    },
};
use crate::{
    id::{MemberId, UnixTime},
    identity::{Identity, KeyPair},
    membership::{
        Admission, Certificate, Issuer, NetworkConfig, Refusal, Revocation, Rights, Target, Trust,
    },
};
use arc_swap::{ArcSwap, ArcSwapOption};
use async_trait::async_trait;
use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::Semaphore;

/// How long a certificate lasts. Reason: a revocation cuts a member off, not the end of its
/// certificate.
const CERTIFICATE_SECONDS: u64 = 10 * 365 * 86_400;
/// How many requests to join are decided at a time. Reason: each may ask other members.
const ADMISSIONS_AT_ONCE: usize = 16;
/// How many revocations come with a refusal. Reason: one says why.
const MAX_PROOF: usize = 64;
/// How long an admission may take. Reason: it asks the DHT and may be passed on, which takes
/// several round trips.
pub const ADMISSION_TIMEOUT: Duration = Duration::from_secs(15);

/// How long to wait for the clock of a member that refused, which follows the refusal. Previous
/// releases send none.
const BY_CLOCK_WAIT: Duration = Duration::from_millis(300);

/// Why a connection was refused.
#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    /// This node refused the other.
    #[error("turned the other down")]
    Refused(#[source] Refusal),
    /// The other refused this node, with the revocations behind that and its clock, if it sent
    /// them.
    #[error("was turned down: {}{}", .0, by_clock(.0, .2.as_ref()))]
    TurnedDown(Refusal, Vec<Revocation>, Option<UnixTime>),
    /// The connection broke, or the other speaks something else.
    #[error("the proof of membership broke off")]
    Io(#[from] io::Error),
    /// No message came in time.
    #[error("no proof of membership came in time")]
    TimedOut,
}

/// Explains a refusal because of time by both clocks.
fn by_clock(refusal: &Refusal, theirs: Option<&UnixTime>) -> String {
    match theirs {
        Some(theirs) if *refusal == Refusal::Expired => {
            format!(
                " (its clock is at {} s since 1970, this machine's at {} s)",
                theirs.0,
                UnixTime::now().0
            )
        }
        _ => String::new(),
    }
}

/// The result of the exchange.
#[derive(Debug)]
pub struct ProvedPeer {
    /// The other's contact: its certificate and addresses.
    pub contact: Contact,
    /// The digest of the revocations that the other knows.
    pub revocations: [u8; 32],
    /// The digest of the contacts that the other knows.
    pub contacts: [u8; 32],
    /// How many contacts the other knows.
    pub known: u32,
    /// The round-trip time that the exchange measured.
    pub rtt: Option<Duration>,
    /// What a joiner received.
    pub admitted: Option<Box<AdmissionAnswer>>,
}

/// What a joiner receives.
#[derive(Clone, Debug)]
pub struct AdmissionAnswer {
    pub certificate: Certificate,
    pub revocations: Vec<Revocation>,
    pub contacts: Vec<Contact>,
}

/// The part of the control host that the door needs.
#[async_trait]
pub trait DoorBackend: Send + Sync + 'static {
    /// The contacts to give to a newcomer.
    fn contacts(&self, newcomer: MemberId) -> Vec<Contact>;
    /// A hash of the known contacts, and their number.
    fn contacts_digest(&self) -> ([u8; 32], u32);
    /// Passes a request on to a member with the right to admit.
    async fn pass_on(
        &self,
        joiner: MemberId,
        request: &JoinRequest,
    ) -> Result<Certificate, Refusal>;
}

/// The credentials and the trust for proving and judging membership.
pub struct Door {
    me: MemberId,
    pub network: NetworkConfig,
    pub trust: Arc<Trust>,
    contact: ArcSwapOption<Contact>,
    joining: Option<SignedAdmit>,
    issuer_key: Option<KeyPair>,
    identity: Option<Arc<Identity>>,
    admission: ArcSwap<Option<Arc<dyn Admission>>>,
    backend: std::sync::OnceLock<Arc<dyn DoorBackend>>,
    admissions: Semaphore,
    is_of_the_first_release: AtomicBool,
}

impl Door {
    /// A member's door: `issuer_key` is the root's key if this node has it.
    pub fn of_member(
        identity: Arc<Identity>,
        network: NetworkConfig,
        trust: Arc<Trust>,
        contact: Contact,
        issuer_key: Option<KeyPair>,
        admission: Arc<dyn Admission>,
    ) -> Self {
        Self {
            me: identity.member_id(),
            network,
            trust,
            contact: ArcSwapOption::from_pointee(contact),
            joining: None,
            issuer_key,
            identity: Some(identity),
            admission: ArcSwap::from_pointee(Some(admission)),
            backend: std::sync::OnceLock::new(),
            admissions: Semaphore::new(ADMISSIONS_AT_ONCE),
            is_of_the_first_release: AtomicBool::new(false),
        }
    }

    /// A joiner's door: it admits no peer, and asks to be admitted.
    pub fn of_joiner(
        me: MemberId,
        network: NetworkConfig,
        trust: Arc<Trust>,
        request: SignedAdmit,
    ) -> Self {
        Self {
            me,
            network,
            trust,
            contact: ArcSwapOption::empty(),
            joining: Some(request),
            issuer_key: None,
            identity: None,
            admission: ArcSwap::from_pointee(None),
            backend: std::sync::OnceLock::new(),
            admissions: Semaphore::new(0),
            is_of_the_first_release: AtomicBool::new(false),
        }
    }

    /// Whether this node asks to become a member.
    pub fn is_joining(&self) -> bool {
        self.joining.is_some()
    }

    /// Whether this node speaks the version that members of the first release do not know; a test
    /// may switch this off.
    pub fn is_current(&self) -> bool {
        !self.is_of_the_first_release.load(Ordering::Relaxed)
    }

    #[cfg(test)]
    pub fn be_of_the_first_release(&self) {
        self.is_of_the_first_release.store(true, Ordering::Relaxed);
    }

    /// Sets the control host that answers for the known members.
    pub fn set_backend(&self, backend: Arc<dyn DoorBackend>) {
        let _ = self.backend.set(backend);
    }

    /// Replaces the counter of invites' uses.
    pub fn set_admission(&self, admission: Arc<dyn Admission>) {
        self.admission.store(Arc::new(Some(admission)));
    }

    /// Replaces the contact that this node shows.
    pub fn set_contact(&self, contact: Contact) {
        self.contact.store(Some(Arc::new(contact)));
    }

    /// The contact that this node shows.
    pub fn contact(&self) -> Option<Arc<Contact>> {
        self.contact.load_full()
    }

    fn presentation(&self) -> Option<Box<Presentation>> {
        let contact = self.contact.load_full()?;
        let (contacts, known) = self
            .backend
            .get()
            .map_or(([0; 32], 0), |h| h.contacts_digest());
        Some(Box::new(Presentation {
            contact: (*contact).clone(),
            revocations: self.trust.digest(),
            contacts,
            known,
        }))
    }

    fn judge(
        &self,
        peer: MemberId,
        shown: Presentation,
        rtt: Option<Duration>,
    ) -> Result<ProvedPeer, Refusal> {
        if shown.contact.member() != peer {
            return Err(Refusal::NotYours);
        }
        shown.contact.verify(&self.trust)?;
        let Presentation {
            contact,
            revocations,
            contacts,
            known,
        } = shown;
        Ok(ProvedPeer {
            contact,
            revocations,
            contacts,
            known,
            rtt,
            admitted: None,
        })
    }

    /// The dialler's part. A joiner signs its request where the other `reads_signed`.
    pub async fn knock(
        &self,
        peer: MemberId,
        reads_signed: bool,
        stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    ) -> Result<ProvedPeer, DoorError> {
        let hello = match (self.presentation(), &self.joining) {
            (Some(own), _) => Hello::Prove(own),
            (None, Some(signed)) if reads_signed => Hello::AdmitSigned(Box::new(signed.clone())),
            (None, Some(signed)) => Hello::Admit(Box::new(signed.request.clone())),
            (None, None) => return Err(DoorError::Refused(Refusal::NotAnInvite)),
        };
        let started = Instant::now();
        write_value(stream, &hello).await?;
        let reply = read_value(stream, MAX_REPLY_BYTES).await?;
        let rtt = started.elapsed();
        let (shown, admitted) = match reply {
            Reply::Refused { refusal, proof } => {
                let told =
                    tokio::time::timeout(BY_CLOCK_WAIT, read_bytes(stream, MAX_BY_CLOCK_BYTES))
                        .await;
                let by_clock = told
                    .ok()
                    .and_then(Result::ok)
                    .and_then(|body| ByClock::read(&body));
                return Err(DoorError::TurnedDown(refusal, proof, by_clock));
            }
            Reply::Welcome(shown) => (shown, None),
            Reply::Admitted {
                certificate,
                presentation,
                revocations,
                contacts,
            } => (
                presentation,
                Some(Box::new(AdmissionAnswer {
                    certificate: *certificate,
                    revocations,
                    contacts,
                })),
            ),
        };
        let measured = admitted.is_none().then_some(rtt);
        let mut proved = self
            .judge(peer, *shown, measured)
            .map_err(DoorError::Refused)?;
        if let Some(admitted) = &admitted {
            self.is_as_asked(&admitted.certificate)
                .map_err(DoorError::Refused)?;
        }
        stream.write_all(&[1]).await?;
        stream.close().await?;
        proved.admitted = admitted;
        Ok(proved)
    }

    /// Whether a certificate says what this joiner asked for. The request passes through the
    /// member that was asked: with a link key of that one's own it could be this node on the packet
    /// plane.
    fn is_as_asked(&self, certificate: &Certificate) -> Result<(), Refusal> {
        self.trust.verify(certificate)?;
        if certificate.member() != self.me {
            return Err(Refusal::NotYours);
        }
        let is_it = |request: &AdmitRequest| {
            certificate.link_key() == request.link_key && certificate.name() == request.name
        };
        self.joining
            .as_ref()
            .is_some_and(|signed| is_it(&signed.request))
            .then_some(())
            .ok_or(Refusal::Tampered)
    }

    /// The listener's part.
    pub async fn answer(
        &self,
        peer: MemberId,
        stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    ) -> Result<ProvedPeer, DoorError> {
        let hello = read_value(stream, MAX_HELLO_BYTES).await?;
        let concerned = concerned(peer, &hello);
        let verdict = match hello {
            Hello::Prove(shown) => match self.presentation() {
                Some(own) => self
                    .judge(peer, *shown, None)
                    .map(|proved| (proved, Reply::Welcome(own))),
                None => Err(Refusal::CannotAdmit),
            },
            Hello::Admit(request) => self.welcome(peer, JoinRequest::Unsigned(*request)).await,
            Hello::AdmitSigned(signed) => self.welcome(peer, JoinRequest::Signed(*signed)).await,
        };
        match verdict {
            Ok((mut proved, reply)) => {
                let started = Instant::now();
                write_value(stream, &reply).await?;
                stream.read_exact(&mut [0]).await?;
                proved.rtt = Some(started.elapsed());
                Ok(proved)
            }
            Err(refusal) => {
                let about_peer = |r: &Revocation| {
                    matches!(
                        r.target(), Target::Member(member) if concerned.contains(&member)
                    )
                };
                let proof = match refusal {
                    Refusal::Revoked => self
                        .trust
                        .weightiest()
                        .into_iter()
                        .filter(about_peer)
                        .take(MAX_PROOF)
                        .collect(),
                    _ => Vec::new(),
                };
                write_value(
                    stream,
                    &Reply::Refused {
                        refusal: refusal.clone(),
                        proof,
                    },
                )
                .await?;
                // Previous releases do not read it, which does no harm.
                let _ = write_value(stream, &ByClock::now()).await;
                // Waits for the other to close, so that the reason arrives before the connection
                // ends.
                let _ = tokio::time::timeout(Duration::from_secs(2), stream.read(&mut [0])).await;
                Err(DoorError::Refused(refusal))
            }
        }
    }

    async fn welcome(
        &self,
        joiner: MemberId,
        request: JoinRequest,
    ) -> Result<(ProvedPeer, Reply), Refusal> {
        request.verify(joiner)?;
        let _permit = self
            .admissions
            .try_acquire()
            .map_err(|_| Refusal::Undecided("too many are joining at once: try again".into()))?;
        let presentation = self.presentation().ok_or(Refusal::CannotAdmit)?;
        let decided =
            tokio::time::timeout(ADMISSION_TIMEOUT, self.certify_or_pass_on(joiner, &request))
                .await;
        let certificate = decided
            .map_err(|_| Refusal::Undecided("the other members did not answer in time".into()))??;
        let contacts = self
            .backend
            .get()
            .map(|h| h.contacts(joiner))
            .unwrap_or_default();
        // Its addresses follow by gossip, signed with the certificate that it has just received.
        let contact = Contact::unsigned(certificate.clone());
        let proved = ProvedPeer {
            contact,
            revocations: self.trust.digest(),
            contacts: [0; 32],
            known: 0,
            rtt: None,
            admitted: None,
        };
        // What does not fit is told when it connects as a member.
        let all = Gossip {
            contacts: Vec::new(),
            revocations: self.trust.weightiest(),
        };
        let revocations = all
            .pages()
            .into_iter()
            .next()
            .unwrap_or_default()
            .revocations;
        Ok((
            proved,
            Reply::Admitted {
                certificate: Box::new(certificate),
                presentation,
                revocations,
                contacts,
            },
        ))
    }

    async fn certify_or_pass_on(
        &self,
        joiner: MemberId,
        request: &JoinRequest,
    ) -> Result<Certificate, Refusal> {
        // Judged here too: a request without a chance is refused without asking other members.
        let asked = request.request();
        self.trust.check_invite(&asked.invite, UnixTime::now())?;
        match self.certify(joiner, asked).await {
            Err(Refusal::CannotAdmit) => {
                self.backend
                    .get()
                    .ok_or(Refusal::CannotAdmit)?
                    .pass_on(joiner, request)
                    .await
            }
            decided => decided,
        }
    }

    /// Admits `joiner` by this node's own right.
    ///
    /// # Errors
    /// [`Refusal::CannotAdmit`] if it has none, or the fault of the invite, the joiner or its name.
    pub async fn certify(
        &self,
        joiner: MemberId,
        request: &AdmitRequest,
    ) -> Result<Certificate, Refusal> {
        self.trust.check_invite(&request.invite, UnixTime::now())?;
        if !crate::membership::valid_name(&request.name) {
            return Err(Refusal::BadName);
        }
        let own = self.contact.load_full();
        let issuer = match (&self.issuer_key, &own, &self.identity) {
            (Some(root), _, _) => Issuer::root(root),
            (None, Some(own), Some(identity))
                if own.certificate.rights().admit && !request.invite.terms().delegate =>
            {
                Issuer::delegate(identity.keys(), &own.certificate)
            }
            _ => return Err(Refusal::CannotAdmit),
        };
        let now = UnixTime::now();
        let lasts = (now, now.plus(CERTIFICATE_SECONDS));
        let terms = request.invite.terms();
        let granted = (
            Rights {
                admit: terms.delegate,
            },
            terms.groups.clone(),
        );
        let certificate = issuer.certify_in(
            &self.network,
            (joiner, request.link_key),
            &request.name,
            granted,
            lasts,
        )?;
        // A revoked member does not return with a new invite and its old key.
        self.trust.verify(&certificate)?;
        let admission = self.admission.load_full();
        let admission = admission.as_ref().as_ref().ok_or(Refusal::CannotAdmit)?;
        admission
            .admit(&request.invite, joiner, &request.name)
            .await?;
        Ok(certificate)
    }
}

/// The members whose revocation may be the reason for a refusal: the other, and those it depends
/// on.
fn concerned(peer: MemberId, hello: &Hello) -> Vec<MemberId> {
    let mut all = vec![peer];
    match hello {
        Hello::Prove(shown) => {
            let certificate = &shown.contact.certificate;
            all.extend(certificate.delegate());
            all.extend(certificate.groups().copied_from());
        }
        Hello::Admit(request) => all.extend(request.invite.terms().groups.copied_from()),
        Hello::AdmitSigned(signed) => {
            all.extend(signed.request.invite.terms().groups.copied_from());
        }
    }
    all
}
