//! Whether two members can reach each other directly, and which addresses are tried in which order
//! when they have met.

use super::{Action, Host, State, Statement, examine, nat};
use crate::{
    connect::message::{Candidate, CandidateKind, MAX_CANDIDATES, NatKind, Reachability},
    id::MemberId,
};
use std::{net::SocketAddr, time::Instant};

/// The present link to the member that was met.
pub(crate) struct PresentLink<'a> {
    /// Whether its path is direct.
    pub is_direct: bool,
    /// Whether its path is direct to this address and answers.
    pub carries: &'a dyn Fn(&SocketAddr) -> bool,
}

impl State {
    /// Whether a direct path to the member is possible, as far as both sides' NATs are known.
    pub fn may_reach(&self, now: Instant, host: &Host, theirs: &Reachability) -> bool {
        let ours = self.candidates(now, host);
        // A mapped port lets in everybody, whatever the NAT does otherwise.
        let kind = |nat: NatKind, of: &[Candidate]| {
            let mapped =
                nat != NatKind::Blocked && of.iter().any(|c| c.kind == CandidateKind::Mapped);
            if mapped { NatKind::FullCone } else { nat }
        };
        let our_kind = kind(self.nat.kind, &ours);
        let their_kind = kind(theirs.nat, &theirs.candidates);
        if [our_kind, their_kind].contains(&NatKind::Blocked) {
            return false;
        }
        // No NAT translates IPv6, so each side knows the other's address beforehand.
        let six = |of: &[Candidate]| {
            of.iter()
                .any(|c| c.addr.is_ipv6() && !nat::is_private(&c.addr.ip()))
        };
        let four = |of: &[Candidate]| of.iter().any(|c| c.addr.is_ipv4());
        let outside = |of: &[Candidate]| {
            of.iter()
                .find(|c| c.kind == CandidateKind::Reflexive)
                .map(|c| c.addr.ip())
        };
        let neighbours = outside(&ours).is_some() && outside(&ours) == outside(&theirs.candidates);
        (six(&ours) && six(&theirs.candidates))
            || (four(&ours)
                && four(&theirs.candidates)
                && (neighbours || our_kind.may_punch(their_kind)))
    }

    /// Whether writing at once to a member behind such a NAT does no harm.
    pub fn knows_enough_to_punch(&self, host: &Host, theirs: NatKind) -> bool {
        let hidden = self.nat.reflexive.is_some()
            || (self.nat.kind == NatKind::Unknown && host.is_private());
        let hears = matches!(
            theirs,
            NatKind::Open | NatKind::FullCone | NatKind::AddressCone
        );
        !self.options.stun || !hidden || hears || self.nat.mapping_known
    }

    /// Tries the member's addresses directly.
    ///
    /// Right after the start it is unknown whether our own NAT gives each destination another
    /// mapping. If the far end accepts packets only from the very port that it was told, a packet
    /// sent now would take a mapping that it cannot guess later, for as long as the NAT remembers
    /// it. So such a punch waits until the mapping is known, and is agreed on again if ports have
    /// to be guessed.
    pub(super) fn met(
        &mut self,
        now: Instant,
        member: MemberId,
        host: &Host,
        (statement, told): (Statement, &[Candidate]),
        link: &PresentLink<'_>,
    ) {
        let theirs = statement.reachability.clone();
        self.remember(now, member, statement);
        self.choose_port(member, told, link);
        if self.knows_enough_to_punch(host, theirs.nat) {
            self.punch(now, member, host, &theirs, link.is_direct);
        } else {
            self.actions.push_back(Action::PunchLater(member, theirs));
        }
    }

    pub(super) fn punch(
        &mut self,
        now: Instant,
        member: MemberId,
        host: &Host,
        theirs: &Reachability,
        is_direct: bool,
    ) {
        let usable =
            |addr: &SocketAddr| addr.port() != 0 && crate::plane::packet::is_unicast(&addr.ip());
        let candidates = theirs
            .candidates
            .iter()
            .take(MAX_CANDIDATES)
            .filter(|c| usable(&c.addr));
        let (guessed, told): (Vec<&Candidate>, Vec<&Candidate>) =
            candidates.partition(|c| c.kind == CandidateKind::Predicted);
        let allowed = self.may_reach(now, host, theirs);
        if [self.nat.kind, theirs.nat].contains(&NatKind::Blocked) {
            return;
        }
        for candidate in guessed.iter().chain(&told) {
            self.nat.written.note(candidate.addr.ip(), now);
        }
        let between = [self.nat.kind, theirs.nat]
            .iter()
            .any(|nat| *nat != NatKind::Open);
        if between && !is_direct && !(told.is_empty() && guessed.is_empty()) {
            self.punches.begin(member, allowed, now);
        }
        // Guesses first and one by one: if our own NAT counts, each takes its next port, in this
        // order.
        let guessed = guessed.iter().map(|c| c.addr).collect();
        self.actions.push_back(Action::Try {
            member,
            guessed: examine::order(guessed, self.me < member),
            told: told.iter().map(|c| c.addr).collect(),
        });
    }

    // --- The second port

    /// Selects the port from which the member's addresses are written to.
    fn choose_port(&mut self, member: MemberId, told: &[Candidate], link: &PresentLink<'_>) {
        let second = self.first_port_dead || self.aside.contains(&member);
        // A path that carries is a flow of the port that it uses, and stays with it.
        let ways = told
            .iter()
            .filter(|c| c.kind != CandidateKind::Local || !nat::is_private(&c.addr.ip()))
            .map(|c| c.addr)
            .filter(|way| !(link.carries)(way));
        self.actions.push_back(Action::WriteFrom {
            second,
            addresses: ways.collect(),
        });
    }

    /// Whether the member's try with this number is made from the second port: every other one is,
    /// if a direct path should be possible.
    pub fn choose_port_of_try(&mut self, member: MemberId, number: u32, is_hopeless: bool) -> bool {
        let second = number.is_multiple_of(2) && !is_hopeless && self.nat.kind != NatKind::Blocked;
        let was = if second {
            !self.aside.insert(member)
        } else {
            self.aside.remove(&member)
        };
        if was != second {
            tracing::debug!(?member, aside = second, "packets leave from the other port");
        }
        second
    }
}
