//! Where daemon and guardian find each other: a directory of the state directory that only its
//! owner may enter, with a socket, a lock that one guardian holds, and its number for people.

use super::message::LENGTH;
use nix::{
    fcntl::{Flock, FlockArg},
    sys::socket::{
        AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType,
        UnixAddr, accept4, bind, connect, getsockopt, listen, recvmsg, sendmsg, socket,
        sockopt::PeerCredentials,
    },
};
use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, IoSlice, IoSliceMut, Write},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::fs::{DirBuilderExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

/// The directory within the state directory.
const DIRECTORY: &str = "guardian";
const SOCKET: &str = "socket";
const LOCK: &str = "lock";
const PID_FILE: &str = "pid";
/// How many connections wait for an accept.
const BACKLOG: i32 = 4;
/// How many descriptors a message brings at most.
const MOST_FDS: usize = 2;

/// The guardian's directory, held open.
pub(super) struct Place(File, PathBuf);

impl Place {
    /// The one in the state directory `dir`, made if it is missing.
    pub(super) fn make(dir: &Path) -> io::Result<Self> {
        let path = dir.join(DIRECTORY);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)?;
        let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
        let open = OpenOptions::new()
            .read(true)
            .custom_flags(flags)
            .open(&path)?;
        Ok(Self(open, path))
    }

    /// The lock that a living guardian holds; none if another holds it.
    pub(super) fn lock(&self) -> io::Result<Option<Flock<File>>> {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(self.1.join(LOCK))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Some(lock)),
            Err((_, nix::Error::EWOULDBLOCK)) => Ok(None),
            Err((_, error)) => Err(error.into()),
        }
    }

    /// Listens, in the place of a dead guardian's socket. The lock must be held.
    pub(super) fn listen(&self) -> io::Result<OwnedFd> {
        match fs::remove_file(self.1.join(SOCKET)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = seqpacket()?;
        bind(listener.as_raw_fd(), &self.address()?)?;
        listen(&listener, Backlog::new(BACKLOG)?)?;
        let mut file = File::create(self.1.join(PID_FILE))?;
        writeln!(file, "{}", std::process::id())?;
        Ok(listener)
    }

    /// Connects to a living guardian.
    pub(super) fn connect(&self) -> io::Result<OwnedFd> {
        let socket = seqpacket()?;
        connect(socket.as_raw_fd(), &self.address()?)?;
        Ok(socket)
    }

    /// A path short enough for a socket's address, however long the directory's is.
    fn address(&self) -> io::Result<UnixAddr> {
        let path = format!("/proc/self/fd/{}/{SOCKET}", self.0.as_raw_fd());
        Ok(UnixAddr::new(path.as_str())?)
    }
}

/// The number in the pid file of the state directory `dir`, whether or not it lives.
pub(super) fn noted_pid(dir: &Path) -> Option<i32> {
    let path = dir.join(DIRECTORY).join(PID_FILE);
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn seqpacket() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        flags,
        None,
    )?)
}

/// The next connection, of this process's user alone.
pub(super) fn accept(listener: &OwnedFd) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = accept4(listener.as_raw_fd(), flags)?;
    // SAFETY: the kernel has just made this descriptor for us, and nothing else has its number.
    let client = unsafe { OwnedFd::from_raw_fd(fd) };
    match getsockopt(&client, PeerCredentials)?.uid() == nix::unistd::geteuid().as_raw() {
        true => Ok(client),
        false => Err(io::ErrorKind::PermissionDenied.into()),
    }
}

/// Sends a message, with descriptors; never waits.
pub(super) fn send(socket: &OwnedFd, bytes: &[u8; LENGTH], fds: &[RawFd]) -> io::Result<()> {
    let rights = [ControlMessage::ScmRights(fds)];
    let beside = if fds.is_empty() { &[][..] } else { &rights };
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let text = [IoSlice::new(bytes)];
    sendmsg::<()>(socket.as_raw_fd(), &text, beside, flags, None)?;
    Ok(())
}

/// A message as it came.
pub(super) struct Received {
    pub(super) bytes: [u8; LENGTH],
    /// How many of them came: fewer, or as many of a longer one.
    pub(super) length: usize,
    pub(super) fds: Vec<OwnedFd>,
}

/// The next message; none at the other side's end. `space` is for the descriptors beside it.
pub(super) fn receive(socket: &OwnedFd, space: &mut [u8]) -> io::Result<Option<Received>> {
    let mut bytes = [0; LENGTH];
    let mut fds = Vec::new();
    let length = {
        let mut text = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(socket.as_raw_fd(), &mut text, Some(space), flags)?;
        for beside in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(came) = beside {
                // SAFETY: the kernel has just made these descriptors for us alone.
                fds.extend(came.iter().map(|fd| unsafe { OwnedFd::from_raw_fd(*fd) }));
            }
        }
        message.bytes
    };
    let received = Received { bytes, length, fds };
    Ok((length > 0).then_some(received))
}

/// Room for the descriptors beside a message.
pub(super) fn space() -> Vec<u8> {
    nix::cmsg_space!([RawFd; MOST_FDS])
}
