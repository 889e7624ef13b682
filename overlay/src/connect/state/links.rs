//! The work due each second for standing links: better paths are tried, relays reviewed, punches
//! counted, and a silent path is replaced at once.

use super::{Action, Host, State, punches::PUNCH_LIFE};
use crate::{connect::message::NatKind, id::MemberId, plane::Path};
use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

/// How long a link may be idle before no better path is looked for.
pub(crate) const WORTH_IMPROVING: Duration = Duration::from_secs(60);
/// How long before links through relays are checked again.
const TEND_EVERY: Duration = Duration::from_secs(2);
/// How long before a link that has no spare relay is reviewed again.
const REVIEW_SOON: Duration = Duration::from_secs(8);
/// How long before a link that has its spare relay is reviewed for a better one.
const REVIEW_EVERY: Duration = Duration::from_secs(30);
/// How long before a member whose path falls silent again is bridged again.
const BRIDGE_PAUSE: Duration = Duration::from_secs(3);

/// A link that stands.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    pub member: MemberId,
    pub path: Path,
    pub rtt: Option<Duration>,
    /// Since when this path is used.
    pub since: Instant,
    /// How long the link has been idle.
    pub idle: Duration,
    /// Whether its direct path leaves from the second port.
    pub from_second_port: bool,
    /// The relays through which the member has answered.
    pub relays: Vec<MemberId>,
}

impl Link {
    pub fn is_direct(&self) -> bool {
        matches!(self.path, Path::Direct(_))
    }
}

/// What was last done for each link.
#[derive(Default)]
pub(crate) struct Upkeep {
    connected: HashSet<MemberId>,
    tended: Option<Instant>,
    reviewed: HashMap<MemberId, Instant>,
    bridged: HashMap<MemberId, Instant>,
}

impl State {
    pub(super) fn tick(
        &mut self,
        now: Instant,
        host: &Host,
        links: &[Link],
        connected: &[MemberId],
    ) {
        self.note_punches(now, links.iter().map(|l| (l.member, l.path, l.since)));
        let off = |member: &MemberId| links.iter().any(|l| l.member == *member && !l.is_direct());
        self.retries.retain(off);
        // A direct member is met by the port that this path uses.
        let is_aside = |l: &Link| !l.is_direct() || l.from_second_port;
        self.aside
            .retain(|member| links.iter().any(|l| l.member == *member && is_aside(l)));
        // With a member that has just connected, addresses could not be exchanged as well before.
        let connected: HashSet<MemberId> = connected.iter().copied().collect();
        for member in connected.difference(&self.upkeep.connected) {
            self.retries.begin_anew(*member, now);
        }
        self.upkeep.connected = connected;
        for link in links {
            let keep = self.keeps_alive(link.member);
            self.actions.push_back(Action::KeepAlive(link.member, keep));
            if !link.is_direct() && link.idle <= WORTH_IMPROVING {
                self.improve(now, host, link);
            }
        }
        self.tend_relays(now, links);
    }

    fn improve(&mut self, now: Instant, host: &Host, link: &Link) {
        let member = link.member;
        let theirs = self.known.get(&member).map(|(_, w)| w);
        let is_hopeless = theirs.is_some_and(|theirs| !self.may_reach(now, host, theirs));
        self.retries.hold_off(member, now);
        if let Some(number) = self.retries.due(member, now, is_hopeless) {
            self.actions.push_back(Action::Improve {
                member,
                path: link.path,
                number,
                is_hopeless,
            });
        }
    }

    /// Ensures that a link through a relay has a spare one, and the better one.
    fn tend_relays(&mut self, now: Instant, links: &[Link]) {
        let since = |at: Instant| now.saturating_duration_since(at);
        if self.upkeep.tended.is_some_and(|at| since(at) < TEND_EVERY) {
            return;
        }
        self.upkeep.tended = Some(now);
        self.relays.forget_old_refusals(now);
        let relayed = |l: &&Link| matches!(l.path, Path::Relayed(_));
        self.upkeep
            .reviewed
            .retain(|member, _| links.iter().filter(relayed).any(|l| l.member == *member));
        for link in links
            .iter()
            .filter(relayed)
            .filter(|l| l.idle <= WORTH_IMPROVING)
        {
            let pause = if link.relays.len() < super::relays::AT_ONCE {
                REVIEW_SOON
            } else {
                REVIEW_EVERY
            };
            let last = self.upkeep.reviewed.get(&link.member);
            if last.is_none_or(|at| since(*at) >= pause) {
                self.upkeep.reviewed.insert(link.member, now);
                self.actions.push_back(Action::ReviewRelays {
                    member: link.member,
                    relays: link.relays.clone(),
                    rtt: link.rtt,
                });
            }
        }
    }

    /// Counts the punches that have succeeded since, and forgets those that nobody waits for.
    pub fn note_punches(
        &mut self,
        now: Instant,
        links: impl Iterator<Item = (MemberId, Path, Instant)>,
    ) {
        let mut linked = HashSet::new();
        for (member, path, since) in links {
            linked.insert(member);
            if matches!(path, Path::Direct(_)) {
                self.punches.direct(member, since);
            }
        }
        let wanted = |member: &MemberId, age| age < PUNCH_LIFE || linked.contains(member);
        self.punches.forget(wanted, now);
    }

    /// Whether this side keeps the NAT mappings of a direct link alive. One side is enough, because
    /// the other answers.
    fn keeps_alive(&self, member: MemberId) -> bool {
        let theirs = self
            .known
            .get(&member)
            .map_or(NatKind::Unknown, |(_, w)| w.nat);
        self.me < member
            && [self.nat.kind, theirs]
                .iter()
                .any(|nat| *nat != NatKind::Open)
    }

    pub(super) fn fell_silent(&mut self, now: Instant, member: MemberId, is_connected: bool) {
        self.upkeep
            .bridged
            .retain(|_, at| now.saturating_duration_since(*at) < BRIDGE_PAUSE);
        // A member without a control connection is dialled when the path is given up.
        if is_connected && !self.upkeep.bridged.contains_key(&member) {
            self.upkeep.bridged.insert(member, now);
            self.actions.push_back(Action::Bridge(member));
        }
    }
}

/// Whether some link in use is not direct.
pub(crate) fn wants_better(links: impl IntoIterator<Item = (Duration, Option<Path>)>) -> bool {
    links.into_iter().any(|(idle, path)| {
        idle <= WORTH_IMPROVING && !matches!(path, None | Some(Path::Direct(_)))
    })
}
