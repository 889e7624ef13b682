//! Finds one file in an ISO 9660 file system (ECMA-119), as far as `customize` needs it: the volume
//! name, and directories by their plain names.
//!
//! It does not read Rock Ridge and Joliet, because the names that it looks for are the same in all.

use std::io::{self, Read, Seek, SeekFrom};

/// A logical sector, bytes (ECMA-119 §6.1.2).
const SECTOR: u64 = 2048;
/// The sector of the primary volume descriptor (§6.2.1).
const PRIMARY: u64 = 16;
/// The largest directory that is read, bytes. Reason: the appliance's are smaller.
const MAX_DIRECTORY: u32 = 1 << 20;
/// The flag of a directory among a record's flags (§9.1.6).
const IS_DIRECTORY: u8 = 2;

/// A file's bytes in the ISO.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The offset of the first byte.
    pub offset: u64,
    /// The number of bytes.
    pub bytes: u32,
}

/// The volume's name, and the extent of the file at `path` (upper-case names from the root on).
/// `None` if this is not an ISO 9660 file system or does not contain the file.
///
/// # Errors
/// The error of reading. A truncated ISO is not an error; it does not contain the file.
pub fn find(iso: &mut (impl Read + Seek), path: &[&str]) -> io::Result<Option<(String, Extent)>> {
    match search(iso, path) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        other => other,
    }
}

fn search(iso: &mut (impl Read + Seek), path: &[&str]) -> io::Result<Option<(String, Extent)>> {
    let descriptor = read(iso, PRIMARY * SECTOR, SECTOR as usize)?;
    if descriptor.get(..7) != Some(b"\x01CD001\x01") {
        return Ok(None);
    }
    let volume = String::from_utf8_lossy(descriptor.get(40..72).unwrap_or_default())
        .trim_end()
        .to_owned();
    let Some((mut here, _)) = descriptor.get(156..190).and_then(record) else {
        return Ok(None);
    };
    for (depth, name) in path.iter().enumerate() {
        if here.bytes > MAX_DIRECTORY {
            return Ok(None);
        }
        let directory = read(iso, here.offset, here.bytes as usize)?;
        let wants_directory = depth + 1 < path.len();
        match entry(&directory, name, wants_directory) {
            Some(found) => here = found,
            None => return Ok(None),
        }
    }
    Ok(Some((volume, here)))
}

fn read(iso: &mut (impl Read + Seek), offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
    iso.seek(SeekFrom::Start(offset))?;
    let mut buffer = vec![0; bytes];
    iso.read_exact(&mut buffer)?;
    Ok(buffer)
}

/// A directory record's extent and flags (§9.1).
fn record(bytes: &[u8]) -> Option<(Extent, u8)> {
    let sector = u32::from_le_bytes(bytes.get(2..6)?.try_into().ok()?);
    let size = u32::from_le_bytes(bytes.get(10..14)?.try_into().ok()?);
    Some((
        Extent {
            offset: u64::from(sector) * SECTOR,
            bytes: size,
        },
        *bytes.get(25)?,
    ))
}

/// The record named `name`, without a version number (";1"). No record crosses sectors (§6.8.1.1).
fn entry(directory: &[u8], name: &str, wants_directory: bool) -> Option<Extent> {
    for sector in directory.chunks(SECTOR as usize) {
        let mut rest = sector;
        while let Some(length) = rest
            .first()
            .copied()
            .map(usize::from)
            .filter(|length| *length > 33)
        {
            let bytes = rest.get(..length)?;
            let named = bytes.get(33..33 + usize::from(bytes[32]))?;
            let plain = named.split(|b| *b == b';').next()?;
            let plain = plain.strip_suffix(b".").unwrap_or(plain);
            let (extent, flags) = record(bytes)?;
            if plain.eq_ignore_ascii_case(name.as_bytes())
                && (flags & IS_DIRECTORY != 0) == wants_directory
            {
                return Some(extent);
            }
            rest = &rest[length..];
        }
    }
    None
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use std::io::Cursor;

    fn directory_record(name: &[u8], sector: u32, bytes: u32, flags: u8) -> Vec<u8> {
        let mut record = vec![0; 33];
        record[2..6].copy_from_slice(&sector.to_le_bytes());
        record[10..14].copy_from_slice(&bytes.to_le_bytes());
        record[25] = flags;
        record[32] = name.len() as u8;
        record.extend_from_slice(name);
        if record.len() % 2 == 1 {
            record.push(0);
        }
        record[0] = record.len() as u8;
        record
    }

    /// The smallest ISO with one file `DIR/NAME` in it: root in sector 18, the directory in 19, the
    /// file from 20 on.
    pub fn iso_with(volume: &str, dir: &str, name: &str, content: &[u8]) -> Vec<u8> {
        let mut iso = vec![0; 20 * SECTOR as usize];
        let at = |sector: u64| (sector * SECTOR) as usize;
        iso[at(16)..at(16) + 7].copy_from_slice(b"\x01CD001\x01");
        iso[at(16) + 40..at(16) + 72].fill(b' ');
        iso[at(16) + 40..at(16) + 40 + volume.len()].copy_from_slice(volume.as_bytes());
        let root = directory_record(b"\0", 18, SECTOR as u32, IS_DIRECTORY);
        iso[at(16) + 156..at(16) + 156 + root.len()].copy_from_slice(&root);
        let records = [
            root,
            directory_record(b"\x01", 18, SECTOR as u32, 2),
            directory_record(dir.as_bytes(), 19, SECTOR as u32, 2),
        ]
        .concat();
        iso[at(18)..at(18) + records.len()].copy_from_slice(&records);
        let file = directory_record(format!("{name}.;1").as_bytes(), 20, content.len() as u32, 0);
        iso[at(19)..at(19) + file.len()].copy_from_slice(&file);
        iso.extend_from_slice(content);
        iso
    }

    #[test]
    fn a_file_is_found_by_its_path_and_only_as_a_file() {
        let iso = iso_with("P2PVM-LIVE", "P2PVM", "INVITE", b"content");
        let found = |path: &[&str]| find(&mut Cursor::new(&iso), path).unwrap();
        let extent = Extent {
            offset: 20 * SECTOR,
            bytes: 7,
        };
        assert_eq!(
            found(&["P2PVM", "INVITE"]),
            Some(("P2PVM-LIVE".to_owned(), extent))
        );
        assert_eq!(found(&["P2PVM"]), None);
        assert_eq!(found(&["P2PVM", "OTHER"]), None);
        assert_eq!(found(&["OTHER", "INVITE"]), None);
    }

    #[test]
    fn no_damage_makes_it_panic_or_read_without_end() {
        let iso = iso_with("P2PVM-LIVE", "P2PVM", "INVITE", b"content");
        for length in (0..iso.len()).step_by(97) {
            let _ = find(&mut Cursor::new(&iso[..length]), &["P2PVM", "INVITE"]).unwrap();
        }
        for at in (16 * SECTOR as usize..iso.len()).filter(|at| iso[*at] != 0 || at % 31 == 0) {
            for value in [0, 1, 0x7f, 0xff] {
                let mut bad = iso.clone();
                bad[at] = value;
                let _ = find(&mut Cursor::new(&bad), &["P2PVM", "INVITE"]).unwrap();
            }
        }
    }
}
