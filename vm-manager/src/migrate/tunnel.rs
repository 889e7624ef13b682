//! QEMU's own streams (RAM, and the disk over NBD) between two hosts: a unix socket at the source,
//! a stream of the fabric, a unix socket at the target. Each stream begins with the migration's id
//! and which socket it is for.

use super::{pace, wire::SERVICE};
use crate::{Error, error::io_at, run_dir::RunDir};
use p2pvm_overlay::{BoxStream, Fabric, MemberId, chain};
use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    task::JoinSet,
};

/// What a stream carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channel {
    /// QEMU's migration stream.
    Ram = 1,
    /// NBD.
    Disk = 2,
}

/// A unix socket at the source, each of whose connections goes on to the target. Dropping it ends
/// them all.
pub struct Tunnel {
    path: PathBuf,
    task: tokio::task::JoinHandle<()>,
}

impl Tunnel {
    /// Listens in `dir`; only this process's user may connect.
    ///
    /// # Errors
    /// The file system's error.
    pub fn open(
        dir: &Path,
        channel: Channel,
        id: u64,
        fabric: Arc<dyn Fabric>,
        to: MemberId,
    ) -> Result<Self, Error> {
        let name = match channel {
            Channel::Ram => "out-ram.sock",
            Channel::Disk => "out-disk.sock",
        };
        let path = dir.join(name);
        let listener = RunDir::open(dir)
            .and_then(|dir| dir.listen(name))
            .and_then(|listener| {
                listener.set_nonblocking(true)?;
                UnixListener::from_std(listener)
            })
            .map_err(io_at("opening a tunnel for the migration", &path))?;
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => match accepted {
                        Ok((local, _)) => {
                            let fabric = fabric.clone();
                            connections.spawn(async move {
                                if let Err(error) = carry(&*fabric, to, id, channel, local).await {
                                    tracing::info!(?channel, error = %chain(&error), "a stream of \
                                        the migration broke");
                                }
                            });
                        }
                        Err(error) => {
                            tracing::warn!(
                                ?channel,
                                error = %chain(&error),
                                "the migration's socket failed"
                            );
                            return;
                        }
                    },
                    Some(_) = connections.join_next() => {}
                }
            }
        });
        Ok(Self { path, task })
    }

    /// Where to connect.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.task.abort();
        // A file left behind does no harm: the next migration replaces it.
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn carry(
    fabric: &dyn Fabric,
    to: MemberId,
    id: u64,
    channel: Channel,
    local: UnixStream,
) -> io::Result<()> {
    let mut remote = fabric
        .open_stream(to, SERVICE)
        .await
        .map_err(io::Error::other)?;
    remote.write_all(&header(id, channel)).await?;
    pace::join(local, remote).await
}

/// The beginning of a stream.
fn header(id: u64, channel: Channel) -> [u8; 9] {
    let mut header = [0; 9];
    header[..8].copy_from_slice(&id.to_be_bytes());
    header[8] = channel as u8;
    header
}

/// Target: reads which migration a stream belongs to and what it carries.
pub async fn read_header(stream: &mut BoxStream) -> io::Result<(u64, Channel)> {
    let mut header = [0; 9];
    stream.read_exact(&mut header).await?;
    let id = u64::from_be_bytes(header[..8].try_into().expect("8 of 9"));
    match header[8] {
        1 => Ok((id, Channel::Ram)),
        2 => Ok((id, Channel::Disk)),
        other => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("no channel {other}"),
        )),
    }
}

/// Target: joins a stream to the guest's own socket until either ends.
pub async fn deliver(stream: BoxStream, socket: &Path) -> io::Result<()> {
    pace::join(UnixStream::connect(socket).await?, stream).await
}

#[cfg(test)]
#[path = "tunnel_golden_tests.rs"]
mod golden_tests;
