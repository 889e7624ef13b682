//! Members' links and the paths that they may take.

use crate::{
    id::MemberId,
    identity::LinkKey,
    link::{LinkRefusal, OpenedInitiation},
    plane::{error::Error, handle::Plane, path::paths::SUSPECT_AFTER, types::Path},
    ring::Position,
};
use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};
use tokio::sync::{futures::Notified, mpsc};

/// How much a link is used.
pub(crate) struct LinkUse {
    pub member: MemberId,
    pub path: Option<Path>,
    /// Time since data last went either way; zero for an edge of the ring.
    pub idle: Duration,
}

impl Plane {
    /// Members to which packets wait for a path. Only the first caller gets the receiver.
    pub(crate) fn take_wanted(&self) -> Option<mpsc::Receiver<MemberId>> {
        self.inner().reports.take_wanted()
    }

    /// Members whose selected path has just stopped answering. Only the first caller gets the
    /// receiver.
    pub(crate) fn take_silent(&self) -> Option<mpsc::Receiver<MemberId>> {
        self.inner().reports.take_silent()
    }

    /// Completes when any member's selected path changes. Created before the caller looks at a
    /// path, it also reports a change that falls between the look and the wait.
    pub(crate) fn path_changed(&self) -> Notified<'_> {
        self.inner().path_changed.notified()
    }

    /// The selected path of a member whose session is up, so that data can leave at once.
    pub(crate) fn usable_path(&self, member: MemberId) -> Option<Path> {
        let peer = self.inner().tables.peers.load().get(&member)?.clone();
        if peer.ready() { peer.path() } else { None }
    }

    /// Whether data to the member takes `path` and the path answers.
    pub(crate) fn carries(&self, member: MemberId, path: Path) -> bool {
        self.inner()
            .tables
            .peers
            .load()
            .get(&member)
            .is_some_and(|peer| peer.path() == Some(path) && !peer.paths().is_silent())
    }

    /// Whether the selected path of the member does not answer; false without a link.
    pub(crate) fn is_silent(&self, member: MemberId) -> bool {
        self.inner()
            .tables
            .peers
            .load()
            .get(&member)
            .is_some_and(|peer| peer.paths().is_silent())
    }

    /// Whether the plane keeps anything of the member, if only packets that wait for a path.
    pub(crate) fn has_peer(&self, member: MemberId) -> bool {
        self.inner().tables.peers.load().get(&member).is_some()
    }

    /// Whether something came by the member's selected path after `since`; true without a link, as
    /// there is nothing to bring back.
    pub(crate) fn has_recovered(&self, member: MemberId, since: Instant) -> bool {
        let Some(peer) = self.inner().tables.peers.load().get(&member).cloned() else {
            return true;
        };
        peer.path().is_some() && peer.activity().received.is_some_and(|at| at > since)
    }

    /// Whether data sent on some direct link has been unanswered for as long as makes its path
    /// suspect.
    pub(crate) fn has_unanswered_direct_link(&self) -> bool {
        let peers = self.inner().tables.peers.load();
        let direct = peers
            .iter()
            .filter(|peer| matches!(peer.path(), Some(Path::Direct(_))));
        direct
            .filter_map(|peer| peer.activity().unanswered)
            .any(|since| since.elapsed() >= SUSPECT_AFTER)
    }

    /// Every member that the plane keeps something of, in no order.
    pub(crate) fn link_uses(&self, now: Instant) -> Vec<LinkUse> {
        let peers = self.inner().tables.peers.load();
        peers
            .iter()
            .map(|peer| LinkUse {
                member: peer.member,
                path: peer.path(),
                idle: peer.idle(now),
            })
            .collect()
    }

    /// Time since data last went to or from the member; zero for an edge of the ring.
    pub(crate) fn idle(&self, member: MemberId, now: Instant) -> Duration {
        self.inner().peer(member).idle(now)
    }

    /// Whether this side sends keepalives on the member's direct path.
    pub(crate) fn set_keep_alive(&self, member: MemberId, keep_alive: bool) {
        let peer = self.inner().peer(member);
        peer.keep_alive.store(keep_alive, Ordering::Relaxed);
    }

    /// From now on prefers a stream to relays and the ring: UDP does not reach the member.
    pub(crate) fn prefer_stream(&self, member: MemberId) {
        self.inner().peer(member).prefer_stream();
    }

    /// The relays over which paths to the member are known.
    pub(crate) fn relays_of(&self, member: MemberId) -> Vec<MemberId> {
        self.inner().peer(member).paths().relays()
    }

    /// Probes these paths to a member now; those that lead through a tunnel of this machine are
    /// left out.
    pub(crate) fn try_paths(&self, member: MemberId, paths: impl IntoIterator<Item = Path>) {
        self.inner().try_paths(member, paths);
    }

    /// Probes again the direct paths to a member that worked before, if its session is still up.
    pub(crate) fn try_remembered(&self, member: MemberId) {
        self.inner().try_remembered(member);
    }

    /// Whether this node passes datagrams of other members on.
    pub(crate) fn is_willing_to_relay(&self) -> bool {
        self.inner().relaying.offer().willing
    }

    /// Opens a handshake whose message the caller carries to the member, with `extra` sealed in it.
    pub(crate) fn open_link(
        &self,
        member: MemberId,
        key: LinkKey,
        extra: &[u8],
    ) -> Result<Vec<u8>, Error> {
        self.inner().open_link(member, key, extra)
    }

    /// Takes the answer to [`Plane::open_link`] and returns what was sealed in it.
    pub(crate) fn finish_link(&self, member: MemberId, answer: &[u8]) -> Result<Vec<u8>, Error> {
        self.inner().finish_link(member, answer)
    }

    /// Answers a handshake that `member` sent over the control plane.
    pub(crate) fn accept_link(
        &self,
        member: MemberId,
        key: LinkKey,
        message: &[u8],
    ) -> Result<Vec<u8>, Error> {
        self.inner().accept_link(member, key, message)
    }

    /// Reads a handshake that came over the ring, where only the message itself names its sender.
    /// Refused while too many of them come.
    pub(crate) fn read_link(&self, message: &[u8]) -> Result<OpenedInitiation, LinkRefusal> {
        self.inner().read_link(message)
    }

    /// Answers a handshake read by [`Plane::read_link`], once its sender is proved to be `member`,
    /// with `extra` sealed in the answer. The ring is a path to the member from now on, through
    /// `agent` while the member has no position of its own.
    pub(crate) fn accept_over_ring(
        &self,
        member: MemberId,
        opened: OpenedInitiation,
        agent: Option<Position>,
        extra: &[u8],
    ) -> Result<Vec<u8>, Error> {
        self.inner().accept_over_ring(member, opened, agent, extra)
    }

    /// As [`Plane::finish_link`], for an answer that came over the ring, which is a path to the
    /// member from now on: through the neighbour `via` where one is given.
    pub(crate) fn finish_over_ring(
        &self,
        member: MemberId,
        via: Option<Position>,
        answer: &[u8],
    ) -> Result<Vec<u8>, Error> {
        self.inner().finish_over_ring(member, via, answer)
    }
}
