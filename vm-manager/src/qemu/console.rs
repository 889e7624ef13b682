//! A guest's serial console: QEMU logs all that is printed, and one reader at a time talks to it
//! over a socket.

use super::{
    command::{CONSOLE_LOG, CONSOLE_SOCKET},
    qmp::connect_unix,
};
use crate::{Error, error::io_at};
use p2pvm_overlay::BoxStream;
use std::{
    fs::{File, OpenOptions},
    io::{self, Cursor, Read, Seek, SeekFrom},
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
    let path = run_dir.join(CONSOLE_SOCKET);
    // First the socket, then the log: a line printed in between is shown twice rather than never.
    let (read, write) = connect_unix(&path)
        .await
        .map_err(io_at("connect to the console", &path))?
        .into_split();
    let log = tail(&run_dir.join(CONSOLE_LOG)).unwrap_or_default();
    Ok(Box::new(Console {
        read: AsyncReadExt::chain(Cursor::new(log), read),
        write,
        _turn: turn,
    }))
}

fn tail(log: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(log)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(REPLAY)))?;
    let mut text = Vec::new();
    file.take(REPLAY).read_to_end(&mut text)?;
    Ok(text)
}

/// Empties a log that has grown too long. QEMU appends, so it goes on at the new end.
pub(crate) fn cut_log(run_dir: &Path) {
    let path = run_dir.join(CONSOLE_LOG);
    if path.metadata().is_ok_and(|m| m.len() > LOG_LIMIT)
        && let Err(error) = OpenOptions::new()
            .write(true)
            .open(&path)
            .and_then(|f| f.set_len(0))
    {
        tracing::warn!(path = %path.display(), %error, "cannot cut the console's log");
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
        let path = dir.path().join(CONSOLE_LOG);
        std::fs::write(&path, vec![b'x'; LOG_LIMIT as usize + 1]).unwrap();
        assert_eq!(tail(&path).unwrap().len() as u64, REPLAY);
        cut_log(dir.path());
        assert_eq!(path.metadata().unwrap().len(), 0);
    }
}
