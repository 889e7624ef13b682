//! One member, and a test that plays all others: which it tries again, when, through which, and for
//! which it waits.

use super::super::{message::Hello, *};
use std::{collections::BTreeSet, time::Duration};

/// Where the member stands among [`Played::nodes`].
const ME: usize = 20;

struct Played {
    /// Members by position; those beside each other are neighbours.
    nodes: Vec<Node>,
    ring: Ring,
    start: Instant,
    now: Instant,
    /// They answer what they are asked.
    alive: BTreeSet<MemberId>,
    /// An edge with anyone else fails after this.
    fails_after: Duration,
    failing: Vec<(Instant, MemberId)>,
    /// Answers of the living take this long, and are under way meanwhile.
    round_trip: Duration,
    under_way: Vec<(Instant, MemberId, Packet)>,
    /// Edges asked for: when, with which member, through which position.
    links: Vec<(Duration, MemberId, Option<Position>)>,
}

impl Played {
    fn new(fails_after: Duration) -> Self {
        let mut nodes: Vec<Node> = (0..=2 * ME as u8)
            .map(|n| Node::from(MemberId([n; 32])))
            .collect();
        nodes.sort_unstable();
        let ring = Ring::new(nodes[ME].member, RingOptions::default(), 1);
        let (start, alive) = (Instant::now(), BTreeSet::new());
        let (failing, links) = (Vec::new(), Vec::new());
        Self {
            nodes,
            ring,
            start,
            now: start,
            alive,
            fails_after,
            failing,
            round_trip: Duration::ZERO,
            under_way: Vec::new(),
            links,
        }
    }

    /// A member of the ring that wants an edge for `roles` says hello.
    fn greet(&mut self, number: usize, seq: u32, answers: Option<u32>, roles: Roles) {
        let member = self.nodes[number].member;
        self.alive.insert(member);
        let hello = Hello {
            seq,
            answers,
            joined: true,
            roles,
            digest: 0,
            size: 0,
            coordinate: Coordinate::default(),
        };
        self.say(member, &Message::Hello(hello));
    }

    /// It tells its edges.
    fn list(&mut self, number: usize, direct: &[usize]) {
        let direct = direct.iter().map(|n| self.nodes[*n].member).collect();
        self.say(
            self.nodes[number].member,
            &Message::List {
                digest: 0,
                direct,
                heard: Vec::new(),
                gone: Vec::new(),
            },
        );
    }

    fn say(&mut self, from: MemberId, message: &Message) {
        let header = Header::new(Kind::Control, Position::of(&from), self.nodes[ME].position);
        self.ring.handle(
            self.now,
            Input::Received {
                from,
                packet: Packet {
                    header,
                    body: message.encode(),
                },
            },
        );
        self.obey();
    }

    fn obey(&mut self) {
        while let Some(output) = self.ring.poll() {
            match output {
                Output::Send { to, packet }
                    if self.alive.contains(&to) && self.round_trip.is_zero() =>
                {
                    self.answer(to, &packet)
                }
                Output::Send { to, packet } if self.alive.contains(&to) => {
                    self.under_way
                        .push((self.now + self.round_trip, to, packet))
                }
                Output::Link { member, agent } => {
                    self.links.push((self.now - self.start, member, agent));
                    self.failing.push((self.now + self.fails_after, member));
                }
                _ => {}
            }
        }
    }

    fn answer(&mut self, to: MemberId, packet: &Packet) {
        match Message::decode(&packet.body) {
            Some(Message::Hello(Hello {
                seq, answers: None, ..
            })) => {
                let number = self
                    .nodes
                    .iter()
                    .position(|n| n.member == to)
                    .expect("one of ours");
                self.greet(number, seq, Some(seq), Roles::NEAR);
            }
            Some(Message::Locate { nonce, .. }) => self.say(
                to,
                &Message::Found {
                    nonce,
                    members: vec![(to, None)],
                },
            ),
            _ => {}
        }
    }

    /// Lets time pass until `until` after the start: nothing but what the member asked for happens.
    fn run(&mut self, until: Duration) {
        loop {
            let failure = self.failing.iter().map(|f| f.0).min();
            let arrival = self.under_way.iter().map(|u| u.0).min();
            let next = self
                .ring
                .wake_at()
                .into_iter()
                .chain(failure)
                .chain(arrival)
                .min()
                .filter(|at| *at <= self.start + until);
            let Some(at) = next else { break };
            self.now = self.now.max(at);
            if let Some(i) = self.under_way.iter().position(|u| u.0 <= self.now) {
                let (_, to, packet) = self.under_way.remove(i);
                self.answer(to, &packet);
                continue;
            }
            match self.failing.iter().position(|f| f.0 <= self.now) {
                Some(i) => {
                    let member = self.failing.swap_remove(i).1;
                    self.ring.handle(self.now, Input::LinkFailed { member });
                }
                None => self.ring.handle(self.now, Input::Tick),
            }
            self.obey();
        }
        self.now = self.start + until;
    }
}

/// Nobody says anything new in a ring that is quiet but for one edge that could not be made.
#[test]
fn a_missing_near_edge_is_retried_through_another_agent() {
    let mut played = Played::new(Duration::from_millis(10));
    for number in [17, 18, 19, 22, 23, 24] {
        played.greet(number, 1, None, Roles::NEAR);
        played.list(number, &[ME + 1]);
    }
    played.run(Duration::from_secs(200));
    let missing = played.nodes[ME + 1].member;
    let tries: Vec<_> = played.links.iter().filter(|l| l.1 == missing).collect();
    assert!(tries.len() >= 5, "{tries:?}");
    for (pause, pair) in [5, 10, 20, 40, 60].into_iter().zip(tries.windows(2)) {
        let waited = pair[1].0 - pair[0].0;
        assert!(
            (pause..pause + 1).contains(&waited.as_secs()),
            "{waited:?} instead of {pause} s: {tries:?}"
        );
    }
    let agents: BTreeSet<Position> = tries.iter().filter_map(|t| t.2).collect();
    assert!(
        agents.len() >= 2,
        "always through the same one, which may be wrong: {tries:?}"
    );
}

/// The dead are named by neighbours that have not noticed yet, one after the other. Each is waited
/// for once: the attempts would never end.
#[test]
fn a_dead_member_that_is_named_again_keeps_nobody_from_joining_twice() {
    let mut played = Played::new(Duration::from_millis(5900));
    for number in [18, 22] {
        played.greet(number, 1, None, Roles::NEAR);
    }
    played.list(22, &[21]);
    played.list(18, &[]);
    played.run(Duration::from_secs(3));
    played.list(22, &[21, 23]);
    played.run(Duration::from_secs(6));
    played.list(22, &[21, 23, 24]);
    played.run(Duration::from_millis(11_800));
    assert!(
        !played.ring.status().joined,
        "did not wait for the last one named"
    );
    played.run(Duration::from_millis(12_000));
    let again = played
        .links
        .iter()
        .filter(|l| l.1 == played.nodes[21].member)
        .count();
    assert_eq!(
        (again, played.ring.status().joined),
        (2, true),
        "waits for one that it could not reach before: {:?}",
        played.links
    );
}

#[test]
fn what_a_neighbour_told_is_forgotten_when_it_is_near_no_more() {
    let mut played = Played::new(Duration::from_millis(10));
    for number in [17, 18, 19, 22, 23, 24] {
        played.greet(number, 1, None, Roles::NEAR);
    }
    played.list(24, &[25]);
    let told = |played: &Played| played.ring.edges[&played.nodes[24].member].direct.len();
    assert_eq!(told(&played), 1);
    // A nearer one comes, and the other has found nearer ones as well: it is of use as a far
    // neighbour only.
    played.greet(21, 1, None, Roles::NEAR);
    assert_eq!(told(&played), 1, "the other still counts us as near");
    played.greet(24, 100, None, Roles::FAR);
    assert_eq!(told(&played), 0);
}

/// A question is repeated before its answer can be there, as nobody knows yet how long the way is:
/// the first answer counts all the same.
#[test]
fn a_neighbour_on_a_long_path_is_not_taken_for_dead() {
    for millis in [100, 800, 1500, 3000] {
        let mut played = Played::new(Duration::from_millis(10));
        played.round_trip = Duration::from_millis(millis);
        let far_off = played.nodes[ME + 1].member;
        played.greet(ME + 1, 1, None, Roles::NEAR);
        played.run(Duration::from_secs(100));
        let status = played.ring.status();
        let neighbour = status.neighbours.iter().find(|n| n.node.member == far_off);
        assert_eq!(
            neighbour.and_then(|n| n.rtt),
            Some(played.round_trip),
            "an edge with a round trip of {millis} ms: {:?}",
            played.links
        );
        assert!(
            played.links.is_empty(),
            "{millis} ms: the edge was lost and asked for again: {:?}",
            played.links
        );
    }
}
