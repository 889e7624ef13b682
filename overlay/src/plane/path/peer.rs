//! What the plane keeps for one member: its link, its paths, and the packets that wait while the
//! link comes up.

use super::paths::{Activity, Paths};
use crate::lock;
use crate::{
    id::MemberId,
    link::{
        Link, Session,
        frame::{ShortId, short_id},
        session::OVERHEAD,
    },
    plane::{
        shape::{pieces::Pieces, pmtu::Pmtu},
        types::{Path, PathInfo},
    },
    ring::Position,
};
use arc_swap::{ArcSwap, ArcSwapOption};
use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::mpsc;

/// How many frames may wait for a link. Reason: enough for TCP's first flight and a few datagrams.
const MAX_WAITING: usize = 64;
/// How long a frame may wait before it is not sent any more.
const WAIT: Duration = Duration::from_secs(5);

/// Where sealed datagrams go, as packet threads use it.
pub(crate) enum SendPath {
    Nowhere,
    Direct(std::net::SocketAddr),
    Relayed(Arc<Peer>),
    Ring,
    Stream(mpsc::Sender<Vec<u8>>),
}

pub(crate) struct Peer {
    pub member: MemberId,
    pub short: ShortId,
    pub position: Position,
    epoch: Instant,
    link: Mutex<Option<Link>>,
    paths: Mutex<Paths>,
    pub sending: ArcSwapOption<Session>,
    pub via: ArcSwap<SendPath>,
    stream: Mutex<Option<mpsc::Sender<Vec<u8>>>>,
    waiting: Mutex<VecDeque<(Instant, Vec<u8>)>>,
    pub keep_alive: AtomicBool,
    /// The ring wants this link, so it stays although it carries no data.
    edge: AtomicBool,
    /// The ring wanted the link and no longer does, and nothing else has used it.
    spare: AtomicBool,
    /// A stream is preferred to relays and the ring.
    by_stream: AtomicBool,
    /// The position of the member through which this one is reached while it has none of its own;
    /// zero: none.
    agent: AtomicU64,
    /// The position of our neighbour through which it was met, if this node has none on its ring;
    /// zero: none.
    ring_via: AtomicU64,
    pmtu: Mutex<Pmtu>,
    /// The path MTU as packet threads see it: twice the largest IP packet, plus one if it is
    /// certain that a larger one does not fit.
    limit: AtomicUsize,
    /// Whether large packets were sent since the clock's last tick.
    pub large: AtomicBool,
    pub pieces: Mutex<Pieces>,
    pub piece_id: AtomicU32,
    tx_bytes: AtomicU64,
    rx_bytes: AtomicU64,
    // Microseconds since `epoch`, plus one; zero: never.
    received: AtomicU64,
    sent: AtomicU64,
    unanswered: AtomicU64,
    data: AtomicU64,
    wanted: AtomicU64,
    hinted: AtomicU64,
    looked: AtomicU64,
    complained: AtomicU64,
}

impl Peer {
    pub fn new(member: MemberId, mtu: u16, now: Instant) -> Self {
        let full = u16::try_from(usize::from(mtu) + OVERHEAD).unwrap_or(u16::MAX);
        let peer = Self {
            member,
            short: short_id(&member),
            position: Position::of(&member),
            epoch: now,
            link: Mutex::new(None),
            paths: Mutex::default(),
            sending: ArcSwapOption::empty(),
            via: ArcSwap::from_pointee(SendPath::Nowhere),
            stream: Mutex::new(None),
            waiting: Mutex::default(),
            keep_alive: AtomicBool::new(false),
            edge: AtomicBool::new(false),
            spare: AtomicBool::new(false),
            by_stream: AtomicBool::new(false),
            agent: AtomicU64::new(0),
            ring_via: AtomicU64::new(0),
            pmtu: Mutex::new(Pmtu::new(full, now)),
            limit: AtomicUsize::new(0),
            large: AtomicBool::new(false),
            pieces: Mutex::default(),
            piece_id: AtomicU32::new(0),
            tx_bytes: AtomicU64::new(0),
            rx_bytes: AtomicU64::new(0),
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            unanswered: AtomicU64::new(0),
            data: AtomicU64::new(now.elapsed().as_micros() as u64 + 1),
            wanted: AtomicU64::new(0),
            hinted: AtomicU64::new(0),
            looked: AtomicU64::new(0),
            complained: AtomicU64::new(0),
        };
        peer.show_limit();
        peer
    }

    pub fn link(&self) -> MutexGuard<'_, Option<Link>> {
        lock(&self.link)
    }

    pub fn paths(&self) -> MutexGuard<'_, Paths> {
        lock(&self.paths)
    }

    pub fn pmtu(&self) -> MutexGuard<'_, Pmtu> {
        lock(&self.pmtu)
    }

    /// Shows packet threads what the path carries.
    pub fn show_limit(&self) {
        let (datagram, sure) = self.pmtu().limit();
        let packet = usize::from(datagram).saturating_sub(OVERHEAD);
        self.limit
            .store(packet << 1 | usize::from(sure), Ordering::Relaxed);
    }

    /// The largest IP packet that the path carries whole, and whether it is certain that larger
    /// ones do not get through.
    pub fn limit(&self) -> (usize, bool) {
        let limit = self.limit.load(Ordering::Relaxed);
        (limit >> 1, limit & 1 != 0)
    }

    pub fn stream(&self) -> MutexGuard<'_, Option<mpsc::Sender<Vec<u8>>>> {
        lock(&self.stream)
    }

    fn stamp(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.epoch).as_micros() as u64 + 1
    }

    fn instant(&self, stamp: u64) -> Option<Instant> {
        (stamp > 0).then(|| self.epoch + Duration::from_micros(stamp - 1))
    }

    /// Notes that something was sent to the peer. With data in it, something should come back.
    pub fn note_sent(&self, now: Instant, data_bytes: usize) {
        let stamp = self.stamp(now);
        self.sent.store(stamp, Ordering::Relaxed);
        if data_bytes > 0 {
            self.tx_bytes
                .fetch_add(data_bytes as u64, Ordering::Relaxed);
            self.data.store(stamp, Ordering::Relaxed);
            if self.unanswered.load(Ordering::Relaxed) == 0 {
                self.unanswered.store(stamp, Ordering::Relaxed);
            }
        }
    }

    /// Notes that something verified came. It shows that the selected path works only if it came by
    /// that path (`in_use`).
    pub fn note_received(&self, now: Instant, data_bytes: usize, in_use: bool) {
        let stamp = self.stamp(now);
        if in_use {
            self.received.store(stamp, Ordering::Relaxed);
            self.unanswered.store(0, Ordering::Relaxed);
        }
        if data_bytes > 0 {
            self.rx_bytes
                .fetch_add(data_bytes as u64, Ordering::Relaxed);
            self.data.store(stamp, Ordering::Relaxed);
        }
    }

    pub fn activity(&self) -> Activity {
        let at = |stamp: &AtomicU64| self.instant(stamp.load(Ordering::Relaxed));
        Activity {
            received: at(&self.received),
            unanswered: at(&self.unanswered),
            sent: at(&self.sent),
            keep_alive: self.keep_alive.load(Ordering::Relaxed),
            ring: false,
            ring_last: self.is_edge() || self.by_stream.load(Ordering::Relaxed),
            stream_first: self.by_stream.load(Ordering::Relaxed),
        }
    }

    /// Notes that something other than data, such as a ring packet, was sent to the peer, after
    /// which a sign of life should come.
    pub fn note_expecting(&self, now: Instant) {
        let _ = self.unanswered.compare_exchange(
            0,
            self.stamp(now),
            Ordering::Relaxed,
            Ordering::Relaxed,
        );
    }

    /// Whether the ring wants this link.
    pub fn is_edge(&self) -> bool {
        self.edge.load(Ordering::Relaxed)
    }

    /// Notes whether the ring wants this link.
    pub fn set_edge(&self, wanted: bool) {
        let unused =
            self.tx_bytes.load(Ordering::Relaxed) + self.rx_bytes.load(Ordering::Relaxed) == 0;
        self.spare.store(
            self.edge.swap(wanted, Ordering::Relaxed) && !wanted && unused,
            Ordering::Relaxed,
        );
    }

    /// Whether only the ring has used the link, and has let it go.
    pub fn is_spare(&self) -> bool {
        self.spare.load(Ordering::Relaxed)
    }

    /// Prefers a stream to relays and the ring from now on: UDP does not reach the peer.
    pub fn prefer_stream(&self) {
        self.by_stream.store(true, Ordering::Relaxed);
    }

    /// The member through which this one is reached over the ring, if it has no position of its
    /// own.
    pub fn agent(&self) -> Option<Position> {
        Some(Position(self.agent.load(Ordering::Relaxed))).filter(|p| p.0 != 0)
    }

    /// Notes through which member this one was last heard over the ring.
    pub fn set_agent(&self, agent: Option<Position>) {
        self.agent
            .store(agent.map_or(0, |p| p.0), Ordering::Relaxed);
    }

    /// The neighbour of this node through which the member is reached over the ring, if not by the
    /// routing table.
    pub fn ring_via(&self) -> Option<Position> {
        Some(Position(self.ring_via.load(Ordering::Relaxed))).filter(|p| p.0 != 0)
    }

    /// Notes through which neighbour of this node the member was met over the ring.
    pub fn set_ring_via(&self, via: Option<Position>) {
        self.ring_via
            .store(via.map_or(0, |p| p.0), Ordering::Relaxed);
    }

    /// Time since data last went either way; zero for an edge of the ring.
    pub fn idle(&self, now: Instant) -> Duration {
        if self.is_edge() {
            return Duration::ZERO;
        }
        self.instant(self.data.load(Ordering::Relaxed))
            .map_or(Duration::ZERO, |at| now.saturating_duration_since(at))
    }

    /// Counts the link as used now.
    pub fn touch(&self, now: Instant) {
        self.data.store(self.stamp(now), Ordering::Relaxed);
    }

    /// Whether the connector may be asked for a path: at most twice a second.
    pub fn ask_for_path(&self, now: Instant) -> bool {
        self.once_in(&self.wanted, Duration::from_millis(500), now)
    }

    /// Whether the peer may be told that a guest moved. Reason for the limit: its packets come
    /// faster than it can act on a hint.
    pub fn may_hint(&self, now: Instant) -> bool {
        self.once_in(&self.hinted, Duration::from_millis(20), now)
    }

    /// Whether a path that the peer used and this node does not may be looked at now.
    pub fn may_look(&self, now: Instant) -> bool {
        self.once_in(&self.looked, Duration::from_millis(50), now)
    }

    /// Whether the plane's owner may be told of the peer's stale packets: it takes a while to act.
    pub fn may_complain(&self, now: Instant) -> bool {
        self.once_in(&self.complained, Duration::from_millis(500), now)
    }

    fn once_in(&self, last: &AtomicU64, pause: Duration, now: Instant) -> bool {
        let (stamp, before) = (self.stamp(now), last.load(Ordering::Relaxed));
        let due = before == 0 || stamp.saturating_sub(before) >= pause.as_micros() as u64;
        due && last
            .compare_exchange(before, stamp, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
    }

    /// Keeps a frame until the link is up; the oldest makes room.
    pub fn wait(&self, now: Instant, frame: Vec<u8>) {
        let mut waiting = lock(&self.waiting);
        if waiting.len() >= MAX_WAITING {
            waiting.pop_front();
        }
        waiting.push_back((now, frame));
    }

    /// The frames that waited, less those that are too old.
    pub fn take_waiting(&self, now: Instant) -> Vec<Vec<u8>> {
        let waiting = std::mem::take(&mut *lock(&self.waiting));
        waiting
            .into_iter()
            .filter(|(at, _)| now.saturating_duration_since(*at) < WAIT)
            .map(|(_, frame)| frame)
            .collect()
    }

    /// Whether data can go now.
    pub fn ready(&self) -> bool {
        self.sending.load().is_some() && !matches!(**self.via.load(), SendPath::Nowhere)
    }

    pub fn info(&self) -> Option<PathInfo> {
        let last_handshake = self.sending.load().as_ref().map(|s| s.created());
        let paths = self.paths();
        Some(PathInfo {
            path: paths.selected()?,
            rtt: paths.rtt(),
            since: paths.since()?,
            tx_bytes: self.tx_bytes.load(Ordering::Relaxed),
            rx_bytes: self.rx_bytes.load(Ordering::Relaxed),
            last_handshake,
            packet_bytes: self.limit().0,
            heard: self.instant(self.received.load(Ordering::Relaxed)),
        })
    }

    /// Whether datagrams reach the member by a path that does not itself rest on the ring.
    pub fn is_edge_path(&self) -> bool {
        matches!(
            **self.via.load(),
            SendPath::Direct(_) | SendPath::Relayed(_) | SendPath::Stream(_)
        )
    }

    pub fn path(&self) -> Option<Path> {
        self.paths().selected()
    }
}

/// All peers, as a snapshot.
#[derive(Clone, Default)]
pub(crate) struct Peers {
    by_member: HashMap<MemberId, Arc<Peer>>,
    by_short: HashMap<ShortId, Arc<Peer>>,
}

impl Peers {
    pub fn get(&self, member: &MemberId) -> Option<&Arc<Peer>> {
        self.by_member.get(member)
    }

    pub fn by_short(&self, short: &ShortId) -> Option<&Arc<Peer>> {
        self.by_short.get(short)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<Peer>> {
        self.by_member.values()
    }

    pub fn insert(&mut self, peer: Arc<Peer>) {
        self.by_short.insert(peer.short, peer.clone());
        self.by_member.insert(peer.member, peer);
    }

    pub fn remove(&mut self, member: &MemberId) {
        if let Some(peer) = self.by_member.remove(member) {
            self.by_short.remove(&peer.short);
        }
    }
}
