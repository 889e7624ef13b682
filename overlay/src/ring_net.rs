//! The ring as the rest of the daemon holds it: calls to members that only the ring leads to, traces, and how the ring stands.
//!
//! A call is one packet there and one back, each small enough for one datagram, sent again while nothing comes back; the far
//! end keeps its last answers, so that a repetition has no second effect. Nothing in a packet proves who sent it: what is asked
//! and answered proves itself (`connect/over_ring.rs`).

use crate::{
    plane::{Inner, Plane},
    ring::{
        Header, Kind, Node, Packet, Position, RingStatus, Table,
        trace::{self, Report},
    },
};
use arc_swap::{ArcSwap, ArcSwapOption};
use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::sync::oneshot;

/// A call is sent again after these pauses: a ring under repair loses packets for a moment.
const REPEAT_MS: [u64; 3] = [350, 600, 900];
/// Calls under way at once.
const MAX_CALLS: usize = 1024;
/// Answers kept in case that their call comes again, so that a repetition has no second effect.
const KEPT_ANSWERS: usize = 128;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Answers calls that come over the ring.
pub(crate) trait Answers: Send + Sync {
    /// What to answer to a call, if anything. Nothing proves who asks.
    fn answer(&self, asked: &Header, body: &[u8]) -> Option<Vec<u8>>;
}

/// Who asked under which id, and what was answered.
type Answered = ((Position, u64), Vec<u8>);

/// The ring as others in the daemon see it.
pub struct RingNet {
    plane: Plane,
    me: Node,
    calls: Mutex<HashMap<u64, oneshot::Sender<Vec<u8>>>>,
    answered: Mutex<VecDeque<Answered>>,
    answers: OnceLock<Arc<dyn Answers>>,
    pub(crate) status: ArcSwapOption<RingStatus>,
    lost_calls: AtomicU64,
}

impl RingNet {
    /// The ring over the links of `plane`. It stands once a driver runs.
    pub fn new(plane: Plane) -> Arc<Self> {
        let me = Node::from(plane.inner().me);
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

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        self.plane.inner()
    }

    /// Where this member stands.
    pub fn me(&self) -> Node {
        self.me
    }

    /// The routing table, always the newest: what questions to all members are divided by.
    pub fn table(&self) -> Arc<ArcSwap<Table>> {
        self.inner().ring.table.clone()
    }

    /// How the ring stood a moment ago; `None` until it runs.
    pub fn status(&self) -> Option<Arc<RingStatus>> {
        self.status.load_full()
    }

    /// Packets of other pairs that this member has handed on.
    pub fn carried(&self) -> u64 {
        self.inner().ring.carried.load(Ordering::Relaxed)
    }

    /// Calls that nobody answered.
    pub fn lost_calls(&self) -> u64 {
        self.lost_calls.load(Ordering::Relaxed)
    }

    /// Whether there are neighbours to route over.
    pub fn stands(&self) -> bool {
        self.inner().ring_stands()
    }

    pub(crate) fn serve(&self, answers: Arc<dyn Answers>) {
        let _ = self.answers.set(answers);
    }

    /// Gives a packet of our own to the neighbour that takes it on. `via`: to this one in any case, which also takes the answer.
    pub(crate) fn originate(&self, mut header: Header, body: Vec<u8>, via: Option<Position>) -> bool {
        let table = self.inner().ring.table.load();
        let Some((first, agent)) = crate::plane::first_hop(&table, &header, via) else { return false };
        header.agent = agent;
        self.inner().ring_send(&first, &Packet { header, body })
    }

    /// Asks the member at `to` and waits for its answer at most `limit`. `via`: through this neighbour, as its leaf.
    pub async fn call(&self, to: Position, via: Option<Position>, body: Vec<u8>, limit: Duration) -> Option<Vec<u8>> {
        self.exchange(Kind::Call, to, via, body, limit).await
    }

    /// Follows the ring to `to`; what the members on the way said, also where the path ends before.
    pub async fn trace(&self, to: Position, limit: Duration) -> Option<Report> {
        let answer = self.exchange(Kind::Trace, to, None, Vec::new(), limit).await?;
        trace::parse_report(&[&[0; 8][..], &answer].concat())
    }

    /// Sends a packet that begins with an id, again while nothing comes back, and waits for what comes back under this id.
    async fn exchange(&self, kind: Kind, to: Position, via: Option<Position>, body: Vec<u8>, limit: Duration) -> Option<Vec<u8>> {
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
        let body = [&id.to_be_bytes()[..], &body].concat();
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
    pub(crate) fn take(&self, packet: &Packet) {
        let Some((id, body)) = packet.body.split_first_chunk::<8>() else { return };
        let number = u64::from_be_bytes(*id);
        if packet.header.kind == Kind::Answer {
            let waiting = lock(&self.calls).remove(&number);
            waiting.map(|waiting| waiting.send(body.to_vec()));
            return;
        }
        let asked = (packet.header.from, number);
        let known = lock(&self.answered).iter().find(|(of, _)| *of == asked).map(|(_, answer)| answer.clone());
        let answer = match known {
            Some(answer) => answer,
            None => {
                let Some(answer) = self.answers.get().and_then(|a| a.answer(&packet.header, body)) else { return };
                let mut answered = lock(&self.answered);
                if answered.len() >= KEPT_ANSWERS {
                    answered.pop_front();
                }
                answered.push_back((asked, answer.clone()));
                answer
            }
        };
        let reply = packet.header.reply(Kind::Answer, self.me.position);
        self.originate(reply, [&id[..], &answer].concat(), None);
    }
}
