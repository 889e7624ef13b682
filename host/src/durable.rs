//! Small files that survive a crash: a new file is written, flushed and renamed over the old one,
//! so that after a power cut the whole old or the whole new content is there. All crates use it for
//! the files that they replace as a whole, but not for logs.

use crate::reserve::{self, directory_of};
use std::{
    fs, io,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// Replaces `path` by `content`, durable on return. A new file gets the `mode`. The caller ensures
/// that each file has one writer at a time.
///
/// # Errors
/// The file system's error; the old content stays. On a full disk the [reserve](crate::reserve) is
/// used up first.
pub fn write_atomically(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let temporary = temporary(path);
    let written = reserve::retrying(path, || {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode)
            .open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    });
    if let Err(e) = written {
        if reserve::is_full(&e) {
            // A half-written file would take the room that is missing.
            let _ = fs::remove_file(&temporary);
        }
        return Err(e);
    }
    fs::File::open(directory_of(path))?.sync_all()
}

/// The name under which a file's new content is written: another one for each file of a directory.
fn temporary(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_file_is_replaced_whole_with_its_mode_and_no_leftovers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kept.json");
        for content in ["a long first content", "short"] {
            write_atomically(&path, content.as_bytes(), 0o600).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
            assert_eq!(
                fs::metadata(&path).unwrap().permissions().mode() & 0o777,
                0o600
            );
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_cannot_be_written_leaves_the_old_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kept.json");
        write_atomically(&path, b"old", 0o644).unwrap();
        fs::create_dir(temporary(&path)).unwrap();
        write_atomically(&path, b"new", 0o644).unwrap_err();
        assert_eq!(fs::read(&path).unwrap(), b"old");
    }

    #[test]
    fn files_that_differ_in_their_extension_are_written_under_two_names() {
        let [token, switch] = ["dashboard.token", "dashboard.switch"].map(Path::new);
        assert_ne!(temporary(token), temporary(switch));
        assert_eq!(temporary(token), Path::new("dashboard.token.new"));
    }

    #[test]
    fn a_name_without_a_directory_is_in_the_current_one() {
        assert_eq!(directory_of(Path::new("kept.json")), Path::new("."));
        assert_eq!(directory_of(Path::new("/var/kept.json")), Path::new("/var"));
    }
}
