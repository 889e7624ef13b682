//! Questions to the whole cluster, asked over the ring: every member once, answers gathered on the
//! way back, branches that did not answer named. No member needs a list of all. What a member
//! answers is its own view of itself.

use crate::{
    Daemon,
    members::metrics::{Metrics, Sample},
    vms::absent::{Told, merged},
};
use p2pvm_api::{
    Cluster, ClusterLoad, ClusterMember, ClusterVms, Failure, Kind, Outcome, Sight, VmView,
};
use p2pvm_overlay::{
    MemberId,
    ring::ask::{Answers, AskAll, Dead, MAX_ANSWER_BYTES, Respond},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Weak},
    time::Duration,
};

/// All answers are there by then, or their branch counts as dead.
const ASK_LIMIT: Duration = Duration::from_secs(4);
/// A VM that waits for its guest (`VmState::Arriving` as it is written).
const ARRIVING: &str = "arriving";
/// A copy that lost its VM (`VmState::Branch` as it is written).
pub(crate) const BRANCH: &str = "branch";

#[derive(Clone, Copy, Serialize, Deserialize)]
enum Question {
    /// Who are you?
    Members,
    /// Which VMs have you?
    Vms,
    /// How busy are you? Answers are added up on the way.
    Load,
    /// What are your figures for Prometheus?
    Metrics,
    /// Who are you, what are your links, and what did you decide?
    Sight,
    /// Which VMs' records have you? Members of an older version do not know the question and say
    /// nothing.
    Records,
}

struct Responder(Weak<Daemon>);

fn question(bytes: &[u8]) -> Option<Question> {
    serde_json::from_slice(bytes).ok()
}

impl Respond for Responder {
    fn answer(&self, asked: &[u8]) -> Option<Vec<u8>> {
        let daemon = self.0.upgrade()?;
        let answer = match question(asked)? {
            Question::Members => serde_json::to_vec(&daemon.as_member()),
            Question::Vms => serde_json::to_vec(&daemon.vms_here()),
            Question::Load => serde_json::to_vec(&daemon.load_here()),
            Question::Metrics => serde_json::to_vec(&daemon.samples()),
            Question::Sight => serde_json::to_vec(&daemon.sight()),
            Question::Records => return postcard::to_allocvec(&daemon.absent.told_here()).ok(),
        };
        answer.ok()
    }

    fn combine(&self, asked: &[u8], one: &[u8], other: &[u8]) -> Option<Vec<u8>> {
        match question(asked)? {
            Question::Load => {}
            Question::Records => {
                let both = [one, other].map(postcard::from_bytes::<Vec<Told>>);
                let all = both
                    .into_iter()
                    .collect::<Result<Vec<_>, _>>()
                    .ok()?
                    .into_iter()
                    .flatten();
                // What would be too long for one answer stays two, and is counted if it does not
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

impl Daemon {
    /// Begins to answer other members' questions.
    pub(crate) fn answer_questions(self: &Arc<Self>) {
        let responder = Arc::new(Responder(Arc::downgrade(self)));
        // Set once, at the start.
        let _ = self.ask.set(AskAll::start(
            self.fabric(),
            self.parts.ring.table(),
            responder,
        ));
    }

    async fn ask_all(&self, question: Question) -> Outcome<Answers> {
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

    pub(crate) fn as_member(&self) -> ClusterMember {
        let ring = self.ring_view();
        let lease = self.reach.lease().borrow().clone();
        ClusterMember {
            member: self.me().to_string(),
            name: self.parts.certificate.name().to_owned(),
            address: lease.map(|lease| lease.v4.to_string()),
            nat: self.parts.connector.nat_kind().to_string(),
            position: ring.position,
            neighbours: ring.near + ring.far + ring.shortcuts,
            cpu: self.manager.cpu(),
            running_vms: self.running_vms(),
        }
    }

    fn load_here(&self) -> ClusterLoad {
        ClusterLoad {
            members: 1,
            cpu_sum: self.manager.cpu(),
            running_vms: self.running_vms(),
        }
    }

    fn silent(&self, dead: &[Dead]) -> Vec<String> {
        let text = |d: &Dead| {
            let rest = if d.covered {
                "others answered for those behind it"
            } else {
                "nor those behind it"
            };
            format!("{} ({rest})", self.name_of(d.member))
        };
        dead.iter().map(text).collect()
    }

    /// All members, each as it describes itself.
    pub async fn cluster(&self) -> Outcome<Cluster> {
        let (members, load) = tokio::join!(
            self.ask_all(Question::Members),
            self.ask_all(Question::Load)
        );
        let (found, load) = (members?, load?);
        let mut members: Vec<ClusterMember> = read_all(&found);
        members.sort_by(|a, b| (&a.name, &a.member).cmp(&(&b.name, &b.member)));
        let load = read_all::<ClusterLoad>(&load)
            .iter()
            .fold(ClusterLoad::default(), |sum, one| sum.plus(one));
        Ok(Cluster {
            members,
            load,
            asked: found.asked,
            depth: found.depth,
            silent: self.silent(&found.dead),
        })
    }

    /// All members with their links and decisions, each as it tells them.
    pub async fn sights(&self) -> Outcome<Vec<Sight>> {
        let answers = self.ask_all(Question::Sight).await?;
        let read = |(member, bytes): &(MemberId, Vec<u8>)| {
            Some(
                serde_json::from_slice::<Sight>(bytes)
                    .ok()?
                    .of(member.to_string()),
            )
        };
        Ok(answers.items.iter().filter_map(read).collect())
    }

    /// Everybody's figures, and who did not answer.
    pub async fn cluster_metrics(&self) -> Outcome<Metrics> {
        let answers = self.ask_all(Question::Metrics).await?;
        let mut remarks: Vec<String> = self
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
                self.name_of(*member),
                serde_json::from_slice::<Vec<Sample>>(bytes).ok()?,
            ))
        };
        Ok(Metrics {
            members: answers.items.iter().filter_map(read).collect(),
            remarks,
        })
    }

    /// All VMs of the network, and who did not say which it has. Connected members that the ring
    /// does not reach yet are asked directly; VMs of hosts that do not answer are told by the
    /// records that others hold.
    pub async fn cluster_vms(&self) -> Outcome<ClusterVms> {
        let connected = self.fabric().connected();
        let (answers, told) =
            tokio::join!(self.ask_all(Question::Vms), self.ask_all(Question::Records));
        let answers = answers?;
        let mut silent = self.silent(&answers.dead);
        let mut heard: BTreeSet<MemberId> =
            answers.items.iter().map(|(member, _)| *member).collect();
        let mut vms: Vec<VmView> = read_all::<Vec<VmView>>(&answers)
            .into_iter()
            .flatten()
            .collect();
        if answers.asked <= connected.len() as u64 {
            let (more, unheard) = self.host.list_all().await;
            vms.extend(more.iter().map(|vm| self.view(vm)));
            heard.extend(connected.iter().filter(|member| !unheard.contains(member)));
            silent = unheard
                .into_iter()
                .map(|member: MemberId| self.name_of(member))
                .collect();
        }
        if answers.truncated > 0 {
            silent.push(format!(
                "{} members whose answers did not fit",
                answers.truncated
            ));
        }
        // Without the others' records there is still what this node holds.
        let mut told: Vec<Told> = told
            .iter()
            .flat_map(|told| &told.items)
            .filter_map(|(_, bytes)| postcard::from_bytes::<Vec<Told>>(bytes).ok())
            .flatten()
            .collect();
        told.extend(self.absent.told_to_self().await);
        let absent = self.absent_of(told, &heard, &mut vms).await;
        vms.extend(absent);
        Ok(ClusterVms {
            vms: newest(vms),
            silent,
        })
    }
}

/// Each VM once. While it moves two hosts name it: it is where it leaves from until it runs at the
/// other, which has the next epoch as soon as it waits for the guest. Otherwise the newer epoch is
/// right, and before that the one that knows of the move.
fn newest(vms: Vec<VmView>) -> Vec<VmView> {
    let rank = |vm: &VmView| (vm.state != ARRIVING, vm.epoch, vm.moving.is_some());
    let mut newest: BTreeMap<(String, String), VmView> = BTreeMap::new();
    for vm in vms {
        let known = newest
            .entry((vm.name.clone(), vm.id.clone()))
            .or_insert_with(|| vm.clone());
        if rank(&vm) > rank(known) {
            *known = vm;
        }
    }
    newest.into_values().collect()
}

fn read_all<T: DeserializeOwned>(answers: &Answers) -> Vec<T> {
    answers
        .items
        .iter()
        .filter_map(|(_, bytes)| serde_json::from_slice(bytes).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2pvm_api::Moving;

    #[test]
    fn a_vm_that_two_hosts_name_is_shown_by_the_newer_epoch_and_then_by_who_moves_it() {
        let named = |host: &str, epoch, moving: Option<Moving>| VmView {
            name: "web".into(),
            host: host.into(),
            epoch,
            moving,
            ..VmView::default()
        };
        let of = |vms| {
            newest(vms)
                .into_iter()
                .map(|vm| vm.host)
                .collect::<Vec<_>>()
        };
        let (source, target) = (
            named("source", 3, Some(Moving::default())),
            named("target", 3, None),
        );
        assert_eq!(of(vec![target.clone(), source.clone()]), ["source"]);
        assert_eq!(of(vec![source.clone(), target]), ["source"]);
        assert_eq!(
            of(vec![source.clone(), named("target", 4, None)]),
            ["target"]
        );
        let waits = VmView {
            state: ARRIVING.to_owned(),
            ..named("target", 4, None)
        };
        assert_eq!(
            of(vec![waits.clone(), source.clone()]),
            ["source"],
            "the guest is not there yet"
        );
        assert_eq!(of(vec![source, waits.clone()]), ["source"]);
        assert_eq!(of(vec![waits]), ["target"], "nobody else says anything");
    }
}
