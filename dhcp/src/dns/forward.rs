//! Passes a question that is not about the network on to the name servers that the host had before ours, and gives their
//! answer back as it came. For the host's own programs only: no open resolver for the other members.
//!
//! Each question leaves from a port of its own (RFC 5452 §10), and an answer counts only from the server asked, with the
//! question's id and text.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};
use tokio::net::UdpSocket;

/// A stub resolver asks again, or another server, after five seconds: two servers fit.
const TIMEOUT: Duration = Duration::from_millis(2200);
const MAX_ANSWER_BYTES: usize = 4096;
const HEADER_BYTES: usize = 12;

/// The servers that other questions go to; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Upstream(Arc<RwLock<Vec<SocketAddr>>>);

impl Upstream {
    /// Replaces the servers.
    pub fn set(&self, servers: Vec<SocketAddr>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = servers;
    }

    /// The servers.
    pub fn get(&self) -> Vec<SocketAddr> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The answer of the first server that gives one.
pub(super) async fn ask(servers: &[SocketAddr], query: &[u8]) -> Option<Vec<u8>> {
    for server in servers {
        if let Ok(Some(answer)) = tokio::time::timeout(TIMEOUT, ask_one(*server, query)).await {
            return Some(answer);
        }
    }
    None
}

async fn ask_one(server: SocketAddr, query: &[u8]) -> Option<Vec<u8>> {
    let any = if server.is_ipv4() { SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)) } else { SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)) };
    let socket = UdpSocket::bind(any).await.ok()?;
    socket.connect(server).await.ok()?;
    socket.send(query).await.ok()?;
    let mut buffer = vec![0; MAX_ANSWER_BYTES];
    loop {
        let length = socket.recv(&mut buffer).await.ok()?;
        if answers(&buffer[..length], query) {
            buffer.truncate(length);
            return Some(buffer);
        }
    }
}

/// Where the only question of a message ends.
fn question_end(message: &[u8]) -> Option<usize> {
    let mut at = HEADER_BYTES;
    loop {
        match usize::from(*message.get(at)?) {
            0 => return Some(at + 5).filter(|end| *end <= message.len()),
            length @ 1..=63 => at += 1 + length,
            // A question's name is not compressed: there is nothing before it.
            _ => return None,
        }
    }
}

fn answers(answer: &[u8], query: &[u8]) -> bool {
    let Some(end) = question_end(query) else { return false };
    let is_response = answer.get(2).is_some_and(|flags| flags & 0x80 != 0);
    let same_question = answer.get(HEADER_BYTES..end).is_some_and(|q| q.eq_ignore_ascii_case(&query[HEADER_BYTES..end]));
    is_response && answer[..2] == query[..2] && same_question
}
