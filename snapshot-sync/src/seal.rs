//! Chunks that only the owner of a key can read. The store, the exchange and other members see
//! ciphertext under the hash of that ciphertext, and verify, count and repair it as any chunk.
//!
//! Sealing is deterministic, so that an unchanged block keeps its chunk from one snapshot to the
//! next. It uses a key of the VM's own, so that the same block of another VM has another chunk. It
//! is the SIV construction (Rogaway and Shrimpton 2006): a keyed hash of what is sealed comes first
//! and picks the key of the rest. Hence a key seals one message only, and no list of keys is kept:
//! manifests are those of plain files.

use crate::{
    ChunkId, Error,
    chunk::{self, Encoder, MAX_CHUNK_BYTES, PLAIN},
};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use std::{
    collections::HashMap,
    fmt, mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// How long the keyed hash is.
const HASH_BYTES: usize = 32;
/// How long the authentication tag of ChaCha20-Poly1305 is.
const TAG_BYTES: usize = 16;
/// What comes before the ciphertext in the stored form: the form's byte and the keyed hash.
const HEAD_BYTES: usize = 1 + HASH_BYTES;

/// How many bytes of content one sealed chunk holds at most.
pub(crate) const MAX_SEALED_BYTES: usize = MAX_CHUNK_BYTES - HEAD_BYTES - TAG_BYTES;

/// The note in the manifest of a file whose chunks are sealed, and its value: the way of sealing.
pub(crate) const NOTE: &str = "sealed";
pub(crate) const NOTE_VALUE: &str = "1";

/// How many blocks a [`Sealer`] knows at most.
/// Reason: bounds memory; blocks beyond are sealed again in each snapshot. A hash table that is
/// seven eighths full, of 9 MB; one more and it would double.
const MAX_KNOWN: usize = 7 << 14;

/// The keyed hash of a block's content.
type BlockHash = [u8; HASH_BYTES];

/// Seals and opens chunks.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct SealKey {
    /// Of the hashes by which a [`Sealer`] knows blocks.
    block: [u8; 32],
    /// Of the keyed hashes.
    hash: [u8; 32],
    /// Of the chunks' keys.
    seal: [u8; 32],
}

impl SealKey {
    /// The key that belongs to a secret.
    pub fn derive(secret: &[u8; 32]) -> Self {
        Self {
            block: blake3::derive_key("p2pvm 2026 hash of a block to be sealed", secret),
            hash: blake3::derive_key("p2pvm 2026 hash before a sealed chunk", secret),
            seal: blake3::derive_key("p2pvm 2026 key of a sealed chunk", secret),
        }
    }

    /// The stored form of a chunk that holds `content` sealed; its name is the hash of what follows
    /// the first byte.
    pub(crate) fn seal(&self, encoder: &mut Encoder, content: &[u8]) -> Vec<u8> {
        let mut stored = encoder.encode_between(HEAD_BYTES, content, TAG_BYTES);
        let (head, body) = stored.split_at_mut(HEAD_BYTES);
        let hash = *blake3::keyed_hash(&self.hash, body).as_bytes();
        head[0] = PLAIN;
        head[1..].copy_from_slice(&hash);
        let tag = self
            .cipher(&hash)
            .seal_in_place_separate_tag(nonce(), Aad::empty(), body)
            .expect("a chunk is far shorter than what the cipher seals");
        stored.extend_from_slice(tag.as_ref());
        stored
    }

    /// What was sealed in a chunk with this content.
    ///
    /// # Errors
    /// [`Error::Locked`] if it was sealed with another key or changed, `Corrupt` if what was sealed
    /// is no chunk.
    pub(crate) fn open(&self, id: ChunkId, mut sealed: Vec<u8>) -> Result<Vec<u8>, Error> {
        if sealed.len() < HASH_BYTES + TAG_BYTES {
            return Err(Error::Locked(id));
        }
        let hash = *sealed
            .first_chunk::<HASH_BYTES>()
            .ok_or(Error::Locked(id))?;
        let opened = self
            .cipher(&hash)
            .open_within(nonce(), Aad::empty(), &mut sealed, HASH_BYTES..)
            .map_err(|_| Error::Locked(id))?;
        chunk::inflate(id, opened)
    }

    fn cipher(&self, hash: &[u8; HASH_BYTES]) -> LessSafeKey {
        let key = blake3::keyed_hash(&self.seal, hash);
        let key = UnboundKey::new(&CHACHA20_POLY1305, key.as_bytes());
        LessSafeKey::new(key.expect("the cipher takes keys of 32 bytes"))
    }
}

/// A key with the names of what it sealed last, so that an unchanged block is found without being
/// compressed and sealed again. Clones share what they learn.
#[derive(Clone)]
pub struct Sealer {
    key: SealKey,
    before: Arc<HashMap<BlockHash, ChunkId>>,
    now: Arc<Mutex<HashMap<BlockHash, ChunkId>>>,
}

impl From<SealKey> for Sealer {
    /// One that knows no block.
    fn from(key: SealKey) -> Self {
        Self {
            key,
            before: Arc::default(),
            now: Arc::default(),
        }
    }
}

impl Sealer {
    /// Its key.
    pub fn key(&self) -> &SealKey {
        &self.key
    }

    /// A sealer for the next snapshot, which knows the blocks of this one and no older ones.
    pub fn after(&self) -> Self {
        Self {
            key: self.key.clone(),
            before: Arc::new(mem::take(&mut *self.now())),
            now: Arc::default(),
        }
    }

    pub(crate) fn hash(&self, content: &[u8]) -> BlockHash {
        *blake3::keyed_hash(&self.key.block, content).as_bytes()
    }

    /// The chunk that such a block was sealed in. It may be gone by now.
    pub(crate) fn known(&self, block: &BlockHash) -> Option<ChunkId> {
        let before = self.before.get(block).copied();
        before.or_else(|| self.now().get(block).copied())
    }

    pub(crate) fn note(&self, block: BlockHash, id: ChunkId) {
        let mut now = self.now();
        if now.len() < MAX_KNOWN {
            now.insert(block, id);
        }
    }

    fn now(&self) -> MutexGuard<'_, HashMap<BlockHash, ChunkId>> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PartialEq for Sealer {
    /// By the key: what a sealer knows changes no chunk.
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

impl Eq for Sealer {}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sealer(..)")
    }
}

/// Each key seals one message, so that one nonce is enough.
fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

impl fmt::Debug for SealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(secret: u8) -> SealKey {
        SealKey::derive(&[secret; 32])
    }

    fn sealed(key: &SealKey, content: &[u8]) -> Vec<u8> {
        key.seal(&mut Encoder::new(), content).split_off(1)
    }

    const ID: ChunkId = ChunkId([0; 32]);

    proptest! {
        #[test]
        fn sealed_content_opens_with_its_key_alone(
            seed in any::<Vec<u8>>(), repeat in 1usize..100
        ) {
            let content = seed.repeat(repeat);
            let sealed = sealed(&key(1), &content);
            prop_assert!(sealed.len() <= content.len() + HEAD_BYTES + TAG_BYTES);
            prop_assert_eq!(key(1).open(ID, sealed.clone()).unwrap(), content);
            prop_assert!(matches!(key(2).open(ID, sealed), Err(Error::Locked(ID))));
        }

        #[test]
        fn a_flipped_bit_of_a_sealed_chunk_is_refused(
            content in proptest::collection::vec(0u8..4, 0..2000),
            at in any::<prop::sample::Index>(), bit in 0u8..8
        ) {
            let mut sealed = sealed(&key(1), &content);
            let at = at.index(sealed.len());
            sealed[at] ^= 1 << bit;
            prop_assert!(matches!(key(1).open(ID, sealed), Err(Error::Locked(ID))));
        }

        #[test]
        fn any_bytes_are_refused_as_a_sealed_chunk(bytes in any::<Vec<u8>>()) {
            prop_assert!(key(1).open(ID, bytes).is_err());
        }
    }

    #[test]
    fn the_same_content_is_one_chunk_for_one_key_only() {
        assert_eq!(sealed(&key(1), b"page"), sealed(&key(1), b"page"));
        assert_ne!(sealed(&key(1), b"page"), sealed(&key(2), b"page"));
        assert_ne!(sealed(&key(1), b"page"), sealed(&key(1), b"pagf"));
    }

    #[test]
    fn known_blocks_take_ten_megabytes_at_most() {
        let sealer = Sealer::from(key(1));
        for n in 0..2 * MAX_KNOWN as u64 {
            sealer.note(*blake3::hash(&n.to_le_bytes()).as_bytes(), ID);
        }
        let places = sealer.now().capacity();
        assert!(places >= MAX_KNOWN && places * size_of::<(BlockHash, ChunkId)>() < 10_000_000);
    }

    #[test]
    fn a_key_is_not_shown() {
        assert_eq!(format!("{:?}", key(1)), "SealKey(..)");
    }
}

#[cfg(test)]
#[path = "seal_golden_tests.rs"]
mod golden_tests;
