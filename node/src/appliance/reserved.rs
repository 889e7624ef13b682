//! The reserved file for an invite in every appliance ISO: it has a fixed size, and `p2pvm iso
//! customize` overwrites it in place.
//!
//! Layout: a marker (32 bytes), the text's length (4 bytes, little endian), BLAKE3 of the text (32
//! bytes), the text, zeros. The hash distinguishes a stick that was removed too early from a bad
//! invite, whose own signature is checked later.

use std::fmt;

/// The file's size, bytes: above any invite's text, and whole blocks of every medium.
pub const BYTES: usize = 16 << 10;
const MARKER: &[u8; 32] = b"p2pvm: room for an invite, v1\r\n\0";
const HEAD: usize = MARKER.len() + 4 + blake3::OUT_LEN;

/// Why the file cannot be read or filled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// The marker is missing.
    NotOurs,
    /// Length or hash do not match.
    Damaged,
    /// The text is too long for the file: its length, bytes.
    TooLong(usize),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotOurs => f.write_str("it has no reserved file for an invite"),
            Self::Damaged => f.write_str(
                "the invite in it is damaged: write it again with 'p2pvm iso customize'",
            ),
            Self::TooLong(bytes) => write!(
                f,
                "the text has {bytes} bytes and there is room for {}",
                BYTES - HEAD
            ),
        }
    }
}

/// The file's content with `text` in it; an empty text leaves it free.
///
/// # Errors
/// [`Problem::TooLong`].
pub fn filled(text: &str) -> Result<Vec<u8>, Problem> {
    if text.len() > BYTES - HEAD {
        return Err(Problem::TooLong(text.len()));
    }
    let length = u32::try_from(text.len()).map_err(|_| Problem::TooLong(text.len()))?;
    let mut bytes = Vec::with_capacity(BYTES);
    bytes.extend_from_slice(MARKER);
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(blake3::hash(text.as_bytes()).as_bytes());
    bytes.extend_from_slice(text.as_bytes());
    bytes.resize(BYTES, 0);
    Ok(bytes)
}

/// The text in the file, or `None` if it is free.
///
/// # Errors
/// [`Problem::NotOurs`], [`Problem::Damaged`].
pub fn read(bytes: &[u8]) -> Result<Option<String>, Problem> {
    let rest = bytes.strip_prefix(MARKER).ok_or(Problem::NotOurs)?;
    if bytes.len() != BYTES {
        return Err(Problem::Damaged);
    }
    let (length, rest) = rest.split_first_chunk::<4>().ok_or(Problem::Damaged)?;
    let (hash, rest) = rest
        .split_first_chunk::<{ blake3::OUT_LEN }>()
        .ok_or(Problem::Damaged)?;
    let text = usize::try_from(u32::from_le_bytes(*length))
        .ok()
        .and_then(|length| rest.get(..length))
        .ok_or(Problem::Damaged)?;
    if blake3::hash(text) != *hash {
        return Err(Problem::Damaged);
    }
    let text = std::str::from_utf8(text).map_err(|_| Problem::Damaged)?;
    Ok((!text.is_empty()).then(|| text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again_and_an_empty_room_is_free() {
        let room = filled("p2pvm1abc").unwrap();
        assert_eq!(room.len(), BYTES);
        assert_eq!(read(&room), Ok(Some("p2pvm1abc".to_owned())));
        assert_eq!(read(&filled("").unwrap()), Ok(None));
        let longest = "a".repeat(BYTES - HEAD);
        assert_eq!(read(&filled(&longest).unwrap()), Ok(Some(longest.clone())));
        assert_eq!(
            filled(&format!("{longest}a")),
            Err(Problem::TooLong(BYTES - HEAD + 1))
        );
    }

    #[test]
    fn any_damage_is_noticed() {
        let room = filled("p2pvm1abc").unwrap();
        for at in 0..HEAD + 9 {
            let mut bad = room.clone();
            bad[at] ^= 0x40;
            assert!(read(&bad).is_err(), "byte {at}");
        }
        for length in [0, 5, MARKER.len(), HEAD, BYTES - 1] {
            assert!(read(&room[..length]).is_err(), "cut to {length}");
        }
    }
}
