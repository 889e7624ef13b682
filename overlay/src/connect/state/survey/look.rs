//! The closer look at one address family's NAT or firewall, with the help of a member that
//! answered.

use super::{Action, Phase, Query, StunAnswer, Survey, View};
use crate::connect::{
    message::NatKind,
    state::{
        State,
        examine::{Examination, Filtering, Step, refine},
    },
};
use std::{net::SocketAddr, time::Instant};

#[derive(Debug)]
pub(super) struct CloserLook {
    v4: bool,
    kind: NatKind,
    helper: StunAnswer,
    pub examination: Examination,
    /// Whether another destination gets another mapping: being found out, or the result.
    second: Option<Option<SocketAddr>>,
}

impl Survey {
    /// Returns whether there was anything to do.
    pub(super) fn go_on_looking(
        &mut self,
        now: Instant,
        state: &mut State,
        view: &View<'_>,
    ) -> bool {
        let Phase::LooksCloser(look) = &mut self.phase else {
            return false;
        };
        if let Some(step) = look.examination.poll() {
            self.actions.push_back(match step {
                Step::Knock {
                    member,
                    mapped,
                    elsewhere,
                } => Action::Knock {
                    member,
                    mapped,
                    elsewhere,
                },
                Step::Stun(at) => {
                    let query = Query {
                        round: self.number,
                        group: None,
                        candidate: 0,
                    };
                    Action::Stun(query, at)
                }
            });
            return true;
        }
        let is_over = look.second.is_some() && look.examination.finding().is_some();
        if is_over {
            self.end_look(now, state, view);
        }
        is_over
    }

    /// Looks closer at one family's NAT or firewall, unless that was done lately; then at the
    /// other's, and ends the round.
    pub(super) fn look_closer(
        &mut self,
        now: Instant,
        state: &mut State,
        view: &View<'_>,
        v4: bool,
    ) {
        if !self.seen.iter().any(|s| s.server.is_ipv4() == v4) {
            return self.next_look(now, state, view, v4);
        }
        let kind = if v4 { self.verdict.kind } else { self.kind6 };
        // A knock at a port that the router lets through shows nothing about the NAT.
        let telling =
            |s: &&StunAnswer| s.open && s.server.is_ipv4() == v4 && !state.is_let_through(s.mapped);
        let Some(helper) = self.seen.iter().find(telling).copied() else {
            // No member here can tell.
            state.nat.mapping_known |= v4;
            return self.next_look(now, state, view, v4);
        };
        let examined = *state.nat.examined(v4);
        if examined.holds(helper.mapped, view.wants_better, now) {
            self.set_kind(v4, refine(kind, &examined.finding));
            return self.next_look(now, state, view, v4);
        }
        // A node without a NAT has no mapping.
        let maps = v4 && kind != NatKind::Open;
        if maps {
            self.actions.push_back(Action::MapAnew {
                helper: helper.member,
                server: helper.server,
            });
        }
        self.phase = Phase::LooksCloser(Box::new(CloserLook {
            v4,
            kind,
            helper,
            examination: Examination::new(helper.member, helper.server, helper.mapped),
            second: (!maps).then_some(None),
        }));
    }

    fn set_kind(&mut self, v4: bool, kind: NatKind) {
        if v4 {
            self.verdict.kind = kind;
            return;
        }
        self.kind6 = kind;
        if !self.seen.iter().any(|s| s.server.is_ipv4()) {
            self.verdict.kind = kind;
        }
    }

    fn next_look(&mut self, now: Instant, state: &mut State, view: &View<'_>, v4: bool) {
        if v4 {
            self.look_closer(now, state, view, false);
        } else {
            self.end(now, state, view);
        }
    }

    /// Takes whether another port of the helper has answered.
    pub(super) fn examined(
        &mut self,
        now: Instant,
        state: &State,
        view: &View<'_>,
        second: Option<SocketAddr>,
    ) {
        if let Phase::LooksCloser(look) = &mut self.phase {
            let let_through = second.is_some_and(|second| state.is_let_through(second));
            let v4 = look.helper.mapped.is_ipv4();
            let stranger = state.stranger(v4, view.connected, view.is_linked, now);
            look.examination.seen(second, let_through, stranger, now);
        }
    }

    /// Notes whether the NAT gives other destinations other mappings. The first punches wait for
    /// this ([`State::knows_enough_to_punch`]), so it is announced at once, while the slow knocks
    /// are still under way.
    pub(super) fn mapped(&mut self, now: Instant, state: &mut State, second: Option<SocketAddr>) {
        let Phase::LooksCloser(look) = &mut self.phase else {
            return;
        };
        look.second = Some(second);
        if let Some(second) = second.filter(|second| !state.is_let_through(*second)) {
            let mut finding = state.nat.four.finding;
            finding.note_second(look.helper.mapped, second, now);
            if finding.by_port {
                state.nat.four.finding = finding;
                state.nat.helper = Some((look.helper.member, look.helper.server));
                state.nat.kind = refine(look.kind, &finding);
            }
        }
        state.nat.mapping_known = true;
        self.actions.push_back(Action::Learned);
    }

    fn end_look(&mut self, now: Instant, state: &mut State, view: &View<'_>) {
        let phase = std::mem::replace(&mut self.phase, Phase::Judges);
        let Phase::LooksCloser(look) = phase else {
            return;
        };
        let (helper, v4) = (look.helper, look.v4);
        let mut new = look.examination.finding().unwrap_or_default();
        let second = look.second.flatten();
        if let Some(second) = second.filter(|s| !new.by_port && !state.is_let_through(*s)) {
            new.note_second(helper.mapped, second, now);
        }
        let examined = state.nat.examined(v4);
        // A helper without a result must not make us forget another's.
        let same = examined
            .found
            .is_some_and(|(of, _)| of.ip() == helper.mapped.ip());
        if !(new.filtering == Filtering::Unknown && same) {
            examined.finding = new;
        }
        examined.found = Some((helper.mapped, now));
        let kind = refine(look.kind, &examined.finding);
        if v4 {
            state.nat.helper = Some((helper.member, helper.server));
        }
        self.set_kind(v4, kind);
        self.next_look(now, state, view, v4);
    }
}
