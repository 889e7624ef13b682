//! One simulated member: its state machine, its clock, the links that it has, and what it sent.

use super::{
    queue::{Micros, SECOND},
    world::Home,
};
use p2pvm_overlay::{
    MemberId,
    ring::{Node, Ring, Table},
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// How many addresses a member keeps beside its bootstraps, as the daemon's address book on disk
/// does.
const KNOWN: usize = 24;

/// How long an unused link lives after its last datagram, as the daemon's do.
const LINGER: Micros = 60 * SECOND;

/// A clock that may run too fast or too slow.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    base: Instant,
    /// Seconds of this clock in a true second.
    rate: f64,
}

impl Clock {
    /// A clock that shows `base` at the start and runs at `rate`.
    pub fn new(base: Instant, rate: f64) -> Self {
        Self { base, rate }
    }

    /// The time it shows.
    pub fn read(&self, now: Micros) -> Instant {
        self.base + Duration::from_nanos((now as f64 * 1e3 * self.rate) as u64)
    }

    /// When it will show `at`, rounded up.
    pub fn when(&self, at: Instant) -> Micros {
        let shown = at.saturating_duration_since(self.base);
        (shown.as_nanos() as f64 / 1e3 / self.rate).ceil() as Micros + 1
    }
}

/// An established link as one of its ends sees it.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    /// The session that seals datagrams. Both ends must know it.
    pub session: u64,
    /// The previous session, still valid for datagrams in flight (as in WireGuard §5.4).
    pub previous: u64,
    /// The member that relays, if NATs block the direct path.
    pub relay: Option<u32>,
    /// When the last datagram came over it.
    pub heard: Micros,
    /// Whether the ring uses it. An unused link still carries until it was silent for [`LINGER`].
    pub wanted: bool,
}

impl Link {
    /// Whether it still carries datagrams.
    pub fn stands(&self, now: Micros) -> bool {
        self.wanted || now < self.heard + LINGER
    }

    /// Whether `session` can be opened.
    pub fn opens(&self, session: u64) -> bool {
        self.session == session || self.previous == session
    }
}

/// The datagrams sent, by purpose.
#[derive(Clone, Copy, Debug, Default)]
pub struct SentCounts {
    /// Keepalives and lists: to a neighbour, and no farther.
    pub upkeep: Tally,
    /// Packets that go on over several members: sent or forwarded.
    pub routed: Tally,
    /// Calls, answers and handshakes of links in the making.
    pub linking: Tally,
    /// Passed on for two members without a direct path.
    pub relayed: Tally,
}

impl SentCounts {
    /// All of it.
    pub fn total(&self) -> Tally {
        let all = [self.upkeep, self.routed, self.linking, self.relayed];
        all.iter().fold(Tally::default(), |sum, t| Tally {
            messages: sum.messages + t.messages,
            bytes: sum.bytes + t.bytes,
        })
    }
}

/// A number of datagrams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// How many.
    pub messages: u64,
    /// Their bytes with all headers.
    pub bytes: u64,
}

impl Tally {
    /// Counts one datagram of `bytes`.
    pub fn add(&mut self, bytes: usize) {
        self.messages += 1;
        self.bytes += bytes as u64;
    }
}

/// A member, alive or not.
pub struct Member {
    /// Its id and position on the ring.
    pub node: Node,
    /// Where it lives.
    pub home: Home,
    /// Its state machine; None while it is dead.
    pub ring: Option<Box<Ring>>,
    /// The newest table of the state machine.
    pub table: Arc<Table>,
    /// Grows with each start, so that events of an earlier life are void.
    pub life: u32,
    /// Its clock.
    pub clock: Clock,
    /// Until when the machine sleeps: it does nothing and loses all datagrams.
    pub asleep_until: Micros,
    /// Its earliest timer.
    pub wake: Micros,
    /// How many times in a row its state machine asked to be woken at once.
    pub restless: u32,
    /// When it was started last.
    pub started: Micros,
    /// When it joined the ring in this life.
    pub joined: Option<Micros>,
    /// The sums over all its lives.
    pub sent: SentCounts,
    /// Members whose address it has on disk: the bootstraps first.
    pub known: Vec<u32>,
    /// How many of those are bootstraps.
    pub bootstraps: usize,
    /// Links by member, sorted.
    links: Vec<(u32, Link)>,
}

impl Member {
    /// A member that has not started yet.
    pub fn new(id: MemberId, home: Home, clock: Clock) -> Self {
        Self {
            node: Node::from(id),
            home,
            ring: None,
            table: Arc::new(Table::new(id, false, [], [])),
            life: 0,
            clock,
            asleep_until: 0,
            wake: Micros::MAX,
            restless: 0,
            started: 0,
            joined: None,
            sent: SentCounts::default(),
            known: Vec::new(),
            bootstraps: 0,
            links: Vec::new(),
        }
    }

    /// Whether it runs.
    pub fn alive(&self) -> bool {
        self.ring.is_some()
    }

    /// Ends it without goodbyes. What is on disk stays.
    pub fn crash(&mut self) {
        self.ring = None;
        self.table = Arc::new(Table::new(self.node.member, false, [], []));
        self.links.clear();
        self.wake = Micros::MAX;
        self.joined = None;
    }

    /// Its link to a member.
    pub fn link(&self, to: u32) -> Option<&Link> {
        self.links
            .binary_search_by_key(&to, |l| l.0)
            .ok()
            .map(|i| &self.links[i].1)
    }

    /// The same link, to change it.
    pub fn link_mut(&mut self, to: u32) -> Option<&mut Link> {
        self.links
            .binary_search_by_key(&to, |l| l.0)
            .ok()
            .map(|i| &mut self.links[i].1)
    }

    /// Makes a new session with a member; the previous one stays valid for reading. Dead links are
    /// removed.
    pub fn set_link(&mut self, to: u32, session: u64, relay: Option<u32>, now: Micros) {
        self.links.retain(|l| l.1.stands(now));
        match self.links.binary_search_by_key(&to, |l| l.0) {
            Ok(i) => {
                let old = self.links[i].1;
                let previous = if old.session == session {
                    old.previous
                } else {
                    old.session
                };
                self.links[i].1 = Link {
                    session,
                    previous,
                    relay,
                    heard: now,
                    wanted: true,
                };
            }
            Err(i) => self.links.insert(
                i,
                (
                    to,
                    Link {
                        session,
                        previous: 0,
                        relay,
                        heard: now,
                        wanted: true,
                    },
                ),
            ),
        }
    }

    /// How many links its ring uses.
    pub fn link_count(&self) -> usize {
        self.links.iter().filter(|l| l.1.wanted).count()
    }

    /// Writes a member's address into its book. A full book forgets one that `dice` chooses, but no
    /// bootstrap.
    pub fn learn(&mut self, member: u32, dice: usize) {
        if self.known.contains(&member) {
            return;
        }
        if self.known.len() < KNOWN + self.bootstraps {
            self.known.push(member);
        } else {
            let slot = self.bootstraps + dice % KNOWN;
            self.known[slot] = member;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_rings_when_it_shows_the_time_and_not_before() {
        let base = Instant::now();
        for rate in [0.9, 0.999, 1.0, 1.07] {
            let clock = Clock::new(base, rate);
            for ms in [0, 1, 333, 60_000, 86_400_000] {
                let at = base + Duration::from_millis(ms);
                let when = clock.when(at);
                assert!(clock.read(when) >= at, "rate {rate}, {ms} ms");
                assert!(
                    clock.read(when.saturating_sub(5)) <= at,
                    "rate {rate}, {ms} ms"
                );
            }
        }
    }
}
