//! The messages on the control plane's streams, and their framing: a length in four bytes, big
//! endian, then postcard. Every read is bounded before it allocates.

use super::admit::SignedAdmit;
use crate::{
    id::{MemberId, UnixTime},
    identity::{Identity, KeyPair, LinkKey, Signature, verify},
    membership::{Certificate, Invite, Refusal, Revocation, Trust},
};
use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::io;

/// The only protocol served before membership is proved.
pub const MEMBER_PROTOCOL: &str = "/p2pvm/member/1";
/// The same, with [`Hello::AdmitSigned`] besides.
pub const MEMBER_PROTOCOL_SIGNED: &str = "/p2pvm/member/2";
/// Requests and streams between proved members.
pub const STREAM_PROTOCOL: &str = "/p2pvm/stream/1";
/// The service by which members exchange contacts and revocations.
pub const GOSSIP_SERVICE: &str = "~gossip";
/// The service by which a member that cannot admit passes a request on to one that can.
pub const ADMIT_SERVICE: &str = "~admit";
/// As [`ADMIT_SERVICE`], for a request that its joiner signed.
pub const ADMIT_SIGNED_SERVICE: &str = "~admit2";
/// The service that tells which revocations a member knows, by a digest of those of another. The
/// first release does not offer it.
pub const REVOCATIONS_SERVICE: &str = "~revoked";
/// The service that names the members nearest to a place that a member knows, with the `seq` of
/// their contacts. Reason: that takes a tenth of the contacts themselves, most of which the asker
/// has.
pub const NEAREST_SERVICE: &str = "~nearest";
/// The service that sends the contacts of up to [`crate::lookup::NAMED`] members.
pub const CONTACTS_SERVICE: &str = "~contacts";
/// The service that asks whether the other end does not need the connection either; if it agrees it
/// opens nothing more on it.
pub const PART_SERVICE: &str = "~part";
/// The service that returns an empty answer: a probe of connections without a keepalive of their
/// own.
pub const PROBE_SERVICE: &str = "~probe";

/// How many bytes a stranger may send: an invite with a delegate's certificate and 16 addresses
/// fits many times.
pub const MAX_HELLO_BYTES: usize = 32 << 10;
/// How many bytes a member may answer: the contacts and revocations of a large network.
pub const MAX_REPLY_BYTES: usize = 1 << 20;
/// How many addresses of one member are kept.
pub const MAX_ADDRESSES: usize = 24;
const MAX_ADDRESS_BYTES: usize = 256;
/// How many contacts a message has at most. Reason: more than a full mesh has members, so that a
/// newcomer learns that the network is larger.
pub const MAX_CONTACTS: usize = 64;

const CONTACT_DOMAIN: &str = "p2pvm contact 1";

/// A member's signed statement of its addresses, with its certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contact {
    pub certificate: Certificate,
    /// Multiaddresses without the trailing `/p2p/`, circuits among them.
    pub addresses: Vec<String>,
    /// Whether others have dialled it from outside: it can relay.
    pub public: bool,
    /// When it was signed, in milliseconds since 1970; the newest one counts.
    pub seq: u64,
    signature: Signature,
}

impl Contact {
    /// Signs this node's contact.
    pub fn sign(
        identity: &Identity,
        certificate: Certificate,
        addresses: Vec<String>,
        public: bool,
        seq: u64,
    ) -> Self {
        let signature = identity.sign(CONTACT_DOMAIN, &Self::signed(&addresses, public, seq));
        Self {
            certificate,
            addresses,
            public,
            seq,
            signature,
        }
    }

    /// A contact without addresses and signature, which only this node accepts: it stands for a
    /// member just admitted until its own arrives.
    pub fn unsigned(certificate: Certificate) -> Self {
        let signature = KeyPair::from_seed(&[0; 32]).sign(CONTACT_DOMAIN, &[]);
        Self {
            certificate,
            addresses: Vec::new(),
            public: false,
            seq: 0,
            signature,
        }
    }

    fn signed(addresses: &[String], public: bool, seq: u64) -> Vec<u8> {
        postcard::to_stdvec(&(addresses, public, seq)).unwrap_or_default()
    }

    /// Whether it says that its member has left: signed, and without addresses. Previous releases
    /// read it as that of a member that cannot be dialled.
    pub fn is_farewell(&self) -> bool {
        self.seq > 0 && self.addresses.is_empty()
    }

    pub fn member(&self) -> MemberId {
        self.certificate.member()
    }

    /// Whether a member of the network signed it.
    ///
    /// # Errors
    /// As [`Trust::verify`], or [`Refusal::Tampered`].
    pub fn verify(&self, trust: &Trust) -> Result<(), Refusal> {
        if self.addresses.len() > MAX_ADDRESSES
            || self.addresses.iter().any(|a| a.len() > MAX_ADDRESS_BYTES)
        {
            return Err(Refusal::Tampered);
        }
        trust.verify(&self.certificate)?;
        let signed = Self::signed(&self.addresses, self.public, self.seq);
        verify(&self.member().0, CONTACT_DOMAIN, &signed, &self.signature)
            .then_some(())
            .ok_or(Refusal::Tampered)
    }
}

/// A request to become a member. The connection proves the sender.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AdmitRequest {
    pub invite: Invite,
    pub name: String,
    pub link_key: LinkKey,
}

/// A member's introduction of itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Presentation {
    pub contact: Contact,
    /// [`Trust::digest`]: the revocations are exchanged if the digests differ.
    pub revocations: [u8; 32],
    /// The digest of the known contacts.
    pub contacts: [u8; 32],
    /// How many contacts are known: a member with few contacts is sent more.
    pub known: u32,
}

/// The dialler's first message.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Hello {
    /// "I am a member."
    Prove(Box<Presentation>),
    /// "I want to become one."
    Admit(Box<AdmitRequest>),
    /// The same, signed: by [`MEMBER_PROTOCOL_SIGNED`] only.
    AdmitSigned(Box<SignedAdmit>),
}

/// The listener's answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Reply {
    /// "So am I." The dialler confirms with one byte once it has checked that.
    Welcome(Box<Presentation>),
    /// "Now you are one": everything that a new member needs.
    Admitted {
        certificate: Box<Certificate>,
        presentation: Box<Presentation>,
        revocations: Vec<Revocation>,
        contacts: Vec<Contact>,
    },
    /// "No", with the revocations that are the reason, if there are any.
    Refused {
        refusal: Refusal,
        proof: Vec<Revocation>,
    },
}

/// The frame after a [`Reply::Refused`]. Previous releases neither send nor read it.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct ByClock {
    /// Its time, milliseconds since 1970: a refusal because of time may come from a wrong clock.
    pub unix_ms: u64,
}

/// How many bytes a [`ByClock`] has at most. Reason: later versions may append to it.
pub const MAX_BY_CLOCK_BYTES: usize = 256;

impl ByClock {
    /// This machine's time.
    pub fn now() -> Self {
        Self {
            unix_ms: UnixTime::wall().0.saturating_mul(1000),
        }
    }

    /// Parses one; bytes that a later version appended are ignored.
    pub fn read(body: &[u8]) -> Option<UnixTime> {
        let (told, _later): (Self, _) = postcard::take_from_bytes(body).ok()?;
        Some(UnixTime(told.unix_ms / 1000))
    }
}

/// Gossip: statements that spread from member to member.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Gossip {
    pub contacts: Vec<Contact>,
    pub revocations: Vec<Revocation>,
}

/// How many bytes of contacts and revocations a message takes. Reason: a message is bounded
/// ([`crate::fabric::MAX_BODY_BYTES`]), and so is the answer to a joiner, which has contacts too.
const PAGE_BYTES: usize = 256 << 10;

impl Gossip {
    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        self.contacts.is_empty() && self.revocations.is_empty()
    }

    /// The same in messages of bounded length: in one, unless there is very much.
    pub fn pages(self) -> Vec<Self> {
        let (mut pages, mut page, mut used) = (Vec::new(), Self::default(), 0);
        let mut turn = |page: &mut Self, length: usize| {
            if used + length > PAGE_BYTES && !page.is_empty() {
                pages.push(std::mem::take(page));
                used = 0;
            }
            used += length;
        };
        for revocation in self.revocations {
            turn(&mut page, length(&revocation));
            page.revocations.push(revocation);
        }
        for contact in self.contacts {
            turn(&mut page, length(&contact));
            page.contacts.push(contact);
        }
        if !page.is_empty() {
            pages.push(page);
        }
        pages
    }
}

fn length(value: &impl Serialize) -> usize {
    postcard::to_stdvec(value).map_or(0, |bytes| bytes.len())
}

/// How a stream's opener is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    Ok = 0,
    Refused = 1,
    NoSuchService = 2,
}

impl Status {
    pub fn from_byte(byte: u8) -> io::Result<Self> {
        match byte {
            0 => Ok(Self::Ok),
            1 => Ok(Self::Refused),
            2 => Ok(Self::NoSuchService),
            _ => Err(invalid("unknown status")),
        }
    }
}

pub fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Reads a stream's header: its kind, and the name of a service.
pub async fn read_header(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<(u8, String)> {
    let mut start = [0; 2];
    stream.read_exact(&mut start).await?;
    let mut name = vec![0; usize::from(start[1])];
    stream.read_exact(&mut name).await?;
    String::from_utf8(name)
        .map(|name| (start[0], name))
        .map_err(|_| invalid("a service's name is no text"))
}

/// Writes `body` after its length and flushes.
pub async fn write_bytes(stream: &mut (impl AsyncWrite + Unpin), body: &[u8]) -> io::Result<()> {
    let length = u32::try_from(body.len()).map_err(|_| invalid("too long for a frame"))?;
    stream.write_all(&length.to_be_bytes()).await?;
    stream.write_all(body).await?;
    stream.flush().await
}

/// Reads a body from [`write_bytes`], of `max` bytes at most.
pub async fn read_bytes(stream: &mut (impl AsyncRead + Unpin), max: usize) -> io::Result<Vec<u8>> {
    let length = read_length(stream, max).await?;
    read_body(stream, length).await
}

/// Reads the length in front of a body of `max` bytes at most.
pub async fn read_length(stream: &mut (impl AsyncRead + Unpin), max: usize) -> io::Result<usize> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).await?;
    let length = u32::from_be_bytes(length) as usize;
    if length > max {
        return Err(invalid("a frame is longer than allowed"));
    }
    Ok(length)
}

/// Reads a body whose length is known.
pub async fn read_body(
    stream: &mut (impl AsyncRead + Unpin),
    length: usize,
) -> io::Result<Vec<u8>> {
    // Grows with the bytes that arrive, so that a claimed length alone costs no memory.
    let mut body = Vec::with_capacity(length.min(64 << 10));
    stream.take(length as u64).read_to_end(&mut body).await?;
    if body.len() == length {
        Ok(body)
    } else {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

/// Writes a value as one frame.
pub async fn write_value(
    stream: &mut (impl AsyncWrite + Unpin),
    value: &impl Serialize,
) -> io::Result<()> {
    let body = postcard::to_stdvec(value).map_err(|_| invalid("not encodable"))?;
    write_bytes(stream, &body).await
}

/// Reads a value from one frame of `max` bytes at most.
pub async fn read_value<T: DeserializeOwned>(
    stream: &mut (impl AsyncRead + Unpin),
    max: usize,
) -> io::Result<T> {
    let body = read_bytes(stream, max).await?;
    decode(&body)
}

/// Decodes a whole value, with nothing left over.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> io::Result<T> {
    match postcard::take_from_bytes(body) {
        Ok((value, [])) => Ok(value),
        _ => Err(invalid("not decodable")),
    }
}

#[cfg(test)]
#[path = "wire_golden_tests.rs"]
mod golden_tests;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        id::NetworkId,
        membership::{Issuer, Target},
    };
    use futures::io::Cursor;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_frame_survives_and_a_foreign_one_never_panics(
            body in proptest::collection::vec(any::<u8>(), 0..300)
        ) {
            futures::executor::block_on(async {
                let mut wire = Cursor::new(Vec::new());
                write_bytes(&mut wire, &body).await.unwrap();
                wire.set_position(0);
                assert_eq!(read_bytes(&mut wire, 300).await.unwrap(), body);
                let _ = read_value::<Hello>(&mut Cursor::new(&body), MAX_HELLO_BYTES).await;
                let _ = decode::<Hello>(&body);
                let _ = decode::<Reply>(&body);
                let _ = decode::<Gossip>(&body);
            });
        }
    }

    #[test]
    fn however_many_revocations_there_are_each_message_is_bounded() {
        let root = KeyPair::from_seed(&[1; 32]);
        let (network, issuer) = (NetworkId(root.public()), Issuer::root(&root));
        let revocations: Vec<_> = (0..20_000u32)
            .map(|n| {
                let mut id = [0; 32];
                id[..4].copy_from_slice(&n.to_be_bytes());
                let target = Target::Member(MemberId(id));
                Revocation::issue(&issuer, network, target, UnixTime(1))
            })
            .collect();
        let gossip = |revocations: &[Revocation]| Gossip {
            contacts: Vec::new(),
            revocations: revocations.to_vec(),
        };
        assert_eq!(gossip(&revocations[..9]).pages().len(), 1);
        assert!(gossip(&[]).pages().is_empty());
        let pages = gossip(&revocations).pages();
        assert!(length(&gossip(&revocations)) > crate::fabric::MAX_BODY_BYTES && pages.len() > 8);
        // With the contacts that an answer to a joiner has besides.
        assert!(pages.iter().all(|page| length(page) < MAX_REPLY_BYTES / 3));
        let told: Vec<_> = pages
            .into_iter()
            .flat_map(|page| page.revocations)
            .collect();
        assert_eq!(told, revocations);
    }

    #[test]
    fn the_time_behind_a_refusal_is_read_also_when_more_follows_it() {
        let mut body = postcard::to_stdvec(&ByClock {
            unix_ms: 1_800_000_000_500,
        })
        .unwrap();
        body.extend([7; 9]);
        assert_eq!(ByClock::read(&body), Some(UnixTime(1_800_000_000)));
        assert_eq!(ByClock::read(&[]), None);
    }

    #[test]
    fn a_frame_longer_than_allowed_or_cut_short_is_an_error() {
        futures::executor::block_on(async {
            assert!(
                read_bytes(&mut Cursor::new([0, 0, 0, 9, 1, 2]), 8)
                    .await
                    .is_err()
            );
            assert!(
                read_bytes(&mut Cursor::new([0, 0, 0, 3, 1, 2]), 8)
                    .await
                    .is_err()
            );
        });
    }
}
