//! A chunk: up to [`MAX_CHUNK_BYTES`] of content, named by its BLAKE3 hash. It is stored and sent
//! in one form, compressed once: a tag byte, then the content as it is or as one zstd frame,
//! whichever is shorter.

use crate::{ChunkId, Error};

/// How many bytes of content one chunk holds at most.
pub const MAX_CHUNK_BYTES: usize = 1 << 20;

/// How long a stored form is at most.
pub const MAX_STORED_BYTES: usize = MAX_CHUNK_BYTES + 1;

/// The level of zstd.
/// Reason: chunks are made while a guest waits to be durable; level 3 saves a few per cent at half
/// the speed.
const ZSTD_LEVEL: i32 = 1;

pub(crate) const PLAIN: u8 = 0;
const ZSTD: u8 = 1;

/// Turns content into its stored form, with one compression context for many chunks.
pub(crate) struct Encoder(zstd::bulk::Compressor<'static>);

impl Encoder {
    pub(crate) fn new() -> Self {
        Self(zstd::bulk::Compressor::new(ZSTD_LEVEL).expect("level 1 is one of zstd's"))
    }

    /// The stored form of `content`, which fits [`MAX_CHUNK_BYTES`].
    pub(crate) fn encode(&mut self, content: &[u8]) -> Vec<u8> {
        self.encode_between(0, content, 0)
    }

    /// The stored form of `content` after `before` zero bytes, with room for `after` more.
    pub(crate) fn encode_between(
        &mut self,
        before: usize,
        content: &[u8],
        after: usize,
    ) -> Vec<u8> {
        let begin = before + 1;
        let mut stored = Vec::with_capacity(begin + content.len() + after);
        stored.resize(begin + content.len(), 0);
        // Compressing into a buffer no longer than the content fails exactly if it would not save
        // anything.
        match self.0.compress_to_buffer(content, &mut stored[begin..]) {
            Ok(length) if length < content.len() => {
                stored[before] = ZSTD;
                stored.truncate(begin + length);
            }
            _ => {
                stored[before] = PLAIN;
                stored[begin..].copy_from_slice(content);
            }
        }
        stored
    }
}

/// Reads a stored form as a member sends it, for the fuzzer.
#[cfg(fuzzing)]
pub fn parse(stored: &[u8]) {
    let _ = decode(ChunkId([0; 32]), stored);
}

/// The content of a stored form, after a check that its hash is `id`. At most [`MAX_CHUNK_BYTES`]
/// are inflated.
pub(crate) fn decode(id: ChunkId, stored: &[u8]) -> Result<Vec<u8>, Error> {
    let content = inflate(id, stored)?;
    if ChunkId::of(&content) != id {
        let cause = "its content has another hash".into();
        return Err(Error::Corrupt { id, cause });
    }
    Ok(content)
}

/// The content of a stored form, whatever its hash; `id` is for the error.
pub(crate) fn inflate(id: ChunkId, stored: &[u8]) -> Result<Vec<u8>, Error> {
    let corrupt = |cause| Error::Corrupt { id, cause };
    match stored.split_first() {
        Some((&PLAIN, rest)) if rest.len() <= MAX_CHUNK_BYTES => Ok(rest.to_vec()),
        Some((&ZSTD, rest)) => {
            let claimed = zstd::zstd_safe::get_frame_content_size(rest).ok().flatten();
            let room = claimed.map_or(MAX_CHUNK_BYTES, |n| (n as usize).min(MAX_CHUNK_BYTES));
            zstd::bulk::decompress(rest, room).map_err(|e| corrupt(e.into()))
        }
        _ => Err(corrupt(
            format!("{} bytes of an unknown form", stored.len()).into(),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn content_survives_its_stored_form(seed in any::<Vec<u8>>(), repeat in 1usize..200) {
            let content = seed.repeat(repeat);
            let stored = Encoder::new().encode(&content);
            prop_assert!(stored.len() <= content.len() + 1);
            prop_assert_eq!(decode(ChunkId::of(&content), &stored).unwrap(), content);
        }

        #[test]
        fn any_bytes_are_refused_without_a_panic(stored in any::<Vec<u8>>()) {
            prop_assert!(decode(ChunkId([0; 32]), &stored).is_err());
        }

        #[test]
        fn a_flipped_bit_never_passes(
            content in proptest::collection::vec(0u8..4, 1..2000),
            at in any::<prop::sample::Index>(), bit in 0u8..8
        ) {
            let mut stored = Encoder::new().encode(&content);
            let at = at.index(stored.len());
            stored[at] ^= 1 << bit;
            match decode(ChunkId::of(&content), &stored) {
                Ok(decoded) => prop_assert_eq!(decoded, content), // a bit that zstd ignores
                Err(e) => prop_assert!(matches!(e, Error::Corrupt { .. }), "{}", e),
            }
        }
    }

    #[test]
    fn a_bomb_inflates_to_no_more_than_a_chunk() {
        let mut bomb = vec![ZSTD];
        bomb.extend(zstd::bulk::compress(&vec![0; 64 << 20], 1).unwrap());
        assert!(decode(ChunkId([0; 32]), &bomb).is_err());
    }

    #[test]
    fn incompressible_content_costs_one_byte() {
        let content: Vec<u8> = (0..100_000u32)
            .flat_map(|i| blake3::hash(&i.to_le_bytes()).as_bytes()[..1].to_vec())
            .collect();
        assert_eq!(Encoder::new().encode(&content).len(), content.len() + 1);
    }
}

#[cfg(test)]
#[path = "chunk_golden_tests.rs"]
mod golden_tests;
