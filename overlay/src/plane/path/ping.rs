//! Pings that a user asks for.

use super::pending::USER_PING;
use crate::lock;
use crate::{
    id::MemberId,
    link::frame::Frame,
    plane::{core::Inner, error::Error, io::udp::Batch, types::Pong},
};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// How often a path is asked for while it is missing.
const ASK_EVERY: Duration = Duration::from_millis(200);

impl Inner {
    pub async fn ping(&self, member: MemberId, timeout: Duration) -> Result<Pong, Error> {
        let deadline = tokio::time::Instant::now() + timeout;
        if member == self.me {
            return Err(Error::NoPath(member));
        }
        let peer = self.peer(member);
        while !peer.ready() {
            if self.stop.raised() {
                return Err(Error::Closed);
            }
            self.want(&peer, Instant::now());
            // Woken by any change of path, and regularly to ask again.
            let again = tokio::time::Instant::now() + ASK_EVERY;
            let _ =
                tokio::time::timeout_at(again.min(deadline), self.path_changed.notified()).await;
            if tokio::time::Instant::now() >= deadline && !peer.ready() {
                return Err(Error::NoPath(member));
            }
        }
        let token = rand::random::<u64>() | USER_PING;
        let (answer, answered) = oneshot::channel();
        lock(&self.pending.pings).insert(token, answer);
        let sent = Instant::now();
        peer.touch(sent);
        {
            let mut out = Batch::default();
            self.send_frame(&mut out, &peer, Frame::Ping(token), &[], sent);
            out.flush(&self.udp);
        }
        let got = tokio::time::timeout_at(deadline, answered).await;
        lock(&self.pending.pings).remove(&token);
        match got {
            Ok(Ok((at, by))) => Ok(Pong {
                rtt: at.saturating_duration_since(sent),
                path: by.path(),
                hops: by.hops(),
            }),
            _ => Err(Error::TimedOut(member, timeout)),
        }
    }
}
