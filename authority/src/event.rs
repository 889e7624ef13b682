//! An event: what happened to a VM, a member or a host, at what time, in a word, in figures and in
//! a sentence.
//!
//! A host numbers its events. Those of one VM form a chain: each has the hash of the VM's previous
//! event on the same host, and the host signs it. So nobody, later the host included, can change
//! or leave out one without changing all that follow: a person who has kept the hash of a later one
//! notices it. A [`EventProof`] is such a chain with the host's certificate, to be checked offline.
//! A host that deletes the end of a chain that it has shown to nobody is not noticed.
//!
//! Wire format of an event, version 1: the byte 1, then postcard of [`Event`]. Hash and signature
//! cover these bytes as they came, so a field that a later version adds at the end is covered too
//! and not read here.

mod frame;
mod proof;

pub use frame::{Frame, frames, write_frame};
pub use proof::{EventProof, HostChain, ProofRefusal, ProvedChain};

use p2pvm_overlay::{
    MemberId, VmId,
    identity::{KeyPair, Signature, verify},
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The domain of the host's signature.
const DOMAIN: &str = "p2pvm event 1";
const VERSION: u8 = 1;
/// How many bytes an event has at most.
/// Reason: fields and sentence within their bounds have fewer.
const MAX_BYTES: usize = 8192;
/// How many fields an event has at most.
const MAX_FIELDS: usize = 16;
/// How many characters a name, a kind or a field's value has at most.
const MAX_WORD: usize = 160;
/// How many characters a sentence has at most.
const MAX_SENTENCE: usize = 600;

/// The kind of the last event of a VM, whose key is then gone.
/// Reason: the ends of the chains stay small however many VMs were made and deleted here.
const LAST_KIND: &str = "vm-deleted";

/// Whom an event is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Subject {
    /// The host that wrote it.
    Host,
    /// A member, with its name at that time.
    Member(MemberId, String),
    /// A VM, with its name at that time.
    Vm(VmId, String),
}

/// The place of an event in its VM's chain on one host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventLink {
    /// How many events of the VM this host wrote before it.
    pub number: u64,
    /// The BLAKE3 hash of the one before; zeros for the first.
    pub previous: [u8; 32],
}

/// What an event says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// The number among all events of the host, from 1 on.
    pub seq: u64,
    /// When, by the wall clock of the host: milliseconds since 1970.
    pub at_ms: u64,
    /// Whom it is about.
    pub subject: Subject,
    /// What happened, as a word of the API's table, such as "guest-crashed".
    pub kind: String,
    /// Figures and names, by their keys.
    pub fields: Vec<(String, String)>,
    /// The same for people.
    pub sentence: String,
    /// The place in the VM's chain; `None` if it is about no VM.
    pub link: Option<EventLink>,
}

/// An event as it is kept, with the host's signature if it is about a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptEvent {
    bytes: Vec<u8>,
    signature: Option<Signature>,
}

/// Why an event cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EventError {
    /// It cannot be read.
    #[error("the event is damaged, or of a version that this program cannot read")]
    Unreadable,
    /// Its signature does not fit.
    #[error("the event is not signed by its host")]
    Forged,
}

impl Event {
    /// The same event within the bounds: longer texts are cut, further fields left out.
    pub fn within_bounds(mut self) -> Self {
        cut(&mut self.kind, MAX_WORD);
        cut(&mut self.sentence, MAX_SENTENCE);
        if let Subject::Member(_, name) | Subject::Vm(_, name) = &mut self.subject {
            cut(name, MAX_WORD);
        }
        self.fields.truncate(MAX_FIELDS);
        for (key, value) in &mut self.fields {
            cut(key, MAX_WORD);
            cut(value, MAX_WORD);
        }
        self
    }

    /// The VM that it is about.
    pub fn vm(&self) -> Option<VmId> {
        match self.subject {
            Subject::Vm(vm, _) => Some(vm),
            Subject::Host | Subject::Member(..) => None,
        }
    }
}

fn cut(text: &mut String, most: usize) {
    if let Some((at, _)) = text.char_indices().nth(most) {
        text.truncate(at);
    }
}

impl KeptEvent {
    /// Writes an event; the host signs it if it is about a VM.
    pub fn seal(host: &KeyPair, event: &Event) -> Self {
        let mut bytes = vec![VERSION];
        let body = postcard::to_stdvec(event);
        bytes.extend(body.expect("an event has nothing that postcard cannot write"));
        let signature = event.vm().map(|_| host.sign(DOMAIN, &bytes));
        Self { bytes, signature }
    }

    /// Its bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("an event has nothing that postcard cannot write")
    }

    /// Reads what [`KeptEvent::to_bytes`] wrote.
    ///
    /// # Errors
    /// [`EventError::Unreadable`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, EventError> {
        if bytes.len() > MAX_BYTES + 128 {
            return Err(EventError::Unreadable);
        }
        postcard::from_bytes(bytes).map_err(|_| EventError::Unreadable)
    }

    /// What it says. Its signature is not checked.
    ///
    /// # Errors
    /// [`EventError::Unreadable`].
    pub fn event(&self) -> Result<Event, EventError> {
        if self.bytes.len() > MAX_BYTES {
            return Err(EventError::Unreadable);
        }
        match self.bytes.split_first() {
            Some((&VERSION, rest)) => {
                let event: Event =
                    postcard::from_bytes(rest).map_err(|_| EventError::Unreadable)?;
                // A VM's event without a place in the chain, or the other way round, is no event.
                match event.vm().is_some() == event.link.is_some() {
                    true => Ok(event),
                    false => Err(EventError::Unreadable),
                }
            }
            _ => Err(EventError::Unreadable),
        }
    }

    /// What it says, if `host` signed it.
    ///
    /// # Errors
    /// [`EventError::Forged`] also for one without a signature.
    pub fn open(&self, host: MemberId) -> Result<Event, EventError> {
        let event = self.event()?;
        match &self.signature {
            Some(signature) if verify(&host.0, DOMAIN, &self.bytes, signature) => Ok(event),
            _ => Err(EventError::Forged),
        }
    }

    /// The hash that the VM's next event has.
    pub fn hash(&self) -> [u8; 32] {
        *blake3::hash(&self.bytes).as_bytes()
    }
}

/// The ends of the chains of all VMs on one host: the place of each VM's next event.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventChains(BTreeMap<VmId, EventLink>);

impl EventChains {
    /// The place of the VM's next event.
    pub fn next(&self, vm: VmId) -> EventLink {
        self.0.get(&vm).copied().unwrap_or(EventLink {
            number: 0,
            previous: [0; 32],
        })
    }

    /// Notes that an event was written; `event` is what `kept` says. A chain ends with its VM.
    pub fn note(&mut self, event: &Event, kept: &KeptEvent) {
        if let (Some(vm), Some(link)) = (event.vm(), event.link) {
            if event.kind == LAST_KIND {
                self.0.remove(&vm);
                return;
            }
            let next = EventLink {
                number: link.number.saturating_add(1),
                previous: kept.hash(),
            };
            self.0.insert(vm, next);
        }
    }
}

#[cfg(test)]
#[path = "event_tests.rs"]
mod tests;
