//! A second UDP port, for ways on which a router between has gone wrong.
//!
//! A router tracks each flow by its addresses and ports, and judges it by what it decided at the
//! flow's first packet: where the translating rule came after that, or its answers are sent
//! elsewhere by now, the flow is a black hole for as long as packets keep it alive, and our probes
//! and keepalives do. Only another port makes another flow. So the datagrams to some addresses
//! leave from a socket of their own, until that has been of no use either; the first port stays
//! where it is, since the router may map it to us and members know it.
//!
//! Which addresses those are is [`crate::connect`]'s to say. A member that answers to the second
//! port from an address not known yet (its NAT's mapping for that port) is answered from there too.

use super::{
    Inner, Path,
    deliver::Ctx,
    peer::Peer,
    receive::Origin,
    udp::{READ_BYTES, Udp},
};
use crate::{connect::is_private, stun};
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
/// A way that was turned to the second port stays there at least for so long: the probes of one try
/// take some 4 s.
const GIVEN: Duration = Duration::from_secs(5);
/// Addresses that are written to from there.
const MAX_WAYS: usize = 256;
/// Its thread looks at the end of the plane, and of its port, this often.
const GLANCE_MS: u16 = 500;

/// The second port and the addresses that are written to from it.
#[derive(Default)]
pub(crate) struct Aside {
    used: AtomicBool,
    /// Nothing leaves from the first port, so that the router forgets its flows.
    first_is_silent: AtomicBool,
    /// When each was last asked for, or heard.
    ways: RwLock<HashMap<SocketAddr, Instant>>,
    udp: ArcSwapOption<Udp>,
}

impl Aside {
    /// The socket for this address, if it is not the first.
    pub fn of(&self, to: &SocketAddr) -> Option<Arc<Udp>> {
        if self.writes_to(to) {
            self.udp.load_full()
        } else {
            None
        }
    }

    /// The second port, if there is one.
    pub fn port(&self) -> Option<Arc<Udp>> {
        self.udp.load_full()
    }

    /// Whether what is written to this address leaves from the second port.
    pub fn writes_to(&self, to: &SocketAddr) -> bool {
        self.used.load(Ordering::Relaxed) && self.has(to)
    }

    /// From which port what came from there is answered: from that by which it came, as only then
    /// the answer shows that the way goes both ways (RFC 8445, 7.3.1.1); but never from one that is
    /// to be silent.
    pub fn answers(&self, from: Origin) -> bool {
        from.aside || (self.first_is_silent.load(Ordering::Relaxed) && self.writes_to(&from.addr))
    }

    /// Says whether the first port is to be silent.
    pub fn silence_first(&self, silent: bool) {
        self.first_is_silent.store(silent, Ordering::Relaxed);
    }

    /// Turns a way back to the first port, on which its far end was heard, unless it was lately
    /// tried or heard by the second. Whether that was done.
    fn give_up(&self, way: &SocketAddr, now: Instant) -> bool {
        let mut known = self.ways.write().unwrap_or_else(PoisonError::into_inner);
        let is_stale = known
            .get(way)
            .is_some_and(|at| now.saturating_duration_since(*at) >= GIVEN)
            && !self.first_is_silent.load(Ordering::Relaxed);
        if is_stale {
            known.remove(way);
            self.used.store(!known.is_empty(), Ordering::Relaxed);
        }
        is_stale
    }

    fn has(&self, addr: &SocketAddr) -> bool {
        self.ways
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .contains_key(addr)
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
        let known = self
            .ways
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(way)
            .copied();
        if known.is_some_and(|at| now.saturating_duration_since(at) >= NOTED_EVERY) {
            self.add([*way], now);
        }
    }

    /// Nothing goes by this port any more.
    fn close(&self, udp: &Arc<Udp>) {
        self.ways
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
        self.used.store(false, Ordering::Relaxed);
        self.udp.rcu(|current| {
            current
                .as_ref()
                .filter(|current| !Arc::ptr_eq(current, udp))
                .cloned()
        });
    }

    /// Whether no way is left, or none is heard any more.
    fn is_idle(&self, now: Instant) -> bool {
        let known = self.ways.read().unwrap_or_else(PoisonError::into_inner);
        known
            .values()
            .all(|at| now.saturating_duration_since(*at) >= WAY_LIFE)
    }

    fn remove(&self, ways: &[SocketAddr]) {
        let mut known = self.ways.write().unwrap_or_else(PoisonError::into_inner);
        known.retain(|way, _| !ways.contains(way));
        self.used.store(!known.is_empty(), Ordering::Relaxed);
    }
}

impl Inner {
    /// Whether what is written to where this came from leaves by the port that it came by.
    pub fn is_answered_by_its_port(&self, from: Origin) -> bool {
        self.udp.aside().writes_to(&from.addr) == from.aside
    }

    /// A probe was answered there: the port that it had left from carries both ways, though it may
    /// have been another's turn since.
    pub fn keep_port(&self, from: Origin, now: Instant) {
        let aside = self.udp.aside();
        match (from.aside, aside.writes_to(&from.addr)) {
            (false, true) if aside.answers(from) => {}
            (false, true) => aside.remove(&[from.addr]),
            (true, false) => aside.add([from.addr], now),
            _ => {}
        }
    }

    /// A member was heard, not by the way in use. Is that way one which it has given up, on the
    /// other port, it is written to from the port on which it was heard.
    pub fn turn_to_port(&self, peer: &Peer, from: Origin, now: Instant) {
        let is_given_up = peer.path() != Some(Path::Direct(from.addr));
        if is_given_up
            && !from.aside
            && self.is_aside()
            && self.udp.aside().give_up(&from.addr, now)
        {
            tracing::debug!(member = ?peer.member, way = %from.addr, "from the first port again, \
                on which it is heard");
        }
    }

    /// Whether some address is written to from the second port.
    pub fn is_aside(&self) -> bool {
        self.udp.aside().used.load(Ordering::Relaxed)
    }

    /// The second port, while it is used.
    pub fn port_aside(&self) -> Option<u16> {
        if self.is_aside() {
            self.udp.aside().udp.load().as_ref().map(|udp| udp.port())
        } else {
            None
        }
    }

    /// Writes to these addresses from the second port from now on.
    pub fn go_aside(self: &Arc<Self>, ways: &[SocketAddr]) -> io::Result<()> {
        let aside = self.udp.aside();
        if aside.udp.load().is_none() {
            self.open_aside()?;
        }
        aside.add(ways.iter().copied(), Instant::now());
        Ok(())
    }

    /// Writes to all members from the second port from now on, where their addresses are public,
    /// and tries every way anew.
    pub fn all_aside(self: &Arc<Self>) {
        let now = Instant::now();
        let peers: Vec<Arc<Peer>> = self
            .peers
            .load()
            .iter()
            .filter(|p| p.sending.load().is_some())
            .cloned()
            .collect();
        let ways: Vec<SocketAddr> = peers
            .iter()
            .flat_map(|p| p.paths().direct_ways())
            .filter(|to| !is_private(&to.ip()))
            .collect();
        if let Err(error) = self.go_aside(&ways) {
            tracing::debug!(%error, "no other port");
            return;
        }
        self.udp.aside().silence_first(true);
        for peer in &peers {
            peer.paths().rouse(now);
            self.run_paths(peer, now);
        }
        self.kick.kick();
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
        self.peers
            .load()
            .iter()
            .any(|peer| matches!(peer.path(), Some(Path::Direct(to)) if aside.has(&to)))
    }

    fn open_aside(self: &Arc<Self>) -> io::Result<()> {
        let udp = Arc::new(Udp::bind(0)?);
        tracing::debug!(
            port = udp.port(),
            "another port for ways that are dead from the first"
        );
        self.udp.aside().udp.store(Some(udp.clone()));
        let inner = self.clone();
        thread::Builder::new()
            .name("p2pvm-aside".into())
            .spawn(move || inner.read_aside(&udp))
            .map(drop)
    }

    /// Asks `server` for the address that our second port wears there; a new port where no link
    /// goes by it.
    pub async fn stun_aside(
        self: &Arc<Self>,
        server: SocketAddr,
        timeout: Duration,
    ) -> Option<SocketAddr> {
        let (id, request) = stun::request()?;
        // One by which nothing goes may have become a black hole too, where it was opened before
        // the cause had ended.
        if self.udp.aside().udp.load().is_none() || !self.lives_aside() {
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
        let is_current = || {
            self.udp
                .aside()
                .udp
                .load()
                .as_ref()
                .is_some_and(|current| Arc::ptr_eq(current, udp))
        };
        while !self.stop.raised() && is_current() {
            match udp.receive(&mut buf) {
                Ok((from, len, stride)) => {
                    let now = Instant::now();
                    self.datagrams(
                        &mut ctx,
                        &mut buf[..len],
                        stride,
                        Origin {
                            addr: from,
                            aside: true,
                        },
                        now,
                    );
                    self.note_aside(from, now);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    ctx.flush(self);
                    ctx.rest(self);
                    if opened.elapsed() >= WAY_LIFE && self.udp.aside().is_idle(Instant::now()) {
                        self.udp.aside().close(udp);
                        return;
                    }
                    let _ = poll(
                        &mut [PollFd::new(udp.fd(), PollFlags::POLLIN)],
                        PollTimeout::from(GLANCE_MS),
                    );
                }
                // An ICMP error of an earlier datagram: its path will be found dead by silence.
                Err(error) => tracing::trace!(%error, "UDP"),
            }
        }
    }

    /// Something came there. What a member sends from an address that is a way to it is answered
    /// from there.
    fn note_aside(&self, from: SocketAddr, now: Instant) {
        let aside = self.udp.aside();
        let path = Path::Direct(from);
        if aside.has(&from) {
            aside.note(&from, now);
        } else if self
            .peers
            .load()
            .iter()
            .any(|p| p.path() != Some(path) && p.paths().knows(path))
        {
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
        let (a, b): (SocketAddr, SocketAddr) =
            (([192, 0, 2, 1], 7).into(), ([192, 0, 2, 2], 7).into());
        aside.udp.store(Some(Arc::new(Udp::bind(0).unwrap())));
        assert!(aside.of(&a).is_none());
        aside.add([a], now);
        assert!(aside.of(&a).is_some() && aside.of(&b).is_none());
        aside.add([b], now + WAY_LIFE);
        assert!(
            aside.of(&a).is_none() && aside.of(&b).is_some(),
            "nothing came by it for long"
        );
        aside.remove(&[b]);
        assert!(aside.of(&b).is_none() && !aside.used.load(Ordering::Relaxed));
    }

    #[test]
    fn a_way_whose_far_end_is_heard_by_the_first_port_returns_there_when_its_try_is_over() {
        let (aside, now) = (Aside::default(), Instant::now());
        let a: SocketAddr = ([192, 0, 2, 1], 7).into();
        aside.udp.store(Some(Arc::new(Udp::bind(0).unwrap())));
        aside.add([a], now);
        assert!(
            !aside.give_up(&a, now + Duration::from_secs(4)) && aside.writes_to(&a),
            "its probes are under way"
        );
        // It is heard there: then it is of use.
        aside.note(&a, now + GIVEN);
        assert!(!aside.give_up(&a, now + GIVEN + Duration::from_secs(4)));
        assert!(
            aside.give_up(&a, now + GIVEN * 2) && !aside.writes_to(&a) && aside.of(&a).is_none()
        );
        assert!(!aside.give_up(&a, now + GIVEN * 3), "once");
        // One that is silent for the router's sake neither answers nor gets ways back.
        aside.add([a], now);
        let by_first = Origin {
            addr: a,
            aside: false,
        };
        assert!(
            !aside.answers(by_first)
                && aside.answers(Origin {
                    aside: true,
                    ..by_first
                })
        );
        aside.silence_first(true);
        assert!(aside.answers(by_first) && !aside.give_up(&a, now + GIVEN * 2));
    }
}
