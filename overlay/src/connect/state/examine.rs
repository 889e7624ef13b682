//! Finds out how the NAT in front of this node maps and filters, with members in place of RFC
//! 5780's servers.
//!
//! One public member is enough for most of it: it sends an unsolicited answer from a port of its
//! own (does it come in?), then answers a STUN request at that port (does it see the address that
//! its usual port saw?). A second one, to which this node never wrote, knocks from its usual port
//! (does even that come in?). A knock that does not arrive counts as filtered only if the same port
//! is then reachable; otherwise it shows nothing.

use super::{State, nat::is_public_own};
use crate::{connect::message::NatKind, id::MemberId};
use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

/// How long before a NAT forgets the addresses that we wrote to. Reason: RFC 4787 REQ-5 asks for 2
/// minutes at least, and some keep 5.
const REMEMBERED: Duration = Duration::from_secs(310);
/// How many ports a counting NAT may have given to others between two of ours.
const MAX_STEP: u16 = 24;
/// How many ports are guessed. Odd, so that two counting NATs meet in the middle (see [`order`]).
pub(crate) const GUESSES: u16 = 9;

/// The senders that a NAT or firewall lets in (RFC 4787 §5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Filtering {
    /// Not found out.
    #[default]
    Unknown,
    /// Everybody.
    Independent,
    /// Addresses that were written to, and maybe everybody.
    Address,
    /// Addresses and ports that were written to.
    Port,
}

/// The result of the examination.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Finding {
    pub filtering: Filtering,
    /// Whether another port of the same member saw another address.
    pub by_port: bool,
    /// The newest mapping, if the NAT seems to count, and when it was seen.
    pub newest: Option<(SocketAddr, Instant)>,
    /// Whether a second member has knocked as well.
    pub complete: bool,
}

impl Finding {
    /// Notes that another port of the member that saw us at `mapped` saw us at `second`.
    pub fn note_second(&mut self, mapped: SocketAddr, second: SocketAddr, now: Instant) {
        if second != mapped {
            self.by_port = true;
            self.newest = counts(mapped, second).then_some((second, now));
        }
    }
}

/// The kind of NAT that follows from how it maps (`kind`) and the finding.
pub(crate) fn refine(kind: NatKind, finding: &Finding) -> NatKind {
    match (kind, finding.filtering) {
        (NatKind::Cone, _) if finding.by_port => refine(NatKind::Symmetric, finding),
        (NatKind::Symmetric, _) if finding.newest.is_some() => NatKind::Counting,
        (NatKind::Open, Filtering::Port) => NatKind::Firewalled,
        (NatKind::Cone, Filtering::Address) => NatKind::AddressCone,
        // Without a stranger's knock it is unknown whether it filters at all, and few firewalls
        // filter by address alone.
        (NatKind::Open, Filtering::Address) if finding.complete => NatKind::AddressCone,
        (NatKind::Cone, Filtering::Independent) => NatKind::FullCone,
        (kind, _) => kind,
    }
}

/// Addresses that we write to; a NAT may then let in any sender there.
#[derive(Default)]
pub(crate) struct WrittenAddresses(HashMap<IpAddr, Instant>);

impl WrittenAddresses {
    pub fn note(&mut self, addr: IpAddr, now: Instant) {
        self.0
            .retain(|_, at| now.saturating_duration_since(*at) < REMEMBERED);
        self.0.insert(addr, now);
    }

    pub fn contains(&self, addr: IpAddr, now: Instant) -> bool {
        self.0
            .get(&addr)
            .is_some_and(|at| now.saturating_duration_since(*at) < REMEMBERED)
    }
}

/// Whether the later of two mappings has one of the next ports.
fn counts(earlier: SocketAddr, later: SocketAddr) -> bool {
    earlier.ip() == later.ip()
        && (1..=MAX_STEP).contains(&later.port().wrapping_sub(earlier.port()))
}

/// The addresses that the NAT's next mappings are expected to have, nearest first.
pub(crate) fn guesses(newest: SocketAddr) -> impl Iterator<Item = SocketAddr> {
    (1..=GUESSES)
        .filter_map(move |n| Some(SocketAddr::new(newest.ip(), newest.port().checked_add(n)?)))
}

/// Orders the other's guessed addresses. Each write makes a mapping of ours. So if both NATs count,
/// the n-th write of one side must go to the address of the other's m-th write, and the other way
/// round. With one side counting up and the other down, both meet in the middle, as long as the
/// numbers of other mappings made meanwhile differ by an even number.
pub(crate) fn order(mut guessed: Vec<SocketAddr>, opened_by_us: bool) -> Vec<SocketAddr> {
    guessed.sort();
    if !opened_by_us {
        guessed.reverse();
    }
    guessed
}

/// What an examination needs next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Make the member send a datagram to our outside address, from a port of its own or from its
    /// usual one.
    Knock {
        member: MemberId,
        mapped: SocketAddr,
        elsewhere: bool,
    },
    /// Ask the address by STUN.
    Stun(SocketAddr),
}

/// The result of a knock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct KnockResult {
    pub heard: bool,
    /// Whether the member has answered that it knocked.
    pub done: bool,
    /// The port of its own that it knocked from.
    pub port: Option<u16>,
}

/// The examination of the path to one member.
#[derive(Debug)]
pub(crate) struct Examination {
    server: SocketAddr,
    mapped: SocketAddr,
    finding: Finding,
    heard: bool,
    next: Option<Step>,
    is_done: bool,
}

impl Examination {
    /// An examination with `helper`, whose address `server` sees us as `mapped`.
    pub fn new(helper: MemberId, server: SocketAddr, mapped: SocketAddr) -> Self {
        Self {
            server,
            mapped,
            finding: Finding::default(),
            heard: false,
            next: Some(Step::Knock {
                member: helper,
                mapped,
                elsewhere: true,
            }),
            is_done: false,
        }
    }

    /// The next step; each is returned once.
    pub fn poll(&mut self) -> Option<Step> {
        self.next.take()
    }

    /// The result, once no step is left.
    pub fn finding(&self) -> Option<Finding> {
        self.is_done.then_some(self.finding)
    }

    /// Takes the result of the last knock.
    pub fn knocked(&mut self, knocked: KnockResult) {
        if self.finding.filtering == Filtering::Address {
            // That was the stranger.
            self.finding.complete = knocked.done;
            if knocked.heard {
                self.finding.filtering = Filtering::Independent;
            }
            self.is_done = true;
            return;
        }
        self.heard = knocked.heard;
        match knocked.port {
            Some(port) => self.next = Some(Step::Stun(SocketAddr::new(self.server.ip(), port))),
            None => self.is_done = true,
        }
    }

    /// The member's other port saw us at `second`, or did not answer. `let_through`: whether the
    /// router lets all packets there through to us. `stranger`: see [`State::stranger`].
    pub fn seen(
        &mut self,
        second: Option<SocketAddr>,
        let_through: bool,
        stranger: Option<MemberId>,
        now: Instant,
    ) {
        self.finding.filtering = match (self.heard, second) {
            (true, _) => Filtering::Address,
            (false, Some(_)) => Filtering::Port,
            (false, None) => Filtering::Unknown,
        };
        if let Some(second) = second.filter(|_| !let_through) {
            self.finding.note_second(self.mapped, second, now);
        }
        self.finding.complete = self.finding.filtering == Filtering::Port;
        match stranger.filter(|_| self.finding.filtering == Filtering::Address) {
            Some(member) => {
                self.next = Some(Step::Knock {
                    member,
                    mapped: self.mapped,
                    elsewhere: false,
                });
            }
            None => self.is_done = true,
        }
    }
}

impl State {
    /// A public member that our port never wrote to. `is_linked` tells whether there is any link to
    /// it.
    pub fn stranger(
        &self,
        v4: bool,
        connected: &[MemberId],
        is_linked: impl Fn(MemberId) -> bool,
        now: Instant,
    ) -> Option<MemberId> {
        connected.iter().copied().find(|member| {
            let Some((_, reachability)) = self.known.get(member) else {
                return false;
            };
            let mut addresses = reachability
                .candidates
                .iter()
                .map(|c| c.addr)
                .filter(|addr| addr.is_ipv4() == v4)
                .peekable();
            // A member whose own UDP is blocked would knock without effect: it must have shown that
            // its packets get through.
            matches!(reachability.nat, NatKind::Open | NatKind::Firewalled)
                && reachability.candidates.iter().any(is_public_own)
                && !is_linked(*member)
                && addresses.peek().is_some()
                && addresses.all(|addr| !self.nat.written.contains(addr.ip(), now))
        })
    }

    /// The member to ask for a counting NAT's present counter, so that guesses are fresh.
    pub fn counter_helper(&self) -> Option<(MemberId, SocketAddr)> {
        self.nat
            .helper
            .filter(|_| self.nat.kind == NatKind::Counting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kind_follows_from_mapping_and_filtering() {
        let finding = |filtering| Finding {
            filtering,
            ..Finding::default()
        };
        for (kind, filtering, refined) in [
            (NatKind::Open, Filtering::Unknown, NatKind::Open),
            (NatKind::Open, Filtering::Independent, NatKind::Open),
            (NatKind::Open, Filtering::Port, NatKind::Firewalled),
            (NatKind::Cone, Filtering::Unknown, NatKind::Cone),
            (NatKind::Cone, Filtering::Port, NatKind::Cone),
            (NatKind::Cone, Filtering::Address, NatKind::AddressCone),
            (NatKind::Cone, Filtering::Independent, NatKind::FullCone),
            (NatKind::Symmetric, Filtering::Port, NatKind::Symmetric),
        ] {
            assert_eq!(
                refine(kind, &finding(filtering)),
                refined,
                "{kind} {filtering:?}"
            );
        }
        let refused = Finding {
            complete: true,
            ..finding(Filtering::Address)
        };
        assert_eq!(
            refine(NatKind::Open, &finding(Filtering::Address)),
            NatKind::Open,
            "nobody else has knocked"
        );
        assert_eq!(refine(NatKind::Open, &refused), NatKind::AddressCone);
        let by_port = Finding {
            by_port: true,
            ..Finding::default()
        };
        assert_eq!(refine(NatKind::Cone, &by_port), NatKind::Symmetric);
        let counting = Finding {
            newest: Some((([198, 18, 0, 1], 7).into(), Instant::now())),
            ..by_port
        };
        assert_eq!(refine(NatKind::Cone, &counting), NatKind::Counting);
    }

    #[test]
    fn a_few_ports_further_is_counting_and_another_address_is_not() {
        let at = |port| SocketAddr::from(([198, 18, 0, 1], port));
        assert!(counts(at(40000), at(40001)) && counts(at(40000), at(40024)));
        assert!(
            !counts(at(40000), at(40000))
                && !counts(at(40000), at(39999))
                && !counts(at(40000), at(52000))
        );
        assert!(!counts(at(40000), ([198, 18, 0, 2], 40001).into()));
        assert_eq!(guesses(at(65533)).count(), 2, "never beyond the last port");
    }

    /// Two NATs that count, each of which has made some mappings more than its side expected when
    /// the guesses are used.
    fn meet(ahead_a: u16, ahead_b: u16) -> bool {
        let at = |host, port| SocketAddr::from(([198, 18, 0, host], port));
        let (a, b) = (at(1, 40000), at(2, 50000));
        let wrote =
            |own: SocketAddr, ahead: u16, to: Vec<SocketAddr>| -> Vec<(SocketAddr, SocketAddr)> {
                (1..)
                    .map(|n| SocketAddr::new(own.ip(), own.port() + ahead + n))
                    .zip(to)
                    .collect()
            };
        let by_a = wrote(a, ahead_a, order(guesses(b).collect(), true));
        let by_b = wrote(b, ahead_b, order(guesses(a).collect(), false));
        by_a.iter().any(|(from, to)| by_b.contains(&(*to, *from)))
    }

    #[test]
    fn two_counting_nats_meet_whenever_an_even_number_of_ports_apart() {
        for (ahead_a, ahead_b) in [(0, 0), (1, 1), (2, 0), (0, 4), (3, 1), (2, 2)] {
            assert!(meet(ahead_a, ahead_b), "{ahead_a} {ahead_b}");
        }
        assert!(!meet(1, 0), "an odd difference waits for the next try");
    }

    #[test]
    fn whom_nothing_was_sent_to_for_minutes_is_a_stranger_again() {
        let (mut written, now, addr) = (
            WrittenAddresses::default(),
            Instant::now(),
            IpAddr::from([198, 18, 0, 1]),
        );
        written.note(addr, now);
        assert!(written.contains(addr, now) && !written.contains([198, 18, 0, 2].into(), now));
        assert!(!written.contains(addr, now + REMEMBERED));
    }
}
