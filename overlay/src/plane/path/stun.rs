//! How this host's addresses look from outside, by STUN (RFC 8489).

use crate::lock;
use crate::{
    plane::{core::Inner, io::second_port::UdpSource},
    stun,
};
use std::{net::SocketAddr, time::Duration};
use tokio::sync::oneshot;

/// Pauses after each request, in milliseconds.
pub(crate) const PAUSES_MS: [u64; 3] = [150, 300, 600];

impl Inner {
    /// Asks the STUN server at `server` for the address that it sees for the first port.
    pub async fn stun(&self, server: SocketAddr, timeout: Duration) -> Option<SocketAddr> {
        let (id, request) = stun::request()?;
        if self.underlay.is_inside(&server.ip()) {
            return None;
        }
        let (answer, answered) = oneshot::channel();
        lock(&self.pending.stuns).insert(id, answer);
        let ask = async {
            for pause in PAUSES_MS {
                self.udp.send_first(server, &request);
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
            std::future::pending::<()>().await;
        };
        let got = tokio::select! {
            () = ask => None,
            got = tokio::time::timeout(timeout, answered) => got.ok().and_then(Result::ok),
        };
        lock(&self.pending.stuns).remove(&id);
        got
    }

    /// Waits for a STUN answer that a member was asked to send, and returns the address in it.
    pub async fn hear_stun(
        &self,
        id: stun::TransactionId,
        timeout: Duration,
    ) -> Option<SocketAddr> {
        let (answer, answered) = oneshot::channel();
        lock(&self.pending.stuns).insert(id, answer);
        let got = tokio::time::timeout(timeout, answered)
            .await
            .ok()
            .and_then(Result::ok);
        lock(&self.pending.stuns).remove(&id);
        got
    }

    /// Answers a STUN request, or hands an answer to its asker.
    pub fn on_stun(&self, bytes: &[u8], from: UdpSource) {
        if let Some(answer) = stun::answer(bytes, from.addr) {
            self.udp.send_by(from.is_second_port, from.addr, &answer);
        } else if let Some((id, mapped)) = stun::mapped(bytes)
            // A server that sees an address of a tunnel of this machine was asked through it.
            && !self.underlay.is_inside(&mapped.ip())
            && let Some(waiting) = lock(&self.pending.stuns).remove(&id)
        {
            let _ = waiting.send(mapped);
        }
    }
}
