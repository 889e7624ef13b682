//! The MACs of handshake messages and the cookies that prove an address under load (WireGuard paper
//! §5.3, §5.4.4, §5.4.7). mac1 shows that the sender knows the receiver's key. mac2, keyed by a
//! cookie bound to the sender's address, is required only while handshakes come faster than they
//! can be answered.

use super::{
    LinkRefusal,
    wire::{MAC_LEN, SALT_LEN},
};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

/// How long a cookie and the secret behind it live (WireGuard's COOKIE_REFRESH_TIME).
pub const COOKIE_LIFE: Duration = Duration::from_secs(120);
/// How many initiations a second are answered without a cookie. Reason: one costs two X25519, 100
/// µs or so, so that these take 2 % of a core.
pub const CALM_HANDSHAKES_PER_SECOND: u32 = 200;

/// A responder's cookie; the initiator keys mac2 with it.
pub type Cookie = [u8; MAC_LEN];

fn first_16(hash: blake3::Hash) -> [u8; MAC_LEN] {
    let bytes = hash.as_bytes();
    std::array::from_fn(|i| bytes[i])
}

fn mac1(receiver: &[u8; 32], message: &[u8]) -> [u8; MAC_LEN] {
    first_16(blake3::keyed_hash(
        &blake3::derive_key("p2pvm 2026 link mac1", receiver),
        message,
    ))
}

fn mac2(cookie: &Cookie, message: &[u8]) -> [u8; MAC_LEN] {
    first_16(blake3::keyed_hash(
        &blake3::derive_key("p2pvm 2026 link mac2", cookie),
        message,
    ))
}

fn sealing_key(receiver: &[u8; 32], salt: &[u8]) -> Option<LessSafeKey> {
    let mut material = receiver.to_vec();
    material.extend_from_slice(salt);
    UnboundKey::new(
        &CHACHA20_POLY1305,
        &blake3::derive_key("p2pvm 2026 link cookie", &material),
    )
    .ok()
    .map(LessSafeKey::new)
}

/// Fills in both MACs at the end of a handshake message for the member with public key `receiver`.
pub fn stamp(message: &mut [u8], receiver: &[u8; 32], cookie: Option<&Cookie>) {
    let at = message.len() - 2 * MAC_LEN;
    let first = mac1(receiver, &message[..at]);
    message[at..at + MAC_LEN].copy_from_slice(&first);
    let second = cookie.map_or([0; MAC_LEN], |c| mac2(c, &message[..at + MAC_LEN]));
    message[at + MAC_LEN..].copy_from_slice(&second);
}

/// mac1 of a stamped message, which a cookie reply is bound to.
pub fn mac1_of(message: &[u8]) -> Option<[u8; MAC_LEN]> {
    message
        .get(message.len().checked_sub(2 * MAC_LEN)?..message.len() - MAC_LEN)?
        .try_into()
        .ok()
}

/// Whether a message's mac1 is right for the member with public key `me`.
pub fn mac1_verifies(message: &[u8], me: &[u8; 32]) -> bool {
    // Anyone who knows the public key can make this MAC: an early-out comparison leaks no secret.
    mac1_of(message).is_some_and(|mac| mac1(me, &message[..message.len() - 2 * MAC_LEN]) == mac)
}

/// Seals a cookie as the answer to the message whose mac1 is `bound_to`.
pub(super) fn seal(
    salt: &[u8; SALT_LEN],
    cookie: &Cookie,
    responder: &[u8; 32],
    bound_to: &[u8; MAC_LEN],
) -> Option<Vec<u8>> {
    let mut sealed = cookie.to_vec();
    // The salt makes the key fresh for each reply, so that the nonce may be constant.
    sealing_key(responder, salt)?
        .seal_in_place_append_tag(
            Nonce::assume_unique_for_key([0; 12]),
            Aad::from(bound_to),
            &mut sealed,
        )
        .ok()?;
    Some(sealed)
}

/// Opens a cookie reply that answers the message whose mac1 is `bound_to`.
pub fn open(
    salt: &[u8],
    sealed: &[u8],
    responder: &[u8; 32],
    bound_to: &[u8; MAC_LEN],
) -> Result<Cookie, LinkRefusal> {
    let key = sealing_key(responder, salt).ok_or(LinkRefusal::Malformed)?;
    let mut bytes = sealed.to_vec();
    let plain = key
        .open_in_place(
            Nonce::assume_unique_for_key([0; 12]),
            Aad::from(bound_to),
            &mut bytes,
        )
        .map_err(|_| LinkRefusal::Forged)?;
    Cookie::try_from(&*plain).map_err(|_| LinkRefusal::Malformed)
}

/// The responder's side: counts handshakes, makes and checks cookies.
pub struct Doorman {
    secret: [u8; 32],
    secret_since: Instant,
    second: Instant,
    in_second: u32,
}

impl Doorman {
    /// A doorman with a fresh secret.
    pub fn new(now: Instant) -> Self {
        Self {
            secret: rand::random(),
            secret_since: now,
            second: now,
            in_second: 0,
        }
    }

    /// Counts an initiation; true while they come too fast to answer those without a cookie.
    pub fn overloaded(&mut self, now: Instant) -> bool {
        if now.saturating_duration_since(self.second) >= Duration::from_secs(1) {
            (self.second, self.in_second) = (now, 0);
        }
        self.in_second = self.in_second.saturating_add(1);
        self.in_second > CALM_HANDSHAKES_PER_SECOND
    }

    fn cookie_for(&mut self, now: Instant, from: SocketAddr) -> Cookie {
        if now.saturating_duration_since(self.secret_since) >= COOKIE_LIFE {
            (self.secret, self.secret_since) = (rand::random(), now);
        }
        first_16(blake3::keyed_hash(
            &self.secret,
            from.to_string().as_bytes(),
        ))
    }

    /// Whether the message's mac2 proves that its sender receives at `from`.
    pub fn proves_address(&mut self, now: Instant, message: &[u8], from: SocketAddr) -> bool {
        let cookie = self.cookie_for(now, from);
        let Some(at) = message.len().checked_sub(MAC_LEN) else {
            return false;
        };
        mac2(&cookie, &message[..at]) == message[at..]
    }

    /// A salt and the sealed cookie for the sender of `message`.
    pub fn reply(
        &mut self,
        now: Instant,
        message: &[u8],
        from: SocketAddr,
        me: &[u8; 32],
    ) -> Option<([u8; SALT_LEN], Vec<u8>)> {
        let salt: [u8; SALT_LEN] = rand::random();
        let cookie = self.cookie_for(now, from);
        let sealed = seal(&salt, &cookie, me, &mac1_of(message)?)?;
        Some((salt, sealed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_proves_one_address_and_no_other() {
        let (now, me) = (Instant::now(), [3; 32]);
        let (here, there): (SocketAddr, SocketAddr) = (
            "192.0.2.1:7".parse().unwrap(),
            "192.0.2.2:7".parse().unwrap(),
        );
        let mut doorman = Doorman::new(now);
        let mut message = vec![9; 100];
        stamp(&mut message, &me, None);
        assert!(mac1_verifies(&message, &me) && !mac1_verifies(&message, &[4; 32]));
        assert!(!doorman.proves_address(now, &message, here));
        let (salt, sealed) = doorman.reply(now, &message, here, &me).unwrap();
        let cookie = open(&salt, &sealed, &me, &mac1_of(&message).unwrap()).unwrap();
        stamp(&mut message, &me, Some(&cookie));
        assert!(doorman.proves_address(now, &message, here));
        assert!(!doorman.proves_address(now, &message, there));
        assert!(!doorman.proves_address(now + COOKIE_LIFE, &message, here));
    }

    #[test]
    fn a_flood_within_a_second_is_noticed_and_forgotten() {
        let now = Instant::now();
        let mut doorman = Doorman::new(now);
        assert!((0..CALM_HANDSHAKES_PER_SECOND).all(|_| !doorman.overloaded(now)));
        assert!(doorman.overloaded(now));
        assert!(!doorman.overloaded(now + Duration::from_secs(1)));
    }
}
