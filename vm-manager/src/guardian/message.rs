//! What a daemon and the guardian say to each other: 64 bytes each, never more.
//!
//! A guardian lives on over upgrades of the program, so the format is fixed. A later version may
//! add kinds; a guardian answers one that it does not know with [`Refusal::Unheard`]. Descriptors
//! travel beside [`Ask::Arm`] (`SCM_RIGHTS`): the process's pidfd, then `cgroup.freeze` if there is
//! one.
//!
//! ```text
//! 0 version | 1 kind | 2..4 serial | 4..8 detail | 8..40 VM | 40..48 epoch | 48..56 | 56..64
//! ```
//! All numbers are little-endian; times are nanoseconds.

use p2pvm_overlay::{Epoch, VmId};
use std::{fmt, time::Duration};

/// How long a message is, bytes.
pub(super) const LENGTH: usize = 64;
/// The format's version.
const VERSION: u8 = 1;
/// How far away a deadline may be. Reason: no lease is longer, and a mistaken or wild daemon must
/// not be able to let a guest run for good.
pub const LONGEST: Duration = Duration::from_secs(30);

/// Why a guest was frozen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Its deadline passed.
    Deadline,
    /// The machine that this host runs in was restored from a snapshot, or copied.
    NewGeneration,
    /// Not by this guardian: the kernel stopped it when an earlier guardian ended, or someone did
    /// by hand.
    Stopped,
}

/// Why the guardian refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No deadline stands for that VM.
    Unknown,
    /// The deadline is further away than [`LONGEST`].
    TooFar,
    /// The deadline is over.
    Past,
    /// A newer epoch is held.
    Stale,
    /// Another process of the VM is held, and lives.
    Busy,
    /// It holds as many as it can.
    Full,
    /// The process has ended, or was not passed.
    NoProcess,
    /// It does not know the request.
    Unheard,
}

impl Refusal {
    const ALL: [Self; 8] = [
        Self::Unknown,
        Self::TooFar,
        Self::Past,
        Self::Stale,
        Self::Busy,
        Self::Full,
        Self::NoProcess,
        Self::Unheard,
    ];
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "no deadline stands for this VM",
            Self::TooFar => "the deadline is more than 30 s away",
            Self::Past => "the deadline is over",
            Self::Stale => "it holds a newer epoch of this VM",
            Self::Busy => "another process of this VM lives; end it first",
            Self::Full => "it holds as many VMs as it can",
            Self::NoProcess => "the guest's process has ended",
            Self::Unheard => "it is of an earlier version and does not know the request",
        })
    }
}

/// A daemon's request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    Hello,
    Arm {
        vm: VmId,
        epoch: Epoch,
        deadline: Duration,
        pid: i32,
        started: u64,
    },
    Renew {
        vm: VmId,
        epoch: Epoch,
        deadline: Duration,
    },
    Thaw {
        vm: VmId,
        epoch: Epoch,
        deadline: Duration,
    },
    Drop {
        vm: VmId,
    },
    Look {
        vm: VmId,
    },
}

/// The guardian's answer, or what it reports unasked (serial 0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// To `Hello`: what the kernel refused it ([`super::standing::Lacks`]).
    Ready {
        lacks: u32,
    },
    Armed {
        vm: VmId,
    },
    Frozen {
        vm: VmId,
    },
    Dropped {
        vm: VmId,
    },
    Refused {
        why: Refusal,
    },
    /// Unasked: a guest was frozen.
    Froze {
        vm: VmId,
        cause: Cause,
        woke_late: Duration,
        done: Duration,
    },
    /// Unasked: the wall clock jumped, nanoseconds.
    Jumped {
        by: i64,
    },
}

/// A message's fields as they lie in its bytes.
#[derive(Clone, Copy)]
struct Fields {
    kind: u8,
    serial: u16,
    detail: u32,
    vm: VmId,
    epoch: u64,
    first: u64,
    second: u64,
}

impl Fields {
    fn of(kind: u8) -> Self {
        Self {
            kind,
            serial: 0,
            detail: 0,
            vm: VmId([0; 32]),
            epoch: 0,
            first: 0,
            second: 0,
        }
    }

    fn about(kind: u8, vm: VmId) -> Self {
        Self {
            vm,
            ..Self::of(kind)
        }
    }

    fn until(kind: u8, vm: VmId, epoch: Epoch, deadline: Duration) -> Self {
        Self {
            epoch: epoch.0,
            first: nanoseconds(deadline),
            ..Self::about(kind, vm)
        }
    }

    fn to_bytes(self) -> [u8; LENGTH] {
        let mut bytes = [0; LENGTH];
        bytes[0] = VERSION;
        bytes[1] = self.kind;
        bytes[2..4].copy_from_slice(&self.serial.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.detail.to_le_bytes());
        bytes[8..40].copy_from_slice(&self.vm.0);
        bytes[40..48].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.first.to_le_bytes());
        bytes[56..64].copy_from_slice(&self.second.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; LENGTH] = bytes.try_into().ok()?;
        let number = |at: usize| {
            let mut wide = [0; 8];
            wide.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(wide)
        };
        let mut vm = [0; 32];
        vm.copy_from_slice(&bytes[8..40]);
        (bytes[0] == VERSION).then_some(Self {
            kind: bytes[1],
            serial: u16::from_le_bytes([bytes[2], bytes[3]]),
            detail: u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
            vm: VmId(vm),
            epoch: number(40),
            first: number(48),
            second: number(56),
        })
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl Ask {
    pub(super) fn to_bytes(self, serial: u16) -> [u8; LENGTH] {
        let fields = match self {
            Self::Hello => Fields::of(1),
            Self::Arm {
                vm,
                epoch,
                deadline,
                pid,
                started,
            } => Fields {
                detail: pid.cast_unsigned(),
                second: started,
                ..Fields::until(2, vm, epoch, deadline)
            },
            Self::Renew {
                vm,
                epoch,
                deadline,
            } => Fields::until(3, vm, epoch, deadline),
            Self::Thaw {
                vm,
                epoch,
                deadline,
            } => Fields::until(4, vm, epoch, deadline),
            Self::Drop { vm } => Fields::about(5, vm),
            Self::Look { vm } => Fields::about(6, vm),
        };
        Fields { serial, ..fields }.to_bytes()
    }

    /// The serial, and the request if its kind is known. Nothing of another length or version.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<(u16, Option<Self>)> {
        let fields = Fields::from_bytes(bytes)?;
        let (vm, epoch) = (fields.vm, Epoch(fields.epoch));
        let deadline = Duration::from_nanos(fields.first);
        let ask = match fields.kind {
            1 => Some(Self::Hello),
            2 => Some(Self::Arm {
                vm,
                epoch,
                deadline,
                pid: fields.detail.cast_signed(),
                started: fields.second,
            }),
            3 => Some(Self::Renew {
                vm,
                epoch,
                deadline,
            }),
            4 => Some(Self::Thaw {
                vm,
                epoch,
                deadline,
            }),
            5 => Some(Self::Drop { vm }),
            6 => Some(Self::Look { vm }),
            _ => None,
        };
        Some((fields.serial, ask))
    }
}

impl Reply {
    pub(super) fn to_bytes(self, serial: u16) -> [u8; LENGTH] {
        let fields = match self {
            Self::Ready { lacks } => Fields {
                detail: lacks,
                ..Fields::of(129)
            },
            Self::Armed { vm } => Fields::about(130, vm),
            Self::Frozen { vm } => Fields::about(131, vm),
            Self::Dropped { vm } => Fields::about(132, vm),
            Self::Refused { why } => Fields {
                detail: Refusal::ALL.iter().position(|r| *r == why).unwrap_or(0) as u32,
                ..Fields::of(133)
            },
            Self::Froze {
                vm,
                cause,
                woke_late,
                done,
            } => Fields {
                detail: match cause {
                    Cause::Deadline => 0,
                    Cause::NewGeneration => 1,
                    Cause::Stopped => 2,
                },
                first: nanoseconds(woke_late),
                second: nanoseconds(done),
                ..Fields::about(140, vm)
            },
            Self::Jumped { by } => Fields {
                first: by.cast_unsigned(),
                ..Fields::of(141)
            },
        };
        Fields { serial, ..fields }.to_bytes()
    }

    /// The serial of the request that it answers, and the answer. Nothing that is not understood.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<(u16, Self)> {
        let fields = Fields::from_bytes(bytes)?;
        let vm = fields.vm;
        let reply = match fields.kind {
            129 => Self::Ready {
                lacks: fields.detail,
            },
            130 => Self::Armed { vm },
            131 => Self::Frozen { vm },
            132 => Self::Dropped { vm },
            133 => Self::Refused {
                why: *Refusal::ALL.get(fields.detail as usize)?,
            },
            140 => Self::Froze {
                vm,
                cause: match fields.detail {
                    0 => Cause::Deadline,
                    1 => Cause::NewGeneration,
                    2 => Cause::Stopped,
                    _ => return None,
                },
                woke_late: Duration::from_nanos(fields.first),
                done: Duration::from_nanos(fields.second),
            },
            141 => Self::Jumped {
                by: fields.first.cast_signed(),
            },
            _ => return None,
        };
        Some((fields.serial, reply))
    }
}

/// Reads anything as either side does (for fuzzing).
#[cfg(fuzzing)]
pub fn parse(bytes: &[u8]) {
    if let Some((serial, Some(ask))) = Ask::from_bytes(bytes) {
        assert_eq!(
            Ask::from_bytes(&ask.to_bytes(serial)),
            Some((serial, Some(ask)))
        );
    }
    if let Some((serial, reply)) = Reply::from_bytes(bytes) {
        assert_eq!(
            Reply::from_bytes(&reply.to_bytes(serial)),
            Some((serial, reply))
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const VM: VmId = VmId([7; 32]);

    #[test]
    fn the_bytes_of_a_message_stay_what_they_are() {
        let arm = Ask::Arm {
            vm: VM,
            epoch: Epoch(3),
            deadline: Duration::from_nanos(0x0102_0304),
            pid: 0x0506,
            started: 9,
        };
        let bytes = arm.to_bytes(0x0a0b);
        assert_eq!(bytes[..8], [1, 2, 0x0b, 0x0a, 6, 5, 0, 0]);
        assert_eq!(bytes[8..40], [7; 32]);
        let rest = [
            3, 0, 0, 0, 0, 0, 0, 0, 4, 3, 2, 1, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0,
        ];
        assert_eq!(bytes[40..], rest);
        let refused = Reply::Refused {
            why: Refusal::Unheard,
        };
        assert_eq!(refused.to_bytes(1)[..8], [1, 133, 1, 0, 7, 0, 0, 0]);
        let froze = Reply::Froze {
            vm: VM,
            cause: Cause::NewGeneration,
            woke_late: Duration::from_nanos(2),
            done: Duration::from_nanos(3),
        };
        assert_eq!(froze.to_bytes(0)[..8], [1, 140, 0, 0, 1, 0, 0, 0]);
        assert_eq!(froze.to_bytes(0)[48], 2);
        assert_eq!(froze.to_bytes(0)[56], 3);
    }

    #[test]
    fn an_unknown_request_keeps_its_serial_and_other_versions_are_refused() {
        let mut bytes = Ask::Drop { vm: VM }.to_bytes(5);
        bytes[1] = 99;
        assert_eq!(Ask::from_bytes(&bytes), Some((5, None)));
        bytes[0] = 2;
        assert_eq!(Ask::from_bytes(&bytes), None);
        assert_eq!(Ask::from_bytes(&bytes[1..]), None);
    }

    proptest! {
        #[test]
        fn anything_is_read_without_a_panic_and_written_alike(
            bytes in prop::collection::vec(any::<u8>(), 0..80),
            kind in prop_oneof![1u8..7, 129u8..134, 140u8..142],
        ) {
            let mut known = bytes.clone();
            known.resize(LENGTH, 0);
            (known[0], known[1]) = (VERSION, kind);
            for bytes in [bytes, known] {
                if let Some((serial, Some(ask))) = Ask::from_bytes(&bytes) {
                    let again = Ask::from_bytes(&ask.to_bytes(serial));
                    prop_assert_eq!(again, Some((serial, Some(ask))));
                }
                if let Some((serial, reply)) = Reply::from_bytes(&bytes) {
                    let again = Reply::from_bytes(&reply.to_bytes(serial));
                    prop_assert_eq!(again, Some((serial, reply)));
                }
            }
        }
    }
}
