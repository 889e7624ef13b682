//! The state that the plane's threads share, and how it changes.

use super::{
    Error, PlaneConfig, PlaneEvent, Pong, Route,
    access::Access,
    clock::{self, Kick},
    deliver::Ctx,
    device,
    loops::Loops,
    mend::Wanted,
    multicast::Multicast,
    peer::{Peer, Peers},
    port::{Port, Ports},
    proof::Proofs,
    receive::{self, By, Origin},
    relaying::Relaying,
    ring::RingPort,
    roam::{self, Desk},
    routes,
    routes::{Routes, Waitlist},
    traffic::Traffic,
    tun,
    udp::{Batch, MAX_BATCH_BYTES, Udp},
    wake::Stop,
};
use crate::{
    id::{Epoch, MemberId},
    link::{
        Keys, Session,
        cookie::Doorman,
        frame::{Frame, wire_epoch},
        session::OVERHEAD,
    },
    stun,
    underlay::Underlay,
};
use arc_swap::ArcSwap;
use p2pvm_host::links::{Mark, set_alias};
use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};
use tokio::sync::{Notify, mpsc, oneshot};
use tun_rs::{DeviceBuilder, SyncDevice};

/// Members for which a path is wanted and the connector has not looked yet.
const MAX_WANTED: usize = 256;
/// Marks the token of a ping that a user asked for; a path's own probes have the bit clear.
pub(crate) const USER_PING: u64 = 1 << 63;

/// A packet from a member whose source address is not known yet.
pub(crate) struct Held {
    pub from: MemberId,
    pub from_epoch: u32,
    pub to_epoch: u32,
    pub packet: Vec<u8>,
}

/// By local index, which is a random number of ours: it needs no hashing against chosen keys.
pub(crate) type Sessions = HashMap<u32, (Arc<Session>, Arc<Peer>), BuildHasherDefault<ByIndex>>;

/// Passes a session's index on as its hash.
#[derive(Default)]
pub(crate) struct ByIndex(u64);

impl Hasher for ByIndex {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes
            .iter()
            .for_each(|b| self.0 = self.0 << 8 | u64::from(*b));
    }

    fn write_u32(&mut self, index: u32) {
        // The table takes the upper seven bits as well as the lower ones.
        self.0 = u64::from(index) << 32 | u64::from(index);
    }
}

pub(super) struct Inner {
    pub me: MemberId,
    pub keys: Arc<Keys>,
    pub udp: Udp,
    pub tun: SyncDevice,
    /// What the TUN is to be like.
    pub device_wanted: Mutex<Wanted>,
    pub mtu: u16,
    /// The TUN takes UDP datagrams that are joined (USO, Linux 6.2).
    pub joins_datagrams: bool,
    pub access: Access,
    pub multicast: Multicast,
    pub routes: ArcSwap<Routes>,
    pub forwards: ArcSwap<HashMap<IpAddr, Route>>,
    pub hosts: ArcSwap<Vec<(IpAddr, u8)>>,
    pub ports: ArcSwap<Ports>,
    pub peers: ArcSwap<Peers>,
    pub sessions: ArcSwap<Sessions>,
    /// Packets to addresses without a route, with the epoch of their source.
    pub unresolved: Mutex<Waitlist<(u32, Vec<u8>)>>,
    pub unknown_sources: Mutex<Waitlist<Held>>,
    /// Packets that a guest's former host passed on before the guest had its port here.
    pub early: Mutex<Waitlist<Vec<u8>>>,
    pub doorman: Mutex<Doorman>,
    pub events: mpsc::Sender<PlaneEvent>,
    pub wanted: mpsc::Sender<MemberId>,
    wanted_by: Mutex<Option<mpsc::Receiver<MemberId>>>,
    /// Members whose path in use does not answer.
    pub silent: mpsc::Sender<MemberId>,
    silent_by: Mutex<Option<mpsc::Receiver<MemberId>>>,
    pub pings: Mutex<HashMap<u64, oneshot::Sender<(Instant, By)>>>,
    stuns: Mutex<HashMap<stun::TransactionId, oneshot::Sender<SocketAddr>>>,
    /// For datagrams that come by stream.
    pub side: Mutex<Ctx>,
    /// Told whenever a path was selected or lost.
    pub path_changed: Notify,
    /// The machine's networks, and which of them are tunnels.
    pub underlay: Underlay,
    /// Own datagrams that came into the TUN.
    pub loops: Loops,
    pub proofs: Proofs,
    pub desk: Desk,
    pub ring: RingPort,
    /// When and why this host last had to find its links again.
    pub last_roamed: Mutex<Option<(Instant, &'static str)>>,
    pub has_roamed: Notify,
    pub relaying: Relaying,
    pub traffic: Traffic,
    pub kick: Kick,
    pub stop: Stop,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inner {
    pub fn start(
        config: PlaneConfig,
        events: mpsc::Sender<PlaneEvent>,
    ) -> Result<Arc<Self>, Error> {
        let now = Instant::now();
        let udp = Udp::bind(config.udp_port).map_err(|cause| Error::Bind {
            port: config.udp_port,
            cause,
        })?;
        let failed = |cause| Error::Tun {
            device: config.device.clone(),
            cause,
        };
        let tun = DeviceBuilder::new()
            .name(&config.device)
            .mtu(config.mtu)
            .offload(true)
            .build_sync()
            .map_err(failed)?;
        tun.set_nonblocking(true).map_err(failed)?;
        let largest = device::largest_packet(usize::from(config.mtu), OVERHEAD, MAX_BATCH_BYTES);
        let index = tun.if_index().map_err(failed)?;
        if let Err(error) = device::limit_packets(index, largest) {
            tracing::debug!(%error, "TSO packets are not limited to one send");
        }
        // Before it has an address, so that no daemon of this machine takes it for one of its own
        // candidates.
        let mark = Mark {
            network: config.network,
            link_port: udp.port(),
            control_port: config.control_port,
            misses: None,
        };
        if let Err(error) = set_alias(index, &mark.to_string()) {
            tracing::warn!(%error, "the interface {} cannot be marked: other networks of this \
                machine may mistake it", config.device);
        }
        let name = tun.name().map_err(failed)?;
        let underlay = Underlay::default();
        underlay.set_device(&name, &[]);
        let (wanted, wanted_by) = mpsc::channel(MAX_WANTED);
        let (silent, silent_by) = mpsc::channel(MAX_WANTED);
        let inner = Arc::new(Self {
            me: config.me,
            keys: Arc::new(Keys::new(config.link_secret)),
            udp,
            joins_datagrams: tun.udp_gso(),
            tun,
            device_wanted: Mutex::new(Wanted::new(name, config.mtu, largest, mark)),
            mtu: config.mtu,
            access: Access::default(),
            multicast: Multicast::default(),
            routes: ArcSwap::default(),
            forwards: ArcSwap::default(),
            hosts: ArcSwap::default(),
            ports: ArcSwap::default(),
            peers: ArcSwap::default(),
            sessions: ArcSwap::default(),
            unresolved: Mutex::default(),
            unknown_sources: Mutex::default(),
            early: Mutex::default(),
            doorman: Mutex::new(Doorman::new(now)),
            events,
            wanted,
            wanted_by: Mutex::new(Some(wanted_by)),
            silent,
            silent_by: Mutex::new(Some(silent_by)),
            pings: Mutex::default(),
            stuns: Mutex::default(),
            side: Mutex::default(),
            path_changed: Notify::new(),
            underlay,
            loops: Loops::new(),
            proofs: Proofs::default(),
            desk: Desk::new().map_err(Error::Thread)?,
            ring: RingPort::new(config.me),
            last_roamed: Mutex::default(),
            has_roamed: Notify::new(),
            relaying: Relaying::new(now),
            traffic: Traffic::new(now, config.traffic),
            kick: Kick::default(),
            stop: Stop::new().map_err(Error::Thread)?,
        });
        type Body = fn(&Arc<Inner>);
        let threads: [(&str, Body); 4] = [
            ("p2pvm-tun", |inner| tun::run(inner)),
            ("p2pvm-udp", |inner| receive::run(inner)),
            ("p2pvm-clock", |inner| clock::run(inner)),
            ("p2pvm-host", roam::run),
        ];
        for (name, body) in threads {
            let shared = inner.clone();
            let started = thread::Builder::new()
                .name(name.into())
                .spawn(move || body(&shared));
            if let Err(cause) = started {
                inner.stop();
                return Err(Error::Thread(cause));
            }
        }
        Ok(inner)
    }

    pub fn stop(&self) {
        if !self.stop.raise() {
            return;
        }
        self.kick.kick();
        for port in self.ports.swap(Arc::default()).iter() {
            port.stop.raise();
        }
        lock(&self.pings).clear();
        self.clear_desk();
        self.peers.store(Arc::default());
        self.sessions.store(Arc::default());
        self.path_changed.notify_waiters();
    }

    /// Tells the owner; an owner that does not listen loses events, never the packet path its pace.
    pub fn tell(&self, event: PlaneEvent) {
        if self.events.try_send(event).is_err() {
            tracing::debug!("plane event dropped: nobody takes them");
        }
    }

    pub fn is_host(&self, addr: &IpAddr) -> bool {
        self.hosts.load().iter().any(|(host, _)| host == addr)
    }

    pub fn set_route(&self, addr: IpAddr, route: Route) {
        if self.routes.load().would_change(&addr, &route) {
            self.routes.rcu(|routes| {
                let mut routes = Routes::clone(routes);
                routes.set(addr, route);
                routes
            });
        }
        let now = Instant::now();
        let outgoing = lock(&self.unresolved).take(now, &addr);
        let incoming = lock(&self.unknown_sources).take(now, &addr);
        if outgoing.is_empty() && incoming.is_empty() {
            return;
        }
        // Not the shared scratch: a stream reader that holds it may have brought the hint that
        // leads here.
        let mut ctx = Ctx::default();
        for (from_epoch, packet) in outgoing {
            self.carry_one(&mut ctx, from_epoch, &packet, now);
        }
        for held in incoming {
            if let Some(peer) = self.peers.load().get(&held.from) {
                self.ip_in(
                    &mut ctx,
                    peer,
                    Frame::Ip {
                        from_epoch: held.from_epoch,
                        to_epoch: held.to_epoch,
                        passed_on: false,
                    },
                    &held.packet,
                    now,
                );
            }
        }
        ctx.flush(self);
    }

    pub fn set_forward(&self, addr: IpAddr, to: Option<Route>) {
        self.forwards.rcu(|forwards| {
            let mut forwards = HashMap::clone(forwards);
            match to {
                Some(route) => forwards.insert(addr, route),
                None => forwards.remove(&addr),
            };
            forwards
        });
        if let Some(route) = to {
            self.set_route(addr, route);
            self.pass_on_held(&addr, route);
        }
    }

    /// Sends what was held for a guest that has moved after it.
    fn pass_on_held(&self, addr: &IpAddr, route: Route) {
        let Some(port) = self.ports.load().by_addr(addr).cloned() else {
            return;
        };
        let (next, now) = (self.peer(route.member), Instant::now());
        let mut out = Batch::default();
        for packet in port.holding.release(true) {
            let frame = Frame::Ip {
                from_epoch: 0,
                to_epoch: wire_epoch(route.epoch),
                passed_on: true,
            };
            self.send_frame(&mut out, &next, frame, &packet, now);
        }
        out.flush(&self.udp);
    }

    /// The peer of a member, made if it was none.
    pub fn peer(&self, member: MemberId) -> Arc<Peer> {
        if let Some(peer) = self.peers.load().get(&member) {
            return peer.clone();
        }
        let new = Arc::new(Peer::new(member, self.mtu, Instant::now()));
        self.peers.rcu(|peers| {
            let mut peers = Peers::clone(peers);
            if peers.get(&member).is_none() {
                peers.insert(new.clone());
            }
            peers
        });
        self.peers.load().get(&member).cloned().unwrap_or(new)
    }

    /// Ends the link to a member that is none any more: its sessions open nothing from now on.
    pub fn remove_peer(&self, member: MemberId) {
        let Some(peer) = self.peers.load().get(&member).cloned() else {
            return;
        };
        *peer.link() = None;
        peer.sending.store(None);
        self.sessions.rcu(|sessions| {
            let mut sessions = Sessions::clone(sessions);
            sessions.retain(|_, (_, of)| of.member != member);
            sessions
        });
        peer.paths().remove_all(Instant::now());
        peer.via.store(Arc::new(super::peer::Via::Nowhere));
        self.peers.rcu(|peers| {
            let mut peers = Peers::clone(peers);
            peers.remove(&member);
            peers
        });
    }

    /// Asks the connector for a path to the peer.
    pub fn want(&self, peer: &Peer, now: Instant) {
        if peer.member != self.me && peer.ask_for_path(now) {
            let _ = self.wanted.try_send(peer.member);
        }
    }

    /// The members for which paths are wanted; the first caller has them.
    pub fn take_wanted(&self) -> Option<mpsc::Receiver<MemberId>> {
        lock(&self.wanted_by).take()
    }

    /// The members whose path in use falls silent, each time it does; the first caller has them.
    pub fn take_silent(&self) -> Option<mpsc::Receiver<MemberId>> {
        lock(&self.silent_by).take()
    }

    /// An index that no session has.
    pub fn new_index(&self) -> u32 {
        let sessions = self.sessions.load();
        loop {
            let index = rand::random();
            if !sessions.contains_key(&index) {
                return index;
            }
        }
    }

    /// The port behind an address, unless its guest has gone and packets are to follow it.
    pub fn port_of(&self, addr: &IpAddr) -> Option<Arc<Port>> {
        let port = self.ports.load().by_addr(addr).cloned()?;
        (!self.forwards.load().contains_key(addr)).then_some(port)
    }

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
            // Woken by any change of path, and now and then to ask again.
            let again = tokio::time::Instant::now() + Duration::from_millis(200);
            let _ =
                tokio::time::timeout_at(again.min(deadline), self.path_changed.notified()).await;
            if tokio::time::Instant::now() >= deadline && !peer.ready() {
                return Err(Error::NoPath(member));
            }
        }
        let token = rand::random::<u64>() | USER_PING;
        let (answer, answered) = oneshot::channel();
        lock(&self.pings).insert(token, answer);
        let sent = Instant::now();
        peer.touch(sent);
        {
            let mut out = Batch::default();
            self.send_frame(&mut out, &peer, Frame::Ping(token), &[], sent);
            out.flush(&self.udp);
        }
        let got = tokio::time::timeout_at(deadline, answered).await;
        lock(&self.pings).remove(&token);
        match got {
            Ok(Ok((at, by))) => Ok(Pong {
                rtt: at.saturating_duration_since(sent),
                path: by.path(),
                hops: by.hops(),
            }),
            _ => Err(Error::TimedOut(member, timeout)),
        }
    }

    /// Asks whoever listens at `server` for the address that our packets wear there.
    pub async fn stun(&self, server: SocketAddr, timeout: Duration) -> Option<SocketAddr> {
        let (id, request) = stun::request()?;
        if self.underlay.is_inside(&server.ip()) {
            return None;
        }
        let (answer, answered) = oneshot::channel();
        lock(&self.stuns).insert(id, answer);
        let ask = async {
            for pause in [150u64, 300, 600] {
                self.udp.send_first(server, &request);
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
            std::future::pending::<()>().await;
        };
        let got = tokio::select! {
            () = ask => None,
            got = tokio::time::timeout(timeout, answered) => got.ok().and_then(Result::ok),
        };
        lock(&self.stuns).remove(&id);
        got
    }

    /// Waits for a STUN answer that a member was asked to send; what it says our address is.
    pub async fn hear_stun(
        &self,
        id: stun::TransactionId,
        timeout: Duration,
    ) -> Option<SocketAddr> {
        let (answer, answered) = oneshot::channel();
        lock(&self.stuns).insert(id, answer);
        let got = tokio::time::timeout(timeout, answered)
            .await
            .ok()
            .and_then(Result::ok);
        lock(&self.stuns).remove(&id);
        got
    }

    /// A STUN message came: answer it, or hand its answer on.
    pub fn on_stun(&self, bytes: &[u8], from: Origin) {
        if let Some(answer) = stun::answer(bytes, from.addr) {
            self.udp.send_by(from.aside, from.addr, &answer);
        } else if let Some((id, mapped)) = stun::mapped(bytes)
            // Who sees us behind a tunnel of ours has been asked through one.
            && !self.underlay.is_inside(&mapped.ip())
            && let Some(waiting) = lock(&self.stuns).remove(&id)
        {
            let _ = waiting.send(mapped);
        }
    }

    /// A hint that `addr` moved, from the member that held it so far; others are not believed.
    pub fn moved(&self, from: &Peer, addr: IpAddr, member: MemberId, epoch: Epoch) {
        let believed = self
            .routes
            .load()
            .get(&addr)
            .is_some_and(|known| known.member == from.member && known.epoch < epoch);
        if believed {
            let route = routes::Route { member, epoch };
            self.set_route(addr, route);
            self.tell(PlaneEvent::MovedHint { addr, route });
        }
    }
}
