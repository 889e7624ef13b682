//! Questions to the whole cluster over the ring: every member is asked once, answers are collected
//! on the way back, branches without an answer are reported. No member needs a list of all. A
//! member's answer is its own view of itself ([`super::answer`]).

use crate::parts::Parts;
use p2pvm_api::{Failure, Kind, Outcome};
use p2pvm_overlay::ring::ask::{Answers, AskAll, DeadBranch, Respond};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

/// How long to wait for answers. Reason: a branch without one by then counts as dead.
const ASK_LIMIT: Duration = Duration::from_secs(4);

/// A question.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum Question {
    /// The member's description of itself.
    Members,
    /// The member's VMs.
    Vms,
    /// The member's load. Answers are added up on the way.
    Load,
    /// The member's figures for Prometheus.
    Metrics,
    /// The member's description, links and decisions.
    Sight,
    /// The VM records that the member holds. Previous releases do not know the question and do not
    /// answer.
    Records,
}

/// Asks questions, and answers those of others.
pub(crate) struct Questions {
    parts: Arc<Parts>,
    ask: OnceLock<AskAll>,
}

impl Questions {
    pub(crate) fn new(parts: Arc<Parts>) -> Arc<Self> {
        Arc::new(Self {
            parts,
            ask: OnceLock::new(),
        })
    }

    /// Starts to answer other members' questions. Later calls change nothing.
    pub(crate) fn answer(&self, responder: Arc<dyn Respond>) {
        let _ = self.ask.set(AskAll::start(
            self.parts.fabric(),
            self.parts.ring.table(),
            responder,
        ));
    }

    /// Asks all members.
    pub(crate) async fn ask(&self, question: Question) -> Outcome<Answers> {
        let failed = |text: String| Failure::new(Kind::Failed, text);
        let ask = self
            .ask
            .get()
            .ok_or_else(|| failed("the daemon is still starting".into()))?;
        let body = serde_json::to_vec(&question).map_err(|e| failed(e.to_string()))?;
        ask.ask(body, ASK_LIMIT)
            .await
            .map_err(|e| failed(e.to_string()))
    }

    /// The members that did not answer, in words.
    pub(crate) fn silent(&self, dead: &[DeadBranch]) -> Vec<String> {
        let text = |d: &DeadBranch| {
            let rest = if d.covered {
                "others answered for those behind it"
            } else {
                "nor those behind it"
            };
            format!("{} ({rest})", self.parts.name_of(d.member))
        };
        dead.iter().map(text).collect()
    }
}

/// The answers that can be decoded.
pub(crate) fn read_all<T: DeserializeOwned>(answers: &Answers) -> Vec<T> {
    answers
        .items
        .iter()
        .filter_map(|(_, bytes)| serde_json::from_slice(bytes).ok())
        .collect()
}

#[cfg(test)]
#[path = "ask_golden_tests.rs"]
mod golden_tests;
