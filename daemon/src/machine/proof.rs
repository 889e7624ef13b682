//! Proves that packets pass, from stack to stack: into this host's own stack through its interface,
//! to other members' hosts, and, by their report, from there back to here. A link that answers
//! pings proves none of that, and the health claims no more than is proved.
//!
//! For the way back this node asks a member over the control plane (service `prove`, versioned, a
//! few bytes). That member proves its way to an address that it knows to be the asker's, at most
//! once in a while for each asker.

mod back;
mod found;
mod others;
mod pace;

use crate::{access::policy::Policies, addresses::reach::Reach, parts::Parts, vms::guests::Guests};
pub(crate) use found::own_trouble;
use found::{MemberResults, findings};
use p2pvm_host::lock;
use p2pvm_host::{Board, Finding, Level};
use p2pvm_overlay::plane::{Proof, ProofFailure};
use pace::Pace;
use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};
use tokio::sync::Notify;

/// How long before the ways are proved again.
const EVERY: Duration = Duration::from_secs(30);
/// How long before they are proved again while something does not pass, or a guest boots.
const WHILE_TROUBLED: Duration = Duration::from_secs(5);
/// How long between a failed proof and the second try, whose result counts.
const ONCE_MORE: Duration = Duration::from_millis(300);
/// How long packets may take through this host's own stack. Reason: a rule that cuts this host off
/// must be reported within about two seconds after the kernel's message, two tries included.
const HOST_LIMIT: Duration = Duration::from_millis(800);
/// How long before members are asked again after news of this machine.
const MEMBERS_AFTER: Duration = Duration::from_secs(5);
/// The board's area.
const AREA: &str = "path";

/// The proofs of this daemon. Those of this host, of its guests and of the ways to others run one
/// at a time each, so that a silent guest or member delays no proof of this host.
pub(crate) struct Proofs {
    parts: Arc<Parts>,
    policies: Arc<Policies>,
    reach: Arc<Reach>,
    guests: Arc<Guests>,
    proving_host: tokio::sync::Mutex<()>,
    proving_guests: tokio::sync::Mutex<()>,
    /// The number of the round.
    proving_members: tokio::sync::Mutex<usize>,
    seen: Mutex<LastResults>,
    /// This host was proved after news: the others may be proved now.
    due: Notify,
}

/// The part that is proved after news of this machine.
#[derive(Clone, Copy)]
enum ProofPart {
    Host,
    Guests,
}

#[derive(Default)]
struct LastResults {
    host: Option<ProofFailure>,
    others: MemberResults,
}

impl Proofs {
    pub(crate) fn new(
        parts: Arc<Parts>,
        policies: Arc<Policies>,
        reach: Arc<Reach>,
        guests: Arc<Guests>,
    ) -> Arc<Self> {
        Arc::new(Self {
            parts,
            policies,
            reach,
            guests,
            proving_host: tokio::sync::Mutex::default(),
            proving_guests: tokio::sync::Mutex::default(),
            proving_members: tokio::sync::Mutex::default(),
            seen: Mutex::default(),
            due: Notify::default(),
        })
    }

    /// Proves the ways until the daemon ends.
    pub(crate) async fn run(self: Arc<Self>) {
        back::serve(self.parts.clone(), self.policies.clone());
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
            self.keep(ProofPart::Host, &host),
            self.keep(ProofPart::Guests, &guests),
            self.keep_proving_members()
        );
    }

    /// Proves this host's own part now and then, and soon after news.
    async fn keep(&self, what: ProofPart, news: &Notify) {
        let mut pace = Pace::new(Instant::now());
        loop {
            match what {
                ProofPart::Host => {
                    self.prove_host().await;
                    self.due.notify_one();
                }
                ProofPart::Guests => self.prove_guests_alone().await,
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
                () = heeded(&self.due, MEMBERS_AFTER) => {}
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

    /// Proves all ways now, and reports on the board those that do not pass.
    pub async fn prove(&self) {
        tokio::join!(self.prove_host(), self.prove_guests_alone());
        self.prove_members().await;
    }

    async fn prove_host(&self) {
        let _one = self.proving_host.lock().await;
        let unproved = twice(|| self.parts.plane.prove_host(HOST_LIMIT))
            .await
            .err();
        self.found(|seen| {
            if unproved.is_some() {
                // The cause is known: members' reports add nothing.
                seen.others = MemberResults::default();
            }
            seen.host = unproved;
        });
    }

    async fn prove_guests_alone(&self) {
        let _one = self.proving_guests.lock().await;
        self.guests.prove().await;
    }

    async fn prove_members(&self) {
        let mut round = self.proving_members.lock().await;
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

    fn seen(&self) -> MutexGuard<'_, LastResults> {
        lock(&self.seen)
    }

    /// Stores a result, and reports it on the board.
    fn found(&self, note: impl FnOnce(&mut LastResults)) {
        // Held to the end, so that an older result does not replace a newer one.
        let mut seen = self.seen();
        note(&mut seen);
        self.parts
            .board
            .set(AREA, findings(seen.host.as_ref(), &seen.others));
    }
}

/// Waits for news, which may have come before, but not less than `gap`.
async fn heeded(news: &Notify, gap: Duration) {
    tokio::time::sleep(gap).await;
    news.notified().await;
}

/// Tries twice: a busy machine misses one deadline, a broken way misses two.
async fn twice<F: Future<Output = Result<Proof, ProofFailure>>>(
    prove: impl Fn() -> F,
) -> Result<Proof, ProofFailure> {
    match prove().await {
        Err(_) => {
            tokio::time::sleep(ONCE_MORE).await;
            prove().await
        }
        proved => proved,
    }
}
