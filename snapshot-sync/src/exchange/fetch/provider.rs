//! One provider of a fetch: its stream, wants one way and chunks the other.

use crate::{
    ChunkId,
    exchange::{SERVICE, wire::Frame},
};
use p2pvm_overlay::{Fabric, MemberId, chain};
use std::{sync::Arc, time::Duration};
use tokio::{io::AsyncWriteExt, sync::mpsc};

/// What happened to a provider.
pub(super) enum Event {
    /// Its stream is open; the ids of wanted chunks go into the sender.
    Up(MemberId, mpsc::Sender<Vec<ChunkId>>),
    Chunk(MemberId, ChunkId, Vec<u8>),
    Missing(MemberId, ChunkId),
    /// Its stream ended, for this reason.
    Down(MemberId, String),
}

/// Keeps one stream to a provider until it ends; returns the reason.
pub(super) async fn run(
    fabric: &Arc<dyn Fabric>,
    member: MemberId,
    patience: Duration,
    events: &mpsc::Sender<Event>,
) -> String {
    let stream = match tokio::time::timeout(patience, fabric.open_stream(member, SERVICE)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(e)) => return chain(&e),
        Err(_) => return format!("{} did not answer within {patience:?}", member.short()),
    };
    let (mut reader, mut writer) = tokio::io::split(stream);
    let (ask, mut asked) = mpsc::channel::<Vec<ChunkId>>(4);
    if events.send(Event::Up(member, ask)).await.is_err() {
        return String::new();
    }
    let write = async {
        while let Some(ids) = asked.recv().await {
            Frame::Want(ids).write(&mut writer).await?;
            writer.flush().await?;
        }
        std::io::Result::Ok(())
    };
    let read = async {
        while let Some(frame) = Frame::read(&mut reader).await? {
            let event = match frame {
                Frame::Chunk(id, stored) => Event::Chunk(member, id, stored),
                Frame::Missing(id) => Event::Missing(member, id),
                Frame::Want(_) => {
                    return Err(std::io::Error::new(
                        std::io::ErrorKind::InvalidData,
                        "a frame that only a fetching member sends",
                    ));
                }
            };
            if events.send(event).await.is_err() {
                break;
            }
        }
        std::io::Result::Ok(())
    };
    let ended = tokio::select! {
        ended = write => ended,
        ended = read => ended,
    };
    match ended {
        Ok(()) => format!("{} closed the stream", member.short()),
        Err(e) => format!("{}: {}", member.short(), chain(&e)),
    }
}
