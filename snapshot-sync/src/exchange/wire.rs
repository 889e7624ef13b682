//! The messages between members about chunks. Requests and answers: a version byte, then
//! postcard. Stream frames: kind (1 byte), length of the rest (u32, big endian), rest. Both are
//! bounded before anything is allocated, and parsing never panics.

use crate::{ChunkId, Error, ManifestId, Progress, chunk::MAX_STORED_BYTES, error::malformed};
use p2pvm_overlay::{MemberId, identity::Signature};
use serde::{Deserialize, Serialize};
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The version of requests and answers.
const VERSION: u8 = 1;

/// The domain of the VM key's signature over a release.
pub const RELEASE_DOMAIN: &str = "p2pvm release of a replica 1";

/// How many ids one request or want has at most.
pub const MAX_IDS: usize = 4096;

/// How many providers one request names at most.
pub const MAX_PROVIDERS: usize = 32;

const WANT: u8 = 1;
const CHUNK: u8 = 2;
const MISSING: u8 = 3;

/// How many bytes a frame has at most after its head.
const MAX_FRAME_BYTES: usize = if MAX_IDS * 32 > MAX_STORED_BYTES + 32 {
    MAX_IDS * 32
} else {
    MAX_STORED_BYTES + 32
};

/// A request to a member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Which of these chunks are here?
    Has(Vec<ChunkId>),
    /// Fetch and pin this; answer when it is durable, or with the progress after `wait_ms`. A
    /// repeated request continues.
    Keep {
        /// The manifest.
        manifest: ManifestId,
        /// The pin's label.
        label: String,
        /// Members that may have it, besides the caller.
        providers: Vec<MemberId>,
        /// How long to wait, milliseconds.
        wait_ms: u32,
    },
    /// Remove the caller's pin, or with a proof those of all members.
    Release {
        /// The manifest.
        manifest: ManifestId,
        /// The pin's label.
        label: String,
        /// The signature of the checkpoint's VM over [`release_message`]. It follows the rest of
        /// the message, where the first release of the program does not read.
        #[serde(skip)]
        proof: Option<Signature>,
    },
}

/// What the VM's key signs for `to` to release a replica of the VM's checkpoint.
pub fn release_message(manifest: ManifestId, label: &str, to: MemberId) -> Vec<u8> {
    postcard::to_allocvec(&(manifest, label, to)).expect("plain data always encodes")
}

/// The answer to a [`Request`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// A bit for each id asked for, lowest first.
    Has(Vec<u8>),
    /// Still fetching.
    Keeping(Progress),
    /// All of it is here, pinned and durable.
    Kept,
    /// Fetching failed; the next [`Request::Keep`] tries again.
    Failed(String),
    /// The pin is gone.
    Released,
}

/// A frame of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Send these.
    Want(Vec<ChunkId>),
    /// A chunk in its stored form. Not verified.
    Chunk(ChunkId, Vec<u8>),
    /// A chunk that was wanted is not here.
    Missing(ChunkId),
}

fn versioned(value: &impl Serialize) -> Vec<u8> {
    postcard::to_extend(value, vec![VERSION])
        .expect("plain data always encodes into a growing buffer")
}

fn parse<'a, T: Deserialize<'a>>(
    what: &'static str,
    bytes: &'a [u8],
) -> Result<(T, &'a [u8]), Error> {
    match bytes.split_first() {
        Some((&VERSION, body)) => postcard::take_from_bytes(body).map_err(|e| malformed(what, e)),
        Some((version, _)) => Err(malformed(what, format!("version {version}, not {VERSION}"))),
        None => Err(malformed(what, "it is empty")),
    }
}

impl Request {
    /// The bytes to send.
    pub fn to_bytes(&self) -> Vec<u8> {
        let bytes = versioned(self);
        match self {
            Self::Release {
                proof: Some(proof), ..
            } => postcard::to_extend(proof, bytes)
                .expect("plain data always encodes into a growing buffer"),
            _ => bytes,
        }
    }

    /// Parses a member's request.
    ///
    /// # Errors
    /// `Malformed`, also for more than [`MAX_IDS`], [`MAX_PROVIDERS`] or a label that no pin takes.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let (mut request, rest) = parse("request", bytes)?;
        if let Self::Release { proof, .. } = &mut request
            && !rest.is_empty()
        {
            *proof = Some(postcard::from_bytes(rest).map_err(|e| malformed("request", e))?);
        }
        let bounded = match &request {
            Self::Has(ids) => ids.len() <= MAX_IDS,
            Self::Keep {
                label, providers, ..
            } => label.len() <= crate::store::MAX_LABEL_BYTES && providers.len() <= MAX_PROVIDERS,
            Self::Release { label, .. } => label.len() <= crate::store::MAX_LABEL_BYTES,
        };
        if bounded {
            Ok(request)
        } else {
            Err(malformed(
                "request",
                "it has too many ids or providers, or too long a label",
            ))
        }
    }
}

impl Answer {
    /// The bytes to send.
    pub fn to_bytes(&self) -> Vec<u8> {
        versioned(self)
    }

    /// Parses a member's answer.
    ///
    /// # Errors
    /// `Malformed`.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        parse("answer", bytes).map(|(answer, _)| answer)
    }
}

impl Frame {
    /// Sends the frame.
    ///
    /// # Errors
    /// The stream's error.
    pub async fn write(&self, stream: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        let (kind, id, rest): (u8, &[ChunkId], &[u8]) = match self {
            Self::Want(ids) => (WANT, ids, &[]),
            Self::Chunk(id, stored) => (CHUNK, std::slice::from_ref(id), stored),
            Self::Missing(id) => (MISSING, std::slice::from_ref(id), &[]),
        };
        let mut head = Vec::with_capacity(5 + id.len() * 32);
        head.push(kind);
        head.extend_from_slice(&((id.len() * 32 + rest.len()) as u32).to_be_bytes());
        id.iter().for_each(|id| head.extend_from_slice(&id.0));
        stream.write_all(&head).await?;
        stream.write_all(rest).await
    }

    /// Receives a frame; `None` at the end of the stream.
    ///
    /// # Errors
    /// The stream's error; `InvalidData` if the bytes are no frame.
    pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Self>> {
        let mut head = [0; 5];
        match stream.read_exact(&mut head[..1]).await {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            other => other?,
        };
        stream.read_exact(&mut head[1..]).await?;
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        if length > MAX_FRAME_BYTES {
            return Err(invalid(format!("a frame of {length} bytes")));
        }
        let mut rest = vec![0; length];
        stream.read_exact(&mut rest).await?;
        Self::parse(head[0], rest).map(Some)
    }

    /// Parses the part after a frame's head.
    ///
    /// # Errors
    /// `InvalidData` if the bytes are no frame.
    pub fn parse(kind: u8, mut rest: Vec<u8>) -> io::Result<Self> {
        let (ids, tail) = rest.as_chunks::<32>();
        match (kind, ids, tail) {
            (WANT, ids, []) if ids.len() <= MAX_IDS => {
                Ok(Self::Want(ids.iter().copied().map(ChunkId).collect()))
            }
            (MISSING, [id], []) => Ok(Self::Missing(ChunkId(*id))),
            (CHUNK, [id, ..], _) if rest.len() - 32 <= MAX_STORED_BYTES => {
                let id = ChunkId(*id);
                rest.drain(..32);
                Ok(Self::Chunk(id, rest))
            }
            _ => Err(invalid(format!(
                "a frame of kind {kind} with {} bytes",
                rest.len()
            ))),
        }
    }
}

fn invalid(detail: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2pvm_overlay::identity::KeyPair;
    use proptest::prelude::*;

    fn ids() -> impl Strategy<Value = Vec<ChunkId>> {
        proptest::collection::vec(any::<[u8; 32]>().prop_map(ChunkId), 0..20)
    }

    fn frames() -> impl Strategy<Value = Frame> {
        prop_oneof![
            ids().prop_map(Frame::Want),
            (any::<[u8; 32]>(), any::<Vec<u8>>())
                .prop_map(|(id, stored)| Frame::Chunk(ChunkId(id), stored)),
            any::<[u8; 32]>().prop_map(|id| Frame::Missing(ChunkId(id))),
        ]
    }

    fn requests() -> impl Strategy<Value = Request> {
        let manifest = || any::<[u8; 32]>().prop_map(|id| ManifestId(ChunkId(id)));
        let members = proptest::collection::vec(any::<[u8; 32]>().prop_map(MemberId), 0..4);
        prop_oneof![
            ids().prop_map(Request::Has),
            (manifest(), ".{0,40}", members, any::<u32>()).prop_map(
                |(manifest, label, providers, wait_ms)| Request::Keep {
                    manifest,
                    label,
                    providers,
                    wait_ms
                }
            ),
            (manifest(), ".{0,40}", any::<Option<[u8; 32]>>()).prop_map(
                |(manifest, label, seed)| {
                    let sign = |seed| KeyPair::from_seed(&seed).sign(RELEASE_DOMAIN, b"any");
                    Request::Release {
                        manifest,
                        label,
                        proof: seed.map(sign),
                    }
                }
            ),
        ]
    }

    fn run<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap()
            .block_on(work)
    }

    proptest! {
        #[test]
        fn frames_survive_the_stream(sent in proptest::collection::vec(frames(), 0..5)) {
            run(async {
                let mut bytes = Vec::new();
                for frame in &sent {
                    frame.write(&mut bytes).await.unwrap();
                }
                let mut stream = &bytes[..];
                let mut received = Vec::new();
                while let Some(frame) = Frame::read(&mut stream).await.unwrap() {
                    received.push(frame);
                }
                assert_eq!(received, sent);
            });
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in any::<Vec<u8>>()) {
            run(async {
                let mut stream = &bytes[..];
                while let Ok(Some(_)) = Frame::read(&mut stream).await {}
            });
            let _ = Request::parse(&bytes);
            let _ = Answer::parse(&bytes);
        }

        #[test]
        fn requests_survive_the_wire(request in requests()) {
            prop_assert_eq!(Request::parse(&request.to_bytes()).unwrap(), request);
        }
    }

    #[test]
    fn a_request_beyond_its_bounds_is_refused() {
        assert!(
            Request::parse(&Request::Has(vec![ChunkId([0; 32]); MAX_IDS + 1]).to_bytes()).is_err()
        );
        let label = "x".repeat(crate::store::MAX_LABEL_BYTES + 1);
        assert!(
            Request::parse(
                &Request::Release {
                    manifest: ManifestId(ChunkId([0; 32])),
                    label,
                    proof: None,
                }
                .to_bytes()
            )
            .is_err()
        );
        let frame = [vec![CHUNK], u32::MAX.to_be_bytes().to_vec()].concat();
        assert!(
            run(Frame::read(&mut &frame[..])).is_err(),
            "refused before anything is allocated"
        );
    }

    #[test]
    fn the_first_release_reads_a_release_with_a_proof() {
        #[derive(Deserialize)]
        #[allow(dead_code, reason = "read for its form alone")]
        enum First {
            Has(Vec<ChunkId>),
            Keep(ManifestId, String, Vec<MemberId>, u32),
            Release { manifest: ManifestId, label: String },
        }
        let (manifest, label) = (ManifestId(ChunkId([3; 32])), "vm-snapshot".to_owned());
        let proof = Some(KeyPair::from_seed(&[1; 32]).sign(RELEASE_DOMAIN, b"any"));
        let request = Request::Release {
            manifest,
            label: label.clone(),
            proof,
        };
        let read: First = postcard::from_bytes(&request.to_bytes()[1..]).unwrap();
        assert!(matches!(read, First::Release { manifest: m, label: l }
            if (m, &l) == (manifest, &label)));
        let plain = [&[1, 2], &[3; 32][..], &[11], label.as_bytes()].concat();
        let expected = Request::Release {
            manifest,
            label,
            proof: None,
        };
        assert_eq!(Request::parse(&plain).unwrap(), expected);
    }

    #[test]
    fn another_version_is_refused() {
        let mut bytes = Answer::Kept.to_bytes();
        bytes[0] = 2;
        assert!(Answer::parse(&bytes).is_err());
    }
}

#[cfg(test)]
#[path = "wire_golden_tests.rs"]
mod golden_tests;
