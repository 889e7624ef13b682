//! Handshakes: those that the connector carries, and those that come as datagrams.

use super::{arrival::Arrival, peer::Peer};
use crate::lock;
use crate::{
    id::MemberId,
    identity::LinkKey,
    link::{
        Link, LinkRefusal, OpenedInitiation,
        cookie::mac1_verifies,
        frame::Frame,
        wire::{self, Datagram},
    },
    plane::{core::Inner, error::Error, scratch::Scratch, types::Path},
    ring::Position,
};
use std::{sync::Arc, time::Instant};

impl Inner {
    /// The peer with a link to its key. A link to another key of the peer ends.
    pub(crate) fn linked(&self, member: MemberId, key: LinkKey) -> Arc<Peer> {
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

    /// Opens a handshake whose message the connector carries, with `extra` sealed in it.
    pub fn open_link(
        &self,
        member: MemberId,
        key: LinkKey,
        extra: &[u8],
    ) -> Result<Vec<u8>, Error> {
        let (peer, now, index) = (self.linked(member, key), Instant::now(), self.new_index());
        let opened = peer
            .link()
            .as_mut()
            .map_or(Err(LinkRefusal::Unasked), |link| {
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
        let failed = |e: LinkRefusal| Error::Handshake(member, e.to_string());
        let Ok(wire::Datagram::Initiation { sender, noise }) = wire::parse(message) else {
            return Err(failed(LinkRefusal::Malformed));
        };
        let opened = OpenedInitiation::read(&self.keys, sender, noise).map_err(failed)?;
        let (peer, now, index) = (self.linked(member, key), Instant::now(), self.new_index());
        let answer = peer
            .link()
            .as_mut()
            .map_or(Err(LinkRefusal::Unasked), |link| {
                link.accept(now, opened, index, true, &[])
            })
            .map_err(failed)?;
        self.run_link(&peer, now);
        Ok(answer)
    }

    /// Reads a handshake that came over the ring, where only the message itself names its sender.
    pub fn read_link(&self, message: &[u8]) -> Result<OpenedInitiation, LinkRefusal> {
        let Ok(wire::Datagram::Initiation { sender, noise }) = wire::parse(message) else {
            return Err(LinkRefusal::Malformed);
        };
        // Each costs two scalar multiplications, and anyone can send some.
        if lock(&self.doorman).overloaded(Instant::now()) {
            return Err(LinkRefusal::Unasked);
        }
        OpenedInitiation::read(&self.keys, sender, noise)
    }

    /// Answers a handshake from [`Inner::read_link`], once its sender is proved to be `member`,
    /// with `extra` sealed in the answer. The ring is a path to the member from now on.
    pub fn accept_over_ring(
        &self,
        member: MemberId,
        opened: OpenedInitiation,
        agent: Option<Position>,
        extra: &[u8],
    ) -> Result<Vec<u8>, Error> {
        let (peer, now, index) = (
            self.linked(member, opened.peer),
            Instant::now(),
            self.new_index(),
        );
        let answer = peer
            .link()
            .as_mut()
            .map_or(Err(LinkRefusal::Unasked), |link| {
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

    /// As [`Inner::finish_link`], for an answer that came over the ring, which is a path to the
    /// member from now on: through the neighbour `via` where one is given.
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
        self.clock.wake();
    }

    /// Takes the answer to [`Inner::open_link`] and returns what was sealed in it.
    pub fn finish_link(&self, member: MemberId, answer: &[u8]) -> Result<Vec<u8>, Error> {
        let (peer, now) = (self.peer(member), Instant::now());
        let finished = peer
            .link()
            .as_mut()
            .map_or(Err(LinkRefusal::Unasked), |link| link.answered(now, answer));
        self.run_link(&peer, now);
        finished.map_err(|e| Error::Handshake(member, e.to_string()))
    }

    /// Takes a handshake message. Initiations from strangers end here: only members that the
    /// connector has met have a link.
    pub fn handshake(&self, scratch: &mut Scratch, bytes: &[u8], by: Arrival, now: Instant) {
        match wire::parse(bytes) {
            Ok(Datagram::Initiation { sender, noise })
                if mac1_verifies(bytes, &self.keys.public().0) =>
            {
                if self.lets_in(bytes, sender, by, now)
                    && let Ok(opened) = OpenedInitiation::read(&self.keys, sender, noise)
                {
                    self.answer_initiation(scratch, opened, by, now);
                }
            }
            Ok(Datagram::Response { receiver, .. }) => {
                self.take_response(scratch, bytes, receiver, by, now);
            }
            Ok(Datagram::Cookie { receiver, .. }) => {
                for peer in self.tables.peers.load().iter() {
                    if let Some(link) = peer.link().as_mut().filter(|l| l.waits_for(receiver)) {
                        let _ = link.cookie(now, bytes);
                    }
                }
                self.clock.wake();
            }
            _ => {}
        }
    }

    /// Whether the doorman lets an initiation in. While there are too many, a sender over UDP first
    /// has to prove its address with a cookie; over the ring there is no address to prove.
    fn lets_in(&self, bytes: &[u8], sender: u32, by: Arrival, now: Instant) -> bool {
        match by {
            Arrival::Ring(_) => !lock(&self.doorman).overloaded(now),
            Arrival::Udp(from) => {
                let mut doorman = lock(&self.doorman);
                if !doorman.overloaded(now) || doorman.proves_address(now, bytes, from.addr) {
                    return true;
                }
                if let Some((salt, sealed)) =
                    doorman.reply(now, bytes, from.addr, &self.keys.public().0)
                {
                    let cookie = wire::cookie(sender, &salt, &sealed);
                    self.udp.send_by(from.is_second_port, from.addr, &cookie);
                }
                false
            }
            Arrival::Relay(_) | Arrival::Stream => true,
        }
    }

    fn answer_initiation(
        &self,
        scratch: &mut Scratch,
        opened: OpenedInitiation,
        by: Arrival,
        now: Instant,
    ) {
        let peers = self.tables.peers.load();
        let known = peers
            .iter()
            .find(|p| p.link().as_ref().is_some_and(|l| l.peer() == opened.peer));
        let Some(peer) = known else { return };
        let index = self.new_index();
        let answer = peer
            .link()
            .as_mut()
            .and_then(|link| link.accept(now, opened, index, false, &[]).ok());
        self.run_link(peer, now);
        match (answer, by, self.via(peer, by.path())) {
            (Some(answer), Arrival::Udp(from), _) => {
                let is_second_port = self.udp.second_port().answers(from);
                self.udp.send_by(is_second_port, from.addr, &answer);
            }
            (Some(answer), _, Some(via)) => {
                let _ = self.pass(&mut scratch.out, peer, &via, answer, now);
            }
            _ => {}
        }
    }

    fn take_response(
        &self,
        scratch: &mut Scratch,
        bytes: &[u8],
        receiver: u32,
        by: Arrival,
        now: Instant,
    ) {
        let peers = self.tables.peers.load();
        let Some(peer) = peers
            .iter()
            .find(|p| p.link().as_ref().is_some_and(|l| l.waits_for(receiver)))
        else {
            return;
        };
        let answered = peer
            .link()
            .as_mut()
            .is_some_and(|link| link.answered(now, bytes).is_ok());
        self.run_link(peer, now);
        if answered {
            // Confirms the new session, so that the far end may seal with it too.
            self.reply(scratch, peer, by, Frame::Keepalive, now);
        }
    }
}
