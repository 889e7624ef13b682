//! Noise IK (Perrin, rev. 34, §7.5) by `snow`: the initiator knows the responder's key beforehand,
//! both are authenticated after one round trip, and the initiator's key is hidden from the wire.
//! The payloads agree on the cipher and carry the timestamp that stops a replayed initiation from
//! disturbing a live link (WireGuard paper §5.1). Either side may append content of its own, sealed
//! with them: the statements of two members that have only the ring between them.

use super::{
    LinkRefusal,
    session::{Cipher, Parts, Session},
    wire::{INITIATION_PAYLOAD_LEN, MAX_EXTRA_LEN, NOISE_1_LEN, NOISE_2_LEN, RESPONSE_PAYLOAD_LEN},
};
use crate::identity::LinkKey;
use snow::{Builder, HandshakeState, params::NoiseParams};
use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};
use zeroize::Zeroizing;

const PATTERN: &str = "Noise_IK_25519_ChaChaPoly_BLAKE2s";
const PROLOGUE: &[u8] = b"p2pvm link 1";
const VERSION: u8 = 1;
const WITH_AES: u8 = 1;

/// This node's X25519 key pair for links.
pub struct Keys {
    secret: Zeroizing<[u8; 32]>,
    public: [u8; 32],
}

impl Keys {
    /// The pair of a secret.
    pub fn new(secret: Zeroizing<[u8; 32]>) -> Self {
        let public =
            x25519_dalek::PublicKey::from(&x25519_dalek::StaticSecret::from(*secret)).to_bytes();
        Self { secret, public }
    }

    /// The public half.
    pub fn public(&self) -> LinkKey {
        LinkKey(self.public)
    }

    fn builder(&self) -> Result<Builder<'_>, LinkRefusal> {
        let params: NoiseParams = PATTERN.parse().map_err(|_| LinkRefusal::Malformed)?;
        Builder::new(params)
            .prologue(PROLOGUE)
            .and_then(|b| b.local_private_key(&self.secret[..]))
            .map_err(|_| LinkRefusal::Malformed)
    }
}

/// Nanoseconds since 1970, as in an initiation: the clock at this process's start plus the time
/// since. Each value is larger than the previous one. Reason: if the wall clock is set back, the
/// far end must not take our initiations for replays.
pub fn timestamp() -> u128 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    let now = crate::network_time::steady_millis().saturating_mul(1_000_000);
    let next = |last: u64| Some(now.max(last.saturating_add(1)));
    let last = LAST
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, next)
        .unwrap_or_default();
    u128::from(now.max(last.saturating_add(1)))
}

/// A handshake that this node opened and that waits for its response.
pub(crate) struct PendingHandshake {
    noise: HandshakeState,
    pub index: u32,
}

/// Makes Noise message 1 for `peer`, with `extra` sealed in it.
pub(crate) fn open(
    keys: &Keys,
    peer: &LinkKey,
    index: u32,
    extra: &[u8],
) -> Result<(PendingHandshake, Vec<u8>), LinkRefusal> {
    if extra.len() > MAX_EXTRA_LEN {
        return Err(LinkRefusal::Malformed);
    }
    let builder = keys
        .builder()?
        .remote_public_key(&peer.0)
        .map_err(|_| LinkRefusal::Malformed)?;
    let noise = builder
        .build_initiator()
        .map_err(|_| LinkRefusal::Malformed)?;
    open_with(
        noise,
        index,
        &offer(Cipher::preferred(), timestamp(), extra),
    )
}

fn cipher_byte(cipher: Cipher) -> u8 {
    match cipher {
        Cipher::Aes256Gcm => WITH_AES,
        Cipher::ChaCha20Poly1305 => 0,
    }
}

/// The payload of Noise message 1.
fn offer(preferred: Cipher, timestamp: u128, extra: &[u8]) -> Vec<u8> {
    let mut payload = vec![0; INITIATION_PAYLOAD_LEN];
    payload[0] = VERSION;
    payload[1] = cipher_byte(preferred);
    payload[2..].copy_from_slice(&timestamp.to_be_bytes()[4..]);
    payload.extend_from_slice(extra);
    payload
}

fn open_with(
    mut noise: HandshakeState,
    index: u32,
    payload: &[u8],
) -> Result<(PendingHandshake, Vec<u8>), LinkRefusal> {
    let mut message = vec![0; NOISE_1_LEN - INITIATION_PAYLOAD_LEN + payload.len()];
    let len = noise
        .write_message(payload, &mut message)
        .map_err(|_| LinkRefusal::Malformed)?;
    message.truncate(len);
    Ok((PendingHandshake { noise, index }, message))
}

impl PendingHandshake {
    /// Reads Noise message 2. Returns the session and the content sealed with it. A message that is
    /// refused changes nothing: another may come.
    pub(crate) fn finish(
        &mut self,
        now: Instant,
        sender: u32,
        message: &[u8],
    ) -> Result<(Session, Vec<u8>), LinkRefusal> {
        let mut payload = vec![0; message.len()];
        let len = self
            .noise
            .read_message(message, &mut payload)
            .map_err(|_| LinkRefusal::Forged)?;
        let cipher = match payload[..len].first() {
            Some(&WITH_AES) if Cipher::preferred() == Cipher::Aes256Gcm => Cipher::Aes256Gcm,
            Some(0) => Cipher::ChaCha20Poly1305,
            _ => return Err(LinkRefusal::Malformed),
        };
        let extra = payload[..len]
            .get(RESPONSE_PAYLOAD_LEN..)
            .unwrap_or_default()
            .to_vec();
        Ok((
            session(
                &mut self.noise,
                SessionEnds {
                    local: self.index,
                    remote: sender,
                    cipher,
                    initiator: true,
                },
                now,
            ),
            extra,
        ))
    }
}

struct SessionEnds {
    local: u32,
    remote: u32,
    cipher: Cipher,
    initiator: bool,
}

fn session(noise: &mut HandshakeState, ends: SessionEnds, now: Instant) -> Session {
    let (forward, back) = noise.dangerously_get_raw_split();
    let (forward, back) = (Zeroizing::new(forward), Zeroizing::new(back));
    let (sealing, opening) = if ends.initiator {
        (&forward, &back)
    } else {
        (&back, &forward)
    };
    Session::new(
        Parts {
            local: ends.local,
            remote: ends.remote,
            cipher: ends.cipher,
            initiator: ends.initiator,
            sealing,
            opening,
        },
        now,
    )
}

/// An initiation that was read: its sender is proved to hold `peer`, but may be a replay until the
/// timestamp was compared.
pub struct OpenedInitiation {
    noise: HandshakeState,
    sender: u32,
    cipher: Cipher,
    /// The initiator's key.
    pub peer: LinkKey,
    /// The initiator's clock in nanoseconds.
    pub timestamp: u128,
    /// The content that the initiator sealed with it.
    pub extra: Vec<u8>,
}

impl OpenedInitiation {
    /// Reads Noise message 1.
    ///
    /// # Errors
    /// [`LinkRefusal::Forged`] if it was not made for these keys.
    pub fn read(keys: &Keys, sender: u32, message: &[u8]) -> Result<Self, LinkRefusal> {
        let noise = keys
            .builder()?
            .build_responder()
            .map_err(|_| LinkRefusal::Malformed)?;
        Self::read_with(noise, sender, message)
    }

    fn read_with(
        mut noise: HandshakeState,
        sender: u32,
        message: &[u8],
    ) -> Result<Self, LinkRefusal> {
        let mut payload = vec![0; message.len()];
        let len = noise
            .read_message(message, &mut payload)
            .map_err(|_| LinkRefusal::Forged)?;
        let (payload, extra) = payload[..len]
            .split_first_chunk::<INITIATION_PAYLOAD_LEN>()
            .ok_or(LinkRefusal::Malformed)?;
        if payload[0] != VERSION {
            return Err(LinkRefusal::Malformed);
        }
        let both_aes = payload[1] & WITH_AES != 0 && Cipher::preferred() == Cipher::Aes256Gcm;
        let cipher = if both_aes {
            Cipher::Aes256Gcm
        } else {
            Cipher::ChaCha20Poly1305
        };
        let peer = noise
            .get_remote_static()
            .and_then(|k| <[u8; 32]>::try_from(k).ok())
            .ok_or(LinkRefusal::Malformed)?;
        let timestamp = payload[2..].iter().fold(0, |n, b| n << 8 | u128::from(*b));
        Ok(Self {
            noise,
            sender,
            cipher,
            peer: LinkKey(peer),
            timestamp,
            extra: extra.to_vec(),
        })
    }

    /// Makes Noise message 2, with `extra` sealed in it, and the session; the initiator's index
    /// comes with them.
    pub(crate) fn answer(
        mut self,
        now: Instant,
        index: u32,
        extra: &[u8],
    ) -> Result<(Session, Vec<u8>, u32), LinkRefusal> {
        if extra.len() > MAX_EXTRA_LEN {
            return Err(LinkRefusal::Malformed);
        }
        let mut message = vec![0; NOISE_2_LEN + extra.len()];
        let mut payload = vec![cipher_byte(self.cipher); RESPONSE_PAYLOAD_LEN];
        payload.extend_from_slice(extra);
        let len = self
            .noise
            .write_message(&payload, &mut message)
            .map_err(|_| LinkRefusal::Malformed)?;
        message.truncate(len);
        let ends = SessionEnds {
            local: index,
            remote: self.sender,
            cipher: self.cipher,
            initiator: false,
        };
        Ok((session(&mut self.noise, ends, now), message, self.sender))
    }
}

#[cfg(test)]
#[path = "handshake_golden_tests.rs"]
mod golden_tests;
