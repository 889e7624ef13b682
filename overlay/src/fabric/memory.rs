//! A [`Fabric`] of members inside one process, with delay, cuts and deaths, for unit tests and
//! simulations of the crates above. Time is tokio's, so a paused clock makes it virtual.

use super::{BoxStream, Fabric, FabricError, Serve};
use crate::lock;
use crate::{
    id::{MemberId, RingAddr},
    identity::LinkKey,
};
use async_trait::async_trait;
use std::{
    collections::{BTreeMap, HashMap},
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf},
    sync::mpsc,
    time::Instant,
};

#[derive(Default)]
struct Shared {
    nodes: BTreeMap<MemberId, Node>,
    /// Since when pairs are cut.
    cuts: BTreeMap<(MemberId, MemberId), Instant>,
    one_way: Duration,
    notice: Duration,
}

#[derive(Default)]
struct Node {
    handlers: HashMap<&'static str, Arc<dyn Serve>>,
    acceptors: HashMap<&'static str, mpsc::Sender<(MemberId, BoxStream)>>,
    dead: Option<Instant>,
}

/// The network of a test's members.
#[derive(Clone, Default)]
pub struct MemoryNet(Arc<Mutex<Shared>>);

/// One member's view of a [`MemoryNet`].
#[derive(Clone)]
pub struct MemoryFabric {
    net: MemoryNet,
    me: MemberId,
}

impl MemoryNet {
    /// A network whose packets take `one_way` each.
    pub fn new(one_way: Duration) -> Self {
        Self(Arc::new(Mutex::new(Shared {
            one_way,
            ..Shared::default()
        })))
    }

    /// How long a death or a cut goes unnoticed: until then the member counts as connected, and
    /// does not answer.
    pub fn set_notice(&self, notice: Duration) {
        self.lock().notice = notice;
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        lock(&self.0)
    }

    /// Adds a member, or brings a dead one back without its handlers.
    pub fn add(&self, me: MemberId) -> Arc<MemoryFabric> {
        self.lock().nodes.insert(me, Node::default());
        Arc::new(MemoryFabric {
            net: self.clone(),
            me,
        })
    }

    /// Kills a member: it is neither found nor answers.
    pub fn kill(&self, member: MemberId) {
        if let Some(node) = self.lock().nodes.get_mut(&member) {
            node.dead.get_or_insert_with(Instant::now);
        }
    }

    /// Cuts or heals the pair, both ways.
    pub fn set_cut(&self, a: MemberId, b: MemberId, cut: bool) {
        let pair = (a.min(b), a.max(b));
        let mut shared = self.lock();
        if cut {
            shared.cuts.entry(pair).or_insert_with(Instant::now);
        } else {
            shared.cuts.remove(&pair);
        }
    }
}

impl Shared {
    fn reaches(&self, a: MemberId, b: MemberId) -> bool {
        let alive = |m| self.nodes.get(&m).is_some_and(|n| n.dead.is_none());
        alive(a) && alive(b) && !self.cuts.contains_key(&(a.min(b), a.max(b)))
    }

    /// Whether `a` believes to be connected to `b`.
    fn sees(&self, a: MemberId, b: MemberId) -> bool {
        let late = |since: Option<&Instant>| since.is_some_and(|at| at.elapsed() >= self.notice);
        let gone = |m| self.nodes.get(&m).is_none_or(|n| late(n.dead.as_ref()));
        !gone(a) && !gone(b) && !late(self.cuts.get(&(a.min(b), a.max(b))))
    }
}

/// A stream that breaks when its pair is cut or one of them dies, at the next read or write.
struct MemoryStream {
    net: MemoryNet,
    pair: (MemberId, MemberId),
    inner: DuplexStream,
}

impl MemoryStream {
    fn whole(&self) -> io::Result<()> {
        if self.net.lock().reaches(self.pair.0, self.pair.1) {
            Ok(())
        } else {
            Err(io::ErrorKind::ConnectionReset.into())
        }
    }
}

impl AsyncRead for MemoryStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.whole()?;
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl AsyncWrite for MemoryStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.whole()?;
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.whole()?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[async_trait]
impl Fabric for MemoryFabric {
    fn me(&self) -> MemberId {
        self.me
    }

    fn connected(&self) -> Vec<MemberId> {
        let shared = self.net.lock();
        shared
            .nodes
            .keys()
            .copied()
            .filter(|m| *m != self.me && shared.sees(self.me, *m))
            .collect()
    }

    fn link_key(&self, _member: MemberId) -> Option<LinkKey> {
        None
    }

    async fn closest(&self, place: RingAddr, n: usize) -> Result<Vec<MemberId>, FabricError> {
        Ok(self.nearby(place, n))
    }

    async fn call(
        &self,
        to: MemberId,
        service: &'static str,
        body: Vec<u8>,
        timeout: Duration,
    ) -> Result<Vec<u8>, FabricError> {
        let (one_way, reaches) = {
            let shared = self.net.lock();
            (shared.one_way, shared.reaches(self.me, to))
        };
        if !reaches {
            tokio::time::sleep(timeout).await;
            return Err(FabricError::TimedOut(to, timeout));
        }
        let exchange = async {
            tokio::time::sleep(one_way).await;
            let handler = self
                .net
                .lock()
                .nodes
                .get(&to)
                .and_then(|n| n.handlers.get(service).cloned());
            let handler =
                handler.ok_or_else(|| FabricError::NoSuchService(to, service.to_owned()))?;
            let answer = handler.serve(self.me, body).await;
            tokio::time::sleep(one_way).await;
            // A cut or a death while the answer was under way loses the answer, not the effect.
            if !self.net.lock().reaches(self.me, to) {
                std::future::pending::<()>().await;
            }
            answer.map_err(|reason| FabricError::Refused(to, reason))
        };
        tokio::time::timeout(timeout, exchange)
            .await
            .unwrap_or(Err(FabricError::TimedOut(to, timeout)))
    }

    fn serve(&self, service: &'static str, handler: Arc<dyn Serve>) {
        if let Some(node) = self.net.lock().nodes.get_mut(&self.me) {
            node.handlers.insert(service, handler);
        }
    }

    async fn open_stream(
        &self,
        to: MemberId,
        service: &'static str,
    ) -> Result<BoxStream, FabricError> {
        let acceptor = {
            let shared = self.net.lock();
            if !shared.reaches(self.me, to) {
                return Err(FabricError::Unreachable(to));
            }
            shared
                .nodes
                .get(&to)
                .and_then(|n| n.acceptors.get(service).cloned())
        };
        let acceptor =
            acceptor.ok_or_else(|| FabricError::NoSuchService(to, service.to_owned()))?;
        let (here, there) = tokio::io::duplex(256 << 10);
        let there = MemoryStream {
            net: self.net.clone(),
            pair: (self.me, to),
            inner: there,
        };
        acceptor
            .send((self.me, Box::new(there)))
            .await
            .map_err(|_| FabricError::NoSuchService(to, service.to_owned()))?;
        let pair = (self.me, to);
        Ok(Box::new(MemoryStream {
            net: self.net.clone(),
            pair,
            inner: here,
        }))
    }

    fn accept_streams(&self, service: &'static str) -> mpsc::Receiver<(MemberId, BoxStream)> {
        let (sender, receiver) = mpsc::channel(64);
        if let Some(node) = self.net.lock().nodes.get_mut(&self.me) {
            node.acceptors.insert(service, sender);
        }
        receiver
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo;
    #[async_trait]
    impl Serve for Echo {
        async fn serve(&self, _from: MemberId, body: Vec<u8>) -> Result<Vec<u8>, String> {
            Ok(body)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_cut_pair_times_out_and_a_healed_one_talks() {
        let net = MemoryNet::new(Duration::from_millis(50));
        let (a, b) = (net.add(MemberId([1; 32])), net.add(MemberId([2; 32])));
        b.serve("echo", Arc::new(Echo));
        let limit = Duration::from_secs(1);
        assert_eq!(a.call(b.me(), "echo", vec![7], limit).await, Ok(vec![7]));
        net.set_cut(a.me(), b.me(), true);
        assert_eq!(
            a.call(b.me(), "echo", vec![7], limit).await,
            Err(FabricError::TimedOut(b.me(), limit))
        );
        net.set_cut(a.me(), b.me(), false);
        assert_eq!(a.call(b.me(), "echo", vec![7], limit).await, Ok(vec![7]));
    }
}
