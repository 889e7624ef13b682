//! The identifiers that every crate shares, each a separate type, so that they cannot be confused.
//!
//! A member *is* its ed25519 public key: the holder of the key is the member, and no registry maps
//! one to the other. Text forms are lower-case base32 without padding, which survives DNS, shells
//! and being read aloud.

use data_encoding::BASE32_NOPAD;
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// The text is no identifier of this kind.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("'{text}' is not {kind}: expected 52 letters and digits of base32")]
pub struct ParseIdError {
    text: String,
    kind: &'static str,
}

macro_rules! id32 {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub struct $name(pub [u8; 32]);

        impl $name {
            /// The first ten characters of the text form: enough to tell a few thousand apart by
            /// eye.
            pub fn short(&self) -> String {
                self.to_string()[..10].to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&BASE32_NOPAD.encode(&self.0).to_ascii_lowercase())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                // A log line and a message show the same short form, never the type's name.
                f.write_str(&self.short())
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;
            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                BASE32_NOPAD
                    .decode(text.to_ascii_uppercase().as_bytes())
                    .ok()
                    .and_then(|bytes| bytes.try_into().ok())
                    .map(Self)
                    .ok_or_else(|| ParseIdError { text: text.to_owned(), kind: $kind })
            }
        }
    };
}

id32!(
    /// A member of the network: its ed25519 public key.
    MemberId,
    "a member id"
);
id32!(
    /// A network: the ed25519 public key of its root, so that a network cannot be forged, only
    /// founded.
    NetworkId,
    "a network id"
);
id32!(
    /// A virtual machine: its own ed25519 public key. The secret half travels with the VM's
    /// definition, so that whichever host holds the VM signs its records.
    VmId,
    "a VM id"
);
id32!(
    /// A place on the ring and in the key space of the DHT: 256 bits of BLAKE3.
    RingAddr,
    "a ring address"
);

impl RingAddr {
    /// The place of `bytes` within `domain` (BLAKE3 key derivation, so that two domains never
    /// collide).
    pub fn of(domain: &str, bytes: &[u8]) -> Self {
        Self(blake3::derive_key(domain, bytes))
    }

    /// The XOR distance (Maymounkov and Mazières 2002), as a number that sorts.
    pub fn distance(&self, other: &Self) -> [u8; 32] {
        std::array::from_fn(|i| self.0[i] ^ other.0[i])
    }
}

impl MemberId {
    /// Where this member stands on the ring: a hash of its key.
    pub fn ring_addr(&self) -> RingAddr {
        RingAddr::of("p2pvm 2026 ring address of a member", &self.0)
    }
}

/// The generation of a VM's holder. It is incremented whenever the right to run the VM changes
/// hands; peers drop packets of an older epoch (the overlay is the fence).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The largest epoch that a holder may have. Reason: the versions of records, and packets,
    /// have 32 bits for it.
    pub const MAX: Self = Self(u32::MAX as u64 - 1);
    /// How many epochs ahead of what it knows a member follows on another's word alone. Reason: a
    /// VM may move several times before anybody looks; an epoch that is far ahead would shut out
    /// the true holder.
    pub const MAX_STEP: u64 = 8;

    /// The epoch after this one. The last one has none: nobody grants an epoch twice.
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The first version of this epoch's records: the epoch in the upper 32 bits, the holder's own
    /// count below. Beyond [`Epoch::MAX`] it stays the same.
    pub fn first_version(self) -> u64 {
        self.0.min(Self::MAX.0) << 32
    }

    /// Whether this is one of the [`Epoch::MAX_STEP`] epochs after `known`.
    pub fn follows(self, known: Self) -> bool {
        self > known && self.0 - known.0 <= Self::MAX_STEP
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Seconds since 1970-01-01 UTC, as in certificates, invites and records.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
pub struct UnixTime(pub u64);

impl UnixTime {
    /// The wall clock of this machine, right or wrong: for people and file names, and where two
    /// clocks must agree.
    pub fn wall() -> Self {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Self(since.map_or(0, |d| d.as_secs()))
    }

    /// This time and `seconds` more, saturating.
    pub fn plus(self, seconds: u64) -> Self {
        Self(self.0.saturating_add(seconds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_id_survives_its_text_form() {
        let id = MemberId([7; 32]);
        assert_eq!(id.to_string().parse::<MemberId>(), Ok(id));
        assert_eq!(id.to_string().to_uppercase().parse::<MemberId>(), Ok(id));
    }

    #[test]
    fn the_last_epoch_has_none_after_it() {
        assert_eq!(Epoch(3).next(), Epoch(4));
        assert_eq!(Epoch(u64::MAX).next(), Epoch(u64::MAX));
        assert!(Epoch(4).follows(Epoch(3)) && !Epoch(3).follows(Epoch(3)));
        assert!(!Epoch(u64::MAX).follows(Epoch(3)) && !Epoch(1).follows(Epoch(u64::MAX)));
    }

    #[test]
    fn no_epoch_has_an_older_version_than_the_one_before() {
        assert_eq!(Epoch(3).first_version(), 3 << 32);
        let last = Epoch::MAX.first_version();
        assert_eq!(last, u64::from(u32::MAX - 1) << 32);
        assert_eq!(Epoch::MAX.next().first_version(), last);
        assert_eq!(Epoch(u64::MAX).first_version(), last);
    }

    #[test]
    fn a_short_or_foreign_text_is_no_member_id() {
        assert!("abc".parse::<MemberId>().is_err());
        assert!("1".repeat(52).parse::<MemberId>().is_err());
    }
}
