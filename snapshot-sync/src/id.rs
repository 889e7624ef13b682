//! The names of chunks and manifests: BLAKE3 hashes, with one text form.

use data_encoding::BASE32_NOPAD;
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// A chunk's name: the BLAKE3 hash of its content. Its text form is 52 characters of lower-case
/// base32.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ChunkId(pub [u8; 32]);

/// The text is not a chunk id.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("'{0}' is not a chunk, image or snapshot id: expected 52 letters and digits of base32")]
pub struct ParseChunkIdError(String);

impl ChunkId {
    /// The name of `content`.
    pub fn of(content: &[u8]) -> Self {
        Self(*blake3::hash(content).as_bytes())
    }

    /// The first ten characters of the text form.
    pub fn short(&self) -> String {
        self.to_string()[..10].to_owned()
    }
}

impl fmt::Display for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE32_NOPAD.encode(&self.0).to_ascii_lowercase())
    }
}

impl fmt::Debug for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())
    }
}

impl FromStr for ChunkId {
    type Err = ParseChunkIdError;
    fn from_str(text: &str) -> Result<Self, ParseChunkIdError> {
        BASE32_NOPAD
            .decode(text.to_ascii_uppercase().as_bytes())
            .ok()
            .and_then(|bytes| bytes.try_into().ok())
            .map(Self)
            .ok_or_else(|| ParseChunkIdError(text.to_owned()))
    }
}

/// A manifest's name: the chunk that holds its root node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ManifestId(pub ChunkId);

impl ManifestId {
    /// The first ten characters of the text form.
    pub fn short(&self) -> String {
        self.0.short()
    }
}

impl fmt::Display for ManifestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for ManifestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.short())
    }
}

impl FromStr for ManifestId {
    type Err = ParseChunkIdError;
    fn from_str(text: &str) -> Result<Self, ParseChunkIdError> {
        text.parse().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_id_survives_its_text_form(bytes in any::<[u8; 32]>()) {
            let id = ChunkId(bytes);
            prop_assert_eq!(id.to_string().parse::<ChunkId>(), Ok(id));
        }
    }
}
