//! Keeps the notices of the network ([`Notice`]) and spreads them as revocations are spread: two
//! members that connect compare a digest and exchange their notices if it differs, and each sends
//! new ones to all members it is connected to.
//!
//! The board is a set in which each issuer has one place per kind and the newer notice wins, so
//! members that have exchanged theirs agree, in whatever order they learned them. It is bounded,
//! and kept on disk so that a policy holds from the first packet after a restart.

use crate::{
    durable::RewrittenFile,
    fabric::{Fabric, FabricError, Serve},
    id::{MemberId, UnixTime},
    membership::{Notice, NoticeKey, Offer, Refusal, SignedPolicy, Trust},
};
use crate::{read_lock, write_lock};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::sync::watch;

const SERVICE: &str = "notice";
/// How many issuers' policies are kept: the root's and a few delegates'. Reason: with the longest
/// texts they fit one message.
const MAX_POLICIES: usize = 16;
/// Where the root's policy stands.
const ROOTS_POLICY: NoticeKey = (0, None);
/// How many members' offers are kept. Reason: a message with all of them stays below
/// [`crate::fabric::MAX_BODY_BYTES`].
const MAX_OFFERS: usize = 1024;
/// How long to wait for a member to take a notice. Reason: it is a few kilobytes, and a member that
/// does not take it asks when it connects again.
const TELL_TIMEOUT: Duration = Duration::from_secs(10);
/// How many times a member is called. Reason: the first call to a member that has just restarted
/// may use the previous connection.
const CALLS: u32 = 3;
/// How long an offer may last. Reason: one that claims a later end is not believed.
const MAX_OFFER_SECONDS: u64 = 86_400;

/// The notices that this node knows.
pub struct Notices {
    trust: Arc<Trust>,
    file: Option<PathBuf>,
    known: RwLock<BTreeMap<NoticeKey, Notice>>,
    rewritten: RewrittenFile,
    heard: AtomicBool,
    changed: watch::Sender<u64>,
}

impl Notices {
    /// Without notices, and in memory only.
    pub fn new(trust: Arc<Trust>) -> Self {
        let (changed, _) = watch::channel(0);
        Self {
            trust,
            file: None,
            known: RwLock::default(),
            rewritten: RewrittenFile::default(),
            heard: AtomicBool::new(false),
            changed,
        }
    }

    /// Loads those in `file`, which may be missing, and stores new ones there.
    ///
    /// # Errors
    /// The file system's error, or `InvalidData` for a file that is no list of notices.
    pub fn load(trust: Arc<Trust>, file: &Path) -> io::Result<Self> {
        let (kept, heard): (Vec<Notice>, bool) = match fs::read(file) {
            Ok(raw) => {
                let kept = postcard::from_bytes(&raw).map_err(|e| {
                    io::Error::new(
                        io::ErrorKind::InvalidData,
                        format!(
                            "{} holds no notices: {}",
                            file.display(),
                            p2pvm_host::chain(&e)
                        ),
                    )
                })?;
                (kept, true)
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => (Vec::new(), false),
            Err(e) => return Err(e),
        };
        let now = UnixTime::now();
        let kept = kept
            .into_iter()
            .filter(|n| !n.expired(now) && n.verify(&trust).is_ok())
            .map(|n| (n.key(), n));
        Ok(Self {
            known: RwLock::new(kept.collect()),
            heard: heard.into(),
            file: Some(file.to_owned()),
            ..Self::new(trust)
        })
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<NoticeKey, Notice>> {
        read_lock(&self.known)
    }

    /// Adds a notice, on disk before it returns. `Ok(false)` if a newer or the same one of its
    /// issuer is known.
    ///
    /// # Errors
    /// The reason why it is not valid. On a full disk it takes effect but is not stored, which is
    /// logged.
    pub fn add(&self, notice: Notice) -> Result<bool, Refusal> {
        let now = UnixTime::now();
        {
            let known = self.read();
            if known
                .get(&notice.key())
                .is_some_and(|old| old.order() >= notice.order())
            {
                return Ok(false);
            }
        }
        notice.verify(&self.trust)?;
        if let Notice::Offer(offer) = &notice
            && (offer.expires() <= now || offer.expires() > now.plus(MAX_OFFER_SECONDS))
        {
            return Err(Refusal::Expired);
        }
        let mut known = write_lock(&self.known);
        known.retain(|_, kept| !kept.expired(now));
        let key = notice.key();
        match known.get(&key) {
            Some(old) if old.order() >= notice.order() => return Ok(false),
            Some(_) => {}
            None => {
                let most = if key.0 == 0 { MAX_POLICIES } else { MAX_OFFERS };
                // The root's policy has a place whatever its delegates have said.
                if key != ROOTS_POLICY
                    && known.keys().filter(|(kind, _)| *kind == key.0).count() >= most
                {
                    return Ok(false);
                }
            }
        }
        known.insert(key, notice);
        drop(known);
        self.keep();
        self.touch();
        Ok(true)
    }

    fn keep(&self) {
        let newest =
            || postcard::to_stdvec(&self.read().values().collect::<Vec<_>>()).unwrap_or_default();
        if let Some(file) = &self.file
            && let Err(e) = self.rewritten.write(file, newest, 0o644)
        {
            tracing::error!(
                "notices cannot be kept in {}: {}",
                file.display(),
                p2pvm_host::chain(&e)
            );
        }
    }

    /// Whether this node has ever compared its notices with another member's. Before that a missing
    /// policy means nothing.
    pub fn heard(&self) -> bool {
        self.heard.load(Ordering::Acquire)
    }

    /// Notes that a member's notices have arrived; stored on disk.
    fn hear(&self) {
        if !self.heard.swap(true, Ordering::AcqRel) {
            self.keep();
            self.touch();
        }
    }

    /// Reports that other notices may count now, as after a revocation.
    pub fn touch(&self) {
        self.changed.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// Notified whenever the notices have changed.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// The policy that counts, if the network has one.
    pub fn policy(&self) -> Option<SignedPolicy> {
        let known = self.read();
        let policies = known.values().filter_map(|n| {
            if let Notice::Policy(policy) = n {
                Some(policy)
            } else {
                None
            }
        });
        let standing =
            policies.filter(|p| Notice::Policy((*p).clone()).verify(&self.trust).is_ok());
        standing.max_by_key(|p| p.rank()).map(|p| (**p).clone())
    }

    /// The offers that count, in the order of their members.
    pub fn offers(&self) -> Vec<Offer> {
        let now = UnixTime::now();
        let known = self.read();
        let offers = known.values().filter_map(|n| {
            if let Notice::Offer(offer) = n {
                Some(offer)
            } else {
                None
            }
        });
        offers
            .filter(|o| o.expires() > now && self.trust.verify(o.certificate()).is_ok())
            .map(|o| (**o).clone())
            .collect()
    }

    /// The number of a member's newest known offer, also if it has expired.
    pub fn offer_number(&self, member: MemberId) -> Option<u64> {
        self.read()
            .get(&(1, Some(member)))
            .map(|notice| notice.order().0)
    }

    /// All known notices that have not expired.
    pub fn all(&self) -> Vec<Notice> {
        let now = UnixTime::now();
        self.read()
            .values()
            .filter(|n| !n.expired(now))
            .cloned()
            .collect()
    }

    /// A hash of [`Notices::all`]: members with the same digest need not exchange them.
    pub fn digest(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key("p2pvm 2026 digest of the known notices");
        for notice in self.all() {
            hasher
                .update(&postcard::to_stdvec(&(notice.key(), notice.order())).unwrap_or_default());
        }
        *hasher.finalize().as_bytes()
    }
}

#[derive(Debug, Serialize, Deserialize)]
enum NoticeMessage {
    /// My digest: answer with your notices if yours differs.
    Digest([u8; 32]),
    /// My notices.
    Have(Vec<Notice>),
}

/// Parses a member's message about notices, for the fuzzer. True if it is one.
#[cfg(fuzzing)]
pub fn parse(body: &[u8]) -> bool {
    postcard::from_bytes::<NoticeMessage>(body).is_ok()
}

/// Spreads the notices between members.
pub struct Spread {
    fabric: Arc<dyn Fabric>,
    notices: Arc<Notices>,
}

impl Spread {
    /// Starts to answer members. [`Spread::meet`] is to be called for each that connects.
    pub fn start(fabric: Arc<dyn Fabric>, notices: Arc<Notices>) -> Arc<Self> {
        let spread = Arc::new(Self { fabric, notices });
        let answers = Answers(Arc::downgrade(&spread));
        spread.fabric.serve(SERVICE, Arc::new(answers));
        spread
    }

    /// Adds a notice of this node's own and sends it to all connected members. Returns how many
    /// there are.
    ///
    /// # Errors
    /// As [`Notices::add`].
    pub fn publish(&self, notice: Notice) -> Result<usize, Refusal> {
        self.notices.add(notice.clone())?;
        Ok(self.tell_all(None, vec![notice]))
    }

    /// As [`Spread::publish`], and waits until the connected members have it: for the last notice
    /// before this node ends.
    ///
    /// # Errors
    /// As [`Notices::add`].
    pub async fn publish_now(&self, notice: Notice, limit: Duration) -> Result<(), Refusal> {
        self.notices.add(notice.clone())?;
        let Ok(body) = postcard::to_stdvec(&NoticeMessage::Have(vec![notice])) else {
            return Ok(());
        };
        let told = self
            .fabric
            .connected()
            .into_iter()
            .map(|m| self.fabric.call(m, SERVICE, body.clone(), limit));
        // A member that is not reached in time forgets the offer when it expires.
        let _ = futures::future::join_all(told).await;
        Ok(())
    }

    /// Exchanges notices with a member that has just connected.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn meet(&self, member: MemberId) -> Result<(), FabricError> {
        let Ok(body) = postcard::to_stdvec(&NoticeMessage::Digest(self.notices.digest())) else {
            return Ok(());
        };
        let answer = call(&*self.fabric, member, body).await?;
        let Ok(NoticeMessage::Have(theirs)) = postcard::from_bytes(&answer) else {
            return Ok(());
        };
        let known: BTreeMap<_, _> = theirs.iter().map(|n| (n.key(), n.order())).collect();
        self.learn(member, theirs);
        self.notices.hear();
        let mine: Vec<_> = self
            .notices
            .all()
            .into_iter()
            .filter(|n| known.get(&n.key()).is_none_or(|order| *order < n.order()))
            .collect();
        if !mine.is_empty()
            && let Ok(body) = postcard::to_stdvec(&NoticeMessage::Have(mine))
        {
            call(&*self.fabric, member, body).await?;
        }
        Ok(())
    }

    fn learn(&self, from: MemberId, notices: Vec<Notice>) {
        let mut news = Vec::new();
        for notice in notices.into_iter().take(MAX_POLICIES + MAX_OFFERS) {
            match self.notices.add(notice.clone()) {
                Ok(true) => news.push(notice),
                Ok(false) => {}
                Err(refusal) => tracing::debug!(
                    %from,
                    %refusal,
                    "a member's notice is not believed"
                ),
            }
        }
        if !news.is_empty() {
            self.tell_all(Some(from), news);
        }
    }

    fn tell_all(&self, except: Option<MemberId>, notices: Vec<Notice>) -> usize {
        let Ok(body) = postcard::to_stdvec(&NoticeMessage::Have(notices)) else {
            return 0;
        };
        let members: Vec<_> = self
            .fabric
            .connected()
            .into_iter()
            .filter(|m| Some(*m) != except)
            .collect();
        for member in &members {
            let (fabric, body, member) = (self.fabric.clone(), body.clone(), *member);
            tokio::spawn(async move {
                if let Err(error) = call(&*fabric, member, body).await {
                    tracing::debug!(
                        %member,
                        error = %p2pvm_host::chain(&error),
                        "a notice was not delivered; it is exchanged when the member connects"
                    );
                }
            });
        }
        members.len()
    }
}

/// Calls a member, again if it does not answer.
async fn call(
    fabric: &dyn Fabric,
    member: MemberId,
    body: Vec<u8>,
) -> Result<Vec<u8>, FabricError> {
    for _ in 1..CALLS {
        match fabric
            .call(member, SERVICE, body.clone(), TELL_TIMEOUT)
            .await
        {
            Err(error) => tracing::debug!(
                %member,
                error = %p2pvm_host::chain(&error),
                "a member is asked for its notices again"
            ),
            answered => return answered,
        }
    }
    fabric.call(member, SERVICE, body, TELL_TIMEOUT).await
}

struct Answers(std::sync::Weak<Spread>);

#[async_trait]
impl Serve for Answers {
    async fn serve(&self, from: MemberId, body: Vec<u8>) -> Result<Vec<u8>, String> {
        let spread = self.0.upgrade().ok_or("the node is shutting down")?;
        let answer = match postcard::from_bytes(&body).map_err(|e| e.to_string())? {
            NoticeMessage::Digest(theirs) if theirs == spread.notices.digest() => {
                spread.notices.hear();
                Vec::new()
            }
            NoticeMessage::Digest(_) => spread.notices.all(),
            NoticeMessage::Have(notices) => {
                spread.learn(from, notices);
                Vec::new()
            }
        };
        postcard::to_stdvec(&NoticeMessage::Have(answer)).map_err(|e| e.to_string())
    }
}

#[cfg(test)]
mod golden_tests;
#[cfg(test)]
mod tests;
