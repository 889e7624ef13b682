//! A guest's run directory, made so that a guest that has broken out of QEMU gains nothing by it.
//!
//! The daemon owns the directory, binds its sockets and opens its logs, and passes QEMU the
//! descriptors: a guest can neither make nor rename a file here. The daemon opens a name below the
//! directory's own descriptor and follows no link, because earlier versions gave the directory to
//! the guest, and their guests still run.

use nix::{
    fcntl::{AtFlags, OFlag, openat},
    sys::{
        socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket},
        stat::{Mode, SFlag, fchmod, fstat, mknodat},
    },
    unistd::{Gid, Uid, UnlinkatFlags, fchown, fchownat, unlinkat},
};
use std::{
    fs::{DirBuilder, File, OpenOptions, remove_dir_all},
    io::{self, Read, Seek, SeekFrom},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{
            fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
            net::UnixListener,
        },
    },
    path::{Path, PathBuf},
};
use tokio::net::UnixStream;

/// How many connections wait for an accept.
const BACKLOG: i32 = 16;

/// A run directory, held open.
#[derive(Debug)]
pub(crate) struct RunDir(OwnedFd);

impl RunDir {
    /// An empty one at `path`, accessible to this process's user alone.
    pub(crate) fn make(path: &Path) -> io::Result<Self> {
        match remove_dir_all(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        Self::open(path)
    }

    /// The one at `path`.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
        let dir = OpenOptions::new()
            .read(true)
            .custom_flags(flags)
            .open(path)?;
        Ok(Self(dir.into()))
    }

    /// Takes the directory for this process's user; the guest's user may only walk through it.
    pub(crate) fn seize(&self, guest: u32) -> io::Result<()> {
        fchown(&self.0, Some(Uid::effective()), Some(Gid::from_raw(guest)))?;
        fchmod(&self.0, Mode::S_IRWXU | Mode::S_IXGRP)?;
        Ok(())
    }

    /// Makes a character device of the guest's in it.
    pub(crate) fn device(&self, name: &str, device: u64, guest: u32) -> io::Result<()> {
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        mknodat(&self.0, name, SFlag::S_IFCHR, mode, device)?;
        let (uid, gid) = (Uid::from_raw(guest), Gid::from_raw(guest));
        let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
        Ok(fchownat(&self.0, name, Some(uid), Some(gid), flags)?)
    }

    /// A new file in the place of an older one, for appending.
    pub(crate) fn create(&self, name: &str) -> io::Result<File> {
        self.remove(name)?;
        let flags = OFlag::O_WRONLY | OFlag::O_APPEND | OFlag::O_CREAT | OFlag::O_EXCL;
        self.open_at(name, flags).map(File::from)
    }

    /// Removes a file, if there is one.
    pub(crate) fn remove(&self, name: &str) -> io::Result<()> {
        match unlinkat(&self.0, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(nix::Error::ENOENT) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// The last bytes of a file, at most `limit`.
    pub(crate) fn tail(&self, name: &str, limit: u64) -> io::Result<Vec<u8>> {
        let mut file = self.file(name, OFlag::O_RDONLY)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(limit)))?;
        let mut bytes = Vec::new();
        file.take(limit).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Empties a file that is longer than `limit`.
    pub(crate) fn cut(&self, name: &str, limit: u64) -> io::Result<()> {
        let file = self.file(name, OFlag::O_WRONLY)?;
        if file.metadata()?.len() > limit {
            file.set_len(0)?;
        }
        Ok(())
    }

    /// A file's length.
    pub(crate) fn length(&self, name: &str) -> io::Result<u64> {
        Ok(self.file(name, OFlag::O_RDONLY)?.metadata()?.len())
    }

    /// Listens at a name, in the place of an older socket; only this process's user may connect.
    pub(crate) fn listen(&self, name: &str) -> io::Result<UnixListener> {
        self.remove(name)?;
        let flags = SockFlag::SOCK_CLOEXEC;
        let listener = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        // Linux takes the mode of the name to be from the socket, so that no moment is left in
        // which others may connect.
        fchmod(&listener, Mode::S_IRUSR | Mode::S_IWUSR)?;
        bind(
            listener.as_raw_fd(),
            &UnixAddr::new(&self.below_descriptor(name))?,
        )?;
        listen(&listener, Backlog::new(BACKLOG)?)?;
        Ok(listener.into())
    }

    /// Connects to the socket of that name, and to nothing that a link names.
    pub(crate) async fn connect(&self, name: &str) -> io::Result<UnixStream> {
        let found = self.open_at(name, OFlag::O_PATH)?;
        if SFlag::from_bits_truncate(fstat(&found)?.st_mode) & SFlag::S_IFMT != SFlag::S_IFSOCK {
            return Err(odd(name, "is no socket"));
        }
        UnixStream::connect(format!("/proc/self/fd/{}", found.as_raw_fd())).await
    }

    /// A plain file with this name alone.
    fn file(&self, name: &str, flags: OFlag) -> io::Result<File> {
        // A pipe must not hold the caller up.
        let file = File::from(self.open_at(name, flags | OFlag::O_NONBLOCK)?);
        let found = file.metadata()?;
        if !found.is_file() || found.nlink() != 1 {
            return Err(odd(name, "is no plain file"));
        }
        Ok(file)
    }

    fn open_at(&self, name: &str, flags: OFlag) -> io::Result<OwnedFd> {
        let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        Ok(openat(&self.0, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)?)
    }

    /// A path short enough for a socket's address, however long the directory's is.
    fn below_descriptor(&self, name: &str) -> PathBuf {
        format!("/proc/self/fd/{}/{name}", self.0.as_raw_fd()).into()
    }
}

fn odd(name: &str, what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("'{name}' {what}: the guest may have broken out"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        fs,
        os::unix::fs::{PermissionsExt, symlink},
    };
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    const LONG: u64 = 5 << 20;

    /// A run directory, and a long file of the host's beside it.
    fn places() -> (tempfile::TempDir, RunDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let precious = dir.path().join("precious");
        fs::write(&precious, vec![b'x'; LONG as usize]).unwrap();
        let run_dir = RunDir::make(&dir.path().join("run")).unwrap();
        (dir, run_dir, precious)
    }

    #[test]
    fn a_link_to_a_host_file_is_neither_read_cut_nor_overwritten() {
        let (dir, run_dir, precious) = places();
        symlink(&precious, dir.path().join("run/log")).unwrap();
        run_dir.cut("log", 1).unwrap_err();
        run_dir.tail("log", 1).unwrap_err();
        drop(run_dir.create("log").unwrap());
        assert_eq!(run_dir.length("log").unwrap(), 0);
        // A second name of the same file is no better.
        fs::hard_link(&precious, dir.path().join("run/hard")).unwrap();
        run_dir.cut("hard", 1).unwrap_err();
        run_dir.tail("hard", 1).unwrap_err();
        nix::unistd::mkfifo(&dir.path().join("run/pipe"), Mode::S_IRWXU).unwrap();
        run_dir.tail("pipe", 1).unwrap_err();
        assert_eq!(precious.metadata().unwrap().len(), LONG);
    }

    #[test]
    fn a_new_run_directory_has_nothing_of_the_one_before() {
        let (dir, run_dir, precious) = places();
        let path = dir.path().join("run");
        symlink(&precious, path.join("qemu.log")).unwrap();
        fs::create_dir(path.join("qmp.sock")).unwrap();
        drop(run_dir);
        RunDir::make(&path).unwrap();
        assert_eq!(fs::read_dir(&path).unwrap().count(), 0);
        fs::remove_dir(&path).unwrap();
        symlink(dir.path(), &path).unwrap();
        RunDir::open(&path).unwrap_err();
        assert_eq!(precious.metadata().unwrap().len(), LONG);
    }

    #[tokio::test]
    async fn a_connection_reaches_the_socket_itself_and_none_that_a_link_names() {
        let (dir, run_dir, _) = places();
        // Longer than a socket's address may be.
        let deep = dir.path().join("d".repeat(120));
        let other = RunDir::make(&deep).unwrap();
        let listener = other.listen("sock").unwrap();
        let mode = deep.join("sock").metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        symlink(deep.join("sock"), dir.path().join("run/sock")).unwrap();
        run_dir.connect("sock").await.unwrap_err();
        run_dir.connect("missing").await.unwrap_err();
        let mut there = other.connect("sock").await.unwrap();
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::UnixListener::from_std(listener).unwrap();
        let (mut here, _) = listener.accept().await.unwrap();
        here.write_all(b"hello").await.unwrap();
        let mut heard = [0; 5];
        there.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"hello");
    }
}
