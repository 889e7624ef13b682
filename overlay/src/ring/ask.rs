//! Questions to all members: bounded broadcast over intervals of the ring, aggregated on the way
//! back (Brunet's MapReduce; Lee et al. 2011).
//!
//! The asker divides the ring among its neighbours ([`Table::split`]). Each answers for its part in
//! the same way, so that no member keeps a list of all, every member is asked once, and the depth
//! is that of greedy paths. Answers come back merged, within a bound. A neighbour that does not
//! answer in its share of the time is reported with its part, and the part is given to the
//! neighbour beside it, twice at most.
//!
//! A member answers a question once, however often it arrives. So the answers that a slow branch
//! had gathered are missing, and the branch is reported; nothing is counted twice.

use super::{
    position::{Position, Range},
    table::Table,
};
use crate::lock;
use crate::{
    fabric::{Fabric, Serve},
    id::MemberId,
    seats::Seats,
};
use arc_swap::ArcSwap;
use async_trait::async_trait;
use futures::future::join_all;
use rand::Rng;
use serde::{Deserialize, Serialize};
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::time::Instant;

/// The fabric service that carries questions.
pub const SERVICE: &str = "ask";
const VERSION: u8 = 1;
/// How many bytes a question has at most.
pub const MAX_QUESTION_BYTES: usize = 64 << 10;
/// How many bytes all answers together have at most; further answers are counted and dropped.
pub const MAX_ANSWER_BYTES: usize = 1 << 20;
/// How many dead branches are reported at most.
const MAX_DEAD: usize = 256;
/// How many levels a question goes down: as many as a greedy path may have.
const MAX_DEPTH: u8 = 32;
/// How many members a question may exclude.
const MAX_AVOIDED: usize = 16;
/// The part of the remaining time that a neighbour gets, then the one asked in its place, then one
/// more.
const SHARES: [f64; 3] = [0.6, 0.5, 1.0];
/// The part of its time that a neighbour may use; the rest is for the way back.
const THEIR_SHARE: f64 = 0.9;
/// How many questions of others are worked on at once, of all and of one.
/// Reason: a member that asks without end leaves places to the others.
const AT_ONCE: (usize, usize) = (32, 16);
/// How long this member works on another's question at most, in milliseconds, also if the question
/// allows more.
const MAX_MILLIS: u32 = 30_000;
/// How many answered questions are remembered.
const REMEMBERED: usize = 256;

/// The source of this member's answers.
pub trait Respond: Send + Sync + 'static {
    /// This member's answer; `None` if it has nothing to say to this question.
    fn answer(&self, question: &[u8]) -> Option<Vec<u8>>;

    /// Combines two answers into one, such as a sum; `None` (the default) keeps them apart.
    fn combine(&self, _question: &[u8], _one: &[u8], _other: &[u8]) -> Option<Vec<u8>> {
        None
    }
}

/// A member that did not answer in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadBranch {
    /// The silent member.
    pub member: MemberId,
    /// The part of the ring that it was to answer for.
    pub range: Range,
    /// Whether another neighbour answered for that part in its place.
    pub covered: bool,
}

/// The result of a question.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answers {
    /// The answers and their members; a combined answer has the member that combined it last.
    pub items: Vec<(MemberId, Vec<u8>)>,
    /// The members that did not answer.
    pub dead: Vec<DeadBranch>,
    /// How many answers were dropped because all together were too long.
    pub truncated: u64,
    /// How many levels the question went down.
    pub depth: u8,
    /// How many members answered, this one among them.
    pub asked: u64,
}

/// Why a question was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// It is longer than [`MAX_QUESTION_BYTES`].
    #[error("a question of {0} bytes is too long: at most {MAX_QUESTION_BYTES}")]
    TooLong(usize),
}

#[derive(Debug, Serialize, Deserialize)]
struct Request {
    /// The question's id, the same for all members.
    id: u64,
    range: Range,
    depth_left: u8,
    millis: u32,
    avoid: Vec<MemberId>,
    question: Vec<u8>,
}

impl Request {
    fn encode(&self) -> Vec<u8> {
        postcard::to_extend(self, vec![VERSION]).unwrap_or_default()
    }

    fn decode(body: &[u8]) -> Option<Self> {
        let rest = body.strip_prefix(&[VERSION])?;
        let mut request: Self = postcard::from_bytes(rest).ok()?;
        request.millis = request.millis.min(MAX_MILLIS);
        (request.question.len() <= MAX_QUESTION_BYTES && request.avoid.len() <= MAX_AVOIDED)
            .then_some(request)
    }
}

/// Parses and answers bytes that a member sends to the service, for fuzzing. True if they are a
/// question. Never panics.
pub fn parse(body: &[u8]) -> bool {
    let _ = decode_answers(body);
    Request::decode(body).is_some()
}

fn encode_answers(answers: &Answers) -> postcard::Result<Vec<u8>> {
    postcard::to_extend(answers, vec![VERSION])
}

fn decode_answers(body: &[u8]) -> Option<Answers> {
    postcard::from_bytes(body.strip_prefix(&[VERSION])?).ok()
}

struct Shared {
    fabric: Arc<dyn Fabric>,
    table: Arc<ArcSwap<Table>>,
    responder: Arc<dyn Respond>,
    answered: Mutex<VecDeque<u64>>,
    working: Seats,
}

/// Asks all members, and answers the questions of others.
#[derive(Clone)]
pub struct AskAll(Arc<Shared>);

struct Handler(Arc<Shared>);

#[async_trait]
impl Serve for Handler {
    async fn serve(&self, from: MemberId, body: Vec<u8>) -> Result<Vec<u8>, String> {
        let request = Request::decode(&body).ok_or("not a question of this version")?;
        let turn = self.0.working.try_take(from);
        let _turn = turn.ok_or("too many questions at once")?;
        let answers = self.0.answer(request).await;
        encode_answers(&answers).map_err(|e| e.to_string())
    }
}

impl AskAll {
    /// Starts to serve questions, dividing them by the newest `table`.
    pub fn start(
        fabric: Arc<dyn Fabric>,
        table: Arc<ArcSwap<Table>>,
        responder: Arc<dyn Respond>,
    ) -> Self {
        let answered = Mutex::new(VecDeque::with_capacity(REMEMBERED));
        let shared = Arc::new(Shared {
            fabric,
            table,
            responder,
            answered,
            working: Seats::new(AT_ONCE.0, AT_ONCE.1),
        });
        shared
            .fabric
            .serve(SERVICE, Arc::new(Handler(shared.clone())));
        Self(shared)
    }

    /// Asks every member, this one too. Takes at most `limit`.
    ///
    /// # Errors
    /// [`AskError::TooLong`]. Members that do not answer are no error but part of the answer.
    pub async fn ask(&self, question: Vec<u8>, limit: Duration) -> Result<Answers, AskError> {
        if question.len() > MAX_QUESTION_BYTES {
            return Err(AskError::TooLong(question.len()));
        }
        let me = self.0.table.load().me().position;
        let millis = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX);
        let id = rand::rng().random();
        let whole = Range::all_but(me);
        Ok(self
            .0
            .answer_as(
                true,
                Request {
                    id,
                    range: whole,
                    depth_left: MAX_DEPTH,
                    millis,
                    avoid: Vec::new(),
                    question,
                },
            )
            .await)
    }
}

impl Shared {
    async fn answer(&self, request: Request) -> Answers {
        let inside = request.range.contains(self.table.load().me().position);
        self.answer_as(inside, request).await
    }

    /// Answers for the range; for this member only if it is `inside` the range and has not answered
    /// yet.
    async fn answer_as(&self, inside: bool, request: Request) -> Answers {
        let end = Instant::now() + Duration::from_millis(request.millis.into());
        let mut answers = Answers::default();
        if inside && self.first_time(request.id) {
            answers.asked = 1;
            answers.items.extend(
                self.responder
                    .answer(&request.question)
                    .map(|own| (self.fabric.me(), own)),
            );
        }
        if let Some(depth_left) = request.depth_left.checked_sub(1) {
            let table = self.table.load_full();
            let mut parts = table.split_without(request.range, &request.avoid);
            // Asked in a dead member's place and without a neighbour in its part: pass the part on
            // towards it. Any live member inside will do.
            if let Some(dead) = request.avoid.last().filter(|_| !inside && parts.is_empty()) {
                parts.extend(
                    table
                        .nearer(Position::of(dead), &request.avoid)
                        .map(|member| (member, request.range)),
                );
            }
            let branches =
                join_all(parts.iter().map(|(member, range)| {
                    self.branch(&request, depth_left, *member, *range, end)
                }))
                .await;
            for branch in branches {
                self.merge(&request.question, &mut answers, branch);
            }
        }
        answers
    }

    fn first_time(&self, id: u64) -> bool {
        let mut answered = lock(&self.answered);
        let first = !answered.contains(&id);
        if first {
            if answered.len() == REMEMBERED {
                answered.pop_front();
            }
            answered.push_back(id);
        }
        first
    }

    /// The answer of the neighbour, or of one beside it in its place, for the range.
    async fn branch(
        &self,
        request: &Request,
        depth_left: u8,
        member: MemberId,
        range: Range,
        end: Instant,
    ) -> Answers {
        let (mut avoid, mut candidate) = (request.avoid.clone(), Some(member));
        let mut dead = Vec::new();
        for share in SHARES {
            let Some(asked) = candidate else { break };
            let left = end.saturating_duration_since(Instant::now()).mul_f64(share);
            if let Some(mut answers) = self
                .call(request, depth_left, asked, range, &avoid, left)
                .await
            {
                dead.iter_mut()
                    .for_each(|d: &mut DeadBranch| d.covered = true);
                answers.dead.splice(0..0, dead);
                return answers;
            }
            dead.push(DeadBranch {
                member: asked,
                range,
                covered: false,
            });
            avoid.push(asked);
            candidate = self
                .beside(member, &avoid)
                .filter(|_| avoid.len() <= MAX_AVOIDED);
        }
        Answers {
            dead,
            ..Answers::default()
        }
    }

    async fn call(
        &self,
        request: &Request,
        depth_left: u8,
        member: MemberId,
        range: Range,
        avoid: &[MemberId],
        limit: Duration,
    ) -> Option<Answers> {
        let millis = u32::try_from(limit.mul_f64(THEIR_SHARE).as_millis()).unwrap_or(u32::MAX);
        let request = Request {
            id: request.id,
            range,
            depth_left,
            millis,
            avoid: avoid.to_vec(),
            question: request.question.clone(),
        };
        let body = self
            .fabric
            .call(member, SERVICE, request.encode(), limit)
            .await;
        let body = body
            .inspect_err(|error| {
                tracing::debug!(
                    ?member,
                    error = %p2pvm_host::chain(error),
                    "a branch of a question is dead"
                )
            })
            .ok()?;
        let mut answers = decode_answers(&body)?;
        answers.dead.truncate(MAX_DEAD);
        answers.depth = answers.depth.saturating_add(1);
        Some(answers)
    }

    /// The neighbour closest to `member` that is not one of `avoid`.
    fn beside(&self, member: MemberId, avoid: &[MemberId]) -> Option<MemberId> {
        let (table, place) = (self.table.load(), Position::of(&member));
        let others = table
            .members()
            .iter()
            .filter(|n| !avoid.contains(&n.member));
        others
            .min_by_key(|n| place.closeness(n.position))
            .map(|n| n.member)
    }

    fn merge(&self, question: &[u8], into: &mut Answers, from: Answers) {
        into.dead.extend(from.dead);
        into.dead.truncate(MAX_DEAD);
        into.truncated = into.truncated.saturating_add(from.truncated);
        into.depth = into.depth.max(from.depth);
        into.asked = into.asked.saturating_add(from.asked);
        let mut bytes: usize = into.items.iter().map(|(_, item)| item.len() + 40).sum();
        for (member, item) in from.items {
            let combined = into
                .items
                .last()
                .and_then(|(_, last)| self.responder.combine(question, last, &item));
            match (combined, into.items.last_mut()) {
                (Some(one), Some(last)) => *last = (self.fabric.me(), one),
                _ if bytes + item.len() + 40 > MAX_ANSWER_BYTES => {
                    into.truncated = into.truncated.saturating_add(1)
                }
                _ => {
                    bytes += item.len() + 40;
                    into.items.push((member, item));
                }
            }
        }
    }
}

#[cfg(test)]
#[path = "ask_golden_tests.rs"]
mod golden_tests;
#[cfg(test)]
#[path = "tests/ask.rs"]
mod tests;
