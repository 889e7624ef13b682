//! Replaces a connection that falls silent although the member lives. A firewall that starts to
//! drop UDP leaves QUIC to its idle timeout, more than ten seconds, before anything else is tried.
//! So a caller whose packets are not answered reports the connection; the member is asked for a
//! sign of life, and if none comes, another connection is made beside the silent one, over TCP or a
//! circuit through a relay that still answers (as RFC 8305 tries address families beside each
//! other). The first connection that proves itself replaces the silent one. None of this costs
//! anything while the connection works.

use super::{Driver, mesh::Input};
use crate::read_lock;
use crate::{
    control::{
        address::{is_quic, is_relayed, member_of, peer_of, relay_of},
        shared::Command,
        wire::PROBE_SERVICE,
    },
    fabric::Life,
    id::MemberId,
};
use libp2p::{
    Multiaddr, PeerId,
    swarm::{ConnectionId, dial_opts::PeerCondition},
};
use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};
use tokio::sync::oneshot;

/// How long to wait for a sign of life, at least and at most: four round trips within these bounds.
const SIGN_OF_LIFE: (Duration, Duration) =
    (Duration::from_millis(300), Duration::from_millis(1200));
/// How long a late sign of life still counts.
const LATE_SIGN: Duration = Duration::from_secs(6);
/// How long a connection made beside a silent one has to prove itself before the silent one stays.
const BESIDE_LIMIT: Duration = Duration::from_secs(6);
/// How often a circuit that was refused is asked for again. Reason: the relay may have lost the
/// member and found it again.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// A connection that was asked for a sign of life.
pub struct Doubt {
    old: ConnectionId,
    since: Instant,
    /// Whether it has not answered in time, so that others are being dialled.
    is_silent: bool,
    dialled: Option<Instant>,
    told: Vec<oneshot::Sender<Life>>,
}

impl Doubt {
    fn tell(self, life: Life) {
        for told in self.told {
            // The caller may have ended.
            let _ = told.send(life);
        }
    }
}

impl Driver {
    /// Asks the connection to the member for a sign of life, and those to the relays by which
    /// another way to it may lead.
    pub(super) fn sound(
        &mut self,
        member: MemberId,
        told: Option<oneshot::Sender<Life>>,
        now: Instant,
    ) {
        if let Some(doubt) = self.doubts.get_mut(&member) {
            doubt.told.extend(told);
            return;
        }
        let Some((peer, link)) =
            peer_of(member).and_then(|peer| Some((peer, self.mesh.best_link(&peer)?)))
        else {
            // It is being dialled anyway.
            told.map(|told| told.send(Life::Silent));
            return;
        };
        let old = link.id;
        let rtt = read_lock(&self.shared.online)
            .get(&member)
            .and_then(|online| online.rtt);
        let limit = rtt.map_or(SIGN_OF_LIFE.1, |rtt| {
            (rtt * 4).clamp(SIGN_OF_LIFE.0, SIGN_OF_LIFE.1)
        });
        self.doubts.insert(
            member,
            Doubt {
                old,
                since: now,
                is_silent: false,
                dialled: None,
                told: told.into_iter().collect(),
            },
        );
        let shared = self.shared.clone();
        tokio::spawn(async move {
            let asked = shared.call(member, PROBE_SERVICE, Vec::new(), LATE_SIGN);
            tokio::pin!(asked);
            let said = match tokio::time::timeout(limit, &mut asked).await {
                Ok(answer) => answer.is_ok(),
                Err(_) => {
                    let _ = shared
                        .commands
                        .send(Command::Sounded(member, old, false))
                        .await;
                    asked.await.is_ok()
                }
            };
            let _ = shared
                .commands
                .send(Command::Sounded(member, old, said))
                .await;
        });
        for relay in self.relays_to(member, peer) {
            self.sound(relay, None, now);
        }
    }

    /// The relays by which ways to the member lead, if this node is connected to them by QUIC.
    fn relays_to(&self, member: MemberId, peer: PeerId) -> BTreeSet<MemberId> {
        let best = self.mesh.best_link(&peer).map(|link| link.address.clone());
        let addresses = self.addresses_of(member).into_iter().chain(best);
        let relays: BTreeSet<PeerId> = addresses.filter_map(|address| relay_of(&address)).collect();
        relays
            .iter()
            .filter(|relay| self.rests_on_quic(relay))
            .filter_map(member_of)
            .collect()
    }

    fn rests_on_quic(&self, peer: &PeerId) -> bool {
        self.mesh
            .best_link(peer)
            .is_some_and(|link| is_quic(&link.address))
    }

    /// Notes whether the connection has answered.
    pub(super) fn sounded(
        &mut self,
        member: MemberId,
        id: ConnectionId,
        lives: bool,
        now: Instant,
    ) {
        let Some(peer) = peer_of(member) else { return };
        self.mesh.handle(now, Input::Sounded { peer, id, lives });
        let Some(doubt) = self.doubts.get_mut(&member).filter(|doubt| doubt.old == id) else {
            return;
        };
        if lives {
            if let Some(doubt) = self.doubts.remove(&member) {
                doubt.tell(Life::Answers);
            }
            return;
        }
        if std::mem::replace(&mut doubt.is_silent, true) {
            return;
        }
        tracing::debug!(%member, "a connection does not answer: another is made beside it");
        // Requests lost meanwhile are not waited for.
        let is_first = self.mesh.hurry(now);
        self.dial_beside(member, now);
        if !is_first {
            return;
        }
        // If this one is silent because UDP is dropped, the others are silent too.
        let others: Vec<MemberId> = self
            .mesh
            .peers()
            .filter(|peer| self.rests_on_quic(peer))
            .filter_map(member_of)
            .collect();
        for other in others {
            self.sound(other, None, now);
        }
    }

    /// Dials the member by ways that need neither QUIC nor a silent relay.
    fn dial_beside(&mut self, member: MemberId, now: Instant) {
        let Some(peer) = peer_of(member) else { return };
        let leads_there = |address: &Multiaddr| match relay_of(address) {
            Some(relay) => self
                .mesh
                .best_link(&relay)
                .is_some_and(|link| !link.doubted),
            None => !is_quic(address),
        };
        let ways: Vec<Multiaddr> = self
            .addresses_of(member)
            .into_iter()
            .filter(leads_there)
            .collect();
        if let Some(doubt) = self.doubts.get_mut(&member) {
            doubt.dialled = Some(now);
        }
        if ways.is_empty() {
            return;
        }
        self.dial_at(peer, ways, PeerCondition::Always);
    }

    /// A new connection has proved itself: it replaces the silent one, and circuits through that
    /// member may be possible now.
    pub(super) fn replaced(&mut self, member: MemberId, connection: ConnectionId) {
        let Some(doubt) = self.doubts.remove(&member) else {
            return;
        };
        if doubt.old == connection || !doubt.is_silent {
            self.doubts.insert(member, doubt);
            return;
        }
        tracing::info!(%member, "a connection that had fallen silent is replaced");
        self.swarm.close_connection(doubt.old);
        doubt.tell(Life::Replaced);
        let (now, relay) = (Instant::now(), peer_of(member));
        let waiting = self
            .doubts
            .iter()
            .filter(|(_, doubt)| doubt.is_silent)
            .map(|(waiting, _)| *waiting);
        let through = |other: &MemberId| {
            self.addresses_of(*other)
                .iter()
                .any(|a| is_relayed(a) && relay_of(a) == relay)
        };
        for other in waiting.filter(through).collect::<Vec<_>>() {
            self.dial_beside(other, now);
        }
    }

    /// The last connection to a member ended while it was in doubt: for example a circuit through a
    /// relay that fell silent.
    pub(super) fn dial_instead(&mut self, member: MemberId, ended: ConnectionId) {
        let Some(doubt) = self.doubts.get_mut(&member) else {
            return;
        };
        doubt.is_silent |= doubt.old == ended;
        self.dial(member);
    }

    /// Ends the doubts whose time is over, and asks for circuits again.
    pub(super) fn end_doubts(&mut self, now: Instant) {
        for (_, doubt) in self
            .doubts
            .extract_if(|_, doubt| now.duration_since(doubt.since) > BESIDE_LIMIT)
        {
            doubt.tell(Life::Silent);
        }
        let is_due = |doubt: &Doubt| {
            doubt.is_silent
                && doubt
                    .dialled
                    .is_none_or(|at| now.duration_since(at) >= ASK_AGAIN)
        };
        let due: Vec<MemberId> = self
            .doubts
            .iter()
            .filter(|(_, doubt)| is_due(doubt))
            .map(|(member, _)| *member)
            .collect();
        for member in due {
            self.dial_beside(member, now);
        }
    }
}
