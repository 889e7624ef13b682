//! The messages between managers: one version byte, then postcard. Messages are small and bounded;
//! one that does not parse, or has impossible figures, is rejected as a whole.

use crate::{
    limits::{MAX_ENTRIES, MAX_MESSAGE_BYTES},
    load::LoadVector,
};
use p2pvm_overlay::VmId;
use serde::{Deserialize, Serialize};

const VERSION: u8 = 2;

/// How many milliseconds old an entry is before the message is rejected.
/// Reason: larger ages make no difference.
const MAX_AGE_MS: u32 = 3_600_000;

/// A load and its age when the message was sent: clocks of different nodes are never compared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoadReport {
    /// The load.
    pub load: LoadVector,
    /// Its age in milliseconds.
    pub age_ms: u32,
}

/// Asks a peer to take a VM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Offer {
    /// Drawn by the offering node, unique among its offers.
    pub id: u64,
    /// The VM.
    pub vm: VmId,
    /// CPUs that it is expected to keep busy.
    pub cpu: f32,
    /// Its memory, MiB.
    pub memory_mib: u64,
    /// The load of the node that offers it.
    pub source_cpu: f32,
}

/// Why a peer does not take a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OfferRefusal {
    /// Its CPUs would be too busy.
    Busy,
    /// Its memory would be too full.
    Memory,
    /// The VM would gain too little, by the peer's own load.
    LittleGain,
    /// It is taking other VMs in, or giving one away itself.
    Occupied,
    /// It is being drained or has no measurement yet.
    Unavailable,
}

/// A message between two managers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Message {
    /// Loads of the sender's view, and its own; the receiver answers with its loads.
    Shuffle(Vec<LoadReport>),
    /// The answer to a shuffle.
    ShuffleReply(Vec<LoadReport>),
    /// Asks the receiver to take a VM.
    Offer(Offer),
    /// Accepts the VM of that offer; capacity is reserved.
    Accept {
        /// The offer's id.
        id: u64,
        /// The accepting node's load with the VM.
        predicted: f32,
    },
    /// Refuses the VM of that offer.
    Reject {
        /// The offer's id.
        id: u64,
        /// Why not.
        why: OfferRefusal,
        /// The refusing node's load, which corrects the asking node's view.
        load: LoadVector,
    },
    /// The VM of that offer will not come: the reservation may go.
    Release {
        /// The offer's id.
        id: u64,
    },
}

/// Why bytes are not a message.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum WireError {
    /// Longer than [`MAX_MESSAGE_BYTES`].
    #[error("an autonomic message of {0} bytes is too long")]
    TooLong(usize),
    /// Of a version that this node does not read.
    #[error("autonomic messages of version {0} cannot be read: update the older node")]
    Version(u8),
    /// Not a message, or one with impossible figures.
    #[error("the autonomic message is malformed")]
    Malformed,
}

impl Message {
    /// The bytes to send.
    pub fn encode(&self) -> Vec<u8> {
        let bytes = vec![VERSION];
        postcard::to_extend(self, bytes).expect("plain fields always serialize into memory")
    }

    /// Reads a message.
    ///
    /// # Errors
    /// [`WireError`] with the reason.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        if bytes.len() > MAX_MESSAGE_BYTES {
            return Err(WireError::TooLong(bytes.len()));
        }
        match bytes {
            [VERSION, body @ ..] => {
                let (message, rest) =
                    postcard::take_from_bytes::<Self>(body).map_err(|_| WireError::Malformed)?;
                if rest.is_empty() && message.is_sound() {
                    Ok(message)
                } else {
                    Err(WireError::Malformed)
                }
            }
            [version, ..] => Err(WireError::Version(*version)),
            [] => Err(WireError::Malformed),
        }
    }

    fn is_sound(&self) -> bool {
        let share = |x: f32| x.is_finite() && (0.0..=1.0).contains(&x);
        match self {
            Self::Shuffle(entries) | Self::ShuffleReply(entries) => {
                entries.len() <= MAX_ENTRIES
                    && entries
                        .iter()
                        .all(|e| e.load.is_sound() && e.age_ms <= MAX_AGE_MS)
            }
            Self::Offer(offer) => {
                share(offer.source_cpu)
                    && offer.cpu.is_finite()
                    && (0.0..=65_536.0).contains(&offer.cpu)
            }
            Self::Accept { predicted, .. } => share(*predicted),
            Self::Reject { load, .. } => load.is_sound(),
            Self::Release { .. } => true,
        }
    }
}

impl std::fmt::Display for OfferRefusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Busy => "its CPUs would be too busy",
            Self::Memory => "its memory would not suffice",
            Self::LittleGain => "the gain would be too small",
            Self::Occupied => "it is moving other VMs",
            Self::Unavailable => "it takes no VMs now",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2pvm_overlay::{MemberId, coordinates::Coordinate};
    use proptest::prelude::*;

    /// The longest coordinate there is on the wire.
    fn farthest() -> Coordinate {
        postcard::from_bytes(
            &postcard::to_allocvec(&([-3_000_000i32; 3], 3_000_000u32, 1500u16)).unwrap(),
        )
        .unwrap()
    }

    fn loads() -> impl Strategy<Value = LoadVector> {
        (
            any::<[u8; 32]>(),
            any::<u64>(),
            0.0f32..=1.0,
            1u32..=256,
            any::<u64>(),
            any::<u64>(),
            any::<u32>(),
            any::<bool>(),
        )
            .prop_map(
                |(member, seq, cpu, cpus, used, total, vms, placed)| LoadVector {
                    member: MemberId(member),
                    seq,
                    cpu,
                    cpus,
                    memory_used_mib: used,
                    memory_total_mib: total,
                    vms,
                    place: placed.then(farthest),
                },
            )
    }

    fn messages() -> impl Strategy<Value = Message> {
        let entries = || {
            prop::collection::vec(
                (loads(), 0..=MAX_AGE_MS).prop_map(|(load, age_ms)| LoadReport { load, age_ms }),
                0..=MAX_ENTRIES,
            )
        };
        let refusals = prop_oneof![
            Just(OfferRefusal::Busy),
            Just(OfferRefusal::Memory),
            Just(OfferRefusal::LittleGain),
            Just(OfferRefusal::Occupied),
            Just(OfferRefusal::Unavailable)
        ];
        prop_oneof![
            entries().prop_map(Message::Shuffle),
            entries().prop_map(Message::ShuffleReply),
            (
                any::<u64>(),
                any::<[u8; 32]>(),
                0.0f32..64.0,
                any::<u64>(),
                0.0f32..=1.0
            )
                .prop_map(|(id, vm, cpu, memory_mib, source_cpu)| Message::Offer(
                    Offer {
                        id,
                        vm: VmId(vm),
                        cpu,
                        memory_mib,
                        source_cpu
                    }
                )),
            (any::<u64>(), 0.0f32..=1.0)
                .prop_map(|(id, predicted)| Message::Accept { id, predicted }),
            (any::<u64>(), refusals, loads()).prop_map(|(id, why, load)| Message::Reject {
                id,
                why,
                load
            }),
            any::<u64>().prop_map(|id| Message::Release { id }),
        ]
    }

    proptest! {
        #[test]
        fn messages_survive_the_wire_within_bounds(message in messages()) {
            let bytes = message.encode();
            prop_assert!(bytes.len() <= MAX_MESSAGE_BYTES);
            prop_assert_eq!(Message::decode(&bytes), Ok(message));
        }

        #[test]
        fn any_bytes_are_decoded_without_a_panic(mut bytes: Vec<u8>) {
            let _ = Message::decode(&bytes);
            bytes.insert(0, VERSION);
            let _ = Message::decode(&bytes);
        }
    }

    #[test]
    fn impossible_figures_and_other_versions_are_refused() {
        let load = LoadVector {
            member: MemberId([1; 32]),
            seq: 1,
            cpu: f32::NAN,
            cpus: 1,
            memory_used_mib: 0,
            memory_total_mib: 0,
            vms: 0,
            place: None,
        };
        let heard = vec![LoadReport {
            load: load.clone(),
            age_ms: 0,
        }];
        assert_eq!(
            Message::decode(&Message::Shuffle(heard).encode()),
            Err(WireError::Malformed)
        );
        let many = vec![
            LoadReport {
                load: LoadVector { cpu: 0.5, ..load },
                age_ms: 0
            };
            MAX_ENTRIES + 1
        ];
        assert!(Message::decode(&Message::Shuffle(many).encode()).is_err());
        assert_eq!(Message::decode(&[1, 5, 0]), Err(WireError::Version(1)));
        assert_eq!(Message::decode(&[]), Err(WireError::Malformed));
        assert_eq!(
            Message::decode(&[VERSION, 5, 0, 0]),
            Err(WireError::Malformed)
        );
    }
}

#[cfg(test)]
#[path = "wire_golden_tests.rs"]
mod golden_tests;
