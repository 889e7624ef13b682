//! Keeps addresses and routes true: claims this host's address, tells the members it meets which
//! addresses are here, learns theirs, and asks the DHT about an address that a packet wants and no
//! member told.
//!
//! What members tell each other are the signed address records themselves, the same that the DHT
//! keeps: a record proves that its owner says so, and the epoch in it says which of two is newer.
//! It does not prove the owner: [`heard`] says what is believed, and the DHT the rest.

mod asks;
mod heard;
mod learn;

use crate::{addresses::kept::SavedLease, parts::Parts};
use asks::OpenQuestions;
use async_trait::async_trait;
use heard::Claims;
use learn::{MAX_DOUBTS, MAX_READYING};
use p2pvm_api::{Doing, Outcome};
use p2pvm_dhcp::{Addresses, Lease, Subject, address_key, dns::HostResolver};
use p2pvm_dht::Record;
use p2pvm_host::lock;
use p2pvm_host::{Repeated, chain};
use p2pvm_overlay::{
    Epoch, MemberId, Serve,
    network_time::NetworkTime,
    plane::{Plane, Route},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex, MutexGuard, OnceLock},
    time::{Duration, Instant},
};
use tokio::sync::{Notify, Semaphore, watch};

/// The service by which members tell each other which addresses are with them.
const SERVICE: &str = "route";
/// The most records in one message.
const MAX_RECORDS: usize = 512;
/// How long an answer to "which addresses are with you" may take. Reason: one round trip.
const TELL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long before an address without a holder is asked for again.
const NEGATIVE_FOR: Duration = Duration::from_secs(3);
/// How many links a guest's new host is asked to have ready.
const MAX_TALKERS: usize = 16;
/// How long before a fenced host is told again.
const STALE_EVERY: Duration = Duration::from_secs(5);
/// How many members hold a record.
const REPLICAS: usize = 5;
/// How long after the last connection further members are waited for.
const GATHER_QUIET: Duration = Duration::from_millis(700);
/// How long before a node without connections claims. Reason: it may be the last member.
const GATHER_LIMIT: Duration = Duration::from_secs(15);
/// How long before an address without a known holder is asked for again, right after the start.
const RESOLVE_RETRY: Duration = Duration::from_millis(50);
/// How long between two attempts to claim an address, at first and later.
const CLAIM_RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));
/// How long after a member has connected a held address is checked.
const CHECK_AFTER_MEETING: Duration = Duration::from_secs(5);
/// How often a held address is checked and, when due, renewed.
const CHECK_EVERY: Duration = Duration::from_secs(300);

#[derive(Debug, Serialize, Deserialize)]
enum ReachMessage {
    /// These addresses are with the sender.
    Here(Vec<(IpAddr, Record)>),
    /// The sender drops what comes from this address: it knows of a newer epoch.
    Stale(IpAddr, Epoch),
    /// A guest that talks with these members is about to come: links to them should be ready.
    Talkers(Vec<MemberId>),
}

/// Called for an address here whose packets other members drop.
pub type StaleListener = Box<dyn Fn(IpAddr, Epoch) + Send + Sync>;

/// The addresses and routes of this node.
pub struct Reach {
    parts: Arc<Parts>,
    /// Signed records of the addresses that are with this host now.
    here: Mutex<HashMap<IpAddr, Record>>,
    /// What is known of addresses, and which questions about them are open.
    heard: Mutex<Claims>,
    asks: Mutex<OpenQuestions>,
    /// There are questions to begin.
    asked: Notify,
    doubts: Semaphore,
    readying: Arc<Semaphore>,
    /// Addresses that had no holder when last asked for.
    nobody: Mutex<HashMap<IpAddr, Instant>>,
    lease: watch::Sender<Option<Lease>>,
    /// How long the claim of the address took, once it is through: enough members have agreed since
    /// the start, so that what they do not know is not there.
    claimed: watch::Sender<Option<Duration>>,
    /// When each address was last told to be stale.
    told_stale: Mutex<HashMap<IpAddr, Instant>>,
    on_stale: OnceLock<StaleListener>,
    /// Why there is no address yet.
    wanting: Mutex<Option<String>>,
    /// A member has connected.
    met: Notify,
    kept: SavedLease,
}

impl Reach {
    /// Begins to answer members. [`Reach::run`] does the rest.
    pub fn start(parts: Arc<Parts>, kept: SavedLease) -> Arc<Self> {
        let reach = Arc::new(Self {
            parts,
            here: Mutex::default(),
            heard: Mutex::default(),
            asks: Mutex::default(),
            asked: Notify::new(),
            doubts: Semaphore::new(MAX_DOUBTS),
            readying: Arc::new(Semaphore::new(MAX_READYING)),
            nobody: Mutex::default(),
            lease: watch::channel(None).0,
            claimed: watch::channel(None).0,
            told_stale: Mutex::default(),
            on_stale: OnceLock::new(),
            wanting: Mutex::default(),
            met: Notify::new(),
            kept,
        });
        reach
            .parts
            .fabric()
            .serve(SERVICE, Arc::new(Answers(reach.clone())));
        reach
    }

    /// This host's lease, once claimed.
    pub fn lease(&self) -> watch::Receiver<Option<Lease>> {
        self.lease.subscribe()
    }

    /// This host's address in the network, once it has one.
    pub fn address(&self) -> Option<Ipv4Addr> {
        self.lease.borrow().as_ref().map(|lease| lease.v4)
    }

    /// Why there is no address yet, if there is none and that is known.
    pub fn wanting(&self) -> Option<String> {
        let said = lock(&self.wanting).clone();
        let alone = self.parts.has_bootstrap && self.parts.fabric().connected().is_empty();
        said.or_else(|| alone.then(|| "it reaches no other member of the network".to_owned()))
    }

    fn want(&self, why: Option<String>) {
        *lock(&self.wanting) = why;
    }

    /// How long the claim of the address took.
    pub fn claimed(&self) -> watch::Receiver<Option<Duration>> {
        self.claimed.subscribe()
    }

    /// Sets the listener for addresses here whose packets others drop. Later calls change nothing.
    pub fn on_stale(&self, told: StaleListener) {
        let _ = self.on_stale.set(told);
    }

    /// Tells a member that its packets from `addr` are dropped, at most every few seconds.
    pub async fn tell_stale(&self, addr: IpAddr, member: MemberId, known: Epoch) {
        {
            let mut told = lock(&self.told_stale);
            told.retain(|_, at| at.elapsed() < STALE_EVERY);
            if told.insert(addr, Instant::now()).is_some() {
                return;
            }
        }
        let Ok(message) = postcard::to_allocvec(&ReachMessage::Stale(addr, known)) else {
            return;
        };
        if let Err(error) = self
            .parts
            .fabric()
            .call(member, SERVICE, message, TELL_TIMEOUT)
            .await
        {
            tracing::debug!(
                ?member,
                error = %chain(&error),
                "the member was not told that its VM is fenced"
            );
        }
    }

    /// Asks the member that a guest is about to move to to have links to those it may talk with, so
    /// that its first packets from there wait for no handshake. It is a courtesy: nothing depends
    /// on it.
    pub fn prepare_links(&self, to: MemberId) {
        let mut talkers: Vec<_> = self
            .plane()
            .peers()
            .into_iter()
            .filter(|(member, _)| *member != to)
            .collect();
        talkers.sort_by_key(|(_, link)| std::cmp::Reverse(link.rx_bytes));
        let mut talkers: Vec<MemberId> = talkers
            .into_iter()
            .map(|(member, _)| member)
            .take(MAX_TALKERS - 1)
            .collect();
        talkers.push(self.parts.me());
        let Ok(message) = postcard::to_allocvec(&ReachMessage::Talkers(talkers)) else {
            return;
        };
        let fabric = self.parts.fabric();
        tokio::spawn(async move {
            if let Err(error) = fabric.call(to, SERVICE, message, TELL_TIMEOUT).await {
                tracing::debug!(
                    ?to,
                    error = %chain(&error),
                    "the member was not asked to have links ready"
                );
            }
        });
    }

    fn plane(&self) -> &Plane {
        &self.parts.plane
    }

    fn addresses(&self) -> &Addresses {
        &self.parts.addresses
    }

    fn heard(&self) -> MutexGuard<'_, Claims> {
        lock(&self.heard)
    }

    fn asks(&self) -> MutexGuard<'_, OpenQuestions> {
        lock(&self.asks)
    }

    /// Waits until enough members are connected for their majority to mean something: all that are
    /// known, as many as hold a record, or, where some do not answer, those that did when no more
    /// came for a while. A node that knows nobody, such as a founder, does not wait.
    pub async fn gather(&self) {
        let began = Instant::now();
        let (mut connected, mut since) = (0, began);
        loop {
            let known = self
                .parts
                .control
                .peers()
                .len()
                .max(usize::from(self.parts.has_bootstrap));
            let now = self.parts.fabric().connected().len();
            if now != connected {
                (connected, since) = (now, Instant::now());
            }
            let quiet = connected > 0 && since.elapsed() > GATHER_QUIET;
            if connected >= known.min(REPLICAS) || quiet || began.elapsed() > GATHER_LIMIT {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Claims this host's address and keeps it until the daemon ends. Its previous address serves
    /// until the claim succeeds.
    pub async fn keep_address(&self) {
        if let Some(lease) = self.kept.read().filter(|l| {
            l.holder.member == self.parts.me() && self.addresses().subnet().contains(l.v4)
        }) {
            match self.take_up(&lease) {
                Ok(()) => tracing::info!(
                    address = %lease.v4,
                    "this host has its previous address until its claim succeeds"
                ),
                Err(failure) => tracing::warn!(
                    %failure,
                    "cannot set this host's previous address; it has none until its claim succeeds"
                ),
            }
        }
        self.gather().await;
        let (mut trouble, mut pause) = (Repeated::new(), CLAIM_RETRY.0);
        loop {
            let claimed = self.claim().await;
            let lease = match claimed {
                Ok(lease) => lease,
                Err(failure) => {
                    if let Some(times) = trouble.again(&failure.message) {
                        tracing::warn!(%failure, times, "this host has no address yet");
                    }
                    self.want(Some(failure.message));
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(CLAIM_RETRY.1);
                    continue;
                }
            };
            trouble.over();
            pause = CLAIM_RETRY.0;
            self.want(None);
            self.hold(lease).await;
            tracing::warn!("another member holds this host's address by rule: claiming another");
            self.let_go();
        }
    }

    async fn claim(&self) -> Outcome<Lease> {
        let parts = &self.parts;
        let began = Instant::now();
        let lease = self
            .addresses()
            .claim_host(parts.identity.keys(), parts.me(), parts.certificate.name())
            .await
            .doing("claiming an address")?;
        let took = began.elapsed();
        self.claimed.send_replace(Some(took));
        if self
            .lease
            .borrow()
            .as_ref()
            .is_some_and(|before| before.v4 != lease.v4)
        {
            tracing::warn!(
                address = %lease.v4,
                "another member holds this host's previous address"
            );
            self.let_go();
        }
        self.take_up(&lease)?;
        self.kept.set(&lease).await;
        tracing::info!(address = %lease.v4, ms = took.as_millis() as u64, "address claimed");
        self.publish(&[
            IpAddr::V4(lease.v4),
            IpAddr::V6(parts.network.member_v6(parts.me())),
        ])
        .await;
        Ok(lease)
    }

    /// Gives this host the address of a lease.
    fn take_up(&self, lease: &Lease) -> Outcome<()> {
        let parts = &self.parts;
        let v6 = parts.network.member_v6(parts.me());
        if self
            .lease
            .borrow()
            .as_ref()
            .is_none_or(|before| before.v4 != lease.v4)
        {
            // The whole /48 lies behind the interface: members have one /64 of it, guests another.
            self.plane()
                .set_host_addresses(Some((lease.v4, lease.prefix)), Some((v6, 48)))
                .doing("setting the address")?;
        }
        for ip in [IpAddr::V4(lease.v4), IpAddr::V6(v6)] {
            let route = Route {
                member: parts.me(),
                epoch: Epoch(0),
            };
            self.note(ip, Subject::Member(parts.me()), route);
            self.plane().replace_route(ip, route);
        }
        self.lease.send_replace(Some(lease.clone()));
        Ok(())
    }

    /// This host's address is another's.
    fn let_go(&self) {
        self.kept.forget();
        if let Some(lease) = self.lease.send_replace(None) {
            self.forget(lease.v4.into());
        }
    }

    /// Renews the lease for as long as it is ours.
    async fn hold(&self, mut lease: Lease) {
        let mut trouble = Repeated::new();
        let mut renewed = Instant::now();
        let (mut steps, mut is_time_set) = (NetworkTime::of_process().steps(), false);
        loop {
            tokio::select! {
                () = tokio::time::sleep(CHECK_EVERY) => {}
                // The network's time was set: the lease's end is of the previous time.
                changed = steps.changed() => is_time_set = changed.is_ok(),
                // After a partition has healed another member may hold the address too; by then the
                // replicas agree whose it is.
                () = self.met.notified() => tokio::time::sleep(CHECK_AFTER_MEETING).await,
            }
            if is_time_set || renewed.elapsed() >= p2pvm_dhcp::RENEW_AFTER {
                match self
                    .addresses()
                    .renew(self.parts.identity.keys(), &lease)
                    .await
                {
                    Ok(new) => {
                        lease = new;
                        self.kept.set(&lease).await;
                        (renewed, is_time_set) = (Instant::now(), false);
                        self.publish(&[
                            IpAddr::V4(lease.v4),
                            IpAddr::V6(self.parts.network.member_v6(self.parts.me())),
                        ])
                        .await;
                        trouble.over();
                    }
                    Err(p2pvm_dhcp::Error::Lost { .. }) => return,
                    Err(error) => {
                        let why = chain(&error);
                        if let Some(times) = trouble.again(&why) {
                            tracing::warn!(why, times, "the address is not renewed yet");
                        }
                    }
                }
            } else if let Ok(false) = self.addresses().check(&lease).await {
                return;
            }
        }
    }

    /// Fetches the signed records of addresses that are here now and tells all connected members.
    async fn publish(&self, ips: &[IpAddr]) {
        let mut records = Vec::new();
        for ip in ips {
            if let Ok(Some(record)) = self.parts.records().get(address_key(*ip)).await {
                records.push((*ip, record));
            }
        }
        self.tell_here(records);
    }

    /// Notes signed records as being of addresses here, and tells all connected members without
    /// waiting for them.
    pub fn tell_here(&self, records: Vec<(IpAddr, Record)>) {
        lock(&self.here).extend(records.iter().cloned());
        let Ok(message) = postcard::to_allocvec(&ReachMessage::Here(records)) else {
            return;
        };
        for member in self.parts.fabric().connected() {
            let (fabric, message) = (self.parts.fabric(), message.clone());
            tokio::spawn(async move {
                if let Err(error) = fabric.call(member, SERVICE, message, TELL_TIMEOUT).await {
                    tracing::debug!(
                        ?member,
                        error = %chain(&error),
                        "the member was not told of addresses; it will ask the DHT"
                    );
                }
            });
        }
    }

    /// An address has gone from here.
    pub fn forget_here(&self, ip: IpAddr) {
        lock(&self.here).remove(&ip);
    }

    /// An address is nobody's.
    pub fn forget(&self, ip: IpAddr) {
        self.forget_here(ip);
        self.heard().forget(&ip);
        self.plane().remove_route(ip);
    }

    fn all_here(&self) -> Vec<(IpAddr, Record)> {
        let here = lock(&self.here);
        here.iter()
            .take(MAX_RECORDS)
            .map(|(ip, record)| (*ip, record.clone()))
            .collect()
    }

    /// Exchanges addresses with a member that has just connected.
    pub async fn meet(&self, member: MemberId) {
        self.met.notify_one();
        let Ok(message) = postcard::to_allocvec(&ReachMessage::Here(self.all_here())) else {
            return;
        };
        match self
            .parts
            .fabric()
            .call(member, SERVICE, message, TELL_TIMEOUT)
            .await
        {
            Ok(answer) => self.learn(member, &answer),
            Err(error) => tracing::debug!(
                ?member,
                error = %chain(&error),
                "the member did not exchange addresses"
            ),
        }
    }

    /// Serves names on this host while it has an address. Its programs are led here once there are
    /// answers.
    pub async fn serve_names(&self, host: HostResolver) {
        let mut lease = self.lease();
        loop {
            let Some(v4) = lease.borrow_and_update().as_ref().map(|l| l.v4) else {
                if lease.changed().await.is_err() {
                    return;
                }
                continue;
            };
            let mut claimed = self.claimed();
            let ready = async move { drop(claimed.wait_for(Option::is_some).await) };
            tokio::select! {
                () = host.run(v4, ready) => {}
                changed = lease.wait_for(
                    |l| l.as_ref().is_none_or(|l| l.v4 != v4)
                ) => if changed.is_err() { return },
            }
            if let Some(keeper) = &host.keeper {
                keeper.want(None);
            }
        }
    }

    /// Gives the address back.
    pub async fn release(&self) -> Outcome<()> {
        let lease = self.lease.borrow().clone();
        let Some(lease) = lease else { return Ok(()) };
        self.kept.forget();
        self.addresses()
            .release(self.parts.identity.keys(), &lease)
            .await
            .doing("giving the address back")
    }
}

struct Answers(Arc<Reach>);

#[async_trait]
impl Serve for Answers {
    async fn serve(&self, from: MemberId, body: Vec<u8>) -> Result<Vec<u8>, String> {
        self.0.learn(from, &body);
        postcard::to_allocvec(&ReachMessage::Here(self.0.all_here())).map_err(|e| e.to_string())
    }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
#[path = "reach_golden_tests.rs"]
mod golden_tests;
