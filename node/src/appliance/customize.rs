//! `p2pvm iso customize`: writes an invite into an appliance ISO without rebuilding it.
//!
//! It copies the ISO and overwrites the reserved file in the copy in place. Size and layout stay
//! the same, so boot records and partition table stay valid. It needs neither root nor tools.

use super::{iso9660, reserved};
use p2pvm_api::{Doing, Failure, Outcome};
use p2pvm_daemon::membership;
use p2pvm_overlay::{UnixTime, membership::Invite};
use std::{
    fs::{self, File},
    io::{Read, Seek, SeekFrom, Write},
    path::Path,
};

/// The volume name of every appliance ISO.
pub const VOLUME: &str = "P2PVM-LIVE";
const PLACE: [&str; 2] = ["P2PVM", "INVITE"];

/// Writes `invite` into a copy of the appliance ISO `input` at `output`; an empty text removes the
/// invite. `output` is replaced as a whole or not at all, and may be `input`.
///
/// # Errors
/// `input` is not an appliance ISO, `invite` is invalid, or a file cannot be read or written.
pub fn customize(input: &Path, invite: &str, output: &Path, now: UnixTime) -> Outcome<()> {
    if !invite.is_empty() {
        Invite::parse(invite)
            .and_then(|parsed| parsed.check(now))
            .map_err(membership::refused)?;
    }
    let room = reserved::filled(invite)
        .map_err(|problem| Failure::usage(format!("this invite cannot be written: {problem}")))?;
    let mut source = File::open(input).doing(format_args!("cannot read {}", input.display()))?;
    let offset = place(&mut source, input)?;

    let directory = output
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let name = output
        .file_name()
        .ok_or_else(|| Failure::usage(format!("{} is not a file name", output.display())))?;
    let temporary = directory.join(format!(
        ".{}.{}",
        name.to_string_lossy(),
        std::process::id()
    ));
    let mut write = || {
        let mut copy = File::create_new(&temporary)?;
        source.rewind()?;
        std::io::copy(&mut source, &mut copy)?;
        copy.seek(SeekFrom::Start(offset))?;
        copy.write_all(&room)?;
        copy.sync_all()?;
        fs::rename(&temporary, output)?;
        File::open(directory)?.sync_all()
    };
    write()
        .inspect_err(|_| drop(fs::remove_file(&temporary)))
        .doing(format_args!("cannot write {}", output.display()))
}

/// The offset of the reserved file in an appliance ISO.
fn place(iso: &mut File, path: &Path) -> Outcome<u64> {
    let no = |why: &str| {
        Failure::usage(format!(
            "{} is not an ISO of the p2pvm appliance: {why}",
            path.display()
        ))
    };
    let found = iso9660::find(iso, &PLACE).doing(format_args!("reading {}", path.display()))?;
    let (volume, extent) = found.ok_or_else(|| no("it has no /p2pvm/invite"))?;
    if volume != VOLUME {
        return Err(no(&format!("its volume is named '{volume}', not {VOLUME}")));
    }
    if extent.bytes as usize != reserved::BYTES {
        return Err(no(
            "its reserved file has another size; was it made by another version?",
        ));
    }
    let mut room = vec![0; reserved::BYTES];
    iso.seek(SeekFrom::Start(extent.offset))
        .and_then(|_| iso.read_exact(&mut room))
        .map_err(|_| no("it is truncated"))?;
    match reserved::read(&room) {
        Err(reserved::Problem::NotOurs) => Err(no("it has no reserved file for an invite")),
        // A previous invite is replaced, damaged or not.
        _ => Ok(extent.offset),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{iso9660::tests::iso_with, sources::tests::invite};
    use super::*;

    fn iso(dir: &Path) -> std::path::PathBuf {
        let path = dir.join("in.iso");
        fs::write(
            &path,
            iso_with(VOLUME, PLACE[0], PLACE[1], &reserved::filled("").unwrap()),
        )
        .unwrap();
        path
    }

    #[test]
    fn an_invite_goes_in_and_out_and_nothing_else_changes() {
        let dir = tempfile::tempdir().unwrap();
        let (input, output) = (iso(dir.path()), dir.path().join("out.iso"));
        let plain = fs::read(&input).unwrap();
        for text in [invite(1), invite(2)] {
            customize(&input, &text, &output, UnixTime::now()).unwrap();
            let made = fs::read(&output).unwrap();
            assert_eq!(made.len(), plain.len());
            let room = made.len() - reserved::BYTES;
            assert_eq!(made[..room], plain[..room]);
            assert_eq!(reserved::read(&made[room..]), Ok(Some(text)));
        }
        customize(&output, "", &output, UnixTime::now()).unwrap();
        assert_eq!(fs::read(&output).unwrap(), plain);
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            2,
            "nothing is left behind"
        );
    }

    #[test]
    fn a_foreign_iso_is_refused_and_the_output_stays() {
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("out.iso");
        fs::write(&output, "precious").unwrap();
        let room = reserved::filled("").unwrap();
        let cases = [
            (b"too short".to_vec(), "has no /p2pvm/invite"),
            (
                iso_with("Debian 13", PLACE[0], PLACE[1], &room),
                "named 'Debian 13'",
            ),
            (
                iso_with(VOLUME, "BOOT", "GRUB", &room),
                "has no /p2pvm/invite",
            ),
            (
                iso_with(VOLUME, PLACE[0], PLACE[1], &vec![0; reserved::BYTES]),
                "no reserved file",
            ),
            (
                iso_with(VOLUME, PLACE[0], PLACE[1], &room[..2048]),
                "another size",
            ),
        ];
        for (bytes, why) in cases {
            let input = dir.path().join("in.iso");
            fs::write(&input, bytes).unwrap();
            let failure = customize(&input, &invite(1), &output, UnixTime::now()).unwrap_err();
            assert!(failure.message.contains(why), "{failure}");
        }
        assert_eq!(fs::read(&output).unwrap(), b"precious");
    }

    #[test]
    fn a_bad_expired_or_too_long_invite_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (input, output) = (iso(dir.path()), dir.path().join("out.iso"));
        let good = invite(1);
        let later = UnixTime::now().plus(10 * 365 * 24 * 3600);
        for (text, now, why) in [
            ("hello", UnixTime::now(), "no invite"),
            (&good[..good.len() - 8], UnixTime::now(), "no invite"),
            (
                &*format!("p2pvm1{}", "a".repeat(reserved::BYTES)),
                UnixTime::now(),
                "no invite",
            ),
            (&good, later, "expired"),
        ] {
            let failure = customize(&input, text, &output, now).unwrap_err();
            assert!(failure.message.contains(why), "{failure}");
        }
        assert!(!output.exists());
    }
}
