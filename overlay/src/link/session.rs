//! The keys of one finished handshake: seals and opens data datagrams in place. Shared by the
//! packet threads without a lock on the sending side; the counter is an atomic, the replay window a
//! mutex that only receivers of this session touch.
//!
//! No nonce is ever used twice with a key, whichever threads seal: the nonce is the counter alone,
//! each seal takes its own by one `fetch_add` (an atomic read-modify-write gives every caller
//! another value, in any memory order), the counter ends at 2^60 where sealing refuses, and the two
//! directions have keys of their own. A session is never rebuilt from stored keys, so no counter
//! starts again. When it is dropped, the expanded keys are overwritten ([`super::wipe`]).

use super::{
    LinkRefusal,
    frame::FRAME_HEADER_LEN,
    replay::ReplayWindow,
    wipe::WipedKey,
    wire::{
        ENVELOPE, ENVELOPE_SEALED_LEN, HEADER_LEN, TAG_LEN, write_data_header,
        write_envelope_header,
    },
};
use crate::lock;
use ring::aead::{AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, Tag, UnboundKey};
use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

/// How many bytes a link adds to an IP packet, outer IP and UDP headers not counted.
pub const OVERHEAD: usize = HEADER_LEN + FRAME_HEADER_LEN + TAG_LEN;
/// The counter at which a session stops sealing, far before it could wrap (similar to WireGuard's
/// REJECT_AFTER_MESSAGES).
const LAST_COUNTER: u64 = 1 << 60;

/// The AEAD of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cipher {
    /// For two CPUs with AES instructions: about twice as fast there.
    Aes256Gcm,
    /// For all others.
    ChaCha20Poly1305,
}

impl Cipher {
    /// The fastest cipher of this CPU in hardware.
    pub fn preferred() -> Self {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("aes")
            && std::arch::is_x86_feature_detected!("pclmulqdq")
        {
            return Self::Aes256Gcm;
        }
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("aes") {
            return Self::Aes256Gcm;
        }
        Self::ChaCha20Poly1305
    }

    fn key(self, bytes: &[u8; 32]) -> LessSafeKey {
        let algorithm = match self {
            Self::Aes256Gcm => &AES_256_GCM,
            Self::ChaCha20Poly1305 => &CHACHA20_POLY1305,
        };
        LessSafeKey::new(UnboundKey::new(algorithm, bytes).expect("both ciphers take 32-byte keys"))
    }
}

/// One finished handshake's keys, both directions.
pub struct Session {
    local: u32,
    remote: u32,
    cipher: Cipher,
    initiator: bool,
    created: Instant,
    sealing: WipedKey,
    opening: WipedKey,
    counter: AtomicU64,
    confirmed: AtomicBool,
    window: Mutex<ReplayWindow>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Session({:08x} -> {:08x}, {:?})",
            self.local, self.remote, self.cipher
        )
    }
}

fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&counter.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

/// The keys and parameters of a new session.
pub(crate) struct Parts<'a> {
    pub local: u32,
    pub remote: u32,
    pub cipher: Cipher,
    pub initiator: bool,
    pub sealing: &'a [u8; 32],
    pub opening: &'a [u8; 32],
}

impl Session {
    /// How recently a link must have carried data to be rekeyed. Another link opens again when it
    /// is needed.
    pub const ACTIVE: std::time::Duration = std::time::Duration::from_secs(300);

    pub(crate) fn new(parts: Parts<'_>, now: Instant) -> Self {
        Self {
            local: parts.local,
            remote: parts.remote,
            cipher: parts.cipher,
            initiator: parts.initiator,
            created: now,
            sealing: WipedKey::new(parts.cipher.key(parts.sealing)),
            opening: WipedKey::new(parts.cipher.key(parts.opening)),
            counter: AtomicU64::new(0),
            confirmed: AtomicBool::new(parts.initiator),
            window: Mutex::default(),
        }
    }

    /// The index under which this side receives.
    pub fn local_index(&self) -> u32 {
        self.local
    }

    /// The cipher that both sides agreed on.
    pub fn cipher(&self) -> Cipher {
        self.cipher
    }

    /// Whether this side opened the handshake (and so rekeys it).
    pub fn initiator(&self) -> bool {
        self.initiator
    }

    /// When the handshake finished here.
    pub fn created(&self) -> Instant {
        self.created
    }

    /// Notes the proof that the far end holds the keys; true the first time.
    pub fn confirm(&self) -> bool {
        !self.confirmed.load(Ordering::Relaxed) && !self.confirmed.swap(true, Ordering::Relaxed)
    }

    /// Seals the `plain` bytes at `buf[HEADER_LEN..]` and writes header and tag around them.
    /// Returns the datagram's length; `None` if the session may not seal any more.
    ///
    /// `buf` must have room for `HEADER_LEN + plain + TAG_LEN` bytes.
    pub fn seal(&self, buf: &mut [u8], plain: usize) -> Option<usize> {
        let counter = self.next_counter()?;
        write_data_header(buf, self.remote, counter);
        let end = HEADER_LEN + plain;
        let tag = self
            .sealing
            .seal_in_place_separate_tag(nonce(counter), Aad::empty(), &mut buf[HEADER_LEN..end])
            .ok()?;
        buf[end..end + TAG_LEN].copy_from_slice(tag.as_ref());
        Some(end + TAG_LEN)
    }

    /// Like [`Session::seal`], for a forward frame around a datagram that is sealed for its own
    /// end: only the part that the relay reads, and that datagram's header, are sealed again. The
    /// rest need not be sealed or opened once more on the way.
    pub fn seal_envelope(&self, buf: &mut [u8], plain: usize) -> Option<usize> {
        let counter = self.next_counter()?;
        write_envelope_header(buf, self.remote, counter);
        let end = HEADER_LEN + plain;
        let part = buf.get_mut(HEADER_LEN..HEADER_LEN + ENVELOPE_SEALED_LEN)?;
        let tag = self
            .sealing
            .seal_in_place_separate_tag(nonce(counter), Aad::from([ENVELOPE]), part)
            .ok()?;
        buf.get_mut(end..end + TAG_LEN)?
            .copy_from_slice(tag.as_ref());
        Some(end + TAG_LEN)
    }

    fn next_counter(&self) -> Option<u64> {
        let counter = self.counter.fetch_add(1, Ordering::Relaxed);
        (counter < LAST_COUNTER).then_some(counter)
    }

    /// Opens an envelope in place and returns its forward frame, the datagram inside included.
    ///
    /// # Errors
    /// As [`Session::open`]. The rest of the datagram inside is verified only where that is opened.
    pub fn open_envelope<'a>(
        &self,
        datagram: &'a mut [u8],
        counter: u64,
    ) -> Result<&'a mut [u8], LinkRefusal> {
        if !self.lock().may_come(counter) {
            return Err(LinkRefusal::Replayed);
        }
        let body = datagram
            .get_mut(HEADER_LEN..)
            .ok_or(LinkRefusal::Malformed)?;
        let (plain, tag) = body
            .split_last_chunk_mut::<TAG_LEN>()
            .ok_or(LinkRefusal::Malformed)?;
        let part = plain
            .get_mut(..ENVELOPE_SEALED_LEN)
            .ok_or(LinkRefusal::Malformed)?;
        let opened = self.opening.open_in_place_separate_tag(
            nonce(counter),
            Aad::from([ENVELOPE]),
            Tag::from(*tag),
            part,
            0..,
        );
        opened.map_err(|_| LinkRefusal::Forged)?;
        if self.lock().accept(counter) {
            Ok(plain)
        } else {
            Err(LinkRefusal::Replayed)
        }
    }

    /// Opens a data datagram in place and returns its frame.
    ///
    /// # Errors
    /// [`LinkRefusal::Replayed`] for a counter seen before or too old, [`LinkRefusal::Forged`] for
    /// a tag that does not verify.
    pub fn open<'a>(
        &self,
        datagram: &'a mut [u8],
        counter: u64,
    ) -> Result<&'a mut [u8], LinkRefusal> {
        if !self.lock().may_come(counter) {
            return Err(LinkRefusal::Replayed);
        }
        let body = datagram
            .get_mut(HEADER_LEN..)
            .ok_or(LinkRefusal::Malformed)?;
        let plain = self
            .opening
            .open_in_place(nonce(counter), Aad::empty(), body)
            .map_err(|_| LinkRefusal::Forged)?;
        if self.lock().accept(counter) {
            Ok(plain)
        } else {
            Err(LinkRefusal::Replayed)
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, ReplayWindow> {
        lock(&self.window)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    /// The two ends of one session.
    fn both_ends() -> (Session, Session) {
        let key = [7; 32];
        let end = |initiator| {
            let parts = Parts {
                local: 1,
                remote: 1,
                cipher: Cipher::preferred(),
                initiator,
                sealing: &key,
                opening: &key,
            };
            Session::new(parts, Instant::now())
        };
        (end(true), end(false))
    }

    #[test]
    fn an_envelope_opens_once_and_its_address_and_kind_are_sealed() {
        let (session, far) = both_ends();
        let plain: Vec<u8> = (0..200).collect();
        let seal = || {
            let mut buf = vec![0; HEADER_LEN + plain.len() + TAG_LEN];
            buf[HEADER_LEN..HEADER_LEN + plain.len()].copy_from_slice(&plain);
            let len = session
                .seal_envelope(&mut buf, plain.len())
                .expect("it has just begun");
            assert_eq!(len, buf.len());
            buf
        };
        let mut first = seal();
        assert_ne!(
            first[HEADER_LEN..][..ENVELOPE_SEALED_LEN],
            plain[..ENVELOPE_SEALED_LEN],
            "whom it is for is hidden"
        );
        assert_eq!(
            first[HEADER_LEN + ENVELOPE_SEALED_LEN..][..10],
            plain[ENVELOPE_SEALED_LEN..][..10],
            "what is sealed already stays"
        );
        let mut again = first.clone();
        assert_eq!(far.open_envelope(&mut first, 0).expect("genuine"), plain);
        assert_eq!(
            far.open_envelope(&mut again, 0).map(|_| ()),
            Err(LinkRefusal::Replayed)
        );
        for at in 0..HEADER_LEN + ENVELOPE_SEALED_LEN {
            let mut changed = seal();
            let counter = changed[15].into();
            changed[at] ^= 1;
            // Index and counter of the header are not data: the one finds the session, the other is
            // the nonce.
            let at_nonce = (8..16).contains(&at);
            let number = if at_nonce {
                counter ^ 1 << ((15 - at) * 8)
            } else {
                counter
            };
            let opened = far.open_envelope(&mut changed, number);
            assert_eq!(opened.is_err(), at >= 8, "byte {at}");
        }
        let mut as_data = seal();
        let counter = as_data[15].into();
        assert_eq!(
            far.open(&mut as_data, counter).map(|_| ()),
            Err(LinkRefusal::Forged)
        );
        let mut data = vec![0; HEADER_LEN + ENVELOPE_SEALED_LEN + TAG_LEN];
        assert!(session.seal(&mut data, ENVELOPE_SEALED_LEN).is_some());
        let counter = data[15].into();
        assert_eq!(
            far.open_envelope(&mut data, counter).map(|_| ()),
            Err(LinkRefusal::Forged)
        );
    }

    #[test]
    fn threads_that_seal_together_never_share_a_nonce() {
        let (session, far) = both_ends();
        let seal = || -> Vec<(u64, Vec<u8>)> {
            let one = || {
                let mut buf = vec![0; HEADER_LEN + 20 + TAG_LEN];
                let len = session.seal(&mut buf, 20).expect("it has just begun");
                let Ok(super::super::wire::Datagram::Data { counter, .. }) =
                    super::super::wire::parse(&buf[..len])
                else {
                    panic!("no data")
                };
                (counter, buf)
            };
            (0..5000).map(|_| one()).collect()
        };
        let mut sealed: Vec<(u64, Vec<u8>)> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(seal)).collect();
            threads
                .into_iter()
                .flat_map(|t| t.join().expect("no panic"))
                .collect()
        });
        let counters: HashSet<u64> = sealed.iter().map(|(counter, _)| *counter).collect();
        assert_eq!(counters.len(), 20_000);
        sealed.sort_by_key(|(counter, _)| *counter);
        assert!(
            sealed
                .iter_mut()
                .all(|(counter, datagram)| far.open(datagram, *counter).is_ok()),
            "each opens under its counter"
        );
        assert!(
            sealed
                .iter_mut()
                .all(|(counter, datagram)| far.open(datagram, *counter).is_err()),
            "and once only"
        );
    }
}
