//! The ring's interface for the rest of the daemon: calls to members that only the ring reaches,
//! traces, and the ring's state.
//!
//! A call is one packet there and one back, each small enough for one datagram, repeated until an
//! answer comes. The far end keeps its last answers and the calls in progress, so that a repetition
//! has no second effect. Nothing in a packet proves the sender: requests and answers prove
//! themselves (`connect/over_ring.rs`).

use crate::lock;
use crate::{
    plane::Plane,
    ring::{
        Header, Kind, Node, Packet, Position, RingStatus, Table,
        trace::{self, Report},
    },
};
use arc_swap::{ArcSwap, ArcSwapOption};
use futures::{FutureExt, future::BoxFuture};
use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::sync::oneshot;

/// How long to wait before each repetition of a call. Reason: a ring under repair loses packets for
/// a moment.
const REPEAT_MS: [u64; 3] = [350, 600, 900];
/// How many calls are under way at once.
const MAX_CALLS: usize = 1024;
/// How many answers are kept. Reason: a repeated call gets the same answer and has no second
/// effect.
const KEPT_ANSWERS: usize = 128;
/// How many calls of others are worked on at once; further ones get no answer and are repeated.
const MAX_PENDING: usize = 32;

/// Answers calls that arrive over the ring.
pub(crate) trait Answers: Send + Sync {
    /// The answer to a call, if there is one. The sender is not proved.
    fn answer(&self, asked: &Header, body: &[u8]) -> BoxFuture<'static, Option<Vec<u8>>>;
}

/// The body of a packet of a call with this id.
fn numbered(id: u64, body: &[u8]) -> Vec<u8> {
    [&id.to_be_bytes()[..], body].concat()
}

fn number_of(body: &[u8]) -> Option<(u64, &[u8])> {
    let (id, body) = body.split_first_chunk()?;
    Some((u64::from_be_bytes(*id), body))
}

/// The sender of a call, and the call's id.
type CallKey = (Position, u64);

/// The last calls and their answers.
#[derive(Default)]
struct RecentCalls {
    /// `None` while the call is worked on.
    calls: VecDeque<(CallKey, Option<Vec<u8>>)>,
}

/// What to do with a call.
#[derive(Debug, PartialEq)]
enum CallAction {
    /// It is new.
    Work,
    /// It was answered before: the same again.
    Repeat(Vec<u8>),
    /// It is worked on, or too many others are.
    Nothing,
}

impl RecentCalls {
    fn asked(&mut self, asked: CallKey) -> CallAction {
        if let Some((_, answer)) = self.calls.iter().find(|(of, _)| *of == asked) {
            return answer
                .clone()
                .map_or(CallAction::Nothing, CallAction::Repeat);
        }
        if self
            .calls
            .iter()
            .filter(|(_, answer)| answer.is_none())
            .count()
            >= MAX_PENDING
        {
            return CallAction::Nothing;
        }
        if self.calls.len() >= KEPT_ANSWERS {
            self.calls.pop_front();
        }
        self.calls.push_back((asked, None));
        CallAction::Work
    }

    /// Stores the answer. A call without an answer may come again.
    fn answered(&mut self, asked: CallKey, answer: Option<&[u8]>) {
        match answer {
            Some(bytes) => self
                .calls
                .iter_mut()
                .filter(|(of, _)| *of == asked)
                .for_each(|(_, kept)| *kept = Some(bytes.to_vec())),
            None => self.calls.retain(|(of, _)| *of != asked),
        }
    }
}

/// The ring's interface for the rest of the daemon.
pub struct RingNet {
    plane: Plane,
    me: Node,
    calls: Mutex<HashMap<u64, oneshot::Sender<Vec<u8>>>>,
    answered: Mutex<RecentCalls>,
    answers: OnceLock<Arc<dyn Answers>>,
    pub(crate) status: ArcSwapOption<RingStatus>,
    lost_calls: AtomicU64,
}

impl RingNet {
    /// The ring over the links of `plane`. It stands once a driver runs.
    pub fn new(plane: Plane) -> Arc<Self> {
        let me = Node::from(plane.me());
        Arc::new(Self {
            plane,
            me,
            calls: Mutex::default(),
            answered: Mutex::default(),
            answers: OnceLock::new(),
            status: ArcSwapOption::empty(),
            lost_calls: AtomicU64::new(0),
        })
    }

    pub(crate) fn plane(&self) -> &Plane {
        &self.plane
    }

    /// Where this member stands.
    pub fn me(&self) -> Node {
        self.me
    }

    /// The routing table, always the newest, by which questions to all members are divided.
    pub fn table(&self) -> Arc<ArcSwap<Table>> {
        self.plane.ring_table()
    }

    /// The ring's last published state; `None` until it runs.
    pub fn status(&self) -> Option<Arc<RingStatus>> {
        self.status.load_full()
    }

    /// How many packets of other members this one has passed on.
    pub fn carried(&self) -> u64 {
        self.plane.ring_packets_carried()
    }

    /// How many calls had no answer.
    pub fn lost_calls(&self) -> u64 {
        self.lost_calls.load(Ordering::Relaxed)
    }

    /// Whether there are neighbours to route over.
    pub fn stands(&self) -> bool {
        self.plane.has_ring_neighbours()
    }

    pub(crate) fn serve(&self, answers: Arc<dyn Answers>) {
        let _ = self.answers.set(answers);
    }

    /// Gives a packet of our own to the next neighbour. `via` sends it through this neighbour,
    /// which also takes the answer.
    pub(crate) fn originate(
        &self,
        mut header: Header,
        body: Vec<u8>,
        via: Option<Position>,
    ) -> bool {
        let table = self.plane.ring_table();
        let Some((first, agent)) = crate::plane::first_hop(&table.load(), &header, via) else {
            return false;
        };
        header.agent = agent;
        self.plane
            .send_to_ring_neighbour(&first, &Packet { header, body })
    }

    /// Calls the member at `to` and waits for its answer at most `limit`. `via` sends it through
    /// this neighbour, as its leaf.
    pub async fn call(
        &self,
        to: Position,
        via: Option<Position>,
        body: Vec<u8>,
        limit: Duration,
    ) -> Option<Vec<u8>> {
        self.exchange(Kind::Call, to, via, body, limit).await
    }

    /// Traces the path to `to`. The report has the members on the way, also if the path ends
    /// before.
    pub async fn trace(&self, to: Position, limit: Duration) -> Option<Report> {
        let answer = self
            .exchange(Kind::Trace, to, None, Vec::new(), limit)
            .await?;
        trace::parse_report(&[&[0; 8][..], &answer].concat())
    }

    /// Sends a packet that begins with an id, repeats it while no answer comes, and waits for the
    /// answer with this id.
    async fn exchange(
        &self,
        kind: Kind,
        to: Position,
        via: Option<Position>,
        body: Vec<u8>,
        limit: Duration,
    ) -> Option<Vec<u8>> {
        let id: u64 = rand::random();
        let (answer, answered) = oneshot::channel();
        {
            let mut calls = lock(&self.calls);
            calls.retain(|_, waiting| !waiting.is_closed());
            if calls.len() >= MAX_CALLS {
                return None;
            }
            calls.insert(id, answer);
        }
        let body = numbered(id, &body);
        let send = async {
            for pause in REPEAT_MS {
                self.originate(Header::new(kind, self.me.position, to), body.clone(), via);
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
            self.originate(Header::new(kind, self.me.position, to), body.clone(), via);
            std::future::pending::<()>().await;
        };
        let got = tokio::select! {
            () = send => None,
            got = tokio::time::timeout(limit, answered) => got.ok().and_then(Result::ok),
        };
        lock(&self.calls).remove(&id);
        if got.is_none() {
            self.lost_calls.fetch_add(1, Ordering::Relaxed);
        }
        got
    }

    /// A call or an answer that ends here.
    pub(crate) fn take(self: &Arc<Self>, packet: &Packet) {
        let Some((number, body)) = number_of(&packet.body) else {
            return;
        };
        if packet.header.kind == Kind::Answer {
            let waiting = lock(&self.calls).remove(&number);
            waiting.map(|waiting| waiting.send(body.to_vec()));
            return;
        }
        let asked = (packet.header.from, number);
        let reply = packet.header.reply(Kind::Answer, self.me.position);
        let Some(answers) = self.answers.get() else {
            return;
        };
        // The lock is released before anything is sent.
        let todo = lock(&self.answered).asked(asked);
        match todo {
            CallAction::Work => {}
            CallAction::Repeat(answer) => return self.reply(reply, asked, &answer),
            CallAction::Nothing => return,
        }
        let mut answer = answers.answer(&packet.header, body);
        match (&mut answer).now_or_never() {
            Some(answer) => self.answered(reply, asked, answer),
            None => {
                let net = self.clone();
                tokio::spawn(async move {
                    let answer = answer.await;
                    net.answered(reply, asked, answer);
                });
            }
        }
    }

    fn answered(&self, reply: Header, asked: CallKey, answer: Option<Vec<u8>>) {
        lock(&self.answered).answered(asked, answer.as_deref());
        if let Some(answer) = answer {
            self.reply(reply, asked, &answer);
        }
    }

    fn reply(&self, header: Header, asked: CallKey, answer: &[u8]) {
        self.originate(header, numbered(asked.1, answer), None);
    }
}

#[cfg(test)]
#[path = "ring_net_golden_tests.rs"]
mod golden_tests;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::MemberId;

    fn asked(member: u8, id: u64) -> CallKey {
        (Position::of(&MemberId([member; 32])), id)
    }

    #[test]
    fn a_repeated_call_is_handled_once_and_answered_the_same() {
        let mut calls = RecentCalls::default();
        assert_eq!(calls.asked(asked(1, 7)), CallAction::Work);
        assert_eq!(
            calls.asked(asked(1, 7)),
            CallAction::Nothing,
            "it is still worked on"
        );
        calls.answered(asked(1, 7), Some(b"here"));
        assert_eq!(
            calls.asked(asked(1, 7)),
            CallAction::Repeat(b"here".to_vec())
        );
        assert_eq!(
            calls.asked(asked(2, 7)),
            CallAction::Work,
            "another's id is another call"
        );
        calls.answered(asked(2, 7), None);
        assert_eq!(
            calls.asked(asked(2, 7)),
            CallAction::Work,
            "what was not answered may come again"
        );
    }

    #[test]
    fn calls_that_are_worked_on_and_answers_that_are_kept_are_bounded() {
        let mut calls = RecentCalls::default();
        for id in 0..MAX_PENDING as u64 {
            assert_eq!(calls.asked(asked(1, id)), CallAction::Work);
        }
        assert_eq!(calls.asked(asked(1, 1000)), CallAction::Nothing);
        for id in 0..MAX_PENDING as u64 {
            calls.answered(asked(1, id), Some(b"done"));
        }
        for id in 1000..1000 + 2 * KEPT_ANSWERS as u64 {
            assert_eq!(calls.asked(asked(1, id)), CallAction::Work);
            calls.answered(asked(1, id), Some(b"done"));
        }
        assert_eq!(calls.calls.len(), KEPT_ANSWERS);
        assert_eq!(calls.asked(asked(1, 0)), CallAction::Work, "long forgotten");
    }
}
