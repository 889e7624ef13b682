//! Keeps addresses and routes true: claims this host's address, tells the members it meets which
//! addresses are here, learns theirs, and asks the DHT about an address that a packet wants and no
//! one told.
//!
//! What members tell each other are the signed address records themselves, the same that the DHT
//! keeps: a record proves that its owner says so, and the epoch in it says which of two is newer.

use crate::{addresses::kept::SavedLease, parts::Parts};
use async_trait::async_trait;
use futures::{StreamExt, stream::FuturesUnordered};
use p2pvm_api::{Doing, Outcome};
use p2pvm_dhcp::{Addresses, Lease, address_key, dns::HostResolver};
use p2pvm_dht::Record;
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
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::{Notify, watch};

/// The service by which members tell each other which addresses are with them.
const SERVICE: &str = "route";
/// The most records in one message.
const MAX_RECORDS: usize = 512;
/// How long an answer to "which addresses are with you" may take. Reason: one round trip.
const TELL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long before an address without a holder is asked for again.
const NEGATIVE_FOR: Duration = Duration::from_secs(3);
/// How many lookups of wanted addresses run at a time.
const MAX_LOOKUPS: usize = 32;
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

#[derive(Serialize, Deserialize)]
enum Told {
    /// These addresses are with the sender.
    Here(Vec<(IpAddr, Record)>),
    /// The sender drops what comes from this address: it knows of a newer epoch.
    Stale(IpAddr, Epoch),
    /// A guest that talks with these members is about to come: links to them should be ready.
    Talkers(Vec<MemberId>),
}

/// Told of addresses here whose packets others drop.
pub type OnStale = Box<dyn Fn(IpAddr, Epoch) + Send + Sync>;

/// The addresses and routes of this node.
pub struct Reach {
    parts: Arc<Parts>,
    /// Signed records of the addresses that are with this host now.
    here: Mutex<HashMap<IpAddr, Record>>,
    /// Addresses that had no holder when last asked for.
    nobody: Mutex<HashMap<IpAddr, Instant>>,
    lease: watch::Sender<Option<Lease>>,
    /// How long the claim of the address took, once it is through: enough members have agreed since
    /// the start, so that what they do not know is not there.
    claimed: watch::Sender<Option<Duration>>,
    /// When each address was last told to be stale.
    told_stale: Mutex<HashMap<IpAddr, Instant>>,
    on_stale: OnceLock<OnStale>,
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
        let said = self
            .wanting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let alone = self.parts.has_bootstrap && self.parts.fabric().connected().is_empty();
        said.or_else(|| alone.then(|| "it reaches no other member of the network".to_owned()))
    }

    fn want(&self, why: Option<String>) {
        *self.wanting.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    /// How long the claim of the address took.
    pub fn claimed(&self) -> watch::Receiver<Option<Duration>> {
        self.claimed.subscribe()
    }

    /// Sets who is told when others drop packets of an address here. Later calls change nothing.
    pub fn on_stale(&self, told: OnStale) {
        let _ = self.on_stale.set(told);
    }

    /// Tells a member that its packets from `addr` are dropped, at most every few seconds.
    pub async fn tell_stale(&self, addr: IpAddr, member: MemberId, known: Epoch) {
        {
            let mut told = self
                .told_stale
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            told.retain(|_, at| at.elapsed() < STALE_EVERY);
            if told.insert(addr, Instant::now()).is_some() {
                return;
            }
        }
        let Ok(message) = postcard::to_allocvec(&Told::Stale(addr, known)) else {
            return;
        };
        if let Err(error) = self
            .parts
            .fabric()
            .call(member, SERVICE, message, TELL_TIMEOUT)
            .await
        {
            tracing::debug!(?member, %error, "not told that its VM is fenced");
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
        let Ok(message) = postcard::to_allocvec(&Told::Talkers(talkers)) else {
            return;
        };
        let fabric = self.parts.fabric();
        tokio::spawn(async move {
            if let Err(error) = fabric.call(to, SERVICE, message, TELL_TIMEOUT).await {
                tracing::debug!(?to, %error, "not asked to have links ready");
            }
        });
    }

    fn plane(&self) -> &Plane {
        &self.parts.plane
    }

    fn addresses(&self) -> &Addresses {
        &self.parts.addresses
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

    /// Claims this host's address and keeps it until the daemon ends. What it held before serves
    /// until the claim is through.
    pub async fn keep_address(&self) {
        if let Some(lease) = self.kept.read().filter(|l| {
            l.holder.member == self.parts.me() && self.addresses().subnet().contains(l.v4)
        }) {
            match self.take_up(&lease) {
                Ok(()) => tracing::info!(address = %lease.v4, "the address of before"),
                Err(failure) => tracing::warn!(%failure, "the address of before is not taken up"),
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
                        tracing::warn!(%failure, times, "no address yet");
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
            tracing::warn!(address = %lease.v4, "the address of before is another's by now");
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
            parts.book.learn(ip, &lease.holder);
            self.plane().set_route(
                ip,
                Route {
                    member: parts.me(),
                    epoch: Epoch(0),
                },
            );
        }
        self.lease.send_replace(Some(lease.clone()));
        Ok(())
    }

    /// This host's address is another's.
    fn let_go(&self) {
        self.kept.forget();
        if let Some(lease) = self.lease.send_replace(None) {
            self.forget_here(lease.v4.into());
            self.plane().remove_route(lease.v4.into());
        }
    }

    /// Renews the lease for as long as it is ours.
    async fn hold(&self, mut lease: Lease) {
        let mut trouble = Repeated::new();
        let mut renewed = Instant::now();
        let (mut steps, mut anew) = (NetworkTime::of_process().steps(), false);
        loop {
            tokio::select! {
                () = tokio::time::sleep(CHECK_EVERY) => {}
                // The lease ends by the time of before.
                changed = steps.changed() => anew = changed.is_ok(),
                // After a partition has healed another member may hold the address too; by then the
                // replicas agree whose it is.
                () = self.met.notified() => tokio::time::sleep(CHECK_AFTER_MEETING).await,
            }
            if anew || renewed.elapsed() >= p2pvm_dhcp::RENEW_AFTER {
                match self
                    .addresses()
                    .renew(self.parts.identity.keys(), &lease)
                    .await
                {
                    Ok(new) => {
                        lease = new;
                        self.kept.set(&lease).await;
                        (renewed, anew) = (Instant::now(), false);
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
        self.here
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(records.iter().cloned());
        let Ok(message) = postcard::to_allocvec(&Told::Here(records)) else {
            return;
        };
        for member in self.parts.fabric().connected() {
            let (fabric, message) = (self.parts.fabric(), message.clone());
            tokio::spawn(async move {
                if let Err(error) = fabric.call(member, SERVICE, message, TELL_TIMEOUT).await {
                    tracing::debug!(?member, %error, "not told of addresses; it will ask the DHT");
                }
            });
        }
    }

    /// An address has gone from here.
    pub fn forget_here(&self, ip: IpAddr) {
        self.here
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&ip);
    }

    fn all_here(&self) -> Vec<(IpAddr, Record)> {
        let here = self.here.lock().unwrap_or_else(PoisonError::into_inner);
        here.iter()
            .take(MAX_RECORDS)
            .map(|(ip, record)| (*ip, record.clone()))
            .collect()
    }

    /// Exchanges addresses with a member that has just connected.
    pub async fn meet(&self, member: MemberId) {
        self.met.notify_one();
        let Ok(message) = postcard::to_allocvec(&Told::Here(self.all_here())) else {
            return;
        };
        match self
            .parts
            .fabric()
            .call(member, SERVICE, message, TELL_TIMEOUT)
            .await
        {
            Ok(answer) => self.learn(&answer),
            Err(error) => tracing::debug!(?member, %error, "addresses not exchanged"),
        }
    }

    /// Believes what is signed and newer than what is known.
    fn learn(&self, message: &[u8]) {
        let records = match postcard::from_bytes::<Told>(message) {
            Ok(Told::Here(records)) => records,
            Ok(Told::Talkers(members)) => {
                for member in members
                    .into_iter()
                    .filter(|m| *m != self.parts.me())
                    .take(MAX_TALKERS)
                {
                    let parts = self.parts.clone();
                    tokio::spawn(async move {
                        if let Err(error) = parts.connector.ensure(member).await {
                            tracing::debug!(?member, error = %chain(&error), "no link ready for a \
                                guest that is about to come");
                        }
                    });
                }
                return;
            }
            Ok(Told::Stale(addr, known)) => {
                // Only a hint: the VM's voters are asked before anything is believed.
                if let Some(told) = self.on_stale.get() {
                    told(addr, known);
                }
                return;
            }
            Err(_) => {
                tracing::debug!("a message about routes that cannot be understood");
                return;
            }
        };
        for (ip, record) in records.into_iter().take(MAX_RECORDS) {
            if record.key != address_key(ip) || !record.is_authentic() {
                continue;
            }
            if let Some(holder) = self.addresses().believe(ip, &record) {
                self.parts.book.learn(ip, &holder);
                self.nobody
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .remove(&ip);
                self.plane().set_route(
                    ip,
                    Route {
                        member: holder.member,
                        epoch: holder.epoch,
                    },
                );
            }
        }
    }

    /// Finds out who holds an address that a packet wants.
    async fn resolve(&self, ip: IpAddr) {
        let began = Instant::now();
        let found = loop {
            let found = self.addresses().resolve(ip).await;
            // Right after the start those who know may not be connected yet.
            if matches!(found, Ok(Some(_)))
                || self.claimed.borrow().is_some()
                || began.elapsed() > GATHER_LIMIT
            {
                break found;
            }
            tokio::time::sleep(RESOLVE_RETRY).await;
        };
        match found {
            Ok(Some(holder)) => {
                self.parts.book.learn(ip, &holder);
                self.plane().set_route(
                    ip,
                    Route {
                        member: holder.member,
                        epoch: holder.epoch,
                    },
                );
            }
            Ok(None) => {
                let mut nobody = self.nobody.lock().unwrap_or_else(PoisonError::into_inner);
                nobody.retain(|_, asked| asked.elapsed() < NEGATIVE_FOR);
                nobody.insert(ip, Instant::now());
            }
            Err(error) => tracing::debug!(%ip, error = %chain(&error), "not resolved"),
        }
    }

    /// Answers the packet plane's questions about addresses, a bounded number at a time.
    pub async fn resolve_all(&self, mut wanted: tokio::sync::mpsc::Receiver<IpAddr>) {
        let mut running = FuturesUnordered::new();
        let mut asked: std::collections::HashSet<IpAddr> = std::collections::HashSet::new();
        loop {
            tokio::select! {
                ip = wanted.recv() => {
                    let Some(ip) = ip else { return };
                    let since = self.nobody.lock().unwrap_or_else(PoisonError::into_inner)
                        .get(&ip).copied();
                    let has_none = since.is_some_and(|at| at.elapsed() < NEGATIVE_FOR);
                    if running.len() < MAX_LOOKUPS && !has_none && asked.insert(ip) {
                        running.push(async move { self.resolve(ip).await; ip });
                    }
                }
                Some(ip) = running.next() => { asked.remove(&ip); }
            }
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
    async fn serve(&self, _from: MemberId, body: Vec<u8>) -> Result<Vec<u8>, String> {
        self.0.learn(&body);
        postcard::to_allocvec(&Told::Here(self.0.all_here())).map_err(|e| e.to_string())
    }
}
