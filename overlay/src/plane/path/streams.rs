//! Datagrams over a stream of the control plane, which the connector opens.

use super::{arrival::Arrival, peer::SendPath};
use crate::lock;
use crate::{
    id::MemberId,
    plane::{core::Inner, types::Path},
};
use std::{sync::Arc, time::Instant};
use tokio::sync::mpsc;

impl Inner {
    /// Puts datagrams for the member into `stream` from now on.
    pub fn attach_stream(&self, member: MemberId, stream: mpsc::Sender<Vec<u8>>) {
        let peer = self.peer(member);
        *peer.stream() = Some(stream.clone());
        if peer.path() == Some(Path::Stream) {
            peer.via.store(Arc::new(SendPath::Stream(stream)));
        }
        self.try_paths(member, [Path::Stream]);
    }

    /// Probes the member's stream; false if it has none that is open.
    pub fn try_stream(&self, member: MemberId) -> bool {
        let there = self
            .peer(member)
            .stream()
            .as_ref()
            .is_some_and(|stream| !stream.is_closed());
        if there {
            self.try_paths(member, [Path::Stream]);
        }
        there
    }

    /// Gives up the member's stream, which has ended. One that replaced it meanwhile stays.
    pub fn detach_stream(&self, member: MemberId, stream: &mpsc::Sender<Vec<u8>>) {
        let Some(peer) = self.tables.peers.load().get(&member).cloned() else {
            return;
        };
        let ours = peer.stream().take_if(|s| s.same_channel(stream)).is_some();
        if ours {
            self.drop_path(member, Path::Stream);
        }
    }

    /// Takes a datagram that came over a stream. The session that opens it names the sender.
    pub fn inject(&self, datagram: &mut [u8]) {
        let mut scratch = lock(&self.stream_scratch);
        self.datagram(&mut scratch, datagram, Arrival::Stream, Instant::now());
        scratch.flush(self);
    }
}
