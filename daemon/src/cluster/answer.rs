//! This member's answers to questions to the whole cluster, and how two answers are combined.

use super::ask::Question;
use crate::{
    node::service::Node,
    vms::{
        absent::{Sighting, merged},
        service::Vms,
    },
};
use p2pvm_api::ClusterLoad;
use p2pvm_overlay::ring::ask::{MAX_ANSWER_BYTES, Respond};
use std::sync::{Arc, Weak};

/// Answers for this member.
pub(crate) struct Responder {
    node: Weak<Node>,
    vms: Weak<Vms>,
}

impl Responder {
    /// The services are held weakly, because they ask through the owner of the responder.
    pub(crate) fn new(node: &Arc<Node>, vms: &Arc<Vms>) -> Arc<Self> {
        Arc::new(Self {
            node: Arc::downgrade(node),
            vms: Arc::downgrade(vms),
        })
    }
}

fn question(bytes: &[u8]) -> Option<Question> {
    serde_json::from_slice(bytes).ok()
}

impl Respond for Responder {
    fn answer(&self, asked: &[u8]) -> Option<Vec<u8>> {
        let (node, vms) = (self.node.upgrade()?, self.vms.upgrade()?);
        let answer = match question(asked)? {
            Question::Members => serde_json::to_vec(&node.as_member()),
            Question::Vms => serde_json::to_vec(&vms.here()),
            Question::Load => serde_json::to_vec(&node.load_here()),
            Question::Metrics => serde_json::to_vec(&node.samples()),
            Question::Sight => serde_json::to_vec(&node.sight()),
            Question::Records => return postcard::to_allocvec(&vms.absent.told_here()).ok(),
        };
        answer.ok()
    }

    fn combine(&self, asked: &[u8], one: &[u8], other: &[u8]) -> Option<Vec<u8>> {
        match question(asked)? {
            Question::Load => {}
            Question::Records => {
                let both = [one, other].map(postcard::from_bytes::<Vec<Sighting>>);
                let all = both
                    .into_iter()
                    .collect::<Result<Vec<_>, _>>()
                    .ok()?
                    .into_iter()
                    .flatten();
                // Two answers that are too long for one stay two, and are counted if they do not
                // fit.
                return postcard::to_allocvec(&merged(all))
                    .ok()
                    .filter(|all| all.len() < MAX_ANSWER_BYTES / 2);
            }
            _ => return None,
        }
        let (one, other): (ClusterLoad, ClusterLoad) = (
            serde_json::from_slice(one).ok()?,
            serde_json::from_slice(other).ok()?,
        );
        serde_json::to_vec(&one.plus(&other)).ok()
    }
}
