//! The serving side: which chunks are here, and chunks by stream.

use super::{
    Exchange, SERVICE,
    pace::Pace,
    wire::{Answer, Frame, Request},
};
use crate::{ChunkId, ChunkStore, Error, error::blocking, store::Pin};
use async_trait::async_trait;
use futures::{StreamExt, stream};
use p2pvm_overlay::{BoxStream, MemberId, Serve, chain, seats::Seats};
use std::{
    io,
    sync::{Arc, Weak},
    time::Duration,
};
use tokio::{
    io::AsyncWriteExt,
    task::{JoinHandle, JoinSet},
    time::Instant,
};

/// How long a [`Request::Keep`] waits at most, whatever its `wait_ms`.
const MAX_WAIT: Duration = Duration::from_secs(10);

/// How many chunks are read from the disk at a time, while the previous ones are sent.
const READ_AHEAD: usize = 8;

/// How long a stream is idle, or the sending of one chunk takes, before the stream is closed.
const IDLE: Duration = Duration::from_secs(60);

/// The share of all streams that one member may have at once: one in this many.
/// Reason: a member that opens many streams leaves some to the others.
const SHARE: usize = 4;

struct Handler(Weak<Exchange>);

pub(super) fn start(exchange: &Arc<Exchange>) -> JoinHandle<()> {
    exchange
        .core
        .fabric
        .serve(SERVICE, Arc::new(Handler(Arc::downgrade(exchange))));
    let mut streams = exchange.core.fabric.accept_streams(SERVICE);
    let (store, pace) = (exchange.core.store.clone(), exchange.core.pace.clone());
    let all = exchange.core.options.max_streams;
    let seats = Seats::new(all, all.div_ceil(SHARE));
    tokio::spawn(async move {
        let mut served = JoinSet::new();
        while let Some((member, stream)) = streams.recv().await {
            while served.try_join_next().is_some() {}
            // Without a seat the stream is dropped, and the fetch asks other members or dials
            // again.
            let Some(seat) = seats.try_take(member) else {
                continue;
            };
            let (store, pace) = (store.clone(), pace.clone());
            served.spawn(async move {
                if let Err(e) = serve_stream(store, &pace, stream).await {
                    tracing::debug!(%member, "serving chunks ended: {e}");
                }
                drop(seat);
            });
        }
    })
}

async fn serve_stream(store: ChunkStore, pace: &Pace, stream: BoxStream) -> io::Result<()> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    while let Ok(frame) = tokio::time::timeout(IDLE, Frame::read(&mut reader)).await {
        let Some(Frame::Want(ids)) = frame? else {
            break;
        };
        let groups: Vec<Vec<ChunkId>> = ids.chunks(READ_AHEAD).map(<[_]>::to_vec).collect();
        let mut groups = stream::iter(groups)
            .map(|ids| read_chunks(store.clone(), ids))
            .buffered(2);
        while let Some(frames) = groups.next().await {
            for frame in frames {
                paced(pace, &frame).await;
                tokio::time::timeout(IDLE, frame.write(&mut writer)).await??;
            }
        }
        tokio::time::timeout(IDLE, writer.flush()).await??;
    }
    Ok(())
}

/// Waits until a chunk may be sent.
async fn paced(pace: &Pace, frame: &Frame) {
    if let Frame::Chunk(id, stored) = frame {
        let wait = pace.wait(*id, stored.len(), Instant::now());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }
}

/// Never fails: to the caller, a chunk that cannot be read is missing.
async fn read_chunks(store: ChunkStore, ids: Vec<ChunkId>) -> Vec<Frame> {
    let read = blocking("reading chunks", move || {
        Ok(ids
            .into_iter()
            .map(|id| {
                store
                    .get_stored(id)
                    .map_or(Frame::Missing(id), |stored| Frame::Chunk(id, stored))
            })
            .collect())
    });
    read.await.unwrap_or_default()
}

impl Exchange {
    async fn answer(self: &Arc<Self>, from: MemberId, body: &[u8]) -> Result<Answer, Error> {
        match Request::parse(body)? {
            Request::Has(ids) => self.answer_has(ids).await,
            Request::Keep {
                manifest,
                label,
                mut providers,
                wait_ms,
            } => {
                providers.insert(0, from);
                let wait = Duration::from_millis(wait_ms.into()).min(MAX_WAIT);
                let pin = Pin::of(from, manifest, &label);
                self.keep(pin, providers, wait).await
            }
            Request::Release {
                manifest,
                label,
                proof,
            } => {
                let pin = Pin::of(from, manifest, &label);
                self.let_go(pin, proof).await.map(|()| Answer::Released)
            }
        }
    }
}

#[async_trait]
impl Serve for Handler {
    async fn serve(&self, from: MemberId, body: Vec<u8>) -> Result<Vec<u8>, String> {
        let exchange = self.0.upgrade().ok_or("shutting down")?;
        let answer = exchange.answer(from, &body).await;
        answer
            .map(|answer| answer.to_bytes())
            .map_err(|e| chain(&e))
    }
}

impl Exchange {
    async fn answer_has(&self, ids: Vec<ChunkId>) -> Result<Answer, Error> {
        let store = self.core.store.clone();
        blocking("looking for chunks", move || {
            let mut bits = vec![0; ids.len().div_ceil(8)];
            for (i, _) in ids.iter().enumerate().filter(|(_, id)| store.has(**id)) {
                bits[i / 8] |= 1 << (i % 8);
            }
            Ok(Answer::Has(bits))
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_stream_whose_chunks_are_not_read_ends() {
        let dir = tempfile::tempdir().unwrap();
        let store = ChunkStore::open(dir.path()).unwrap();
        let content: Vec<u8> = (0..1u32 << 16).flat_map(u32::to_le_bytes).collect();
        let id = store.put(&content).unwrap();
        let (mut here, there) = tokio::io::duplex(4096);
        let served =
            tokio::spawn(
                async move { serve_stream(store, &Pace::default(), Box::new(there)).await },
            );
        Frame::Want(vec![id]).write(&mut here).await.unwrap();
        let ended = tokio::time::timeout(IDLE * 3, served).await;
        assert_eq!(
            ended.expect("it ends").unwrap().unwrap_err().kind(),
            io::ErrorKind::TimedOut
        );
    }
}
