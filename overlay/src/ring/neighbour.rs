//! One edge: the roles that each side wants it for, the other side's last state, and whether it
//! lives.
//!
//! A hello that asks is answered by a hello, and one such exchange per interval serves both ends: a
//! question counts as a sign of life, so that the other end delays its own. A question is repeated
//! a few times before the edge is given up, so that loss does not look like death; a one-way cut
//! does, because only answers end a question.

use super::{message::Roles, position::Node};
use crate::{coordinates::Coordinate, id::MemberId};
use std::time::{Duration, Instant};

/// How long before a near neighbour is asked again. With the retries its death is noticed within 11
/// s.
pub(super) const NEAR_INTERVAL: Duration = Duration::from_secs(8);
/// How long before another neighbour is asked again. Reason: 26 of them at 10 000 members then cost
/// half of the idle budget of 400 B/s.
pub(super) const FAR_INTERVAL: Duration = Duration::from_secs(16);
/// How long before an unanswered question is repeated; at least twice the edge's round trip.
pub(super) const RETRY: Duration = Duration::from_millis(750);
/// How many questions before an edge is given up. Reason: at 10 % loss each way five in a row fail
/// once in 4 000 times.
pub(super) const TRIES: u8 = 5;
/// How far a sequence number may be behind the newest to count as an old datagram. Further behind
/// it is a new beginning.
const SEQ_WINDOW: u32 = 64;

/// The other end of an edge.
pub(super) struct Edge {
    pub node: Node,
    /// The roles that we want the edge for.
    pub mine: Roles,
    /// The roles that the other wants it for.
    pub theirs: Roles,
    /// Our roles, and whether we had joined, as of our last question.
    pub told: Option<(Roles, bool)>,
    /// Whether the other carries packets.
    pub joined: bool,
    /// Whether it has spoken: the edge then works, and the fields of its hello are set.
    pub heard: bool,
    pub coordinate: Option<Coordinate>,
    /// Its estimate of the network's size, eighths of log2; 0: none.
    pub size: u8,
    pub rtt: Option<Duration>,
    seq: u32,
    their_seq: Option<u32>,
    /// The times at which the pending question was sent. Reason: on a long path the answer to the
    /// first comes after the second.
    pub asked: Vec<(u32, Instant)>,
    pub tries: u8,
    /// When to ask next.
    pub ask_at: Instant,
    pub last_heard: Instant,
    /// The digest in its last hello.
    pub digest: u32,
    /// The digest of its last list.
    pub list_digest: Option<u32>,
    /// When to check that its list matches the digest of its hello.
    pub check_list_at: Option<Instant>,
    /// When it last got our list on request.
    pub listed_at: Option<Instant>,
    /// Its neighbours around us.
    pub direct: Vec<Node>,
    /// Members that it knows by hearsay.
    pub hearsay: Vec<Node>,
    /// Since when neither side has had a use for it.
    pub idle_since: Option<Instant>,
    /// When the edge was made.
    pub since: Instant,
}

impl Edge {
    pub fn new(
        node: Node,
        mine: Roles,
        rtt: Option<Duration>,
        first_seq: u32,
        now: Instant,
    ) -> Self {
        Self {
            node,
            mine,
            theirs: Roles::default(),
            told: None,
            joined: false,
            heard: false,
            coordinate: None,
            size: 0,
            rtt,
            seq: first_seq,
            their_seq: None,
            asked: Vec::new(),
            tries: 0,
            ask_at: now,
            last_heard: now,
            digest: 0,
            list_digest: None,
            check_list_at: None,
            listed_at: None,
            direct: Vec::new(),
            hearsay: Vec::new(),
            idle_since: None,
            since: now,
        }
    }

    pub fn member(&self) -> MemberId {
        self.node.member
    }

    /// Whether either side counts the other among its nearest.
    pub fn near(&self) -> bool {
        self.mine.has(Roles::NEAR) || self.theirs.has(Roles::NEAR)
    }

    /// Drops the other's list. Reason: only near neighbours tell each other when their lists
    /// change; another's would name the dead for ever, and edges that are gone.
    pub fn forget_list(&mut self) {
        (self.list_digest, self.check_list_at) = (None, None);
        self.direct.clear();
        self.hearsay.clear();
    }

    pub fn next_seq(&mut self) -> u32 {
        self.seq = self.seq.wrapping_add(1);
        self.seq
    }

    /// Whether a hello with this number is newer than the last one.
    pub fn is_news(&mut self, seq: u32) -> bool {
        let old = self
            .their_seq
            .is_some_and(|newest| (1..=SEQ_WINDOW).contains(&newest.wrapping_sub(seq)));
        if !old {
            self.their_seq = Some(seq);
        }
        !old
    }

    /// How long before the next question if the last one is answered.
    pub fn interval(&self) -> Duration {
        if self.near() || !self.joined {
            NEAR_INTERVAL
        } else {
            FAR_INTERVAL
        }
    }

    /// How long to wait for an answer.
    pub fn patience(&self) -> Duration {
        self.rtt
            .map_or(RETRY, |rtt| RETRY.max(rtt * 2).min(RETRY * 4))
    }

    /// Takes a measured round trip.
    pub fn measured(&mut self, rtt: Duration) {
        // As TCP does (RFC 6298): a new sample counts an eighth.
        self.rtt = Some(self.rtt.map_or(rtt, |old| (old * 7 + rtt) / 8));
    }
}
