//! Datagrams over a stream of the control plane, for sites that let no UDP through: each after its
//! length in two bytes. The datagrams are sealed end to end as always; a full stream drops them, as
//! a full queue of a router would.

use super::{STREAM_SERVICE, Shared, dial::CALL_LIMIT};
use crate::{fabric::BoxStream, id::MemberId, plane::Error};
use std::{io, sync::Arc};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader, BufWriter},
    sync::mpsc,
};

/// How many datagrams wait for the stream. Reason: these are some 100 ms at 15 Mbit/s; more would
/// only be delay.
const QUEUE: usize = 128;
/// The longest datagram of a plane.
const MAX_DATAGRAM: usize = 2048;

/// Takes the streams that other members open.
pub(crate) async fn accept(shared: Arc<Shared>) {
    let mut streams = shared.fabric.accept_streams(STREAM_SERVICE);
    while let Some((member, stream)) = streams.recv().await {
        tokio::spawn(carry(shared.clone(), member, stream));
    }
}

/// Opens a stream and carries datagrams over it from now on.
pub(crate) async fn open(shared: &Arc<Shared>, member: MemberId) -> Result<(), Error> {
    // A control connection that is dead without being known as such accepts new streams and never
    // answers.
    let opened = tokio::time::timeout(
        CALL_LIMIT,
        shared.fabric.open_stream(member, STREAM_SERVICE),
    )
    .await;
    let stream = opened.map_err(|_| Error::TimedOut(member, CALL_LIMIT))??;
    tokio::spawn(carry(shared.clone(), member, stream));
    Ok(())
}

/// Carries datagrams both ways. Both ends may open a stream at the same moment, and each writes to
/// the one that it received from last. A stream that is no longer written to is read until the far
/// end closes it.
async fn carry(shared: Arc<Shared>, member: MemberId, stream: BoxStream) {
    let (reader, writer) = tokio::io::split(stream);
    let (sender, receiver) = mpsc::channel(QUEUE);
    let attached = shared.plane.attach_stream(member, sender);
    drop(shared);
    let incoming = async {
        let mut reader = BufReader::with_capacity(64 << 10, reader);
        let mut buf = vec![0; MAX_DATAGRAM];
        while let Some(len) = length(&mut reader).await? {
            let datagram = buf.get_mut(..len).ok_or(io::ErrorKind::InvalidData)?;
            reader.read_exact(datagram).await?;
            attached.receive(datagram);
        }
        Ok(())
    };
    let ended: io::Result<((), ())> = tokio::try_join!(incoming, send(writer, receiver));
    tracing::debug!(?member, ?ended, "stream of datagrams ended");
    attached.close();
}

/// The length of the next datagram; `None` if the far end writes no more.
pub(super) async fn length(reader: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<usize>> {
    let mut length = [0; 2];
    if reader.read(&mut length[..1]).await? == 0 {
        return Ok(None);
    }
    reader.read_exact(&mut length[1..]).await?;
    Ok(Some(usize::from(u16::from_be_bytes(length))))
}

pub(super) async fn send(
    writer: impl tokio::io::AsyncWrite + Unpin,
    mut datagrams: mpsc::Receiver<Vec<u8>>,
) -> io::Result<()> {
    let mut writer = BufWriter::with_capacity(64 << 10, writer);
    while let Some(datagram) = datagrams.recv().await {
        let mut next = Some(datagram);
        // Everything that waits is sent with one flush.
        while let Some(datagram) = next {
            let len = u16::try_from(datagram.len()).map_err(|_| io::ErrorKind::InvalidData)?;
            writer.write_u16(len).await?;
            writer.write_all(&datagram).await?;
            next = datagrams.try_recv().ok();
        }
        writer.flush().await?;
    }
    writer.shutdown().await
}
