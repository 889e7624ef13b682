//! Does what the state machines of links and paths ask for, and tries paths for the connector.

use super::{
    paths::{Activity, KEEPALIVE, Step},
    peer::{Peer, SendPath},
};
use crate::{
    id::MemberId,
    link::{
        Link, Output,
        frame::{FRAME_HEADER_LEN, Frame},
        session::OVERHEAD,
    },
    plane::{
        core::Inner,
        io::udp::Batch,
        tables::Sessions,
        types::{Path, PlaneEvent},
    },
};
use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

/// How often silent paths are checked for an answer.
const LOOK_PAUSE: Duration = Duration::from_millis(20);

impl Inner {
    /// Does what the peer's link asks for.
    pub fn run_link(&self, peer: &Arc<Peer>, now: Instant) {
        let mut out = Batch::default();
        loop {
            let Some(output) = peer.link().as_mut().and_then(Link::poll) else {
                break;
            };
            match output {
                Output::Transmit(message) => {
                    peer.note_sent(now, 0);
                    self.pass(&mut out, peer, &peer.via.load(), message, now);
                }
                Output::Install(session) => {
                    self.tables.sessions.rcu(|sessions| {
                        let mut sessions = Sessions::clone(sessions);
                        sessions.insert(session.local_index(), (session.clone(), peer.clone()));
                        sessions
                    });
                }
                Output::Retire(index) => {
                    self.tables.sessions.rcu(|sessions| {
                        let mut sessions = Sessions::clone(sessions);
                        sessions.remove(&index);
                        sessions
                    });
                }
                Output::SendWith(session) => {
                    peer.sending.store(session);
                    self.send_waiting(&mut out, peer, now);
                }
                Output::GaveUp => {
                    tracing::debug!(
                        member = ?peer.member,
                        "the member does not answer the handshake"
                    );
                    peer.paths().remove_all(now);
                    self.run_paths(peer, now);
                }
            }
        }
        out.flush(&self.udp);
    }

    /// Does what the peer's paths ask for.
    pub fn run_paths(&self, peer: &Arc<Peer>, now: Instant) {
        let mut out = Batch::default();
        loop {
            let Some(step) = peer.paths().poll() else {
                break;
            };
            match step {
                Step::Silent => self.reports.silent(peer.member),
                Step::Probe(path, token) => {
                    self.send_frame_by(&mut out, peer, path, Frame::Ping(token), &[], now)
                }
                Step::Select(path) => {
                    let via = path
                        .and_then(|path| self.via(peer, path))
                        .unwrap_or(SendPath::Nowhere);
                    peer.via.store(Arc::new(via));
                    peer.pmtu().selected(path, now);
                    peer.show_limit();
                    if !matches!(path, Some(Path::Direct(_) | Path::Stream)) {
                        self.relay_lost(peer.member, now);
                    }
                    tracing::debug!(member = ?peer.member, ?path, "the path to a member changed");
                    self.send_waiting(&mut out, peer, now);
                    self.tell(PlaneEvent::PathChanged {
                        member: peer.member,
                        path,
                    });
                    self.path_changed.notify_waiters();
                    // The ring carries data while a better path is sought.
                    if path.is_none_or(|p| p == Path::Ring) && peer.idle(now) < KEEPALIVE {
                        self.want(peer, now);
                    }
                }
            }
        }
        out.flush(&self.udp);
    }

    /// Moves every member reached through this relay to its next path: the relay can pass nothing
    /// on any more.
    fn relay_lost(&self, relay: MemberId, now: Instant) {
        let lost = Path::Relayed(relay);
        for peer in self
            .tables
            .peers
            .load()
            .iter()
            .filter(|p| p.member != relay)
        {
            if peer.paths().remove(lost, now) {
                self.run_paths(peer, now);
            }
        }
    }

    /// Sends the path MTU probes that are due. True while an answer is awaited.
    pub fn run_pmtu(&self, peer: &Arc<Peer>, now: Instant) -> bool {
        let rtt = peer.paths().rtt();
        let large = peer.large.swap(false, Ordering::Relaxed);
        let (questions, busy) = {
            let mut pmtu = peer.pmtu();
            pmtu.tick(now, rtt, large);
            (
                std::iter::from_fn(|| pmtu.poll()).collect::<Vec<_>>(),
                pmtu.busy(),
            )
        };
        peer.show_limit();
        let mut out = Batch::default();
        for question in questions {
            let padding = vec![0; usize::from(question.size).saturating_sub(OVERHEAD)];
            self.send_frame_by(
                &mut out,
                peer,
                question.path,
                Frame::Ping(question.token),
                &padding,
                now,
            );
        }
        out.flush(&self.udp);
        busy
    }

    fn send_waiting(&self, out: &mut Batch, peer: &Arc<Peer>, now: Instant) {
        if !peer.ready() {
            return;
        }
        for frame in peer.take_waiting(now) {
            if let Some(header) = Frame::parse(&frame) {
                self.send_frame(out, peer, header, &frame[FRAME_HEADER_LEN..], now);
            }
        }
    }

    /// What decides about the member's paths.
    pub fn activity(&self, peer: &Peer) -> Activity {
        Activity {
            ring: self.has_ring_neighbours(),
            ..peer.activity()
        }
    }

    /// Probes these paths to a member now.
    pub fn try_paths(&self, member: MemberId, paths: impl IntoIterator<Item = Path>) {
        let (peer, now) = (self.peer(member), Instant::now());
        {
            let (mut known, view) = (peer.paths(), self.underlay.view());
            // No tunnel through a tunnel.
            let is_outside =
                |path: &Path| !matches!(path, Path::Direct(to) if view.is_inside(&to.ip()));
            paths
                .into_iter()
                .filter(is_outside)
                .for_each(|path| known.add(path, now));
            known.tick(now, self.activity(&peer));
        }
        self.run_paths(&peer, now);
        self.clock.wake();
    }

    /// Probes again the direct paths to a member that worked before, if its session is still up.
    pub fn try_remembered(&self, member: MemberId) {
        let (peers, now) = (self.tables.peers.load(), Instant::now());
        if let Some(peer) = peers.get(&member).filter(|p| p.sending.load().is_some()) {
            peer.paths().try_remembered(now);
            self.clock.wake();
        }
    }

    /// See [`crate::plane::Plane::look_at_silent`].
    pub async fn look_at_silent(&self, limit: Duration) {
        let began = Instant::now();
        let mut first = true;
        loop {
            let now = Instant::now();
            let silent: Vec<Arc<Peer>> = self
                .tables
                .peers
                .load()
                .iter()
                .filter(|p| p.info().is_some_and(|i| i.silent(now).is_some()))
                .cloned()
                .collect();
            if silent.is_empty() || now.saturating_duration_since(began) >= limit {
                return;
            }
            if std::mem::take(&mut first) {
                for peer in &silent {
                    peer.paths().doubt(now);
                    self.run_paths(peer, now);
                }
                self.clock.wake();
            }
            tokio::time::sleep(LOOK_PAUSE).await;
        }
    }

    /// Gives up one path to a member.
    pub fn drop_path(&self, member: MemberId, path: Path) {
        let now = Instant::now();
        if let Some(peer) = self.tables.peers.load().get(&member) {
            peer.paths().remove(path, now);
            self.run_paths(peer, now);
        }
    }
}
