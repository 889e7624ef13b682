//! Proves that this host's guests are reached through their interfaces. What stands in the way on
//! this host is a finding with its cause; a guest that takes its packets and says nothing is said
//! as that.

use crate::parts::Parts;
use futures::{StreamExt, stream};
use p2pvm_api::{ReachState, ReachView};
use p2pvm_host::lock;
use p2pvm_host::{Finding, outbound};
use p2pvm_overlay::{
    VmId,
    plane::{GuestProof, GuestReach},
};
use p2pvm_vm_manager::host::{Host, VmState, VmStatus};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

/// How long a guest may take to answer. Reason: one that is translated answers in tens of
/// milliseconds, a busy host in a few hundred.
const LIMIT: Duration = Duration::from_millis(1200);
/// How long between a question without an answer and the second try, which counts.
const ONCE_MORE: Duration = Duration::from_millis(500);
/// How many guests are asked at a time.
const AT_A_TIME: usize = 8;
/// How long a guest that does not answer is asked often. Reason: it may just be starting.
const BOOTS: Duration = Duration::from_secs(180);
/// How long a guest may be silent before it is a finding. Reason: one that restarts is silent for
/// less.
const RESTARTS: Duration = Duration::from_secs(60);
/// The board's area.
const AREA: &str = "guests";

/// What is known of one guest that runs here.
struct Guest {
    name: String,
    /// When it answered last.
    answered: Option<Instant>,
    /// Since when it is as it is.
    since: Instant,
    proof: GuestProof,
    /// What may drop its packets, or leads them elsewhere, with the command that shows each.
    rules: Vec<(String, String)>,
}

/// What came of asking one guest.
struct GuestResult {
    vm: VmId,
    name: String,
    proof: GuestProof,
    rules: Vec<(String, String)>,
}

/// Which guests of this host are reached.
pub(crate) struct Guests {
    parts: Arc<Parts>,
    host: Arc<Host>,
    known: GuestTable,
}

/// What was found of each guest last.
#[derive(Default)]
struct GuestTable(Mutex<HashMap<VmId, Guest>>);

impl GuestTable {
    fn lock(&self) -> MutexGuard<'_, HashMap<VmId, Guest>> {
        lock(&self.0)
    }

    /// Takes the result of one round; guests that are not in it run here no more.
    fn round(&self, round: Vec<GuestResult>, now: Instant) -> Vec<Finding> {
        let mut guests = self.lock();
        guests.retain(|vm, _| round.iter().any(|asked| asked.vm == *vm));
        for GuestResult {
            vm,
            name,
            proof,
            rules,
        } in round
        {
            let known = guests.remove(&vm);
            let is_same = |known: &Guest| {
                std::mem::discriminant(&known.proof.reach) == std::mem::discriminant(&proof.reach)
            };
            let since = known
                .as_ref()
                .filter(|known| is_same(known))
                .map_or(now, |known| known.since);
            let answers = matches!(proof.reach, GuestReach::Answers { .. });
            let answered = if answers {
                Some(now)
            } else {
                known.and_then(|known| known.answered)
            };
            guests.insert(
                vm,
                Guest {
                    name,
                    answered,
                    since,
                    proof,
                    rules,
                },
            );
        }
        let mut found: Vec<_> = guests
            .values()
            .filter_map(|guest| guest.finding(now))
            .collect();
        found.sort_by(|a, b| a.found.cmp(&b.found));
        found
    }

    fn view(&self, vm: VmId) -> Option<ReachView> {
        self.lock().get(&vm).map(|guest| guest.view(Instant::now()))
    }

    fn is_unsettled(&self) -> bool {
        self.lock().values().any(|guest| {
            !matches!(guest.proof.reach, GuestReach::Answers { .. })
                && guest.since.elapsed() < BOOTS
        })
    }

    fn answering(&self) -> usize {
        self.lock()
            .values()
            .filter(|guest| matches!(guest.proof.reach, GuestReach::Answers { .. }))
            .count()
    }
}

impl Guests {
    pub(crate) fn new(parts: Arc<Parts>, host: Arc<Host>) -> Arc<Self> {
        Arc::new(Self {
            parts,
            host,
            known: GuestTable::default(),
        })
    }

    /// How a guest that runs here is reached.
    pub fn view(&self, vm: VmId) -> Option<ReachView> {
        self.known.view(vm)
    }

    /// Whether a guest has lately begun not to answer, as one that boots.
    pub fn is_unsettled(&self) -> bool {
        self.known.is_unsettled()
    }

    /// How many answered when they were asked last.
    pub fn answering(&self) -> usize {
        self.known.answering()
    }

    /// Asks every guest that runs here, and puts what stands in the way on the board.
    pub(crate) async fn prove(&self) {
        let running = self
            .host
            .list()
            .into_iter()
            .filter(|vm| vm.state == VmState::Running && vm.activity.is_none());
        let ask = |vm: VmStatus| async move {
            let (proof, rules) = prove(&self.parts, vm.definition.vm).await?;
            Some(GuestResult {
                vm: vm.definition.vm,
                name: vm.name,
                proof,
                rules,
            })
        };
        let asked: Vec<_> = running.map(ask).collect();
        let round: Vec<_> = stream::iter(asked)
            .buffer_unordered(AT_A_TIME)
            .filter_map(futures::future::ready)
            .collect()
            .await;
        self.parts
            .board
            .set(AREA, self.known.round(round, Instant::now()));
    }
}

impl Guest {
    /// What stands in the way on this host, if anything does, and what to do about it.
    fn blocked(&self) -> Option<(String, String)> {
        let ifname = &self.proof.ifname;
        let again = format!(
            "'p2pvm vm stop {name} && p2pvm vm start {name}' gives it a new one",
            name = self.name
        );
        Some(match &self.proof.reach {
            GuestReach::Quiet { .. } | GuestReach::NotTaken if !self.rules.is_empty() => {
                let (said, shown): (Vec<_>, Vec<_>) = self.rules.iter().cloned().unzip();
                let shown = shown
                    .iter()
                    .map(|command| format!("'{command}'"))
                    .collect::<Vec<_>>()
                    .join(" and ");
                let advice = format!("take that filter away ('tc filter del'): {shown} shows it");
                (
                    format!("it does not answer, and {}", said.join(" and ")),
                    advice,
                )
            }
            GuestReach::Answers { .. } | GuestReach::Quiet { .. } | GuestReach::NotTaken => {
                return None;
            }
            GuestReach::Missing => (format!("its interface {ifname} is gone"), again),
            GuestReach::NoCarrier => (
                format!("nothing holds the other end of its interface {ifname}"),
                again,
            ),
            GuestReach::Down => (
                format!("its interface {ifname} is down"),
                format!(
                    "p2pvm sets it up again; a network manager that sets it down: 'nmcli device \
                        set {ifname} managed no'"
                ),
            ),
            GuestReach::Dropped { why } if self.rules.is_empty() => (
                format!("this machine drops packets that leave by its interface {ifname}: {why}"),
                format!(
                    "take that rule away: 'nft list ruleset' and 'tc filter show dev {ifname} \
                        egress' show it"
                ),
            ),
            GuestReach::Dropped { .. } => {
                let list = |pick: fn(&(String, String)) -> String| {
                    self.rules.iter().map(pick).collect::<Vec<_>>()
                };
                let named = list(|(what, _)| what.clone()).join(" or ");
                let shown = list(|(_, command)| format!("'{command}'")).join(" and ");
                (
                    format!("{named} drops packets that leave by its interface {ifname}"),
                    format!("take that rule away: {shown} shows it"),
                )
            }
        })
    }

    /// Why a guest that is not reached says nothing, where this host has done its part.
    fn silence(&self) -> &'static str {
        match self.proof.reach {
            GuestReach::Quiet { talks: true } => {
                "it takes packets and sends some, but does not answer for its address"
            }
            GuestReach::NotTaken => {
                "it takes nothing out of its interface: its network driver does not run, or it \
                    stands still"
            }
            _ => "it takes packets and does not answer",
        }
    }

    fn finding(&self, now: Instant) -> Option<Finding> {
        let (name, look) = (
            &self.name,
            format!("'p2pvm vm console {}' shows the guest", self.name),
        );
        if let Some((why, advice)) = self.blocked() {
            return Some(Finding::failed(
                format!("packets do not reach the guest {name}: {why}"),
                advice,
            ));
        }
        if matches!(self.proof.reach, GuestReach::Answers { .. }) {
            return None;
        }
        let why = self.silence();
        match self.answered {
            Some(at) if now.saturating_duration_since(at) < RESTARTS => None,
            Some(_) => Some(Finding::warning(
                format!("the guest {name} has answered and does not now: {why}"),
                look,
            )),
            None => Some(Finding::note(
                format!(
                    "the guest {name} has not answered since it came here: {why}; one without \
                        network set up in it never does"
                ),
                look,
            )),
        }
    }

    fn view(&self, now: Instant) -> ReachView {
        let blocked = self.blocked().map(|(why, _)| why);
        let (state, rtt) = match (&self.proof.reach, &blocked, self.answered) {
            (GuestReach::Answers { rtt }, ..) => (ReachState::Answers, Some(*rtt)),
            (_, Some(_), _) => (ReachState::Blocked, None),
            (.., Some(_)) => (ReachState::Silent, None),
            (.., None) => (ReachState::Never, None),
        };
        let why = if state == ReachState::Answers {
            None
        } else {
            blocked.or_else(|| Some(self.silence().to_owned()))
        };
        ReachView {
            state,
            seconds: now.saturating_duration_since(self.since).as_secs(),
            rtt_ms: rtt.map(|rtt| rtt.as_secs_f64() * 1e3),
            why,
        }
    }
}

/// Asks one guest; what fails is asked once more, as its interface may just be put back.
async fn prove(parts: &Parts, vm: VmId) -> Option<(GuestProof, Vec<(String, String)>)> {
    let mut proof = parts.plane.prove_guest(vm, LIMIT).await?;
    if !matches!(proof.reach, GuestReach::Answers { .. }) {
        tokio::time::sleep(ONCE_MORE).await;
        proof = parts.plane.prove_guest(vm, LIMIT).await?;
    }
    let rules = match &proof.reach {
        GuestReach::Dropped { .. } => {
            let ifname = proof.ifname.clone();
            tokio::task::spawn_blocking(move || outbound::rules_on(&ifname))
                .await
                .unwrap_or_default()
        }
        GuestReach::Quiet { .. } | GuestReach::NotTaken => {
            let ifname = proof.ifname.clone();
            tokio::task::spawn_blocking(move || outbound::redirects_on(&ifname))
                .await
                .unwrap_or_default()
        }
        _ => Vec::new(),
    };
    Some((proof, rules))
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2pvm_host::Level;

    fn one(reach: GuestReach) -> Vec<GuestResult> {
        let rules = match reach {
            GuestReach::Dropped { .. } => vec![(
                "chain netdev t c of nftables".to_owned(),
                "nft -a list chain netdev t c".to_owned(),
            )],
            _ => Vec::new(),
        };
        vec![GuestResult {
            vm: VmId([1; 32]),
            name: "web".to_owned(),
            proof: GuestProof {
                ifname: "pv1".into(),
                reach,
            },
            rules,
        }]
    }

    fn answers() -> GuestReach {
        GuestReach::Answers {
            rtt: Duration::from_millis(1),
        }
    }

    #[test]
    fn what_blocks_a_guest_on_this_host_is_always_a_failure() {
        let now = Instant::now();
        let cases = [
            (GuestReach::Missing, "gone", "vm start web"),
            (GuestReach::NoCarrier, "other end", "vm start web"),
            (GuestReach::Down, "is down", "nmcli device set pv1"),
            (
                GuestReach::Dropped { why: "x".into() },
                "chain netdev t c",
                "nft -a list chain netdev t c",
            ),
        ];
        for before in [None, Some(answers())] {
            for (reach, cause, remedy) in cases.clone() {
                let guests = GuestTable::default();
                if let Some(before) = before.clone() {
                    guests.round(one(before), now);
                }
                let found = guests.round(one(reach), now);
                let [finding] = found.as_slice() else {
                    panic!("{found:?}")
                };
                assert!(
                    finding.level == Level::Failed && finding.found.contains(cause),
                    "{finding:?}"
                );
                assert!(finding.advice.contains(remedy), "{finding:?}");
                assert_eq!(
                    guests.view(VmId([1; 32])).unwrap().state,
                    ReachState::Blocked
                );
            }
        }
    }

    #[test]
    fn a_guest_with_diverted_packets_is_told_with_the_filter() {
        let (guests, now) = (GuestTable::default(), Instant::now());
        let led = || {
            let mut asked = one(GuestReach::Quiet { talks: false });
            asked[0].rules = vec![(
                "packets that leave by pv1 go to v0".into(),
                "tc filter show dev pv1 egress".into(),
            )];
            asked
        };
        guests.round(one(answers()), now);
        let [found] = guests.round(led(), now + RESTARTS).try_into().unwrap();
        assert!(
            found.level == Level::Failed && found.found.contains("pv1 go to v0"),
            "{found:?}"
        );
        assert!(
            found.advice.contains("'tc filter show dev pv1 egress'"),
            "{found:?}"
        );
        assert_eq!(
            guests.view(VmId([1; 32])).unwrap().state,
            ReachState::Blocked
        );
    }

    #[test]
    fn a_guest_without_network_is_no_fault_a_silenced_one_warns() {
        let (guests, now) = (GuestTable::default(), Instant::now());
        let found = guests.round(one(GuestReach::NotTaken), now);
        assert!(
            found.len() == 1
                && found[0].level == Level::Ok
                && found[0].found.contains("has not answered"),
            "{found:?}"
        );
        assert_eq!(guests.view(VmId([1; 32])).unwrap().state, ReachState::Never);
        assert_eq!(guests.round(one(answers()), now), []);
        assert_eq!(
            (
                guests.answering(),
                guests.view(VmId([1; 32])).unwrap().state
            ),
            (1, ReachState::Answers)
        );
        let quiet = || one(GuestReach::Quiet { talks: false });
        assert_eq!(
            guests.round(quiet(), now + RESTARTS / 2),
            [],
            "it may restart"
        );
        let found = guests.round(quiet(), now + RESTARTS);
        assert!(
            found.len() == 1
                && found[0].level == Level::Warning
                && found[0].advice.contains("console web"),
            "{found:?}"
        );
        assert_eq!(
            guests.view(VmId([1; 32])).unwrap().state,
            ReachState::Silent
        );
        assert_eq!(guests.round(Vec::new(), now), [], "it runs here no more");
        assert!(guests.view(VmId([1; 32])).is_none());
    }
}
