//! A record: a value at a key, signed by its owner, with a version that only grows and a time at
//! which it expires. A deleted record leaves a tombstone (a newer version without a value)
//! until it expires, so that a replica that missed the deletion cannot bring the old value back.

use crate::limits::Refusal;
use async_trait::async_trait;
use p2pvm_overlay::{
    RingAddr, UnixTime,
    identity::{self, KeyPair, Signature},
};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How many bytes a record's value has at most.
pub const MAX_VALUE_BYTES: usize = 32 << 10;

const DOMAIN: &str = "p2pvm record 1";

/// A signed value at a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its place on the ring.
    pub key: RingAddr,
    /// The ed25519 public key (a member's or a VM's) that may replace or delete it.
    pub owner: [u8; 32],
    /// Grows with each change by the owner.
    pub version: u64,
    /// When replicas stop serving and keeping it.
    pub expires: UnixTime,
    /// The value; `None` is the tombstone of a deleted record.
    pub value: Option<Vec<u8>>,
    /// The owner's signature over all of the above.
    pub signature: Signature,
}

type SignedContent<'a> = (&'a RingAddr, &'a [u8; 32], u64, UnixTime, Option<&'a [u8]>);

fn message(fields: SignedContent<'_>) -> Vec<u8> {
    postcard::to_allocvec(&fields).expect("plain fields always serialize")
}

impl Record {
    /// A record signed by `owner`.
    pub fn sign(
        owner: &KeyPair,
        key: RingAddr,
        version: u64,
        expires: UnixTime,
        value: Option<Vec<u8>>,
    ) -> Self {
        let public = owner.public();
        let signature = owner.sign(
            DOMAIN,
            &message((&key, &public, version, expires, value.as_deref())),
        );
        Self {
            key,
            owner: public,
            version,
            expires,
            value,
            signature,
        }
    }

    /// Whether the signature is the owner's and the value within bounds.
    pub fn is_authentic(&self) -> bool {
        self.value
            .as_ref()
            .is_none_or(|v| v.len() <= MAX_VALUE_BYTES)
            && identity::verify(
                &self.owner,
                DOMAIN,
                &message((
                    &self.key,
                    &self.owner,
                    self.version,
                    self.expires,
                    self.value.as_deref(),
                )),
                &self.signature,
            )
    }
}

/// Why an operation on a record failed.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum RecordError {
    /// Another owner holds the key; the live record is enclosed.
    #[error("the key is held by another owner")]
    Exists(Box<Record>),
    /// A replica holds the same or a newer version.
    #[error("a newer version ({0}) exists")]
    Stale(u64),
    /// Too few replicas answered to decide: a majority for a read or a renewal, and more where
    /// owners contend or a key is created.
    #[error(
        "only {answered} of {asked} replicas answered, too few to decide: check that this node \
            reaches its peers"
    )]
    NoQuorum {
        /// How many answered.
        answered: usize,
        /// How many were asked.
        asked: usize,
    },
    /// Replicas hold records of different owners, and none has a majority: after a partition, or
    /// because some lie.
    #[error("the replicas disagree on who owns the key: try again in a minute")]
    Disagreement,
    /// The replicas refused it.
    #[error("the record was refused")]
    Refused(#[source] Refusal),
    /// The value is larger than [`MAX_VALUE_BYTES`].
    #[error("a value of {0} bytes is too large for a record")]
    TooLarge(usize),
}

/// The replicated records as the crates above use them. `Dht` implements it.
#[async_trait]
pub trait Records: Send + Sync + 'static {
    /// Creates the record at `key` if no live one exists. Of many concurrent callers at most one
    /// succeeds. An owner that creates its own live record again succeeds and renews it.
    async fn create(
        &self,
        owner: &KeyPair,
        key: RingAddr,
        value: Vec<u8>,
        ttl: Duration,
    ) -> Result<Record, RecordError>;

    /// Writes or replaces the owner's record with `version`, which must be newer than any that a
    /// replica holds.
    async fn put(
        &self,
        owner: &KeyPair,
        key: RingAddr,
        version: u64,
        value: Vec<u8>,
        ttl: Duration,
    ) -> Result<Record, RecordError>;

    /// The live record at `key`, as a quorum of its replicas holds it; `None` if there is none.
    async fn get(&self, key: RingAddr) -> Result<Option<Record>, RecordError>;

    /// Deletes the owner's record.
    async fn delete(&self, owner: &KeyPair, key: RingAddr) -> Result<(), RecordError>;
}
