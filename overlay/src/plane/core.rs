//! The state that the plane's threads share.

use super::{
    access::Access,
    guest::multicast::Multicast,
    interface::{answers::Proofs, loops::Loops, wanted::WantedDevice},
    io::{
        udp::Udp,
        wake::{Stop, Waker},
    },
    path::{
        moves::Moves,
        peer::{Peer, Peers, SendPath},
        pending::OpenPings,
        relaying::Relaying,
        ring_port::RingPort,
    },
    reports::Reports,
    scratch::Scratch,
    tables::{Sessions, Tables},
    tasks::Tasks,
    traffic::Traffic,
    types::PlaneEvent,
    waiting::WaitingPackets,
};
use crate::{
    id::MemberId,
    link::{Keys, cookie::Doorman},
    underlay::Underlay,
};
use std::{
    io,
    sync::{Arc, Mutex},
    time::Instant,
};
use tokio::sync::Notify;
use tun_rs::SyncDevice;

pub(super) struct Inner {
    pub me: MemberId,
    pub keys: Arc<Keys>,
    pub udp: Udp,
    /// Missing in an idle plane.
    pub device: Option<SyncDevice>,
    pub mtu: u16,
    /// Whether the TUN takes joined UDP datagrams (USO, Linux 6.2).
    pub joins_datagrams: bool,
    /// What the TUN has to be like.
    pub device_wanted: Mutex<WantedDevice>,
    pub access: Access,
    pub multicast: Multicast,
    pub tables: Tables,
    pub waiting: WaitingPackets,
    /// Pings and STUN requests whose callers wait for an answer.
    pub pending: OpenPings,
    pub reports: Reports,
    pub doorman: Mutex<Doorman>,
    /// The scratch of datagrams that come by stream.
    pub stream_scratch: Mutex<Scratch>,
    /// Notified whenever a path was selected or lost.
    pub path_changed: Notify,
    /// The machine's networks, and which of them are tunnels.
    pub underlay: Underlay,
    pub loops: Loops,
    pub proofs: Proofs,
    pub tasks: Tasks,
    pub ring: RingPort,
    pub moves: Moves,
    pub relaying: Relaying,
    pub traffic: Traffic,
    pub clock: Waker,
    pub stop: Stop,
}

impl Inner {
    pub fn stop(&self) {
        if !self.stop.raise() {
            return;
        }
        self.clock.wake();
        for port in self.tables.ports.swap(Arc::default()).iter() {
            port.stop.raise();
        }
        self.pending.clear_pings();
        self.clear_tasks();
        self.tables.peers.store(Arc::default());
        self.tables.sessions.store(Arc::default());
        self.path_changed.notify_waiters();
    }

    /// The device.
    ///
    /// # Errors
    /// In an idle plane, which has none.
    #[inline]
    pub fn tun(&self) -> io::Result<&SyncDevice> {
        let none = || io::Error::from(io::ErrorKind::NotConnected);
        self.device.as_ref().ok_or_else(none)
    }

    /// Tells the owner; an owner that does not listen loses events.
    pub fn tell(&self, event: PlaneEvent) {
        self.reports.event(event);
    }

    /// The peer of a member, made if it is missing.
    pub fn peer(&self, member: MemberId) -> Arc<Peer> {
        if let Some(peer) = self.tables.peers.load().get(&member) {
            return peer.clone();
        }
        let new = Arc::new(Peer::new(member, self.mtu, Instant::now()));
        self.tables.peers.rcu(|peers| {
            let mut peers = Peers::clone(peers);
            if peers.get(&member).is_none() {
                peers.insert(new.clone());
            }
            peers
        });
        self.tables
            .peers
            .load()
            .get(&member)
            .cloned()
            .unwrap_or(new)
    }

    /// Ends the link to a former member: its sessions open nothing from now on.
    pub fn remove_peer(&self, member: MemberId) {
        let Some(peer) = self.tables.peers.load().get(&member).cloned() else {
            return;
        };
        *peer.link() = None;
        peer.sending.store(None);
        self.tables.sessions.rcu(|sessions| {
            let mut sessions = Sessions::clone(sessions);
            sessions.retain(|_, (_, of)| of.member != member);
            sessions
        });
        peer.paths().remove_all(Instant::now());
        peer.via.store(Arc::new(SendPath::Nowhere));
        self.tables.peers.rcu(|peers| {
            let mut peers = Peers::clone(peers);
            peers.remove(&member);
            peers
        });
    }

    /// Asks the connector for a path to the peer.
    pub fn want(&self, peer: &Peer, now: Instant) {
        if peer.member != self.me && peer.ask_for_path(now) {
            self.reports.wanted(peer.member);
        }
    }

    /// An index that no session has.
    pub fn new_index(&self) -> u32 {
        let sessions = self.tables.sessions.load();
        loop {
            let index = rand::random();
            if !sessions.contains_key(&index) {
                return index;
            }
        }
    }
}
