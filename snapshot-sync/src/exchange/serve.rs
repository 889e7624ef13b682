//! The serving side: which chunks are here, and chunks by stream.

use super::{
    Exchange, SERVICE,
    wire::{Answer, Frame, Request},
};
use crate::{ChunkId, ChunkStore, Error, error::blocking, store::Pin};
use async_trait::async_trait;
use futures::{StreamExt, stream};
use p2pvm_overlay::{BoxStream, MemberId, Serve, chain};
use std::{
    io,
    sync::{Arc, Weak},
    time::Duration,
};
use tokio::{
    io::AsyncWriteExt,
    sync::Semaphore,
    task::{JoinHandle, JoinSet},
};

/// How long a [`Request::Keep`] waits at most.
const MAX_WAIT: Duration = Duration::from_secs(10);

/// How many chunks are read from the disk at a time, while the previous ones are sent.
const READ_AHEAD: usize = 8;

/// How long a stream is idle before it is closed.
const IDLE: Duration = Duration::from_secs(60);

struct Handler(Weak<Exchange>);

pub(super) fn start(exchange: &Arc<Exchange>) -> JoinHandle<()> {
    exchange
        .core
        .fabric
        .serve(SERVICE, Arc::new(Handler(Arc::downgrade(exchange))));
    let mut streams = exchange.core.fabric.accept_streams(SERVICE);
    let (store, places) = (
        exchange.core.store.clone(),
        Arc::new(Semaphore::new(exchange.core.options.max_streams)),
    );
    tokio::spawn(async move {
        let mut served = JoinSet::new();
        while let Some((member, stream)) = streams.recv().await {
            while served.try_join_next().is_some() {}
            // No place left: the stream is dropped, and the fetch asks other members or dials
            // again.
            let Ok(place) = places.clone().try_acquire_owned() else {
                continue;
            };
            let store = store.clone();
            served.spawn(async move {
                if let Err(e) = serve_stream(store, stream).await {
                    tracing::debug!(%member, "serving chunks ended: {e}");
                }
                drop(place);
            });
        }
    })
}

async fn serve_stream(store: ChunkStore, stream: BoxStream) -> io::Result<()> {
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
                frame.write(&mut writer).await?;
            }
        }
        writer.flush().await?;
    }
    Ok(())
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
