//! Does what links and paths ask for, and what the connector asks of the plane.

use super::{
    Error, Inner, Path, PlaneEvent,
    core::{Sessions, lock},
    paths::{Activity, Step},
    peer::{Peer, Via},
    udp::Batch,
};
use crate::{
    id::MemberId,
    identity::LinkKey,
    link::{Link, Opened, Output, Refused, frame::Frame, session::OVERHEAD, wire},
    ring::Position,
};
use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};
use tokio::sync::mpsc;

/// Whether silent paths have answered is looked at this often.
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
                    self.sessions.rcu(|sessions| {
                        let mut sessions = Sessions::clone(sessions);
                        sessions.insert(session.local_index(), (session.clone(), peer.clone()));
                        sessions
                    });
                }
                Output::Retire(index) => {
                    self.sessions.rcu(|sessions| {
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
                    tracing::debug!(member = ?peer.member, "handshake never answered");
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
                Step::Silent => drop(self.silent.try_send(peer.member)),
                Step::Probe(path, token) => {
                    self.send_frame_by(&mut out, peer, path, Frame::Ping(token), &[], now)
                }
                Step::Select(path) => {
                    let via = path
                        .and_then(|path| self.via(peer, path))
                        .unwrap_or(Via::Nowhere);
                    peer.via.store(Arc::new(via));
                    peer.pmtu().selected(path, now);
                    peer.show_limit();
                    if !matches!(path, Some(Path::Direct(_) | Path::Stream)) {
                        self.relay_lost(peer.member, now);
                    }
                    tracing::debug!(member = ?peer.member, ?path, "path");
                    self.send_waiting(&mut out, peer, now);
                    self.tell(PlaneEvent::PathChanged {
                        member: peer.member,
                        path,
                    });
                    self.path_changed.notify_waiters();
                    // Over the ring it goes on, while something better is looked for.
                    if path.is_none_or(|p| p == Path::Ring)
                        && peer.idle(now) < super::paths::KEEPALIVE
                    {
                        self.want(peer, now);
                    }
                }
            }
        }
        out.flush(&self.udp);
    }

    /// This member can pass nothing on any more: who was reached through it takes the next way at
    /// once.
    fn relay_lost(&self, relay: MemberId, now: Instant) {
        let lost = Path::Relayed(relay);
        for peer in self.peers.load().iter().filter(|p| p.member != relay) {
            if peer.paths().remove(lost, now) {
                self.run_paths(peer, now);
            }
        }
    }

    /// Asks what the path in use carries, where that is due; whether an answer is waited for.
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
                self.send_frame(
                    out,
                    peer,
                    header,
                    &frame[crate::link::frame::FRAME_HEADER_LEN..],
                    now,
                );
            }
        }
    }

    /// The peer, with a link to its key; a link to another key of it ends.
    pub(super) fn linked(&self, member: MemberId, key: LinkKey) -> Arc<Peer> {
        let peer = self.peer(member);
        {
            let mut link = peer.link();
            if link.as_ref().is_some_and(|l| l.peer() != key)
                && let Some(old) = link.as_mut()
            {
                old.close();
                drop(link);
                self.run_link(&peer, Instant::now());
                link = peer.link();
                *link = None;
            }
            link.get_or_insert_with(|| Link::new(self.keys.clone(), key));
        }
        peer.touch(Instant::now());
        peer
    }

    /// What the member's paths go by.
    pub fn activity(&self, peer: &Peer) -> Activity {
        Activity {
            ring: self.ring_stands(),
            ..peer.activity()
        }
    }

    /// Opens a handshake whose message the connector carries, with `extra` sealed in it.
    pub fn open_link(
        &self,
        member: MemberId,
        key: LinkKey,
        extra: &[u8],
    ) -> Result<Vec<u8>, Error> {
        let (peer, now, index) = (self.linked(member, key), Instant::now(), self.new_index());
        let opened = peer.link().as_mut().map_or(Err(Refused::Unasked), |link| {
            link.open_carried(now, index, extra)
        });
        opened.map_err(|e| Error::Handshake(member, e.to_string()))
    }

    /// Answers a handshake that `member` sent over the control plane.
    pub fn accept_link(
        &self,
        member: MemberId,
        key: LinkKey,
        message: &[u8],
    ) -> Result<Vec<u8>, Error> {
        let failed = |e: Refused| Error::Handshake(member, e.to_string());
        let Ok(wire::Datagram::Initiation { sender, noise }) = wire::parse(message) else {
            return Err(failed(Refused::Malformed));
        };
        let opened = Opened::read(&self.keys, sender, noise).map_err(failed)?;
        let (peer, now, index) = (self.linked(member, key), Instant::now(), self.new_index());
        let answer = peer
            .link()
            .as_mut()
            .map_or(Err(Refused::Unasked), |link| {
                link.accept(now, opened, index, true, &[])
            })
            .map_err(failed)?;
        self.run_link(&peer, now);
        Ok(answer)
    }

    /// Reads a handshake that came over the ring, where nothing but the message itself says whose
    /// it is.
    pub fn read_link(&self, message: &[u8]) -> Result<Opened, Refused> {
        let Ok(wire::Datagram::Initiation { sender, noise }) = wire::parse(message) else {
            return Err(Refused::Malformed);
        };
        // Each costs two multiplications on the curve, and anybody can send some.
        if lock(&self.doorman).overloaded(Instant::now()) {
            return Err(Refused::Unasked);
        }
        Opened::read(&self.keys, sender, noise)
    }

    /// Answers such a handshake, whose sender has been proved to be `member`, with `extra` sealed
    /// in the answer; the ring is a path to it from now on.
    pub fn accept_over_ring(
        &self,
        member: MemberId,
        opened: Opened,
        agent: Option<Position>,
        extra: &[u8],
    ) -> Result<Vec<u8>, Error> {
        let (peer, now, index) = (
            self.linked(member, opened.peer),
            Instant::now(),
            self.new_index(),
        );
        let answer = peer.link().as_mut().map_or(Err(Refused::Unasked), |link| {
            let answer = link.accept(now, opened, index, false, extra)?;
            link.seal_if_none(index);
            Ok(answer)
        });
        let answer = answer.map_err(|e| Error::Handshake(member, e.to_string()))?;
        self.run_link(&peer, now);
        peer.set_agent(agent);
        self.assume_ring(&peer, now);
        Ok(answer)
    }

    /// As [`Inner::finish_link`], for an answer that came over the ring (through our neighbour
    /// `via`, if not as usual), which is a path to the member from now on.
    pub fn finish_over_ring(
        &self,
        member: MemberId,
        via: Option<Position>,
        answer: &[u8],
    ) -> Result<Vec<u8>, Error> {
        let extra = self.finish_link(member, answer)?;
        let peer = self.peer(member);
        peer.set_agent(None);
        peer.set_ring_via(via);
        self.assume_ring(&peer, Instant::now());
        Ok(extra)
    }

    fn assume_ring(&self, peer: &Arc<Peer>, now: Instant) {
        peer.paths().assume(Path::Ring, now);
        self.run_paths(peer, now);
        self.kick.kick();
    }

    /// Takes the answer to [`Inner::open_link`]; what was sealed in it besides.
    pub fn finish_link(&self, member: MemberId, answer: &[u8]) -> Result<Vec<u8>, Error> {
        let (peer, now) = (self.peer(member), Instant::now());
        let finished = peer
            .link()
            .as_mut()
            .map_or(Err(Refused::Unasked), |link| link.answered(now, answer));
        self.run_link(&peer, now);
        finished.map_err(|e| Error::Handshake(member, e.to_string()))
    }

    /// Tries these ways to a member now.
    pub fn try_paths(&self, member: MemberId, paths: impl IntoIterator<Item = Path>) {
        let (peer, now) = (self.peer(member), Instant::now());
        {
            let (mut known, view) = (peer.paths(), self.underlay.view());
            // Never a tunnel through a tunnel.
            let is_outside =
                |path: &Path| !matches!(path, Path::Direct(to) if view.is_inside(&to.ip()));
            paths
                .into_iter()
                .filter(is_outside)
                .for_each(|path| known.add(path, now));
            known.tick(now, self.activity(&peer));
        }
        self.run_paths(&peer, now);
        self.kick.kick();
    }

    /// Tries again the direct ways to a member that once worked, if its session still stands.
    pub fn try_remembered(&self, member: MemberId) {
        let (peers, now) = (self.peers.load(), Instant::now());
        if let Some(peer) = peers.get(&member).filter(|p| p.sending.load().is_some()) {
            peer.paths().try_remembered(now);
            self.kick.kick();
        }
    }

    /// See [`super::Plane::look_at_silent`].
    pub async fn look_at_silent(&self, limit: Duration) {
        let began = Instant::now();
        let mut first = true;
        loop {
            let now = Instant::now();
            let silent: Vec<Arc<Peer>> = self
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
                self.kick.kick();
            }
            tokio::time::sleep(LOOK_PAUSE).await;
        }
    }

    /// Gives up one way to a member.
    pub fn drop_path(&self, member: MemberId, path: Path) {
        let now = Instant::now();
        if let Some(peer) = self.peers.load().get(&member) {
            peer.paths().remove(path, now);
            self.run_paths(peer, now);
        }
    }

    /// Datagrams for the member may from now on be put into `stream`.
    pub fn attach_stream(&self, member: MemberId, stream: mpsc::Sender<Vec<u8>>) {
        let peer = self.peer(member);
        *peer.stream() = Some(stream.clone());
        if peer.path() == Some(Path::Stream) {
            peer.via.store(Arc::new(Via::Stream(stream)));
        }
        self.try_paths(member, [Path::Stream]);
    }

    /// Whether a stream is there for the member's datagrams; it is tried then.
    pub fn try_stream(&self, member: MemberId) -> bool {
        let there = self
            .peer(member)
            .stream()
            .as_ref()
            .is_some_and(|stream| !stream.is_closed());
        if there {
            self.try_paths(member, [Path::Stream]);
        }
        there
    }

    /// The member's stream ended; another that replaced it meanwhile stays.
    pub fn detach_stream(&self, member: MemberId, stream: &mpsc::Sender<Vec<u8>>) {
        let Some(peer) = self.peers.load().get(&member).cloned() else {
            return;
        };
        let ours = peer.stream().take_if(|s| s.same_channel(stream)).is_some();
        if ours {
            self.drop_path(member, Path::Stream);
        }
    }

    /// A datagram came over a stream; whose it is shows by the session that opens it.
    pub fn inject(&self, datagram: &mut [u8]) {
        let mut ctx = lock(&self.side);
        self.datagram(
            &mut ctx,
            datagram,
            super::receive::By::Stream,
            Instant::now(),
        );
        ctx.flush(self);
    }
}
