//! The life of one link: when to shake hands, which session to send with, when keys die. Timers
//! follow WireGuard (paper §6). Either side may open a handshake, and the newest confirmed session
//! seals, so that rekeying loses nothing: the old session still opens datagrams under way.

use super::{
    LinkRefusal,
    cookie::{self, Cookie},
    handshake::{self, Keys, OpenedInitiation, PendingHandshake},
    session::Session,
    wire,
};
use crate::identity::LinkKey;
use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

/// How old a session is when its initiator replaces it.
pub const REKEY_AFTER: Duration = Duration::from_secs(120);
/// How old it is when the responder does, if the initiator has not (REJECT_AFTER less a handshake's
/// tries).
pub const RESPONDER_REKEY_AFTER: Duration = Duration::from_secs(165);
/// How long a session lives at most.
pub const REJECT_AFTER: Duration = Duration::from_secs(180);
/// How long before an unanswered handshake is sent again, with new keys.
pub const REKEY_TIMEOUT: Duration = Duration::from_secs(2);
/// How long before a handshake carried by the control plane is forgotten.
pub const CARRIED_LIMIT: Duration = Duration::from_secs(12);
/// How long before an unanswered handshake is given up.
pub const REKEY_ATTEMPT: Duration = Duration::from_secs(20);
/// How many sessions are kept for receiving. Reason: when both sides rekey at once each has two new
/// and two old ones, all with datagrams under way; the rest is for handshakes that the control
/// plane carried meanwhile. They expire long before.
const KEPT_SESSIONS: usize = 8;
/// How many handshakes carried otherwise are under way. Reason: over the ring and over the control
/// plane at once, and each repeated.
const MAX_CARRIED: usize = 4;

/// An action for the driver.
#[derive(Debug)]
pub enum Output {
    /// Send this handshake message on the current path.
    Transmit(Vec<u8>),
    /// Deliver datagrams for this session's index to it from now on.
    Install(Arc<Session>),
    /// Seal with this session from now on (`None`: with no session).
    SendWith(Option<Arc<Session>>),
    /// This index is no longer used.
    Retire(u32),
    /// No answer for [`REKEY_ATTEMPT`]: the path is dead.
    GaveUp,
}

struct Opening {
    pending: PendingHandshake,
    mac1: [u8; wire::MAC_LEN],
    sent: Instant,
}

impl Opening {
    fn waits_for(&self, index: u32) -> bool {
        self.pending.index == index
    }
}

/// The state of the link to one member.
pub struct Link {
    keys: Arc<Keys>,
    peer: LinkKey,
    opening: Option<Opening>,
    /// Handshakes that the control plane or the ring carries and repeats; oldest first. None of
    /// them ends another: the one that is answered makes a session.
    carried: VecDeque<Opening>,
    /// When the first unanswered handshake of this attempt was sent.
    attempt: Option<Instant>,
    cookie: Option<(Instant, Cookie)>,
    newest_timestamp: u128,
    /// When that initiation was answered.
    newest_at: Option<Instant>,
    /// Newest last.
    sessions: Vec<Arc<Session>>,
    sending: Option<u32>,
    outputs: VecDeque<Output>,
}

impl Link {
    /// A link to the member whose key is `peer`, with no session yet.
    pub fn new(keys: Arc<Keys>, peer: LinkKey) -> Self {
        Self {
            keys,
            peer,
            opening: None,
            carried: VecDeque::new(),
            attempt: None,
            cookie: None,
            newest_timestamp: 0,
            newest_at: None,
            sessions: Vec::new(),
            sending: None,
            outputs: VecDeque::new(),
        }
    }

    /// The far end's key.
    pub fn peer(&self) -> LinkKey {
        self.peer
    }

    /// Opens a handshake under `index` (the driver's choice, unique among its sessions) and returns
    /// the message; an earlier one that was sent here and not answered is forgotten.
    ///
    /// # Errors
    /// [`LinkRefusal::Malformed`] if the far end's key is no curve point.
    pub fn open(&mut self, now: Instant, index: u32) -> Result<Vec<u8>, LinkRefusal> {
        let (opening, message) = self.begin(now, index, &[])?;
        self.opening = Some(opening);
        self.attempt.get_or_insert(now);
        Ok(message)
    }

    /// As [`Link::open`], for a message carried otherwise, such as by the control plane or the
    /// ring. It is not sent again by itself, and a missing answer says nothing about the path in
    /// use. `extra` travels sealed in it.
    ///
    /// # Errors
    /// As [`Link::open`], and for more than [`wire::MAX_EXTRA_LEN`] bytes.
    pub fn open_carried(
        &mut self,
        now: Instant,
        index: u32,
        extra: &[u8],
    ) -> Result<Vec<u8>, LinkRefusal> {
        let (opening, message) = self.begin(now, index, extra)?;
        if self.carried.len() == MAX_CARRIED {
            self.carried.pop_front();
        }
        self.carried.push_back(opening);
        Ok(message)
    }

    fn begin(
        &mut self,
        now: Instant,
        index: u32,
        extra: &[u8],
    ) -> Result<(Opening, Vec<u8>), LinkRefusal> {
        let (pending, noise) = handshake::open(&self.keys, &self.peer, index, extra)?;
        let mut message = wire::initiation(index, &noise);
        self.cookie = self
            .cookie
            .filter(|(since, _)| now.saturating_duration_since(*since) < cookie::COOKIE_LIFE);
        cookie::stamp(
            &mut message,
            &self.peer.0,
            self.cookie.as_ref().map(|(_, c)| c),
        );
        let mac1 = cookie::mac1_of(&message).unwrap_or_default();
        Ok((
            Opening {
                pending,
                mac1,
                sent: now,
            },
            message,
        ))
    }

    /// Whether a handshake of ours waits for its response under `index`.
    pub fn waits_for(&self, index: u32) -> bool {
        self.opening
            .iter()
            .chain(&self.carried)
            .any(|o| o.waits_for(index))
    }

    /// Takes the response to [`Link::open`]'s message. The new session seals from now on, and the
    /// driver sends something at once so that the far end may use it too. Returns the content
    /// sealed in the message.
    ///
    /// # Errors
    /// Why the message was refused; the handshake stays open.
    pub fn answered(&mut self, now: Instant, message: &[u8]) -> Result<Vec<u8>, LinkRefusal> {
        let wire::Datagram::Response {
            sender,
            receiver,
            noise,
        } = wire::parse(message)?
        else {
            return Err(LinkRefusal::Malformed);
        };
        if !cookie::mac1_verifies(message, &self.keys.public().0) {
            return Err(LinkRefusal::Forged);
        }
        let mut waiting = self.opening.iter_mut().chain(&mut self.carried);
        let opening = waiting
            .find(|o| o.waits_for(receiver))
            .ok_or(LinkRefusal::Unasked)?;
        let (session, extra) = opening.pending.finish(now, sender, noise)?;
        self.carried.retain(|o| !o.waits_for(receiver));
        let session = Arc::new(session);
        (self.opening, self.attempt) = (None, None);
        self.install(session.clone());
        self.send_with(session);
        Ok(extra)
    }

    /// Takes a cookie reply: the next initiation proves our address with it.
    ///
    /// # Errors
    /// Why it was refused.
    pub fn cookie(&mut self, now: Instant, message: &[u8]) -> Result<(), LinkRefusal> {
        let wire::Datagram::Cookie {
            receiver,
            salt,
            sealed,
        } = wire::parse(message)?
        else {
            return Err(LinkRefusal::Malformed);
        };
        let opening = self
            .opening
            .iter_mut()
            .chain(&mut self.carried)
            .find(|o| o.waits_for(receiver))
            .ok_or(LinkRefusal::Unasked)?;
        let cookie = cookie::open(salt, sealed, &self.peer.0, &opening.mac1)?;
        self.cookie = Some((now, cookie));
        opening.sent = now.checked_sub(REKEY_TIMEOUT).unwrap_or(now);
        Ok(())
    }

    /// Answers an initiation that [`OpenedInitiation::read`] read, under `index`, with `extra`
    /// sealed in the answer. `fresh`: it came over an authenticated, replay-free channel. The
    /// session may then seal before the far end has used it, and the timestamp need not be newer
    /// (the far end's clock may have been set back), unless a newer one has just come another way:
    /// then the far end has forgotten this one.
    ///
    /// # Errors
    /// [`LinkRefusal::Replayed`] for a timestamp not newer than the newest seen,
    /// [`LinkRefusal::Forged`] for another member's key.
    pub fn accept(
        &mut self,
        now: Instant,
        opened: OpenedInitiation,
        index: u32,
        fresh: bool,
        extra: &[u8],
    ) -> Result<Vec<u8>, LinkRefusal> {
        if opened.peer != self.peer {
            return Err(LinkRefusal::Forged);
        }
        let lately = self
            .newest_at
            .is_some_and(|at| now.saturating_duration_since(at) < CARRIED_LIMIT);
        if opened.timestamp <= self.newest_timestamp && (!fresh || lately) {
            return Err(LinkRefusal::Replayed);
        }
        (self.newest_timestamp, self.newest_at) = (opened.timestamp, Some(now));
        let (session, noise, receiver) = opened.answer(now, index, extra)?;
        let mut message = wire::response(index, receiver, &noise);
        cookie::stamp(&mut message, &self.peer.0, None);
        let session = Arc::new(session);
        self.install(session.clone());
        if fresh {
            session.confirm();
            self.send_with(session);
        }
        Ok(message)
    }

    /// Seals with the session under `index` from now on if there is no other. Reason: an initiation
    /// that was not proved fresh must not replace a live session, but without one it does no harm.
    pub fn seal_if_none(&mut self, index: u32) {
        if self.sending().is_none()
            && let Some(session) = self
                .sessions
                .iter()
                .find(|s| s.local_index() == index)
                .cloned()
        {
            self.send_with(session);
        }
    }

    /// The far end has used the session under `index` for the first time: it may seal.
    pub fn confirmed(&mut self, index: u32) {
        let newer = |s: &&Arc<Session>| Some(s.local_index()) != self.sending;
        if let Some(session) = self
            .sessions
            .iter()
            .find(|s| s.local_index() == index)
            .filter(newer)
            .cloned()
        {
            self.send_with(session);
        }
    }

    /// Does what is due at `now`. `active` says whether the link carried data lately; `index` is
    /// used if a handshake must open.
    pub fn tick(&mut self, now: Instant, active: bool, index: u32) {
        let age = |s: &Session| now.saturating_duration_since(s.created());
        let dead: Vec<u32> = self
            .sessions
            .iter()
            .filter(|s| age(s) >= REJECT_AFTER)
            .map(|s| s.local_index())
            .collect();
        for index in dead {
            self.retire(index);
        }
        if self
            .attempt
            .is_some_and(|since| now.saturating_duration_since(since) >= REKEY_ATTEMPT)
        {
            (self.opening, self.attempt) = (None, None);
            self.outputs.push_back(Output::GaveUp);
            return;
        }
        self.carried
            .retain(|o| now.saturating_duration_since(o.sent) < CARRIED_LIMIT);
        let retry = match &self.opening {
            Some(opening) => now.saturating_duration_since(opening.sent) >= REKEY_TIMEOUT,
            None if !self.carried.is_empty() => false,
            None => {
                active
                    && self.sending().is_some_and(|s| {
                        age(s)
                            >= if s.initiator() {
                                REKEY_AFTER
                            } else {
                                RESPONDER_REKEY_AFTER
                            }
                    })
            }
        };
        if retry && let Ok(message) = self.open(now, index) {
            self.outputs.push_back(Output::Transmit(message));
        }
    }

    /// Ends everything: no session seals or opens any more.
    pub fn close(&mut self) {
        (self.opening, self.attempt) = (None, None);
        self.carried.clear();
        for index in self
            .sessions
            .iter()
            .map(|s| s.local_index())
            .collect::<Vec<_>>()
        {
            self.retire(index);
        }
    }

    /// The session that seals now.
    pub fn sending(&self) -> Option<&Arc<Session>> {
        self.sessions
            .iter()
            .find(|s| Some(s.local_index()) == self.sending)
    }

    /// The next thing to do.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn install(&mut self, session: Arc<Session>) {
        self.sessions.push(session.clone());
        self.outputs.push_back(Output::Install(session));
        while self.sessions.len() > KEPT_SESSIONS {
            let spare = self
                .sessions
                .iter()
                .map(|s| s.local_index())
                .find(|index| Some(*index) != self.sending);
            if let Some(index) = spare {
                self.retire(index);
            }
        }
    }

    fn send_with(&mut self, session: Arc<Session>) {
        self.sending = Some(session.local_index());
        self.outputs.push_back(Output::SendWith(Some(session)));
    }

    fn retire(&mut self, index: u32) {
        self.sessions.retain(|s| s.local_index() != index);
        self.outputs.push_back(Output::Retire(index));
        if self.sending == Some(index) {
            self.sending = None;
            self.outputs.push_back(Output::SendWith(None));
        }
    }
}

#[cfg(test)]
mod tests;
