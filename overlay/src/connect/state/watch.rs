//! Notices that a NAT has changed. Behind a NAT the outside address can change without this host
//! noticing: a provider renumbers, a router restarts. So an open member is asked by STUN, always
//! the same one, so that a NAT that maps by destination also shows when it has forgotten us. This
//! keeps the mapping towards that member open, too.

use super::{Action as StateAction, State};
use crate::{connect::message::NatKind, id::MemberId};
use std::{
    collections::VecDeque,
    net::SocketAddr,
    time::{Duration, Instant},
};

/// How long before the NAT's outside address is checked again. Reason: its mapping stays open, and
/// a change is known within ten seconds; a check costs some 15 bytes a second, both ways together.
const LOOK_EVERY: Duration = Duration::from_secs(8);
/// How long before the first check, and before the next if one was not answered.
const FIRST_LOOK: Duration = Duration::from_secs(3);
/// How long after the last check the next is due if data on a direct link is not answered, or a
/// member makes its link again.
const LOOK_IN_DOUBT: Duration = Duration::from_secs(2);
/// How many unanswered checks in a row before another member is asked.
const MISSES: u32 = 3;

/// An event.
pub(crate) enum Input {
    /// Time has passed; whether something is in doubt.
    Tick { doubt: bool },
    /// The end of [`Action::Look`].
    Seen(Option<SocketAddr>),
    /// The end of [`Action::LookFromSecondPort`]: whether a member answered there.
    SecondPort(bool),
}

/// An action for the driver, which reports its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Find the address at which the member at `server` sees the port that we send from.
    Look { server: SocketAddr, second: bool },
    /// Find out whether a member answers the second port; [`super::Input::FirstPortDead`] if so.
    LookFromSecondPort,
    /// Find out again how others see this host. Nothing to report.
    SurveyAgain,
}

/// The node's state at the moment of a decision.
pub(crate) struct View<'a> {
    pub connected: &'a [MemberId],
    /// Whether data on a direct link is not answered.
    pub is_unanswered: bool,
}

/// The watch over a NAT's outside address.
#[derive(Debug)]
pub(crate) struct Watch {
    /// The member asked, and the address at which it saw us.
    known: Option<(SocketAddr, SocketAddr)>,
    misses: u32,
    second: bool,
    looked: Instant,
    is_in_doubt: bool,
    /// A look is under way.
    looks: Option<SocketAddr>,
    actions: VecDeque<Action>,
}

impl Watch {
    pub fn new(now: Instant) -> Self {
        Self {
            known: None,
            misses: 0,
            second: false,
            looked: now,
            is_in_doubt: false,
            looks: None,
            actions: VecDeque::new(),
        }
    }

    /// When the next look is due.
    pub fn due(&self) -> Instant {
        // Without a first answer there is nothing to compare with, and an unanswered check may mean
        // that something is changing.
        let pause = if self.known.is_some() && self.misses == 0 {
            LOOK_EVERY
        } else {
            FIRST_LOOK
        };
        let doubted = self.is_in_doubt && self.known.is_some();
        self.looked + if doubted { LOOK_IN_DOUBT } else { pause }
    }

    pub fn poll(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Takes an event.
    pub fn handle(&mut self, now: Instant, state: &mut State, view: &View<'_>, input: Input) {
        match input {
            Input::Tick { doubt } => {
                self.is_in_doubt |= doubt;
                if self.looks.is_none() && self.due() <= now {
                    self.look(now, state, view);
                }
            }
            Input::Seen(seen) => {
                if self.second {
                    state.reflexive_aside = seen.map(|mapped| (mapped, now));
                }
                // If data on a direct link is not answered either, a router may have turned the
                // port itself into a black hole.
                if seen.is_none() && !self.second && (self.misses > 0 || view.is_unanswered) {
                    self.actions.push_back(Action::LookFromSecondPort);
                } else {
                    self.conclude(now, state, seen);
                }
            }
            Input::SecondPort(true) => self.rest(now),
            Input::SecondPort(false) => self.conclude(now, state, None),
        }
    }

    fn rest(&mut self, now: Instant) {
        (self.looked, self.looks, self.is_in_doubt) = (now, None, false);
    }

    fn look(&mut self, now: Instant, state: &State, view: &View<'_>) {
        self.rest(now);
        let has_nat = !matches!(
            state.nat.kind,
            NatKind::Open | NatKind::Unknown | NatKind::Blocked
        );
        if !state.first_port_dead && !has_nat {
            self.known = None;
            return;
        }
        if std::mem::replace(&mut self.second, state.first_port_dead) != self.second {
            self.known = None;
        }
        let server = self
            .known
            .map(|(server, _)| server)
            .or_else(|| state.open_member(view.connected));
        if let Some(server) = server {
            self.looks = Some(server);
            self.actions.push_back(Action::Look {
                server,
                second: self.second,
            });
        }
    }

    fn conclude(&mut self, now: Instant, state: &mut State, seen: Option<SocketAddr>) {
        let Some(server) = self.looks else { return };
        if let (Some(mapped), Some((_, before))) = (seen, self.known)
            && mapped != before
            && !is_same_router(state, before, mapped)
        {
            tracing::info!(was = %before, is = %mapped, "others see this host at another address");
            state.actions.push_back(StateAction::MappingChanged);
        }
        // A lost answer changes nothing: just then the address may be changing. A member that is
        // gone is replaced.
        self.misses = if seen.is_some() { 0 } else { self.misses + 1 };
        if self.misses == MISSES {
            state.nat.doubt();
            self.actions.push_back(Action::SurveyAgain);
        }
        self.known = match seen {
            Some(mapped) => Some((server, mapped)),
            None => self.known.filter(|_| self.misses < MISSES),
        };
        self.rest(now);
    }
}

/// Whether both addresses are of one router: one is the port that it lets through to us, the other
/// what it gives us otherwise.
fn is_same_router(state: &State, one: SocketAddr, other: SocketAddr) -> bool {
    one.ip() == other.ip() && [one, other].iter().any(|addr| state.is_let_through(*addr))
}
