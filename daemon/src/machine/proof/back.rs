//! The way back: a member asked over the control plane proves its way to the asker.

use super::others::MEMBER_LIMIT;
use crate::{access::policy::Policies, parts::Parts};
use async_trait::async_trait;
use p2pvm_host::lock;
use p2pvm_overlay::{MemberId, Serve, membership::policy::Party, plane::ProofFailure};
use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio::sync::Semaphore;

/// The service by which a member asks another for the way back.
const SERVICE: &str = "prove";
/// How long to wait for an answer. Reason: it takes two proofs and a round trip.
const ASK_LIMIT: Duration = Duration::from_secs(10);
/// How long before an asker is served again, and how many askers are remembered before further ones
/// are refused.
const ASKER_EVERY: Duration = Duration::from_secs(5);
const MAX_ASKERS: usize = 1024;
/// How many proofs for others run at a time.
const FOR_OTHERS: usize = 4;
/// The version of the question and the answer.
const VERSION: u8 = 1;
/// How many characters of another member's reason are shown.
const MAX_WHY: usize = 300;

#[derive(Debug, Serialize, Deserialize)]
struct Question {
    version: u8,
    addr: IpAddr,
}

#[derive(Debug, Serialize, Deserialize)]
struct Answer {
    version: u8,
    /// The reason, if it failed.
    unproved: Option<String>,
    /// Whether the fault is the other's own, which says nothing about the way.
    its_own: bool,
}

/// Starts to prove the way to members that ask for it.
pub(super) fn serve(parts: Arc<Parts>, policies: Arc<Policies>) {
    let fabric = parts.fabric();
    let answers = Answers {
        parts,
        policies,
        asked: Mutex::default(),
        running: Semaphore::new(FOR_OTHERS),
    };
    fabric.serve(SERVICE, Arc::new(answers));
}

/// Asks a member to prove its way to here. Returns its answer; `None` if it gives none.
pub(super) async fn ask(
    parts: &Parts,
    member: MemberId,
    own: IpAddr,
) -> Option<Result<(), String>> {
    let question = postcard::to_allocvec(&Question {
        version: VERSION,
        addr: own,
    })
    .ok()?;
    let answer = parts
        .fabric()
        .call(member, SERVICE, question, ASK_LIMIT)
        .await
        .ok()?;
    let (answer, _later): (Answer, _) = postcard::take_from_bytes(&answer).ok()?;
    match answer.unproved {
        None => Some(Ok(())),
        Some(_) if answer.its_own => None,
        Some(why) => Some(Err(why
            .chars()
            .filter(|c| !c.is_control())
            .take(MAX_WHY)
            .collect())),
    }
}

/// Whether the policy lets a probe through.
pub(super) fn may(
    parts: &Parts,
    policies: &Policies,
    from: (MemberId, IpAddr),
    to: (MemberId, IpAddr),
) -> bool {
    let party = |(member, addr): (MemberId, IpAddr)| Party {
        addr,
        owner: parts.book.member(member),
    };
    policies.lets_probe(&party(from), &party(to))
}

/// Proves the way to a member that asks for it.
struct Answers {
    parts: Arc<Parts>,
    policies: Arc<Policies>,
    asked: Mutex<HashMap<MemberId, Instant>>,
    running: Semaphore,
}

impl Answers {
    /// Whether this asker may be served now.
    fn is_turn(&self, from: MemberId, now: Instant) -> bool {
        let mut asked = lock(&self.asked);
        asked.retain(|_, at| now.duration_since(*at) < ASKER_EVERY);
        if asked.len() >= MAX_ASKERS || asked.contains_key(&from) {
            return false;
        }
        asked.insert(from, now);
        true
    }
}

#[async_trait]
impl Serve for Answers {
    async fn serve(&self, from: MemberId, body: Vec<u8>) -> Result<Vec<u8>, String> {
        let (question, _later): (Question, _) =
            postcard::take_from_bytes(&body).map_err(|_| "this is no question".to_owned())?;
        // Only the asker's own addresses, so that no asker makes this host send to a third one.
        let routes = self.parts.plane.routes();
        if !routes
            .iter()
            .any(|(ip, route)| *ip == question.addr && route.member == from && route.epoch.0 == 0)
        {
            return Err("that address is not known here as the asker's".to_owned());
        }
        if !self.is_turn(from, Instant::now()) {
            return Err("asked too often".to_owned());
        }
        let _running = self
            .running
            .try_acquire()
            .map_err(|_| "busy with other askers".to_owned())?;
        let me = self.parts.me();
        let own = self
            .parts
            .plane
            .host_of(&me)
            .ok_or_else(|| "no address here yet".to_owned())?;
        if !may(
            &self.parts,
            &self.policies,
            (me, own),
            (from, question.addr),
        ) {
            return Err("the network's policy does not allow it".to_owned());
        }
        let proved = self
            .parts
            .plane
            .prove_member(from, question.addr, MEMBER_LIMIT)
            .await;
        let its_own = !matches!(proved, Ok(_) | Err(ProofFailure::MemberSilent { .. }));
        let answer = Answer {
            version: VERSION,
            unproved: proved.err().map(|why| why.to_string()),
            its_own,
        };
        postcard::to_allocvec(&answer).map_err(|e| e.to_string())
    }
}

#[cfg(test)]
#[path = "back_golden_tests.rs"]
mod golden_tests;
