//! The file of revocations: a list, and behind it single ones as they were learned. So keeping one
//! more costs its own length, however many there are. Earlier programs read the list and pass over
//! the rest, which gossip tells them again.

use crate::{durable::write_atomically, membership::Revocation};
use p2pvm_host::reserve;
use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

/// The file, and whether more can be written at its end.
pub(super) struct RevocationFile {
    path: PathBuf,
    /// Not so if there is none, or its end may be torn.
    is_whole: bool,
}

impl RevocationFile {
    /// Reads what is kept in a file, which may be missing. What was written singly is made part of
    /// the list again.
    ///
    /// # Errors
    /// What the file system says, or `InvalidData` for a file that is no list of revocations.
    pub fn open(path: &Path) -> io::Result<(Self, Vec<Revocation>)> {
        let mut file = Self {
            path: path.to_owned(),
            is_whole: false,
        };
        let raw = match fs::read(path) {
            Ok(raw) => raw,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok((file, Vec::new())),
            Err(e) => return Err(e),
        };
        let (mut all, mut rest): (Vec<Revocation>, _) =
            postcard::take_from_bytes(&raw).map_err(|e| {
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!(
                        "{} holds no revocations: {}",
                        path.display(),
                        p2pvm_host::chain(&e)
                    ),
                )
            })?;
        file.is_whole = rest.is_empty();
        // A crash cuts the last one short: the member that told it tells it again.
        while let Ok((one, after)) = postcard::take_from_bytes(rest) {
            all.push(one);
            rest = after;
        }
        if !file.is_whole
            && let Err(e) = file.rewrite(&all)
        {
            tracing::warn!(
                "{} cannot be rewritten: {}",
                path.display(),
                p2pvm_host::chain(&e)
            );
        }
        Ok((file, all))
    }

    /// Keeps `new`, or `all` where that cannot be written at the end. When it returns, it is on
    /// disk.
    ///
    /// # Errors
    /// What the file system says; the next call writes all.
    pub fn keep(
        &mut self,
        new: &[Revocation],
        all: impl Fn() -> Vec<Revocation>,
    ) -> io::Result<()> {
        if self.is_whole && self.append(new).is_ok() {
            return Ok(());
        }
        self.rewrite(&all())
    }

    fn append(&mut self, new: &[Revocation]) -> io::Result<()> {
        self.is_whole = false;
        let mut bytes = Vec::new();
        for one in new {
            bytes.extend(postcard::to_stdvec(one).map_err(io::Error::other)?);
        }
        let mut file = OpenOptions::new().append(true).open(&self.path)?;
        let end = file.metadata()?.len();
        reserve::retrying(&self.path, || {
            file.write_all(&bytes)
                .inspect_err(|_| drop(file.set_len(end)))
        })?;
        file.sync_data()?;
        self.is_whole = true;
        Ok(())
    }

    fn rewrite(&mut self, all: &[Revocation]) -> io::Result<()> {
        self.is_whole = false;
        let bytes = postcard::to_stdvec(all).map_err(io::Error::other)?;
        write_atomically(&self.path, &bytes, 0o644)?;
        self.is_whole = true;
        Ok(())
    }
}
