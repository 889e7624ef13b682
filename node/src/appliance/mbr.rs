//! The master boot record of a disk with the appliance: one more partition after the ISO's two.
//!
//! An appliance ISO is a disk image too: boot code, partition 1 with the ISO itself and partition
//! 2, the EFI system partition. The third partition fills the rest of the disk and stores the
//! state. It is an MBR and not a GPT, so that the ISO's boot records stay unchanged; a GPT would
//! need a copy at the disk's end.

/// A sector, bytes.
pub const SECTOR: u64 = 512;
const TABLE: usize = 446;
const ENTRY: usize = 16;
const SIGNATURE: [u8; 2] = [0x55, 0xaa];
/// A Linux file system.
const LINUX: u8 = 0x83;
/// The alignment of partitions, sectors: 1 MiB, for flash and disks with 4-KiB sectors.
const ALIGN: u64 = 2048;
/// The least size of the partition for state, sectors: 256 MiB.
const LEAST: u64 = 256 << 11;

/// The first sector after all partitions, or `None` without a partition table.
pub fn end(mbr: &[u8; 512]) -> Option<u64> {
    let table = mbr
        .get(TABLE..TABLE + 4 * ENTRY)
        .filter(|_| mbr[510..] == SIGNATURE)?;
    let ends = table.chunks_exact(ENTRY).filter_map(|entry| {
        let number = |at: usize| {
            Some(u64::from(u32::from_le_bytes(
                entry.get(at..at + 4)?.try_into().ok()?,
            )))
        };
        (entry[4] != 0).then_some(number(8)? + number(12)?)
    });
    ends.max()
}

/// `mbr` with a third partition in the rest of a disk of `sectors`; `None` if there is no room for
/// it or it has a third one. An MBR can describe 2 TiB; the rest of a larger disk stays unused.
pub fn with_third(mbr: &[u8; 512], sectors: u64) -> Option<[u8; 512]> {
    let start = end(mbr)?.next_multiple_of(ALIGN);
    let size = sectors.min(u64::from(u32::MAX)).checked_sub(start)? / ALIGN * ALIGN;
    let at = TABLE + 2 * ENTRY;
    if size < LEAST || mbr[at..at + ENTRY].iter().any(|b| *b != 0) {
        return None;
    }
    let mut made = *mbr;
    // 0xfe 0xff 0xff means that cylinders, heads and sectors are not used.
    made[at..at + 8].copy_from_slice(&[0, 0xfe, 0xff, 0xff, LINUX, 0xfe, 0xff, 0xff]);
    made[at + 8..at + 12].copy_from_slice(&u32::try_from(start).ok()?.to_le_bytes());
    made[at + 12..at + 16].copy_from_slice(&u32::try_from(size).ok()?.to_le_bytes());
    Some(made)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As xorriso makes it: the ISO from sector 64, then the EFI partition.
    fn iso() -> [u8; 512] {
        let mut mbr = [0; 512];
        mbr[510..].copy_from_slice(&SIGNATURE);
        for (at, kind, start, size) in [
            (TABLE, 0xcd, 64u32, 314_688u32),
            (TABLE + ENTRY, 0xef, 314_752, 8192),
        ] {
            mbr[at + 4] = kind;
            mbr[at + 8..at + 12].copy_from_slice(&start.to_le_bytes());
            mbr[at + 12..at + 16].copy_from_slice(&size.to_le_bytes());
        }
        mbr
    }

    #[test]
    fn the_third_partition_is_aligned_and_fills_the_rest() {
        let sectors = 8 << 21;
        let made = with_third(&iso(), sectors).unwrap();
        let (start, end_of) = (
            made[TABLE + 40..TABLE + 44]
                .try_into()
                .map(u32::from_le_bytes)
                .unwrap(),
            end(&made).unwrap(),
        );
        assert_eq!((u64::from(start) % ALIGN, end_of), (0, sectors));
        assert!(u64::from(start) >= end(&iso()).unwrap());
        let third = TABLE + 2 * ENTRY;
        assert_eq!(made[..third], iso()[..third]);
        assert_eq!(made[third + ENTRY..], iso()[third + ENTRY..]);
        assert_eq!(with_third(&made, sectors), None, "there is one already");
    }

    #[test]
    fn too_small_disks_get_none_and_huge_ones_what_can_be_said() {
        for sectors in [0, 314_752, 323_000, 323_000 + LEAST - ALIGN] {
            assert_eq!(with_third(&iso(), sectors), None, "{sectors}");
        }
        let made = with_third(&iso(), 1 << 40).unwrap();
        assert!(end(&made).unwrap() <= u64::from(u32::MAX));
        assert_eq!(with_third(&[0; 512], 1 << 30), None, "no partition table");
    }
}
