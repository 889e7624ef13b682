//! Hellos: the keepalive of an edge, with the roles, the round trip and the digest of each side.

use super::{
    Edge, Event, Node, Output, Ring,
    message::{Hello, Message, Roles},
    neighbour::TRIES,
};
use crate::id::MemberId;
use rand::Rng;
use std::time::{Duration, Instant};

/// How much an interval varies, as a part of itself. Reason: neighbours must not ask in step.
const JITTER: f64 = 0.1;
/// How long the new list may take to come after a hello with a new digest before it is asked for.
const LIST_GRACE: Duration = Duration::from_millis(300);

impl Ring {
    /// Asks the neighbours that are due, and gives up those that did not answer.
    pub(super) fn keep_alive(&mut self, now: Instant) {
        let due: Vec<MemberId> = self
            .edges
            .values()
            .filter(|e| e.ask_at <= now)
            .map(Edge::member)
            .collect();
        for member in due {
            let Some(edge) = self.edges.get_mut(&member) else {
                continue;
            };
            if edge.tries >= TRIES {
                self.give_up(now, member);
            } else {
                self.question(now, member);
            }
        }
        let stale = |e: &Edge| e.check_list_at.is_some_and(|at| at <= now);
        let late: Vec<MemberId> = self
            .edges
            .values()
            .filter(|e| stale(e))
            .map(Edge::member)
            .collect();
        for member in late {
            let Some(edge) = self.edges.get_mut(&member) else {
                continue;
            };
            let outdated = edge.near() && edge.list_digest != Some(edge.digest);
            edge.check_list_at = outdated.then(|| now + edge.patience());
            if outdated {
                self.send(member, &Message::AskList);
            }
        }
    }

    fn give_up(&mut self, now: Instant, member: MemberId) {
        // If only our direction is cut, the other thus learns that the edge is dead.
        self.send(member, &Message::Bye);
        self.lose(now, member);
        self.outputs.push_back(Output::Unlink { member });
    }

    /// Sends a hello that asks for an answer.
    fn question(&mut self, now: Instant, member: MemberId) {
        let (hello, joined) = (self.hello(), self.joined);
        let Some(edge) = self.edges.get_mut(&member) else {
            return;
        };
        let seq = edge.next_seq();
        edge.tries += 1;
        let told = edge.told.replace((edge.mine, joined));
        // An answer to an earlier question does not show that the other has received this one.
        if told != edge.told || edge.asked.len() >= usize::from(TRIES) {
            edge.asked.clear();
        }
        edge.asked.push((seq, now));
        edge.ask_at = now + edge.patience();
        let hello = Hello {
            seq,
            roles: edge.mine,
            ..hello
        };
        self.send(member, &Message::Hello(hello));
    }

    fn hello(&self) -> Hello {
        Hello {
            seq: 0,
            answers: None,
            joined: self.joined,
            roles: Roles::default(),
            digest: self.near.digest(),
            size: self.far.own_estimate(),
            coordinate: self.vivaldi.mine(),
        }
    }

    /// A neighbour said hello. An unknown sender has a link to us, because its hello came over it.
    pub(super) fn greeted(&mut self, now: Instant, from: MemberId, hello: &Hello) {
        if !self.edges.contains_key(&from) {
            if hello.roles.is_empty() && hello.answers.is_none() {
                return self.send(from, &Message::Bye);
            }
            self.linked(now, from, None);
        }
        let answer = self.hello();
        let jitter = 1.0 + self.rng.random_range(-JITTER..JITTER);
        let Some(edge) = self.edges.get_mut(&from) else {
            return;
        };
        let answered = edge
            .asked
            .iter()
            .find(|(seq, _)| hello.answers == Some(*seq))
            .copied();
        edge.last_heard = now;
        if let Some((_, sent)) = answered {
            edge.asked.clear();
            edge.tries = 0;
            let rtt = now.saturating_duration_since(sent);
            edge.measured(rtt);
            self.vivaldi.observe(rtt, &hello.coordinate);
        }
        if edge.asked.is_empty() && edge.told.is_some() {
            edge.ask_at = now + edge.interval().mul_f64(jitter);
        }
        let first = !std::mem::replace(&mut edge.heard, true);
        if edge.is_news(hello.seq) {
            let news = (edge.joined, edge.theirs) != (hello.joined, hello.roles) || first;
            edge.coordinate = Some(hello.coordinate);
            if std::mem::replace(&mut edge.size, hello.size) != hello.size {
                self.far.neighbours_changed();
            }
            edge.digest = hello.digest;
            edge.joined = hello.joined;
            edge.theirs = hello.roles;
            self.changed |= news;
        }
        if edge.near() && edge.list_digest != Some(edge.digest) && edge.check_list_at.is_none() {
            edge.check_list_at = Some(now + LIST_GRACE);
        }
        let wake = edge
            .check_list_at
            .map_or(edge.ask_at, |at| at.min(edge.ask_at));
        let joined = edge.joined;
        if hello.answers.is_none() {
            let (seq, roles) = (edge.next_seq(), edge.mine);
            self.send(
                from,
                &Message::Hello(Hello {
                    seq,
                    answers: Some(hello.seq),
                    roles,
                    ..answer
                }),
            );
        }
        self.limit_incoming(from);
        if first {
            self.met(now, from, joined);
        }
        self.wake_by(wake);
    }

    /// Asks a neighbour at once that another has given up, unless it spoke just now.
    pub(super) fn suspect(&mut self, now: Instant, node: Node) {
        if let Some(edge) = self.edges.get_mut(&node.member)
            && edge.asked.is_empty()
            && now.saturating_duration_since(edge.last_heard) > edge.patience()
        {
            edge.ask_at = now;
            self.wake_by(now);
        }
    }

    /// Tells each neighbour of changes: our roles and whether we have joined by a question, which
    /// is repeated until answered; our neighbours by lists.
    pub(super) fn tell(&mut self, now: Instant) {
        let joined = self.joined;
        let untold = |e: &Edge| e.told.is_some_and(|told| told != (e.mine, joined));
        let untold: Vec<MemberId> = self
            .edges
            .values()
            .filter(|e| untold(e))
            .map(Edge::member)
            .collect();
        for member in untold {
            if let Some(edge) = self.edges.get_mut(&member) {
                edge.tries = 0;
            }
            self.question(now, member);
        }
        self.push_lists(now);
    }

    /// Reports a member that should have been known.
    pub(super) fn repaired(&mut self, member: MemberId) {
        self.repairs += 1;
        self.outputs.push_back(Output::Event(Event::Found(member)));
    }
}
