//! Unix sockets below directories with long names: an address holds 107 bytes, a directory's path
//! may have 4095.

use std::{
    fs::File,
    io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
};

/// How many bytes a path has at most to be used as it is.
const PLAIN: usize = 100;

/// A path that fits into a socket's address, for as long as this lives.
#[derive(Debug)]
pub struct SocketPath {
    path: PathBuf,
    /// What a shortened path leads through.
    _dir: Option<File>,
}

impl SocketPath {
    /// `path`, or a path through its opened directory if that is too long.
    ///
    /// # Errors
    /// The directory cannot be opened.
    pub fn to(path: &Path) -> io::Result<Self> {
        let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
            return Ok(Self::plain(path));
        };
        if path.as_os_str().len() <= PLAIN {
            return Ok(Self::plain(path));
        }
        let dir = File::open(dir)?;
        let through = Path::new("/proc/self/fd")
            .join(dir.as_raw_fd().to_string())
            .join(name);
        Ok(Self {
            path: through,
            _dir: Some(dir),
        })
    }

    /// The path to bind or connect to. It is borrowed, because a function that takes the whole
    /// value would drop the directory before its system call, as tokio's do.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn plain(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            _dir: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::{UnixListener, UnixStream};

    #[test]
    fn a_socket_below_a_long_path_is_made_and_reached() {
        let base = tempfile::tempdir().unwrap();
        let long = base.path().join("d".repeat(90)).join("e".repeat(90));
        std::fs::create_dir_all(&long).unwrap();
        let path = long.join("api.sock");
        assert!(
            UnixListener::bind(&path).is_err(),
            "as it is, the kernel refuses it"
        );
        let _listener = UnixListener::bind(SocketPath::to(&path).unwrap().path()).unwrap();
        assert!(path.exists());
        UnixStream::connect(SocketPath::to(&path).unwrap().path()).unwrap();
        assert!(SocketPath::to(Path::new("/no/such").join("x".repeat(120)).as_path()).is_err());
    }
}
