//! The files of the accounts, each replaced as a whole: the byte of the version, then postcard.

use p2pvm_host::chain;
use p2pvm_overlay::durable::RewrittenFile;
use serde::{Serialize, de::DeserializeOwned};
use std::{fs, io, os::unix::fs::DirBuilderExt, path::PathBuf};

const VERSION: u8 = 1;

/// The directory of the accounts.
pub struct Files {
    dir: PathBuf,
    turn: RewrittenFile,
}

impl Files {
    /// Those in `dir`, which need not exist.
    pub fn new(dir: PathBuf) -> Self {
        Self {
            dir,
            turn: RewrittenFile::default(),
        }
    }

    /// What a file has; `None` if there is none. One that cannot be read is put aside.
    pub fn read<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        let path = self.dir.join(name);
        let error = match fs::read(&path) {
            Ok(bytes) => match bytes.split_first() {
                Some((&VERSION, rest)) => match postcard::from_bytes(rest) {
                    Ok(read) => return Some(read),
                    Err(error) => io::Error::other(error),
                },
                _ => io::Error::other("it is empty or of another version"),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => error,
        };
        let aside = self.dir.join(format!("{name}.unreadable"));
        tracing::warn!(
            file = %path.display(),
            error = %chain(&error),
            "a file of the accounts cannot be read: it is put aside and begun again"
        );
        if let Err(error) = fs::rename(&path, &aside) {
            tracing::warn!(error = %chain(&error), "it cannot be put aside");
        }
        None
    }

    /// Replaces a file by the result of `newest`.
    pub fn write<T: Serialize>(&self, name: &str, newest: impl FnOnce() -> T) -> io::Result<()> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir)?;
        let bytes = || {
            let mut bytes = vec![VERSION];
            let body = postcard::to_stdvec(&newest());
            bytes.extend(body.expect("accounts have nothing that postcard cannot write"));
            bytes
        };
        self.turn.write(&self.dir.join(name), bytes, 0o600)
    }

    /// The names of the files.
    pub fn names(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(&self.dir) else {
            return Vec::new();
        };
        let name = |entry: fs::DirEntry| entry.file_name().into_string().ok();
        entries.flatten().filter_map(name).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_as_written_and_damaged_ones_put_aside() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path().join("usage"));
        assert_eq!(files.read::<Vec<u8>>("here"), None);
        files.write("here", || vec![1u8, 2]).unwrap();
        assert_eq!(files.read::<Vec<u8>>("here"), Some(vec![1, 2]));
        for damaged in [&b""[..], &[2, 0], &[1, 9]] {
            fs::write(dir.path().join("usage/here"), damaged).unwrap();
            assert_eq!(files.read::<Vec<u8>>("here"), None);
        }
        assert_eq!(files.names(), ["here.unreadable"]);
    }
}
