//! What this node takes from others: what members tell of addresses, and what the DHT says of those
//! that a packet wants or that are in doubt ([`super::heard`]).

use super::{
    GATHER_LIMIT, MAX_RECORDS, MAX_TALKERS, NEGATIVE_FOR, RESOLVE_RETRY, Reach, ReachMessage,
    heard::{Change, Verdict},
};
use futures::{StreamExt, stream::FuturesUnordered};
use p2pvm_dhcp::{Holder, Subject, address_key};
use p2pvm_dht::Record;
use p2pvm_host::chain;
use p2pvm_host::lock;
use p2pvm_overlay::{MemberId, plane::Route};
use std::{
    collections::HashSet,
    net::IpAddr,
    time::{Duration, Instant},
};
use tokio::sync::mpsc;

/// How many lookups of wanted addresses run at a time.
const MAX_LOOKUPS: usize = 32;
/// How many lookups of addresses in doubt run at a time.
pub(super) const MAX_DOUBTS: usize = 8;
/// How many links are made ready for guests at a time.
pub(super) const MAX_READYING: usize = 4 * MAX_TALKERS;
/// How long before each question about an address that was told. Reason: its holder tells it at the
/// time at which it writes it, and after a partition the replicas have to agree first.
const ASK_AFTER: [Duration; 4] = [
    Duration::ZERO,
    Duration::from_millis(500),
    Duration::from_secs(3),
    Duration::from_secs(10),
];
/// How often told addresses are looked through that the DHT should know, and how many are asked for
/// then.
const CHECK_TOLD: Duration = Duration::from_secs(60);
const CHECKED_AT_ONCE: usize = 64;

impl Reach {
    /// Takes what a member tells.
    pub(super) fn learn(&self, from: MemberId, message: &[u8]) {
        match postcard::from_bytes::<ReachMessage>(message) {
            Ok(ReachMessage::Here(records)) => records
                .into_iter()
                .take(MAX_RECORDS)
                .for_each(|(ip, record)| self.told(from, ip, &record)),
            Ok(ReachMessage::Talkers(members)) => self.make_ready(members),
            Ok(ReachMessage::Stale(addr, known)) => {
                // Only a hint: the VM's voters are asked before anything is believed.
                if let Some(told) = self.on_stale.get() {
                    told(addr, known);
                }
            }
            Err(_) => tracing::debug!("a member's message about routes cannot be read"),
        }
    }

    fn make_ready(&self, members: Vec<MemberId>) {
        let me = self.parts.me();
        for member in members.into_iter().filter(|m| *m != me).take(MAX_TALKERS) {
            let Ok(permit) = self.readying.clone().try_acquire_owned() else {
                return;
            };
            let parts = self.parts.clone();
            tokio::spawn(async move {
                if let Err(error) = parts.connector.ensure(member).await {
                    tracing::debug!(?member, error = %chain(&error), "no link ready for a guest \
                        that is about to come");
                }
                drop(permit);
            });
        }
    }

    fn told(&self, from: MemberId, ip: IpAddr, record: &Record) {
        if record.key != address_key(ip) || !record.is_authentic() {
            return;
        }
        let Some(holder) = self.addresses().believe(ip, record) else {
            return;
        };
        let now = Instant::now();
        if self.judge(now, from, ip, &holder) == Verdict::Doubtful
            && self.asks().open(now, from, ip, &holder)
        {
            self.asked.notify_one();
        }
    }

    fn judge(&self, now: Instant, from: MemberId, ip: IpAddr, holder: &Holder) -> Verdict {
        let verdict = self.heard().told(now, from, (ip, holder));
        if verdict == Verdict::Believed {
            let Holder { member, epoch, .. } = *holder;
            self.parts.book.learn(ip, holder);
            self.is_held(&ip);
            self.plane().set_route(ip, Route { member, epoch });
        }
        verdict
    }

    /// An address has a holder.
    fn is_held(&self, ip: &IpAddr) {
        lock(&self.nobody).remove(ip);
    }

    /// Takes what the DHT says of an address.
    fn found(&self, ip: IpAddr, holder: &Holder) {
        let now = Instant::now();
        if self.address().is_some_and(|own| IpAddr::V4(own) == ip)
            && holder.subject() != Subject::Member(self.parts.me())
        {
            // The lease's keeper asks for itself, and lets go first.
            return self.met.notify_one();
        }
        let change = self.heard().found(now, ip, holder);
        match change {
            Change::Set(route) => self.plane().set_route(ip, route),
            Change::Replace(route) => self.plane().replace_route(ip, route),
        }
        self.parts.book.learn(ip, holder);
        self.is_held(&ip);
        let told = self.asks().told(&ip);
        for (from, told) in told {
            self.judge(now, from, ip, &told);
        }
    }

    /// Asks for the holder of an address that a packet wants.
    pub(super) async fn resolve(&self, ip: IpAddr) {
        let began = Instant::now();
        let found = loop {
            let found = self.addresses().resolve(ip).await;
            // Right after the start the members that know it may not be connected yet.
            if matches!(found, Ok(Some(_)))
                || self.claimed.borrow().is_some()
                || began.elapsed() > GATHER_LIMIT
            {
                break found;
            }
            tokio::time::sleep(RESOLVE_RETRY).await;
        };
        match found {
            Ok(Some(holder)) => self.found(ip, &holder),
            Ok(None) => {
                let mut nobody = lock(&self.nobody);
                nobody.retain(|_, asked| asked.elapsed() < NEGATIVE_FOR);
                nobody.insert(ip, Instant::now());
            }
            Err(error) => tracing::debug!(%ip, error = %chain(&error), "not resolved"),
        }
    }

    /// Finds out whether an address is as it was told, and again where it is not: the DHT may be
    /// about to learn it.
    pub(super) async fn ask(&self, ip: IpAddr) {
        for after in ASK_AFTER {
            tokio::time::sleep(after).await;
            let found = {
                let _one = self.doubts.acquire().await;
                self.addresses().resolve(ip).await
            };
            match found {
                Ok(Some(holder)) => {
                    self.found(ip, &holder);
                    let is_his = |(_, told): &(_, Holder)| told.subject() == holder.subject();
                    if self.asks().told(&ip).iter().all(is_his) {
                        break;
                    }
                }
                Ok(None) => self.heard().defer(Instant::now(), ip),
                Err(error) => tracing::debug!(%ip, error = %chain(&error), "not asked"),
            }
        }
        self.asks().close(&ip);
    }

    /// Answers the packet plane's questions about addresses, and asks about those that were told, a
    /// bounded number at a time.
    pub async fn resolve_all(&self, mut wanted: mpsc::Receiver<IpAddr>) {
        let (mut running, mut doubts) = (FuturesUnordered::new(), FuturesUnordered::new());
        let mut asked: HashSet<IpAddr> = HashSet::new();
        let mut check = tokio::time::interval(CHECK_TOLD);
        loop {
            tokio::select! {
                ip = wanted.recv() => {
                    let Some(ip) = ip else { return };
                    let since = lock(&self.nobody)
                        .get(&ip).copied();
                    let has_none = since.is_some_and(|at| at.elapsed() < NEGATIVE_FOR);
                    if running.len() < MAX_LOOKUPS && !has_none && asked.insert(ip) {
                        running.push(async move { self.resolve(ip).await; ip });
                    }
                }
                Some(ip) = running.next() => { asked.remove(&ip); }
                () = self.asked.notified() => {
                    let new = self.asks().take_new();
                    doubts.extend(new.into_iter().map(|ip| self.ask(ip)));
                }
                Some(()) = doubts.next() => {}
                _ = check.tick() => self.check_told(),
            }
        }
    }

    /// Asks for addresses that were told long ago and not confirmed.
    fn check_told(&self) {
        let due = self.heard().overdue(Instant::now(), CHECKED_AT_ONCE);
        if !due.is_empty() {
            due.into_iter().for_each(|ip| self.asks().check(ip));
            self.asked.notify_one();
        }
    }

    /// Notes the owner of an address that this host has, or hands on.
    pub fn note(&self, ip: IpAddr, subject: Subject, route: Route) {
        self.parts.book.note(ip, subject);
        self.heard().confirm(ip, subject, route);
    }

    /// Notes that an address was handed on, or taken back.
    pub fn note_moved(&self, ip: IpAddr, route: Route) {
        self.heard().moved(ip, route);
    }

    /// Notes that the packet plane was told by an address's holder where it went.
    pub fn note_hint(&self, ip: IpAddr, route: Route) {
        self.heard().hinted(Instant::now(), ip, route);
    }
}
