//! Finds out the NAT or firewall in front of this node: rounds of STUN against members, then a
//! closer look with their help ([`super::examine`]).
//!
//! The driver carries out what [`Survey::poll`] returns, all at once, and reports each end with
//! [`Survey::handle`]. A report that comes after its round is over is ignored.

mod look;

use super::{
    Host, State, Statement,
    examine::KnockResult,
    nat::{Verdict, is_private, is_public_own, judge, seems_open},
};
use crate::{
    connect::message::{Candidate, NatKind, Reachability},
    id::MemberId,
};
use look::CloserLook;
use std::{
    collections::{BTreeSet, VecDeque},
    net::SocketAddr,
    time::{Duration, Instant},
};

/// How many members are asked for their reachability in one round.
const SERVERS: usize = 3;
/// How many members are asked by STUN in one round. Reason: two different ones tell a cone from a
/// symmetric NAT. A third replaces one that is behind a NAT itself; if the two are known to be
/// open, it is better kept as one that we never wrote to.
const ASKED: usize = 2;
/// How many addresses of a member are asked.
const ADDRESSES: usize = 3;
/// How long a member's reachability is believed here.
const FRESH: Duration = Duration::from_secs(600);
/// How long before the next round if others see an address of our own. Reason: this rarely changes.
const WHEN_OPEN: Duration = Duration::from_secs(300);
/// How long before the next round behind a NAT. Reason: the mapping must be kept alive (many expire
/// after 30 s), unless the looks of [`super::watch`] do that.
const WHEN_NATTED: Duration = Duration::from_secs(20);
/// How long before the next round if only the kind of NAT has to be found out again. Reason: the
/// router may have been replaced.
const WHEN_LOOKED_AFTER: Duration = Duration::from_secs(120);
/// How long before the next round while UDP does not get through. Reason: a laptop moves, and the
/// members that did not answer may have been those without UDP.
const WHEN_BLOCKED: Duration = Duration::from_secs(20);
/// How long before the next round while the first port is silent, so that a router forgets its
/// flows. Reason: Linux forgets a UDP flow 120 s after its last packet, and an unanswered one after
/// 30 s.
const WHEN_PORT_DEAD: Duration = Duration::from_secs(130);
/// How long before the next round while a link in use is not direct.
const WHEN_WANTED: Duration = Duration::from_secs(30);
/// How long before the next round without members to ask. Reason: that costs nothing.
const WHEN_ALONE: Duration = Duration::from_millis(50);
/// How long before the next round until the second member has answered, and for how many rounds.
/// Reason: a second member that could show more may never come.
const WHEN_HASTY: Duration = Duration::from_secs(2);
const HASTY_ROUNDS: u32 = 5;
/// How many unanswered rounds before UDP counts as blocked.
const SILENT_ROUNDS: u32 = 2;
/// How many members are asked for their reachability, how long before the next round, and for how
/// many rounds, while a second member's help is missing. Reason: in a network of few public members
/// there may never be one.
const SEEKING: usize = 8;
const WHEN_SEEKING: Duration = Duration::from_secs(5);
const SEEKING_ROUNDS: u32 = 8;

/// The node's state at the moment of a decision.
pub(crate) struct View<'a> {
    pub host: &'a Host,
    pub connected: &'a [MemberId],
    /// Whether a link shows that UDP gets out of this site and back.
    pub gets_through: bool,
    /// Whether a link in use is not direct.
    pub wants_better: bool,
    /// Whether there is any link to the member.
    pub is_linked: &'a dyn Fn(MemberId) -> bool,
}

/// An event.
pub(crate) enum Input {
    /// Time has passed.
    Tick,
    /// Others may see this host at another address.
    Again,
    /// An end of [`Action::AskWhere`].
    Where(MemberId, Option<Statement>),
    /// An end of [`Action::Stun`].
    Stun(Query, Option<SocketAddr>),
    /// An end of [`Action::AskAlive`].
    Alive(MemberId, bool),
    /// The end of [`Action::LookFromSecondPort`]: whether a member answered there.
    SecondPort(bool),
    /// The end of [`Action::Knock`].
    Knocked(KnockResult),
    /// The end of [`Action::MapAnew`].
    Mapped(Option<SocketAddr>),
}

/// What the driver is to do, and to report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    AskWhere(MemberId),
    Stun(Query, SocketAddr),
    AskAlive(MemberId),
    /// Find out whether a member answers the second port; [`super::Input::FirstPortDead`] if so.
    LookFromSecondPort,
    Knock {
        member: MemberId,
        mapped: SocketAddr,
        elsewhere: bool,
    },
    /// Find the address at which a new port of the member sees us.
    MapAnew {
        helper: MemberId,
        server: SocketAddr,
    },
    /// The survey has learned something. Nothing to report.
    Learned,
}

/// Tells the STUN queries of one survey apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Query {
    round: u32,
    /// The member, or the examination.
    group: Option<usize>,
    candidate: usize,
}

/// A member that answered by STUN: the address that answered, and ours as it saw it.
#[derive(Clone, Copy, Debug)]
struct StunAnswer {
    member: MemberId,
    /// Whether it answered at a public address of its own, so that it accepts packets from
    /// anywhere.
    open: bool,
    server: SocketAddr,
    mapped: SocketAddr,
}

/// The addresses of one member and family that are asked.
#[derive(Debug)]
struct Group {
    member: MemberId,
    candidates: Vec<Candidate>,
    left: usize,
    is_over: bool,
}

#[derive(Debug)]
enum Phase {
    /// Nothing is asked until then.
    Rests(Instant),
    /// Members are asked for their reachability.
    Asks(BTreeSet<MemberId>),
    /// Members are asked by STUN.
    Stuns(Vec<Group>),
    /// Members that did not answer are asked whether they live.
    Listens(BTreeSet<MemberId>),
    /// The second port is looked at.
    LooksAside,
    /// The answers are to be judged.
    Judges,
    LooksCloser(Box<CloserLook>),
}

#[derive(Debug)]
pub(crate) struct Survey {
    phase: Phase,
    /// Rounds in a row without an answer, and rounds with somebody to ask.
    silent: u32,
    rounds: u32,
    /// Whether others may see another address since the round began.
    again: bool,
    number: u32,
    /// Members asked in this round that should have answered, and the answers.
    asked: BTreeSet<MemberId>,
    seen: Vec<StunAnswer>,
    verdict: Verdict,
    kind6: NatKind,
    actions: VecDeque<Action>,
}

impl Survey {
    pub fn new(now: Instant) -> Self {
        Self {
            phase: Phase::Rests(now),
            silent: 0,
            rounds: 0,
            again: false,
            number: 0,
            asked: BTreeSet::new(),
            seen: Vec::new(),
            verdict: Verdict::default(),
            kind6: NatKind::Unknown,
            actions: VecDeque::new(),
        }
    }

    /// When [`Input::Tick`] is due, unless something else happens first.
    pub fn wake_at(&self) -> Option<Instant> {
        match self.phase {
            Phase::Rests(until) => Some(until),
            _ => None,
        }
    }

    pub fn poll(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Takes an event.
    pub fn handle(&mut self, now: Instant, state: &mut State, view: &View<'_>, input: Input) {
        match input {
            Input::Tick => {}
            Input::Again if matches!(self.phase, Phase::Rests(_)) => {
                (self.silent, self.rounds) = (0, 0);
                self.phase = Phase::Rests(now);
            }
            Input::Again => self.again = true,
            Input::Where(member, statement) => {
                if let Some(statement) = statement {
                    state.handle(now, super::Input::Heard(member, statement));
                }
                if let Phase::Asks(left) = &mut self.phase {
                    left.remove(&member);
                }
            }
            Input::Stun(query, mapped) if query.round == self.number => match query.group {
                Some(group) => self.answered(group, query.candidate, mapped),
                None => self.examined(now, state, view, mapped),
            },
            Input::Stun(..) => {}
            Input::Alive(member, lives) => self.is_alive(member, lives),
            Input::SecondPort(answers) => {
                if matches!(self.phase, Phase::LooksAside) {
                    self.end_silence(!answers);
                }
            }
            Input::Knocked(knocked) => {
                if let Phase::LooksCloser(look) = &mut self.phase {
                    look.examination.knocked(knocked);
                }
            }
            Input::Mapped(second) => self.mapped(now, state, second),
        }
        self.proceed(now, state, view);
    }

    /// Proceeds until something has to be waited for.
    fn proceed(&mut self, now: Instant, state: &mut State, view: &View<'_>) {
        loop {
            match &mut self.phase {
                Phase::Rests(until) if *until <= now => self.begin(now, state, view),
                Phase::Asks(left) if left.is_empty() => self.ask_by_stun(now, state, view),
                Phase::Stuns(groups) if groups.iter().all(|g| g.is_over) => self.listen(view),
                Phase::Listens(left) if left.is_empty() => self.end_silence(false),
                Phase::Judges => self.judge(now, state, view),
                Phase::LooksCloser(_) => {
                    if !self.go_on_looking(now, state, view) {
                        return;
                    }
                }
                _ => return,
            }
        }
    }

    // --- A round

    /// Asks members that sent nothing of themselves lately for their reachability.
    fn begin(&mut self, now: Instant, state: &State, view: &View<'_>) {
        self.number = self.number.wrapping_add(1);
        (self.asked, self.seen) = (BTreeSet::new(), Vec::new());
        let fresh = |m: &MemberId| {
            state.known.get(m).is_some_and(|(at, w)| {
                now.saturating_duration_since(*at) < FRESH && w.nat != NatKind::Unknown
            })
        };
        let four = &state.nat.four;
        let limit = if four.found.is_some() && !four.finding.complete {
            SEEKING
        } else {
            SERVERS
        };
        let unknown = view.connected.iter().copied().filter(|m| !fresh(m));
        let unknown: BTreeSet<MemberId> = unknown.take(limit).collect();
        self.actions
            .extend(unknown.iter().map(|m| Action::AskWhere(*m)));
        self.phase = Phase::Asks(unknown);
    }

    fn ask_by_stun(&mut self, now: Instant, state: &mut State, view: &View<'_>) {
        let servers = servers(now, state, view.connected);
        let mut groups = Vec::new();
        for v4 in [true, false] {
            // Without an address of our own that leads outside there is nothing to ask.
            let leads_out = |ip: &std::net::IpAddr| ip.is_ipv4() == v4 && (v4 || !is_private(ip));
            if !view.host.local.iter().any(leads_out) {
                continue;
            }
            for (member, reachability) in &servers {
                let of_family = reachability
                    .candidates
                    .iter()
                    .filter(|c| c.addr.is_ipv4() == v4);
                let candidates: Vec<_> = of_family.take(ADDRESSES).copied().collect();
                if candidates.is_empty() {
                    continue;
                }
                if seems_open(reachability) {
                    self.asked.insert(*member);
                }
                for (n, candidate) in candidates.iter().enumerate() {
                    state.nat.written.note(candidate.addr.ip(), now);
                    let query = Query {
                        round: self.number,
                        group: Some(groups.len()),
                        candidate: n,
                    };
                    self.actions.push_back(Action::Stun(query, candidate.addr));
                }
                groups.push(Group {
                    member: *member,
                    left: candidates.len(),
                    candidates,
                    is_over: false,
                });
            }
        }
        self.phase = Phase::Stuns(groups);
    }

    /// The first address of a member to answer counts.
    fn answered(&mut self, group: usize, candidate: usize, mapped: Option<SocketAddr>) {
        let Phase::Stuns(groups) = &mut self.phase else {
            return;
        };
        let Some(group) = groups.get_mut(group).filter(|group| !group.is_over) else {
            return;
        };
        group.left -= 1;
        group.is_over = group.left == 0 || mapped.is_some();
        if let (Some(mapped), Some(candidate)) = (mapped, group.candidates.get(candidate)) {
            self.seen.push(StunAnswer {
                member: group.member,
                open: is_public_own(candidate),
                server: candidate.addr,
                mapped,
            });
        }
    }

    /// Finds out whether members failed to answer because of UDP: a member that is gone answers
    /// nothing, and the control plane takes a while to notice that.
    fn listen(&mut self, view: &View<'_>) {
        self.rounds = self
            .rounds
            .saturating_add(u32::from(!self.asked.is_empty()));
        if self.asked.is_empty() || !self.seen.is_empty() || view.gets_through {
            return self.end_silence(false);
        }
        self.actions
            .extend(self.asked.iter().map(|m| Action::AskAlive(*m)));
        self.phase = Phase::Listens(self.asked.clone());
    }

    fn is_alive(&mut self, member: MemberId, lives: bool) {
        if let Phase::Listens(left) = &mut self.phase
            && left.remove(&member)
            && lives
        {
            self.actions.push_back(Action::LookFromSecondPort);
            self.phase = Phase::LooksAside;
        }
    }

    fn end_silence(&mut self, is_blocked: bool) {
        self.silent = if is_blocked { self.silent + 1 } else { 0 };
        self.phase = Phase::Judges;
    }

    fn judge(&mut self, now: Instant, state: &mut State, view: &View<'_>) {
        let of = |v4: bool| -> Vec<_> {
            self.seen
                .iter()
                .filter(|s| s.server.is_ipv4() == v4)
                .map(|s| (s.server, s.mapped))
                .collect()
        };
        let own = (&view.host.local[..], view.host.port);
        let let_through = |addr| state.is_let_through(addr);
        let mut verdict = judge(&of(true), own, let_through);
        let mut kind6 = judge(&of(false), own, let_through).kind;
        if self.silent >= SILENT_ROUNDS {
            (verdict.kind, kind6) = (NatKind::Blocked, NatKind::Blocked);
        } else if verdict.kind == NatKind::Unknown {
            // No IPv4, or no member to ask there.
            verdict.kind = kind6;
        }
        if verdict.kind == NatKind::Unknown {
            unblock(state, view);
        }
        if !self.seen.is_empty() && state.first_port_dead {
            tracing::info!("the first port gets through again");
            state.handle(now, super::Input::FirstPortAlive);
        }
        // The result so far is announced at once: a closer look takes another round trip or two.
        state.note(now, verdict, kind6, &view.host.local);
        self.actions.push_back(Action::Learned);
        (self.verdict, self.kind6) = (verdict, kind6);
        self.look_closer(now, state, view, true);
    }

    // --- The end of a round

    fn end(&mut self, now: Instant, state: &mut State, view: &View<'_>) {
        let kind = state.note(now, self.verdict, self.kind6, &view.host.local);
        self.actions.push_back(Action::Learned);
        let pause = self.pause(state, view, kind);
        self.phase = Phase::Rests(now + pause);
        if std::mem::take(&mut self.again) {
            // The finding may be outdated: nobody waits for it.
            (self.silent, self.rounds) = (0, 0);
            self.phase = Phase::Rests(now);
        }
    }

    fn pause(&self, state: &State, view: &View<'_>, kind: NatKind) -> Duration {
        let four = &state.nat.four;
        match kind {
            _ if state.first_port_dead => WHEN_PORT_DEAD,
            NatKind::Open => WHEN_OPEN,
            NatKind::Blocked => WHEN_BLOCKED,
            _ if self.asked.is_empty() => WHEN_ALONE,
            _ if self.seen.len() < 2 && self.rounds < HASTY_ROUNDS => WHEN_HASTY,
            _ if self.rounds < SEEKING_ROUNDS && four.found.is_some() && !four.finding.complete => {
                WHEN_SEEKING
            }
            _ if view.wants_better => WHEN_WANTED,
            _ if state.open_member(view.connected).is_some() => WHEN_LOOKED_AFTER,
            _ => WHEN_NATTED,
        }
    }
}

/// The members worth asking by STUN: those known to be open first.
fn servers(now: Instant, state: &State, connected: &[MemberId]) -> Vec<(MemberId, Reachability)> {
    let mut known: Vec<_> = connected
        .iter()
        .filter_map(|m| Some((*m, &state.known.get(m)?.1)))
        .collect();
    // Two members that know no other and took each other's silence for their own would never ask
    // again.
    if known.iter().any(|(_, w)| w.nat != NatKind::Blocked) {
        known.retain(|(_, w)| w.nat != NatKind::Blocked);
    }
    // Those that were asked before come first: the fewer are written to, the more may knock.
    let asked = |w: &Reachability| {
        w.candidates
            .iter()
            .any(|c| state.nat.written.contains(c.addr.ip(), now))
    };
    known.sort_by_key(|(member, w)| (!seems_open(w), !asked(w), *member));
    let mut servers: Vec<(MemberId, Reachability)> = Vec::new();
    for (member, reachability) in known.into_iter().take(SERVERS) {
        if servers.len() < ASKED || servers.iter().any(|(_, w)| !seems_open(w)) {
            servers.push((member, reachability.clone()));
        }
    }
    servers
}

/// Withdraws that UDP is blocked, if a link shows that it is not, or if all members that could have
/// shown it are gone.
fn unblock(state: &mut State, view: &View<'_>) {
    if state.nat.kind == NatKind::Blocked && (view.gets_through || view.connected.is_empty()) {
        tracing::info!("UDP may get through after all");
        (state.nat.kind, state.nat.kind6) = (NatKind::Unknown, NatKind::Unknown);
    }
}
