//! Spreads contacts, which say where a member is, and revocations. Each member sends news to all
//! members it is connected to, except to the sender. Beyond the full mesh contacts do not spread: a
//! member sends its own to its connected members, and lookups ask those for it.

use super::{Driver, mesh::Input};
use crate::{
    control::{
        ControlEvent,
        address::peer_of,
        shared::Shared,
        wire::{Contact, GOSSIP_SERVICE, Gossip, REVOCATIONS_SERVICE, decode},
    },
    fabric::FabricError,
    id::MemberId,
    membership::{DifferingRevocations, Refusal, Revocation, Target, Trust},
};
use crate::{read_lock, write_lock};
use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

/// How long a revoked member stays connected. Reason: it must still receive its revocation.
const CUT_DELAY: Duration = Duration::from_millis(300);

/// How long a member may take to answer or to take a message.
const TELL_TIMEOUT: Duration = Duration::from_secs(10);

/// How many revocations a member sends without asking first. Reason: a digest of its set is as long
/// as these.
pub(super) const TOLD_AT_ONCE: usize = 32;
/// How often a member is asked on one connection what it knows. Reason: these answers have half a
/// million names, and one that says little at a time costs no more.
const MAX_QUESTIONS: usize = 32;

async fn send(shared: &Arc<Shared>, member: MemberId, gossip: Gossip) {
    for page in gossip.pages() {
        let Ok(body) = postcard::to_stdvec(&page) else {
            return;
        };
        let told = shared.call(member, GOSSIP_SERVICE, body, TELL_TIMEOUT);
        if let Err(e) = told.await {
            return tracing::debug!(
                %member,
                error = %p2pvm_host::chain(&e),
                "gossip was not delivered"
            );
        }
    }
}

/// The revocations known here that a member does not know.
async fn lacked_by(shared: &Arc<Shared>, member: MemberId) -> Result<Vec<Revocation>, FabricError> {
    let ask = |body| shared.call(member, REVOCATIONS_SERVICE, body, TELL_TIMEOUT);
    lacked_after(&shared.door.trust, ask).await
}

/// The revocations known here that the answers to `ask` do not name.
async fn lacked_after<A>(
    trust: &Trust,
    ask: impl Fn(Vec<u8>) -> A,
) -> Result<Vec<Revocation>, FabricError>
where
    A: Future<Output = Result<Vec<u8>, FabricError>>,
{
    let known = trust.known_revocations();
    let (mut lacked, mut from) = (Vec::new(), 0);
    for _ in 0..MAX_QUESTIONS {
        let Ok(body) = postcard::to_stdvec(&known.digests(from)) else {
            break;
        };
        let Ok(theirs) = decode::<DifferingRevocations>(&ask(body).await?) else {
            break;
        };
        lacked.extend(trust.lacked(&known, from, &theirs));
        match theirs.next(from) {
            Some(next) => from = next,
            None => break,
        }
    }
    Ok(lacked)
}

impl Driver {
    pub(super) fn tell(&self, member: MemberId, gossip: Gossip) {
        let shared = self.shared.clone();
        tokio::spawn(async move { send(&shared, member, gossip).await });
    }

    /// Tells a member the revocations that it lacks, where there are many: it is asked for them
    /// first.
    pub(super) fn tell_lacked(&self, member: MemberId) {
        let shared = self.shared.clone();
        tokio::spawn(async move {
            let revocations = match lacked_by(&shared, member).await {
                Ok(lacked) => lacked,
                // It is of the first release, and is told all.
                Err(FabricError::NoSuchService(..)) => shared.door.trust.revocations(),
                Err(e) => {
                    return tracing::debug!(
                        %member,
                        error = %p2pvm_host::chain(&e),
                        "a member does not say which revocations it knows; it is asked again when \
                            it connects"
                    );
                }
            };
            let gossip = Gossip {
                revocations,
                contacts: Vec::new(),
            };
            send(&shared, member, gossip).await;
        });
    }

    pub(super) fn tell_all(&self, except: Option<MemberId>, gossip: &Gossip) {
        for member in self
            .shared
            .connected()
            .into_iter()
            .filter(|m| Some(*m) != except)
        {
            self.tell(member, gossip.clone());
        }
    }

    pub(super) fn on_gossip(&mut self, from: Option<MemberId>, gossip: Gossip) {
        let trust = self.shared.door.trust.clone();
        let new: Vec<Revocation> = gossip
            .revocations
            .into_iter()
            .filter(|r| trust.hear(r.clone()) == Ok(true))
            .collect();
        trust.keep_beside();
        let mut news = Gossip {
            revocations: new,
            contacts: Vec::new(),
        };
        // The members that a revocation names, known or not, and those revoked with them. A
        // delegate's word against another delegate or the founder has no effect, and what concerns
        // this node is judged below.
        let named = |r: &Revocation| match r.target() {
            Target::Member(member) if member != self.shared.me => {
                let certificate = self.shared.certificate(member);
                let stands = certificate.is_some_and(|c| trust.verify(&c).is_ok());
                (!stands).then_some(member)
            }
            _ => None,
        };
        let mut out: BTreeSet<MemberId> = news.revocations.iter().filter_map(named).collect();
        news.contacts = self.take_contacts(gossip.contacts);
        if !news.revocations.is_empty() {
            let mut book = write_lock(&self.shared.book);
            out.extend(book.retain_trusted(&trust));
        }
        if !news.contacts.is_empty() || !news.revocations.is_empty() {
            self.tell_all(from, &news);
        }
        let own = self.shared.door.contact();
        if !news.revocations.is_empty()
            && own.is_some_and(|own| trust.verify(&own.certificate) == Err(Refusal::Revoked))
        {
            out.insert(self.shared.me);
        }
        for member in out {
            tracing::warn!(%member, "a member was revoked");
            let event = if member == self.shared.me {
                ControlEvent::ThisNodeRevoked
            } else {
                ControlEvent::Revoked(member)
            };
            let _ = self.shared.events.send(event);
        }
        if !news.revocations.is_empty() {
            self.cut_untrusted();
        }
    }

    /// Stores the contacts that are newer than the address book's, and returns those to pass on.
    fn take_contacts(&mut self, contacts: Vec<Contact>) -> Vec<Contact> {
        let me = self.shared.me;
        let (own, others): (Vec<_>, Vec<_>) = contacts.into_iter().partition(|c| c.member() == me);
        own.iter().for_each(|c| self.on_own_contact(c));
        let mut book = write_lock(&self.shared.book);
        let mut news = Vec::new();
        for contact in others {
            let member = contact.member();
            let was_known = book.get(member).is_some();
            if book.insert(contact.clone(), &self.shared.door.trust) {
                let input = Input::NewContact { member, was_known };
                self.mesh.handle(Instant::now(), input);
                // In a large network a contact goes to the members it concerns; others look it up.
                if book.len() < self.shared.full_mesh {
                    news.push(contact);
                }
            }
        }
        news
    }

    /// Others have a contact of ours that this run's next ones would not replace: its number comes
    /// from a clock that was ahead.
    fn on_own_contact(&mut self, contact: &Contact) {
        let told = self.shared.door.contact().map_or(0, |own| own.seq);
        if contact.seq > told
            && Some(contact.seq) > self.overtaken
            && contact.verify(&self.shared.door.trust).is_ok()
        {
            tracing::debug!(
                seq = contact.seq,
                told,
                "an own contact is newer than the last one told"
            );
            self.overtaken = Some(contact.seq);
            self.publish_at = Some(Instant::now());
        }
    }

    /// Ends all connections to former members, after a moment in which they receive the reason.
    pub(super) fn cut_untrusted(&mut self) {
        let due = Instant::now() + CUT_DELAY;
        let certificates = read_lock(&self.shared.certificates);
        let fallen = certificates
            .iter()
            .filter(|(_, c)| self.shared.door.trust.verify(c).is_err());
        self.cuts.extend(
            fallen
                .filter_map(|(member, _)| peer_of(*member))
                .map(|peer| (due, peer)),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::NetworkId;
    use std::sync::atomic::{AtomicU16, Ordering};

    #[tokio::test]
    async fn a_member_that_says_little_is_asked_a_bounded_number_of_times() {
        let (trust, asked) = (Trust::new(NetworkId([1; 32])), AtomicU16::new(0));
        let ask = |_| async {
            let next = asked.fetch_add(1, Ordering::Relaxed) + 1;
            let answer = DifferingRevocations::none_before(next);
            Ok(postcard::to_stdvec(&answer).unwrap())
        };
        assert!(lacked_after(&trust, ask).await.unwrap().is_empty());
        assert_eq!(usize::from(asked.into_inner()), MAX_QUESTIONS);
    }
}
