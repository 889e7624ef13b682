//! A guest's serial console: QEMU logs all that is printed, and one reader at a time talks to it
//! over a socket.

use super::{
    LOG,
    command::{CONSOLE_LOG, CONSOLE_SOCKET},
};
use crate::{Error, error::io_at, run_dir::RunDir};
use p2pvm_overlay::BoxStream;
use std::{
    io::{self, Cursor},
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, Chain, ReadBuf},
    net::unix::{OwnedReadHalf, OwnedWriteHalf},
    sync::{OwnedSemaphorePermit, Semaphore},
};

/// How much of the log a new reader is shown, bytes.
const REPLAY: u64 = 64 << 10;
/// How long the log grows before it is emptied, bytes. Reason: a guest must not fill the host's
/// disk by printing.
const LOG_LIMIT: u64 = 4 << 20;

struct Console {
    read: Chain<Cursor<Vec<u8>>, OwnedReadHalf>,
    write: OwnedWriteHalf,
    _turn: OwnedSemaphorePermit,
}

/// Connects to the console, unless another reader has it.
pub(crate) async fn open(run_dir: &Path, turn: &Arc<Semaphore>) -> Result<BoxStream, Error> {
    let busy = || Error::Refused("another reader has this console; one at a time".to_owned());
    let turn = turn.clone().try_acquire_owned().map_err(|_| busy())?;
    let unreachable = || io_at("connect to the console", run_dir.join(CONSOLE_SOCKET));
    let dir = RunDir::open(run_dir).map_err(unreachable())?;
    // First the socket, then the log: a line printed in between is shown twice rather than never.
    let (read, write) = dir
        .connect(CONSOLE_SOCKET)
        .await
        .map_err(unreachable())?
        .into_split();
    let log = dir.tail(CONSOLE_LOG, REPLAY).unwrap_or_default();
    Ok(Box::new(Console {
        read: AsyncReadExt::chain(Cursor::new(log), read),
        write,
        _turn: turn,
    }))
}

/// Empties logs that have grown too long. They are opened for appending, so that the next line goes
/// to the new end.
pub(crate) fn cut_logs(run_dir: &Path) {
    let Ok(dir) = RunDir::open(run_dir) else {
        return;
    };
    for name in [CONSOLE_LOG, LOG] {
        if let Err(error) = dir.cut(name, LOG_LIMIT)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(
                path = %run_dir.display(),
                name,
                error = %p2pvm_overlay::chain(&error),
                "cannot cut a guest's log"
            );
        }
    }
}

impl AsyncRead for Console {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.read).poll_read(cx, buf)
    }
}

impl AsyncWrite for Console {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.write).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.write).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.write).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_talkative_guest_does_not_fill_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        for name in [CONSOLE_LOG, LOG] {
            let path = dir.path().join(name);
            std::fs::write(&path, vec![b'x'; LOG_LIMIT as usize + 1]).unwrap();
            cut_logs(dir.path());
            assert_eq!(path.metadata().unwrap().len(), 0, "{name}");
        }
    }

    #[test]
    fn a_log_replaced_by_a_link_has_no_other_file_cut() {
        let dir = tempfile::tempdir().unwrap();
        let precious = dir.path().join("disk.qcow2");
        std::fs::write(&precious, vec![b'x'; 5 << 20]).unwrap();
        for name in [CONSOLE_LOG, LOG] {
            std::os::unix::fs::symlink(&precious, dir.path().join(name)).unwrap();
            cut_logs(dir.path());
            assert_eq!(precious.metadata().unwrap().len(), 5 << 20, "{name}");
        }
    }
}
