//! The whole cluster, as its members describe it.

use super::ask::{Question, Questions, read_all};
use crate::parts::Parts;
use p2pvm_api::{Cluster as Found, ClusterLoad, ClusterMember, Metrics, Outcome, Sample, Sight};
use p2pvm_overlay::MemberId;
use std::sync::Arc;

pub(crate) struct Cluster {
    parts: Arc<Parts>,
    questions: Arc<Questions>,
}

impl Cluster {
    pub(crate) fn new(parts: Arc<Parts>, questions: Arc<Questions>) -> Arc<Self> {
        Arc::new(Self { parts, questions })
    }

    /// All members, each as it describes itself.
    pub async fn members(&self) -> Outcome<Found> {
        let (members, load) = tokio::join!(
            self.questions.ask(Question::Members),
            self.questions.ask(Question::Load)
        );
        let (found, load) = (members?, load?);
        let mut members: Vec<ClusterMember> = read_all(&found);
        members.sort_by(|a, b| (&a.name, &a.member).cmp(&(&b.name, &b.member)));
        let load = read_all::<ClusterLoad>(&load)
            .iter()
            .fold(ClusterLoad::default(), |sum, one| sum.plus(one));
        Ok(Found {
            members,
            load,
            asked: found.asked,
            depth: found.depth,
            silent: self.questions.silent(&found.dead),
        })
    }

    /// All members with their links and decisions, as they describe them.
    pub async fn sights(&self) -> Outcome<Vec<Sight>> {
        let answers = self.questions.ask(Question::Sight).await?;
        let read = |(member, bytes): &(MemberId, Vec<u8>)| {
            Some(
                serde_json::from_slice::<Sight>(bytes)
                    .ok()?
                    .of(member.to_string().into()),
            )
        };
        Ok(answers.items.iter().filter_map(read).collect())
    }

    /// All members' figures, and the members that did not answer.
    pub async fn metrics(&self) -> Outcome<Metrics> {
        let answers = self.questions.ask(Question::Metrics).await?;
        let mut remarks: Vec<String> = self
            .questions
            .silent(&answers.dead)
            .iter()
            .map(|who| format!("no answer from {who}"))
            .collect();
        if answers.truncated > 0 {
            remarks.push(format!(
                "the figures of {} members did not fit",
                answers.truncated
            ));
        }
        let read = |(member, bytes): &(MemberId, Vec<u8>)| {
            Some((
                self.parts.name_of(*member),
                serde_json::from_slice::<Vec<Sample>>(bytes).ok()?,
            ))
        };
        Ok(Metrics {
            members: answers.items.iter().filter_map(read).collect(),
            remarks,
        })
    }
}
