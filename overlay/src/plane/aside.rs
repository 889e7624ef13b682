//! A second UDP port, for ways on which a router between has gone wrong.
//!
//! A router tracks each flow by its addresses and ports, and judges it by what it decided at the flow's first packet: where the
//! translating rule came after that, or its answers are sent elsewhere by now, the flow is a black hole for as long as packets
//! keep it alive, and our probes and keepalives do. Only another port makes another flow. So the datagrams to some addresses
//! leave from a socket of their own, until that has been of no use either; the first port stays where it is, since the
//! router may map it to us and members know it.
//!
//! Which addresses those are is [`crate::connect`]'s to say. A member that answers to the second port from an address not
//! known yet (its NAT's mapping for that port) is answered from there too.

use super::{Inner, Path, deliver::Ctx, udp::READ_BYTES, udp::Udp};
use crate::stun;
use arc_swap::ArcSwapOption;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// A way on which nothing came for this long is forgotten: a mapping of a NAT would be too.
const WAY_LIFE: Duration = Duration::from_secs(180);
/// A way in use is noted as such this often.
const NOTED_EVERY: Duration = Duration::from_secs(5);
/// Addresses that are written to from there.
const MAX_WAYS: usize = 256;
/// Its thread looks at the end of the plane, and of its port, this often.
const GLANCE_MS: u16 = 500;

/// The second port and the addresses that are written to from it.
#[derive(Default)]
pub(crate) struct Aside {
    used: AtomicBool,
    /// When each was last asked for, or heard.
    ways: RwLock<HashMap<SocketAddr, Instant>>,
    udp: ArcSwapOption<Udp>,
}

impl Aside {
    /// The socket for this address, if it is not the first.
    pub fn of(&self, to: &SocketAddr) -> Option<Arc<Udp>> {
        if !self.used.load(Ordering::Relaxed) || !self.has(to) {
            return None;
        }
        self.udp.load_full()
    }

    fn has(&self, addr: &SocketAddr) -> bool {
        self.ways.read().unwrap_or_else(PoisonError::into_inner).contains_key(addr)
    }

    /// Adds ways, or sees that they are still in use.
    fn add(&self, ways: impl IntoIterator<Item = SocketAddr>, now: Instant) {
        let mut known = self.ways.write().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, at| now.saturating_duration_since(*at) < WAY_LIFE);
        for way in ways {
            if known.len() < MAX_WAYS || known.contains_key(&way) {
                known.insert(way, now);
            }
        }
        self.used.store(!known.is_empty(), Ordering::Relaxed);
    }

    /// Something came by a way that is known; said now and then only, as the map is locked for it.
    fn note(&self, way: &SocketAddr, now: Instant) {
        let known = self.ways.read().unwrap_or_else(PoisonError::into_inner).get(way).copied();
        if known.is_some_and(|at| now.saturating_duration_since(at) >= NOTED_EVERY) {
            self.add([*way], now);
        }
    }

    /// Nothing goes by this port any more.
    fn close(&self, udp: &Arc<Udp>) {
        self.ways.write().unwrap_or_else(PoisonError::into_inner).clear();
        self.used.store(false, Ordering::Relaxed);
        self.udp.rcu(|current| current.as_ref().filter(|current| !Arc::ptr_eq(current, udp)).cloned());
    }

    /// Whether no way is left, or none is heard any more.
    fn is_idle(&self, now: Instant) -> bool {
        let known = self.ways.read().unwrap_or_else(PoisonError::into_inner);
        known.values().all(|at| now.saturating_duration_since(*at) >= WAY_LIFE)
    }

    fn remove(&self, ways: &[SocketAddr]) {
        let mut known = self.ways.write().unwrap_or_else(PoisonError::into_inner);
        known.retain(|way, _| !ways.contains(way));
        self.used.store(!known.is_empty(), Ordering::Relaxed);
    }
}

impl Inner {
    /// Whether some address is written to from the second port.
    pub fn is_aside(&self) -> bool {
        self.udp.aside().used.load(Ordering::Relaxed)
    }

    /// The second port, while it is used.
    pub fn port_aside(&self) -> Option<u16> {
        if self.is_aside() { self.udp.aside().udp.load().as_ref().map(|udp| udp.port()) } else { None }
    }

    /// Writes to these addresses from the second port from now on; from a new one if no link uses it.
    pub fn go_aside(self: &Arc<Self>, ways: &[SocketAddr]) -> io::Result<()> {
        let aside = self.udp.aside();
        if aside.udp.load().is_none() || !self.lives_aside() {
            self.open_aside()?;
        }
        aside.add(ways.iter().copied(), Instant::now());
        Ok(())
    }

    /// Writes to these addresses from the first port again.
    pub fn come_back(&self, ways: &[SocketAddr]) {
        if self.is_aside() {
            self.udp.aside().remove(ways);
        }
    }

    /// Whether a link goes by the second port.
    fn lives_aside(&self) -> bool {
        let aside = self.udp.aside();
        self.peers.load().iter().any(|peer| matches!(peer.path(), Some(Path::Direct(to)) if aside.has(&to)))
    }

    fn open_aside(self: &Arc<Self>) -> io::Result<()> {
        let udp = Arc::new(Udp::bind(0)?);
        tracing::debug!(port = udp.port(), "another port for ways that are dead from the first");
        self.udp.aside().udp.store(Some(udp.clone()));
        let inner = self.clone();
        thread::Builder::new().name("p2pvm-aside".into()).spawn(move || inner.read_aside(&udp)).map(drop)
    }

    /// Asks `server` for the address that our second port wears there.
    pub async fn stun_aside(self: &Arc<Self>, server: SocketAddr, timeout: Duration) -> Option<SocketAddr> {
        let (id, request) = stun::request()?;
        if self.udp.aside().udp.load().is_none() {
            self.open_aside().ok()?;
        }
        let ask = async {
            for pause in [150u64, 300, 600] {
                if let Some(udp) = self.udp.aside().udp.load_full() {
                    udp.send(server, &request);
                }
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = ask => None,
            got = self.hear_stun(id, timeout) => got,
        }
    }

    /// The second port's thread, until the plane ends or another port takes its place.
    fn read_aside(&self, udp: &Arc<Udp>) {
        let (mut buf, mut ctx) = (vec![0; READ_BYTES], Ctx::default());
        let opened = Instant::now();
        let is_current = || self.udp.aside().udp.load().as_ref().is_some_and(|current| Arc::ptr_eq(current, udp));
        while !self.stop.raised() && is_current() {
            match udp.receive(&mut buf) {
                Ok((from, len, stride)) => {
                    let now = Instant::now();
                    self.datagrams(&mut ctx, &mut buf[..len], stride, from, now);
                    self.note_aside(from, now);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    ctx.flush(self);
                    ctx.rest(self);
                    if opened.elapsed() >= WAY_LIFE && self.udp.aside().is_idle(Instant::now()) {
                        self.udp.aside().close(udp);
                        return;
                    }
                    let _ = poll(&mut [PollFd::new(udp.fd(), PollFlags::POLLIN)], PollTimeout::from(GLANCE_MS));
                }
                // An ICMP error of an earlier datagram: its path will be found dead by silence.
                Err(error) => tracing::trace!(%error, "UDP"),
            }
        }
    }

    /// Something came there. What a member sends from an address that is a way to it is answered from there.
    fn note_aside(&self, from: SocketAddr, now: Instant) {
        let aside = self.udp.aside();
        let path = Path::Direct(from);
        if aside.has(&from) {
            aside.note(&from, now);
        } else if self.peers.load().iter().any(|p| p.path() != Some(path) && p.paths().knows(path)) {
            aside.add([from], now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_ways_that_were_named_leave_from_the_other_port_and_no_longer_than_they_are_used() {
        let (aside, now) = (Aside::default(), Instant::now());
        let (a, b): (SocketAddr, SocketAddr) = (([192, 0, 2, 1], 7).into(), ([192, 0, 2, 2], 7).into());
        aside.udp.store(Some(Arc::new(Udp::bind(0).unwrap())));
        assert!(aside.of(&a).is_none());
        aside.add([a], now);
        assert!(aside.of(&a).is_some() && aside.of(&b).is_none());
        aside.add([b], now + WAY_LIFE);
        assert!(aside.of(&a).is_none() && aside.of(&b).is_some(), "nothing came by it for long");
        aside.remove(&[b]);
        assert!(aside.of(&b).is_none() && !aside.used.load(Ordering::Relaxed));
    }
}
