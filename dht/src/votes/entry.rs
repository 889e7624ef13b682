//! An entry of a voter's log, and its bytes: 128 a copy, the last four a CRC that also covers the
//! entry's place. Bytes 113 to 123 were zeros in the first release, which reads past them. The top
//! bit of the day says that the VM is protected; a release that does not know it reads a day far
//! ahead, and so never forgets the promise.

use super::wire::Promise;
use p2pvm_overlay::{Epoch, MemberId, UnixTime, VmId};

pub(super) const COPY_BYTES: usize = 128;
const MAGIC: &[u8; 8] = b"p2pvmvl1";
const SECONDS_A_DAY: u64 = 24 * 3600;

/// How many days a deleted VM's promise is remembered.
/// Reason: as long as the VM's records may live without their holder.
const REMEMBERED_DAYS: u32 = 30;

/// The bit of the log's day that says that the VM is protected.
const PROTECTED: u32 = 1 << 23;
/// The last day that the log can name.
const LAST_DAY: u32 = PROTECTED - 1;

/// Days since 1970-01-01, 23 bits in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Day(u32);

impl Day {
    /// The day of a time, at most the last one that fits.
    pub(crate) fn of(time: UnixTime) -> Self {
        Self(u32::try_from(time.0 / SECONDS_A_DAY).map_or(LAST_DAY, |day| day.min(LAST_DAY)))
    }
}

/// The member that a VM is counted for: eight bytes of its id's hash. Entries of the first release
/// have zeros here, and count for no member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Bringer([u8; 8]);

impl Bringer {
    pub(crate) fn of(member: &MemberId) -> Self {
        let hash = blake3::derive_key("p2pvm 2026 member that brought a VM", &member.0);
        Self(*hash.first_chunk().expect("8 bytes of 32"))
    }
}

/// A voter's newest promise for one VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LogEntry {
    /// What was promised.
    pub promise: Promise,
    /// Whether the promise's holder has confirmed an older epoch, and no other member was promised
    /// one since.
    pub was_confirmed: bool,
    /// The hash of the voter set that the first request named.
    pub voters: [u8; 32],
    /// The member whose request was the first.
    pub by: Bringer,
    /// When the holder said that it deleted the VM.
    pub deleted: Option<Day>,
    /// Whether the VM is protected: its epochs then follow the rule of leases.
    pub is_protected: bool,
}

impl LogEntry {
    /// Whether the VM was deleted so long ago that the entry may be forgotten.
    pub(crate) fn is_over(&self, today: Day) -> bool {
        self.deleted
            .is_some_and(|day| today.0 > day.0.saturating_add(REMEMBERED_DAYS))
    }
}

pub(super) fn encode(place: usize, vm: VmId, entry: &LogEntry) -> [u8; COPY_BYTES] {
    let mut copy = [0; COPY_BYTES];
    copy[..8].copy_from_slice(MAGIC);
    copy[8..40].copy_from_slice(&vm.0);
    copy[40..48].copy_from_slice(&entry.promise.epoch.0.to_be_bytes());
    copy[48..80].copy_from_slice(&entry.promise.holder.0);
    // The first release reads 2 as "not confirmed".
    copy[80] = match (entry.promise.confirmed, entry.was_confirmed) {
        (true, _) => 1,
        (false, true) => 2,
        (false, false) => 0,
    };
    copy[81..113].copy_from_slice(&entry.voters);
    copy[113..121].copy_from_slice(&entry.by.0);
    let flag = if entry.is_protected { PROTECTED } else { 0 };
    let day = entry.deleted.map_or(0, |day| day.0) | flag;
    copy[121..124].copy_from_slice(&day.to_be_bytes()[1..]);
    let crc = crc_at(place, &copy);
    copy[COPY_BYTES - 4..].copy_from_slice(&crc.to_be_bytes());
    copy
}

fn crc_at(place: usize, copy: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&(place as u64).to_be_bytes());
    crc.update(&copy[..COPY_BYTES - 4]);
    crc.finalize()
}

pub(super) fn decode(place: usize, copy: &[u8]) -> Option<(VmId, LogEntry)> {
    let copy: &[u8; COPY_BYTES] = copy.try_into().ok()?;
    let bytes32 = |at: usize| copy[at..at + 32].try_into().expect("32 bytes of 128");
    let good =
        copy.starts_with(MAGIC) && copy[COPY_BYTES - 4..] == crc_at(place, copy).to_be_bytes();
    let bytes8 = |at: usize| copy[at..at + 8].try_into().expect("8 bytes of 128");
    let field = u32::from_be_bytes([0, copy[121], copy[122], copy[123]]);
    let day = field & LAST_DAY;
    good.then(|| {
        let promise = Promise {
            epoch: Epoch(u64::from_be_bytes(bytes8(40))),
            holder: MemberId(bytes32(48)),
            confirmed: copy[80] == 1,
        };
        let entry = LogEntry {
            promise,
            was_confirmed: copy[80] == 2,
            voters: bytes32(81),
            by: Bringer(bytes8(113)),
            deleted: (day > 0).then_some(Day(day)),
            is_protected: field & PROTECTED != 0,
        };
        (VmId(bytes32(8)), entry)
    })
}
