//! Proves that packets pass, from stack to stack: into this host's own stack through its interface,
//! to other members' hosts, and, by their word, from there back to here. A link that answers pings
//! proves none of that, and health says no more than is proved.
//!
//! The way back is proved by a member asked over the control plane (service `prove`, versioned, a
//! few bytes): it proves its way to an address that it knows to be the asker's, at most once in a
//! while for each asker.

use crate::{Daemon, access::policy::Policies, parts::Parts};
use async_trait::async_trait;
use p2pvm_host::{Board, Finding, Level};
use p2pvm_overlay::{
    MemberId, Serve,
    membership::policy::Party,
    plane::{Proof, Unproved},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::{Notify, Semaphore};

/// How often it is proved.
const EVERY: Duration = Duration::from_secs(30);
/// As above while something does not pass, or a guest boots.
const WHILE_TROUBLED: Duration = Duration::from_secs(5);
/// Between a proof that failed and the second try that counts.
const ONCE_MORE: Duration = Duration::from_millis(300);
/// How long packets may take through this host's own stack, and to another's. Reason for the first:
/// what the kernel tells of a rule that cuts this host off is to show within about two seconds, two
/// tries included.
const HOST_LIMIT: Duration = Duration::from_millis(800);
const MEMBER_LIMIT: Duration = Duration::from_secs(3);
/// Proofs that follow each other closely when there is news of this machine, and how closely.
const BURST: u32 = 4;
const AFTER_NEWS: Duration = Duration::from_millis(200);
/// After a burst of news there is another proof each time this has passed. Reason: a host on which
/// containers come and go has news all the time, and a rule among it that cuts this host off is to
/// show within about two seconds all the same. It costs some packets.
const EACH: Duration = Duration::from_secs(1);
/// Members are not asked for the sake of such news more often than this.
const MEMBERS_AFTER: Duration = Duration::from_secs(5);
/// Members proved in one round: one while all is well, as a member that does nothing should send
/// little; others come in the next rounds. More where one does not answer, to tell its trouble from
/// this host's.
const MEMBERS: (usize, usize) = (1, 3);
/// The service by which a member asks another for the way back.
const SERVICE: &str = "prove";
/// An answer takes two proofs and a round trip.
const ASK_LIMIT: Duration = Duration::from_secs(10);
/// An asker is served again after this; more askers than this are not remembered, but refused.
const ASKER_EVERY: Duration = Duration::from_secs(5);
const MAX_ASKERS: usize = 1024;
/// Proofs made for others at a time.
const FOR_OTHERS: usize = 4;
/// The version of the question and the answer.
const VERSION: u8 = 1;
/// What is believed of another's reason at most, bytes.
const MAX_WHY: usize = 300;
/// The board's area.
const AREA: &str = "path";

#[derive(Serialize, Deserialize)]
struct Question {
    version: u8,
    addr: IpAddr,
}

#[derive(Serialize, Deserialize)]
struct Answer {
    version: u8,
    /// Why not, if not.
    unproved: Option<String>,
    /// Whether that is the other's own trouble, which says nothing of the way.
    its_own: bool,
}

/// The proofs of this daemon: of this host, its guests and the ways to others each one at a time,
/// so that a guest or member that keeps silent holds up no proof of this host.
#[derive(Default)]
pub(crate) struct Proofs {
    host: tokio::sync::Mutex<()>,
    guests: tokio::sync::Mutex<()>,
    /// The number of the round.
    members: tokio::sync::Mutex<usize>,
    seen: Mutex<Seen>,
    /// This host was proved after news: so may the others be.
    due: Notify,
}

/// What is proved after news of this machine.
#[derive(Clone, Copy)]
enum Own {
    Host,
    Guests,
}

/// What was found last.
#[derive(Default)]
struct Seen {
    host: Option<Unproved>,
    others: Others,
}

/// When the next proof after news may be made: a bucket of [`BURST`] proofs, filled up by one in
/// [`EACH`]. What was found does not count.
struct Pace {
    tokens: u32,
    /// Up to when the bucket was filled.
    filled: Instant,
    last: Instant,
}

impl Pace {
    fn new(now: Instant) -> Self {
        Self {
            tokens: BURST,
            filled: now,
            last: now,
        }
    }

    fn fill(&mut self, now: Instant) {
        while self.tokens < BURST && now.saturating_duration_since(self.filled) >= EACH {
            (self.tokens, self.filled) = (self.tokens + 1, self.filled + EACH);
        }
        if self.tokens >= BURST {
            self.filled = now;
        }
    }

    /// How long from now.
    fn gap(&mut self, now: Instant) -> Duration {
        self.fill(now);
        let next = self.last + AFTER_NEWS;
        let next = if self.tokens > 0 {
            next
        } else {
            next.max(self.filled + EACH)
        };
        next.saturating_duration_since(now)
    }

    /// A proof was made after news.
    fn spend(&mut self, now: Instant) {
        self.fill(now);
        (self.tokens, self.last) = (self.tokens.saturating_sub(1), now);
    }
}

/// What one round found of the others.
#[derive(Default)]
struct Others {
    /// Members whose host answered, or whose packets came.
    proved: usize,
    /// Names of those whose host did not answer, and why.
    silent: Vec<(String, String)>,
    /// Names of those whose packets do not reach this host, and why.
    no_way_back: Vec<(String, String)>,
}

impl Daemon {
    /// Proves the ways until the daemon ends.
    pub(crate) async fn keep_proving(self: Arc<Self>) {
        let answers = Answers {
            parts: self.parts.clone(),
            policies: self.policies.clone(),
            asked: Mutex::default(),
            running: Semaphore::new(FOR_OTHERS),
        };
        self.fabric().serve(SERVICE, Arc::new(answers));
        let mut lease = self.reach.lease();
        if lease.wait_for(Option::is_some).await.is_err() {
            return;
        }
        let [host, guests] = [(), ()].map(|()| Arc::new(Notify::new()));
        let told = [host.clone(), guests.clone()];
        self.parts.board.on_news(Box::new(move || {
            told.iter().for_each(|told| told.notify_one())
        }));
        tokio::join!(
            self.keep(Own::Host, &host),
            self.keep(Own::Guests, &guests),
            self.keep_proving_members()
        );
    }

    /// Proves what is this host's own now and then, and soon after news.
    async fn keep(&self, what: Own, news: &Notify) {
        let mut pace = Pace::new(Instant::now());
        loop {
            match what {
                Own::Host => {
                    self.prove_host().await;
                    self.proofs.due.notify_one();
                }
                Own::Guests => self.prove_guests_alone().await,
            }
            tokio::select! {
                () = tokio::time::sleep(self.next_proof()) => {}
                () = heeded(news, pace.gap(Instant::now())) => pace.spend(Instant::now()),
            }
        }
    }

    async fn keep_proving_members(&self) {
        loop {
            self.prove_members().await;
            tokio::select! {
                () = tokio::time::sleep(self.next_proof()) => {}
                () = heeded(&self.proofs.due, MEMBERS_AFTER) => {}
            }
        }
    }

    /// How long until the next proof without news.
    fn next_proof(&self) -> Duration {
        let troubled = |(area, finding): &(&str, Finding)| {
            finding.level != Level::Ok && Board::PROVED.contains(area)
        };
        let settled = !self.parts.board.all().iter().any(troubled) && !self.guests.is_unsettled();
        if settled { EVERY } else { WHILE_TROUBLED }
    }

    /// Proves all ways now, and puts what does not pass on the board.
    pub async fn prove(&self) {
        tokio::join!(self.prove_host(), self.prove_guests_alone());
        self.prove_members().await;
    }

    async fn prove_host(&self) {
        let _one = self.proofs.host.lock().await;
        let unproved = twice(|| self.parts.plane.prove_host(HOST_LIMIT))
            .await
            .err();
        self.found(|seen| {
            if unproved.is_some() {
                // Known now: what members say of it adds nothing.
                seen.others = Others::default();
            }
            seen.host = unproved;
        });
    }

    async fn prove_guests_alone(&self) {
        let _one = self.proofs.guests.lock().await;
        self.prove_guests().await;
    }

    async fn prove_members(&self) {
        let mut round = self.proofs.members.lock().await;
        if self.seen().host.is_some() {
            return;
        }
        *round = round.wrapping_add(1);
        let others = self.prove_others(*round).await;
        self.found(|seen| {
            if seen.host.is_none() {
                seen.others = others;
            }
        });
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.proofs
            .seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what was found, and puts it on the board.
    fn found(&self, note: impl FnOnce(&mut Seen)) {
        // Held to the end, so that an older finding does not come after a newer one.
        let mut seen = self.seen();
        note(&mut seen);
        self.parts
            .board
            .set(AREA, findings(seen.host.as_ref(), &seen.others));
    }

    async fn prove_others(&self, round: usize) -> Others {
        let mut members = self.fabric().connected();
        // A link that nothing needs is not made for this.
        members.retain(|member| self.parts.plane.path(*member).is_some());
        members.sort_unstable();
        let mut found = Others::default();
        let Some(own) = self.overlay_address().map(IpAddr::V4) else {
            return found;
        };
        let skip = round.checked_rem(members.len()).unwrap_or(0);
        for (at, member) in members
            .iter()
            .cycle()
            .skip(skip)
            .take(members.len().min(MEMBERS.1))
            .copied()
            .enumerate()
        {
            if at >= MEMBERS.0 && found.silent.is_empty() && found.no_way_back.is_empty() {
                break;
            }
            let Some(addr) = self
                .address_of(member)
                .and_then(|addr| addr.parse::<IpAddr>().ok())
            else {
                continue;
            };
            let name = self.name_of(member);
            if may(
                &self.parts,
                &self.policies,
                (self.me(), own),
                (member, addr),
            ) {
                match twice(|| self.parts.plane.prove_member(member, addr, MEMBER_LIMIT)).await {
                    Ok(_) => found.proved += 1,
                    Err(Unproved::MemberSilent { .. }) => found
                        .silent
                        .push((name.clone(), Unproved::MemberSilent { addr }.to_string())),
                    // No path at the moment is what 'p2pvm peers' is for; the rest is this host's
                    // own matter, proved before.
                    Err(_) => continue,
                }
            }
            if may(
                &self.parts,
                &self.policies,
                (member, addr),
                (self.me(), own),
            ) {
                match self.ask_back(member, own).await {
                    Some(Ok(())) => found.proved += 1,
                    Some(Err(why)) => found.no_way_back.push((name, why)),
                    None => {}
                }
            }
        }
        found
    }

    /// Asks a member to prove its way to here: what it says; nothing if it cannot or will not tell.
    async fn ask_back(&self, member: MemberId, own: IpAddr) -> Option<Result<(), String>> {
        let question = postcard::to_allocvec(&Question {
            version: VERSION,
            addr: own,
        })
        .ok()?;
        let answer = self
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
}

/// Waits for news, which may have come before, but not less than `gap`.
async fn heeded(news: &Notify, gap: Duration) {
    tokio::time::sleep(gap).await;
    news.notified().await;
}

/// A busy machine misses one deadline; what is broken misses two.
async fn twice<F: Future<Output = Result<Proof, Unproved>>>(
    prove: impl Fn() -> F,
) -> Result<Proof, Unproved> {
    match prove().await {
        Err(_) => {
            tokio::time::sleep(ONCE_MORE).await;
            prove().await
        }
        proved => proved,
    }
}

/// Whether the policy lets a probe through.
fn may(
    parts: &Parts,
    policies: &Policies,
    from: (MemberId, IpAddr),
    to: (MemberId, IpAddr),
) -> bool {
    let party = |(member, addr): (MemberId, IpAddr)| Party {
        addr,
        who: parts.book.member(member),
    };
    policies.lets_probe(&party(from), &party(to))
}

fn findings(host: Option<&Unproved>, others: &Others) -> Vec<Finding> {
    if let Some(unproved) = host {
        return own_trouble(unproved).into_iter().collect();
    }
    let mut found = Vec::new();
    let list = |of: &[(String, String)]| {
        of.iter()
            .map(|(name, _)| name.as_str())
            .collect::<Vec<_>>()
            .join(", ")
    };
    if let Some((name, why)) = others.no_way_back.first() {
        let said = format!(
            "packets of {} do not reach this host: {name} says that {why}",
            list(&others.no_way_back)
        );
        let advice =
            "allow what comes in by p2pvm's interface: 'nft list ruleset' and 'iptables -L -v' \
                show which rule drops it"
                .to_owned();
        found.push(if others.proved == 0 {
            Finding::failed(said, advice)
        } else {
            Finding::warning(said, advice)
        });
    }
    if let Some((name, why)) = others.silent.first() {
        let said = format!(
            "no answer from the hosts of {}: {why}",
            list(&others.silent)
        );
        found.push(Finding::warning(
            said,
            format!("run 'p2pvm doctor' on {name}"),
        ));
    }
    found
}

/// This host is not reached through its own interface.
pub(crate) fn own_trouble(unproved: &Unproved) -> Option<Finding> {
    let firewall = |device: &str| {
        format!(
            "let in what comes by {device}: 'nft list ruleset' shows the rule that drops it; \
                firewalld: 'firewall-cmd --permanent \
             --zone=trusted --add-interface={device} && firewall-cmd --reload'; ufw: 'ufw allow \
             in on {device}'"
        )
    };
    let again = "the daemon puts it back within 10 s; if it does not, 'p2pvm doctor --fix', then \
        'p2pvm down && p2pvm up --detach'";
    let advice = match unproved {
        // A daemon that has no address yet says so elsewhere.
        Unproved::NoAddress => return None,
        Unproved::Cannot { .. } => return Some(Finding::warning(unproved.to_string(), "")),
        Unproved::Missing { .. } | Unproved::Down { .. } | Unproved::AddressLost { .. } => {
            again.to_owned()
        }
        Unproved::Elsewhere { addr, .. } => format!(
            "'ip route get {addr}' and 'ip rule' show by which rule; take that route or rule away"
        ),
        Unproved::Refused { device } | Unproved::Silent { device } => firewall(device),
        Unproved::NoPath { .. } | Unproved::MemberSilent { .. } => return None,
    };
    Some(Finding::failed(
        format!("this host's address in the network cannot be reached: {unproved}"),
        advice,
    ))
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
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
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
        // Only the asker's own addresses: nobody makes this host knock at a third one.
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
        let its_own = !matches!(proved, Ok(_) | Err(Unproved::MemberSilent { .. }));
        let answer = Answer {
            version: VERSION,
            unproved: proved.err().map(|why| why.to_string()),
            its_own,
        };
        postcard::to_allocvec(&answer).map_err(|e| e.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_is_not_reached_is_a_failure_with_the_remedy_of_its_cause() {
        let device = || "p2pvm0".to_owned();
        let addr = IpAddr::from([10, 83, 0, 9]);
        let cases = [
            (Unproved::Missing { device: device() }, "doctor --fix"),
            (Unproved::Down { device: device() }, "doctor --fix"),
            (
                Unproved::AddressLost {
                    device: device(),
                    addr,
                },
                "doctor --fix",
            ),
            (
                Unproved::Elsewhere {
                    device: device(),
                    addr,
                    through: "eth0".into(),
                },
                "ip route get 10.83.0.9",
            ),
            (Unproved::Refused { device: device() }, "nft list ruleset"),
            (
                Unproved::Silent { device: device() },
                "ufw allow in on p2pvm0",
            ),
        ];
        for (unproved, advice) in cases {
            let found = findings(Some(&unproved), &Others::default());
            let [finding] = found.as_slice() else {
                panic!("{unproved:?}: {found:?}")
            };
            assert!(
                finding.level == Level::Failed && finding.advice.contains(advice),
                "{finding:?}"
            );
            assert!(finding.found.contains("cannot be reached"), "{finding:?}");
        }
        assert_eq!(findings(Some(&Unproved::NoAddress), &Others::default()), []);
    }

    #[test]
    fn news_are_heeded_soon_whatever_came_before_and_a_flood_of_them_costs_bounded_work() {
        let start = Instant::now();
        let (mut pace, mut now, mut proofs, mut longest) =
            (Pace::new(start), start, 0, Duration::ZERO);
        while now < start + Duration::from_secs(600) {
            let gap = pace.gap(now);
            (now, longest, proofs) = (now + gap, longest.max(gap), proofs + 1);
            pace.spend(now);
        }
        assert!(longest <= EACH, "{longest:?}");
        assert!(
            (600..=600 + BURST + 1).contains(&proofs),
            "{proofs} in ten minutes"
        );
        // A quiet while, and several changes one after the other are heeded at once again.
        now += EACH * BURST;
        for _ in 0..BURST {
            assert!(pace.gap(now) <= AFTER_NEWS);
            now += AFTER_NEWS;
            pace.spend(now);
        }
    }

    #[test]
    fn packets_that_reach_nobody_here_are_a_failure_and_one_silent_member_is_a_warning() {
        let said = |name: &str| vec![(name.to_owned(), "no answer".to_owned())];
        let cut_off = findings(
            None,
            &Others {
                no_way_back: said("lab2"),
                ..Others::default()
            },
        );
        assert!(
            cut_off[0].level == Level::Failed && cut_off[0].found.contains("lab2"),
            "{cut_off:?}"
        );
        let partly = findings(
            None,
            &Others {
                proved: 2,
                no_way_back: said("lab2"),
                silent: said("lab3"),
            },
        );
        assert!(
            partly.iter().all(|finding| finding.level == Level::Warning) && partly.len() == 2,
            "{partly:?}"
        );
        assert_eq!(
            findings(
                None,
                &Others {
                    proved: 2,
                    ..Others::default()
                }
            ),
            []
        );
    }
}
