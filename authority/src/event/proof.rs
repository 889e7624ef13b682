//! A proof of what happened to a VM: its chain of events on one host or several, each chain with
//! the certificate of its host. Whoever has it checks it without a network.
//!
//! It proves what a host said and in which order. It does not prove that the host said the truth,
//! nor that the VM was on no other host: each host has a chain of its own.
//!
//! Wire format, version 1: the byte 1, then postcard of [`EventProof`], and nothing after it.

use super::{Event, EventError, KeptEvent};
use p2pvm_overlay::{
    MemberId, NetworkId, VmId,
    membership::{Certificate, Refusal},
};
use serde::{Deserialize, Serialize};

const VERSION: u8 = 1;
/// How many bytes a proof has at most.
/// Reason: the log that it is made from has 16 MiB unless its owner chose otherwise.
const MAX_BYTES: usize = 64 << 20;

/// The chain of a VM's events on one host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostChain {
    /// The host's certificate.
    pub certificate: Certificate,
    /// The events, oldest first. The oldest ones of the VM may have been deleted with age.
    pub events: Vec<KeptEvent>,
}

/// The chains of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventProof {
    /// The VM.
    pub vm: VmId,
    /// Its chains, one a host.
    pub chains: Vec<HostChain>,
}

/// What one chain proves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProvedChain {
    /// The network whose root vouches for the host.
    pub network: NetworkId,
    /// The host that signed it.
    pub host: MemberId,
    /// The host's name.
    pub name: String,
    /// How many events of the VM the host deleted with age before the first one here.
    pub before: u64,
    /// The events, oldest first.
    pub events: Vec<Event>,
}

/// Why a proof proves nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProofRefusal {
    /// It cannot be read.
    #[error("the proof is damaged, or of a version that this program cannot read")]
    Unreadable,
    /// A host's certificate is no certificate of the network.
    #[error("the certificate of the host {0} does not hold")]
    Certificate(String, #[source] Refusal),
    /// An event is not its host's.
    #[error("event {at} of the host {host} does not hold")]
    Event {
        /// The host's name.
        host: String,
        /// Its number in the chain, from 1 on.
        at: usize,
        /// Why.
        #[source]
        why: EventError,
    },
    /// An event does not follow the one before.
    #[error("event {at} of the host {host} does not follow the one before: the chain was changed")]
    Broken {
        /// The host's name.
        host: String,
        /// Its number in the chain, from 1 on.
        at: usize,
    },
    /// There is nothing in it.
    #[error("the proof has no event")]
    Empty,
}

impl EventProof {
    /// Its bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        let body = postcard::to_stdvec(self);
        bytes.extend(body.expect("a proof has nothing that postcard cannot write"));
        bytes
    }

    /// Reads a proof. Every byte counts: one that says the same in other bytes is refused.
    ///
    /// # Errors
    /// [`ProofRefusal::Unreadable`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ProofRefusal> {
        let Some((&VERSION, rest)) = bytes.split_first().filter(|_| bytes.len() <= MAX_BYTES)
        else {
            return Err(ProofRefusal::Unreadable);
        };
        let proof: Self = postcard::from_bytes(rest).map_err(|_| ProofRefusal::Unreadable)?;
        match proof.to_bytes() == bytes {
            true => Ok(proof),
            false => Err(ProofRefusal::Unreadable),
        }
    }

    /// What it proves.
    ///
    /// # Errors
    /// The first reason against it.
    pub fn check(&self) -> Result<Vec<ProvedChain>, ProofRefusal> {
        if self.chains.iter().all(|chain| chain.events.is_empty()) {
            return Err(ProofRefusal::Empty);
        }
        self.chains
            .iter()
            .map(|chain| chain.check(self.vm))
            .collect()
    }
}

impl HostChain {
    fn check(&self, vm: VmId) -> Result<ProvedChain, ProofRefusal> {
        let (of, name) = (&self.certificate, self.certificate.name().to_owned());
        // A certificate that has expired since held when the host signed.
        of.verify_signatures(of.network(), of.issued())
            .map_err(|why| ProofRefusal::Certificate(name.clone(), why))?;
        let (mut events, mut expected, mut before) = (Vec::new(), None, 0);
        for (at, kept) in (1..).zip(&self.events) {
            let host = || name.clone();
            let event = kept.open(of.member());
            let event = event.map_err(|why| ProofRefusal::Event {
                host: host(),
                at,
                why,
            })?;
            let Some(link) = event.link.filter(|_| event.vm() == Some(vm)) else {
                return Err(ProofRefusal::Broken { host: host(), at });
            };
            match expected {
                None => before = link.number,
                Some(expected) if expected == (link.number, link.previous) => {}
                Some(_) => return Err(ProofRefusal::Broken { host: host(), at }),
            }
            expected = Some((link.number.saturating_add(1), kept.hash()));
            events.push(event);
        }
        Ok(ProvedChain {
            network: of.network(),
            host: of.member(),
            name,
            before,
            events,
        })
    }
}
