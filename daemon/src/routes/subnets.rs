//! Subnet routes: this member's offers of its LAN, and the use of others' offers.
//!
//! An offer is a signed notice that runs out unless it is renewed. It is used if the policy allows
//! it (`[[route]] subnet, by`) or, in a network without a policy, by members that said `p2pvm route
//! accept`: a stranger's word moves nobody's traffic ([`judge`]). Of two offers of one subnet the
//! eldest whose member answers is used ([`answers`]). What the kernel needs for it, routes and
//! forwarding, is [`p2pvm_host::keeper`]'s part; an offer is published once this host forwards for
//! it.

mod answers;
mod beside;
mod judge;

use crate::layout::{Layout, read_if_there, write_atomically};
use crate::{Daemon, access::policy::Policies, parts::Parts};
use answers::Answers;
use judge::{Judge, Offered, Use};
use p2pvm_api::{
    Doing, Failure, Kind, Outcome, RouteOffered, RouteView, RouteWithdrawn, RoutesAccepted,
};
use p2pvm_host::{
    Finding, Keeper, Net, Wanted,
    keeper::Report,
    links::links,
    netlink::Netlink,
    routes::{self, Route},
};
use p2pvm_overlay::{
    MemberId, UnixTime, durable,
    membership::{
        Certificate, Cidr, Notice, Offer,
        policy::{Party, Who},
    },
    network_time::{NetworkTime, next_number},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::Notify;

/// An offer that is not renewed is forgotten after this: its host is gone.
const OFFER_SECONDS: u64 = 1800;
/// What is news is said again after these: a member that was just connecting may have missed it.
/// Then three chances to be heard within the time above.
const RENEW_AFTER: [Duration; 3] = [
    Duration::from_secs(4),
    Duration::from_secs(30),
    Duration::from_secs(600),
];
/// This host's own routes change without anybody telling.
const LOOK_EVERY: Duration = Duration::from_secs(4);
/// Members whose offers are used here are asked this often whether they are there, and answer
/// within this.
const PROBE_EVERY: Duration = Duration::from_secs(4);
/// As above while one does not answer: what is shown then should not lag behind.
const PROBE_SILENT: Duration = Duration::from_millis(1500);
/// This host's routes and interfaces may change in bursts: so long is waited for the rest of one.
const AFTER_NEWS: Duration = Duration::from_millis(700);
const PROBE_LIMIT: Duration = Duration::from_secs(2);
/// The last word to the others, when the daemon ends.
const FAREWELL: Duration = Duration::from_millis(700);
/// Neither a default route nor half of the internet is a LAN.
const SHORTEST_PREFIX: u8 = 8;

/// What is kept over a restart.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Kept {
    #[serde(default)]
    offers: Vec<Cidr>,
    #[serde(default)]
    since: u64,
    /// `None`: as the policy says, and no use without one.
    #[serde(default)]
    accept: Option<bool>,
    /// Subnets that are not used here whatever is accepted.
    #[serde(default)]
    refused: Vec<Cidr>,
}

/// What was told the others last.
struct Published {
    at: Instant,
    subnets: Vec<Cidr>,
    multicast: bool,
    /// How often it has been said again.
    times: usize,
}

/// The subnets of this node.
pub struct Subnets {
    parts: Arc<Parts>,
    policies: Arc<Policies>,
    layout: Layout,
    keeper: Arc<Keeper>,
    /// What is wanted of the kernel but for subnets.
    bare: Wanted,
    /// Whether guests here take others' multicast.
    multicast: bool,
    kept: Mutex<Kept>,
    views: Mutex<Vec<RouteView>>,
    answers: Mutex<Answers>,
    /// What the kernel was told last; held while it is told.
    wanted: Mutex<Wanted>,
    published: Mutex<Option<Published>>,
    /// The number of the newest offer made here, and how often the network's time had been set by
    /// then.
    told: Mutex<(Option<u64>, u64)>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Subnets {
    /// Reads what this node offered before. `keeper` makes what is wanted beside `bare`.
    pub fn open(
        parts: Arc<Parts>,
        policies: Arc<Policies>,
        layout: &Layout,
        (keeper, bare): (Arc<Keeper>, Wanted),
        multicast: bool,
    ) -> Outcome<Arc<Self>> {
        let kept = match read_if_there(&layout.routes())? {
            None => Kept::default(),
            Some(bytes) => serde_json::from_slice(&bytes).doing(format_args!(
                "{} is damaged: remove it",
                layout.routes().display()
            ))?,
        };
        Ok(Arc::new(Self {
            parts,
            policies,
            layout: layout.clone(),
            keeper,
            wanted: Mutex::new(bare.clone()),
            bare,
            multicast,
            kept: Mutex::new(kept),
            views: Mutex::default(),
            answers: Mutex::default(),
            published: Mutex::default(),
            told: Mutex::default(),
        }))
    }

    fn network(&self) -> Cidr {
        let subnet = self.parts.network.subnet;
        Cidr::new(IpAddr::V4(subnet.addr), subnet.prefix)
            .expect("a founded subnet has no host bits")
    }

    /// The routes that `read` finds, but for those into this network.
    fn local_routes(
        &self,
        read: impl FnOnce(&mut Netlink) -> io::Result<Vec<Route>>,
    ) -> Outcome<Vec<Cidr>> {
        let doing = "reading this machine's routes";
        let device = links()
            .doing(doing)?
            .into_iter()
            .find(|link| link.name == self.bare.device)
            .map(|link| link.index);
        let all = read(&mut Netlink::open().doing(doing)?).doing(doing)?;
        let others = all
            .into_iter()
            .filter(|route| device.is_none() || route.device != device);
        Ok(others
            .filter_map(|route| Cidr::new(IpAddr::V4(route.net.addr()), route.net.prefix()))
            .collect())
    }

    /// Follows offers, policy, this host's routes and who answers until the daemon ends.
    pub async fn run(&self) {
        let mut changes = self.parts.notices.changes();
        let mut probed = Instant::now();
        let news = Arc::new(Notify::new());
        let told = news.clone();
        self.parts
            .board
            .on_news(Box::new(move || told.notify_one()));
        loop {
            if let Err(failure) = self.settle() {
                tracing::warn!(%failure, "subnet routes are not as they should be");
            }
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = self.probe(probed + self.probe_every()) => probed = Instant::now(),
                () = news.notified() => tokio::time::sleep(AFTER_NEWS).await,
            }
        }
    }

    fn probe_every(&self) -> Duration {
        if lock(&self.answers).silent().is_empty() {
            PROBE_EVERY
        } else {
            PROBE_SILENT
        }
    }

    /// Asks the members whose offers could be used here whether they are there; returns when that
    /// changed something, or never.
    async fn probe(&self, mut next: Instant) {
        loop {
            tokio::time::sleep_until(next.into()).await;
            next = Instant::now() + self.probe_every();
            let views = lock(&self.views).clone();
            let of_others = views
                .iter()
                .filter(|view| view.may_be_used && view.member != self.parts.me().to_string());
            let mut members: Vec<MemberId> = of_others
                .filter_map(|view| view.member.parse().ok())
                .collect();
            members.sort_unstable();
            members.dedup();
            let ask = |member| async move {
                (
                    member,
                    self.parts.plane.ping(member, PROBE_LIMIT).await.is_ok(),
                )
            };
            let results = futures::future::join_all(members.into_iter().map(ask)).await;
            if lock(&self.answers).round(&results) {
                return;
            }
        }
    }

    /// Brings the notices, the packet plane and the kernel into line.
    fn settle(&self) -> Outcome<()> {
        // One at a time: what the kernel is told last is what was judged last.
        let mut wanted = lock(&self.wanted);
        let kept = lock(&self.kept).clone();
        self.policies.apply();
        let policy = self.policies.standing();
        let multicast =
            self.multicast && policy.as_ref().is_none_or(|(_, policy)| policy.multicast);
        let local = self.local_routes(routes::of_machine)?;
        let (silent, recovering) = {
            let answers = lock(&self.answers);
            (answers.silent(), answers.recovering())
        };
        let me = self.parts.me();
        let judge = Judge {
            me,
            network: self.network(),
            local: &local,
            policy: policy.as_ref().map(|(_, policy)| policy.as_ref()),
            accept: kept.accept,
            refused: &kept.refused,
            silent: &silent,
            recovering: &recovering,
        };
        let offers = self.parts.notices.offers();
        let mine = kept
            .offers
            .iter()
            .map(|subnet| offered(&self.parts.certificate, me, *subnet, UnixTime(kept.since)));
        let theirs = offers
            .iter()
            .filter(|offer| offer.member() != me)
            .flat_map(|offer| {
                offer.subnets().iter().map(|subnet| {
                    offered(offer.certificate(), offer.member(), *subnet, offer.since())
                })
            });
        let all: Vec<Offered> = mine.chain(theirs).collect();
        let judged: Vec<_> = all
            .iter()
            .map(|offer| (offer, judge.judge(offer, &all)))
            .collect();
        let own: Vec<Cidr> = judged
            .iter()
            .filter(|(_, done)| *done == Use::Own)
            .map(|(offer, _)| offer.subnet)
            .collect();
        let used: Vec<(Cidr, MemberId)> = judged
            .iter()
            .filter(|(_, done)| done.is_used())
            .map(|(offer, _)| (offer.subnet, offer.member))
            .collect();
        self.parts.plane.set_subnets(
            own.iter()
                .map(|subnet| (*subnet, me))
                .chain(used.iter().copied())
                .collect(),
        );
        let takers = offers
            .iter()
            .filter(|offer| offer.multicast() && offer.member() != me)
            .map(Offer::member)
            .collect();
        self.parts.plane.set_multicast(multicast.then_some(takers));
        let now = Wanted {
            accepted: used.iter().filter_map(|(subnet, _)| net(subnet)).collect(),
            silent: judged
                .iter()
                .filter(|(_, done)| *done == Use::Silent)
                .filter_map(|(offer, _)| net(&offer.subnet))
                .collect(),
            offered: own.iter().filter_map(net).collect(),
            ..self.bare.clone()
        };
        let report = if *wanted == now {
            self.keeper.report()
        } else {
            tokio::task::block_in_place(|| self.keeper.settle(now.clone()))
        };
        *wanted = now;
        self.show(&judged, &report);
        // What this host does not forward is not offered: others would send packets here for
        // nothing.
        let offered = if report.forwarding.is_some() {
            kept.offers
                .iter()
                .filter(|o| !own.contains(o))
                .copied()
                .collect()
        } else {
            kept.offers
        };
        self.publish(offered, multicast, kept.since)
    }

    /// Remembers what is done with each offer, for those who ask, and logs what changed.
    fn show(&self, judged: &[(&Offered, Use)], report: &Report) {
        let note = |offer: &Offered, done: &Use| match done {
            Use::Own => own_note(&offer.subnet, report),
            done => done.to_string(),
        };
        let beside = |offer: &Offered, done: &Use| {
            let net = net(&offer.subnet).filter(|_| done.is_used())?;
            beside::note(&net, &report.shared).map(|(here, said)| match done {
                Use::Silent if here => (
                    here,
                    format!("{said}, and the member that offers it does not answer"),
                ),
                _ => (here, said),
            })
        };
        let views: Vec<RouteView> = judged
            .iter()
            .map(|(offer, done)| {
                let shared = beside(offer, done);
                let is_here = shared.as_ref().is_none_or(|(here, _)| *here);
                RouteView {
                    subnet: offer.subnet.to_string(),
                    by: self.name(offer),
                    member: offer.member.to_string(),
                    used: (done.is_used() && is_here)
                        || (*done == Use::Own && report.forwarding.is_none()),
                    note: shared.map_or_else(|| note(offer, done), |(_, said)| said),
                    may_be_used: done.is_used()
                        || matches!(done, Use::Elder(_) | Use::Unreachable | Use::Recovering),
                }
            })
            .collect();
        let before = std::mem::replace(&mut *lock(&self.views), views.clone());
        let key = |view: &RouteView| (view.subnet.clone(), view.member.clone());
        let old: BTreeMap<_, _> = before
            .iter()
            .map(|view| (key(view), view.note.as_str()))
            .collect();
        for view in views
            .iter()
            .filter(|view| old.get(&key(view)) != Some(&view.note.as_str()))
        {
            tracing::info!(subnet = %view.subnet, by = %view.by, "route: {}", view.note);
        }
        // What another network of this machine leads to is reached.
        let is_here =
            |offer: &Offered, done: &Use| beside(offer, done).is_none_or(|(here, _)| here);
        let is_silent = |offer: &Offered, done: &Use| *done == Use::Silent && is_here(offer, done);
        let silent = judged
            .iter()
            .filter(|(offer, done)| is_silent(offer, done))
            .map(|(offer, _)| {
                let by = self.name(offer);
                Finding::warning(
                    format!(
                        "{} is not reached: {by}, which offers it, does not answer",
                        offer.subnet
                    ),
                    format!("p2pvm ping {by}"),
                )
            });
        let shared = beside::findings(&report.shared, self.layout.dir());
        self.keeper.add_findings(silent.chain(shared).collect());
    }

    fn name(&self, offer: &Offered) -> String {
        match &offer.party.who {
            Who::Member { name, .. } => name.clone(),
            _ => offer.member.short(),
        }
    }

    /// Tells the others what is offered here, if that is news or due.
    fn publish(&self, subnets: Vec<Cidr>, multicast: bool, since: u64) -> Outcome<()> {
        let mut published = lock(&self.published);
        let news = published
            .as_ref()
            .is_none_or(|last| last.subnets != subnets || last.multicast != multicast);
        let due = match &*published {
            Some(last) => {
                // Others may hold an offer of ours that is newer by its number: a clock that was
                // ahead made it.
                let (told, time) = *lock(&self.told);
                let overtaken = self.parts.notices.offer_number(self.parts.me()) > told
                    || time != NetworkTime::of_process().times_set();
                news || overtaken
                    || last.at.elapsed() >= RENEW_AFTER[last.times.min(RENEW_AFTER.len() - 1)]
            }
            // A former run may have been killed before it could take its offer back.
            None => {
                multicast
                    || !subnets.is_empty()
                    || self
                        .parts
                        .notices
                        .offers()
                        .iter()
                        .any(|o| o.member() == self.parts.me())
            }
        };
        if due {
            let offer = self.offer(subnets.clone(), multicast, since);
            self.parts
                .spread
                .publish(offer)
                .doing("telling what this member offers")?;
            let times = published
                .as_ref()
                .filter(|_| !news)
                .map_or(0, |last| last.times + 1);
            *published = Some(Published {
                at: Instant::now(),
                subnets,
                multicast,
                times,
            });
        }
        Ok(())
    }

    fn offer(&self, subnets: Vec<Cidr>, multicast: bool, since: u64) -> Notice {
        let parts = &self.parts;
        let seq = next_number(parts.notices.offer_number(parts.me()));
        *lock(&self.told) = (Some(seq), NetworkTime::of_process().times_set());
        let ends = UnixTime::now().plus(OFFER_SECONDS);
        let offer = Offer::sign(
            parts.identity.keys(),
            parts.certificate.clone(),
            (subnets, multicast),
            UnixTime(since),
            (seq, ends),
        );
        Notice::Offer(Box::new(offer))
    }

    /// The member through which an address of an offered subnet is reached.
    pub fn offerer(&self, addr: &IpAddr) -> Option<MemberId> {
        let views = lock(&self.views);
        let fits = |view: &&RouteView| {
            view.used
                && view
                    .subnet
                    .parse::<Cidr>()
                    .is_ok_and(|subnet| subnet.contains(addr))
        };
        views
            .iter()
            .find(fits)
            .and_then(|view| view.member.parse().ok())
    }

    /// Takes the offers back: the daemon ends.
    pub async fn close(&self) {
        let offers = lock(&self.published)
            .take()
            .is_some_and(|last| !last.subnets.is_empty() || last.multicast);
        if offers
            && let Err(refusal) = self
                .parts
                .spread
                .publish_now(self.offer(Vec::new(), false, 0), FAREWELL)
                .await
        {
            tracing::warn!(%refusal, "what this member offers is not taken back; it runs out by \
                itself");
        }
    }

    fn change(&self, change: impl FnOnce(&mut Kept) -> Outcome<()>) -> Outcome<()> {
        {
            let mut kept = lock(&self.kept);
            let mut new = kept.clone();
            change(&mut new)?;
            let content = serde_json::to_vec_pretty(&new).doing("encoding")?;
            durable::apart(|| write_atomically(&self.layout.routes(), &content, 0o600))?;
            *kept = new;
        }
        self.settle()
    }
}

fn offered(certificate: &Certificate, member: MemberId, subnet: Cidr, since: UnixTime) -> Offered {
    let who = Who::Member {
        id: member,
        name: certificate.name().to_owned(),
        groups: certificate.groups().clone(),
    };
    // Permissions to offer name members, not addresses.
    Offered {
        member,
        party: Party {
            addr: IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            who,
        },
        subnet,
        since,
    }
}

fn net(subnet: &Cidr) -> Option<Net> {
    if let IpAddr::V4(addr) = subnet.addr() {
        Some(Net::new(addr, subnet.prefix()))
    } else {
        None
    }
}

/// What is said of an own offer.
fn own_note(subnet: &Cidr, report: &Report) -> String {
    match (&report.forwarding, report.blocked.first()) {
        (Some(why), _) => format!("not offered: this machine does not forward into it: {why}"),
        _ if net(subnet).is_some_and(|net| report.nowhere.contains(&net)) => {
            "offered by this member, but no interface of this machine leads there".to_owned()
        }
        (None, Some((found, advice))) => format!("offered by this member, but {found}: {advice}"),
        (None, None) => Use::Own.to_string(),
    }
}

fn subnet(text: &str) -> Outcome<Cidr> {
    let subnet: Cidr = text.parse().map_err(|e| Failure::usage(format!("{e}")))?;
    if !subnet.addr().is_ipv4() {
        return Err(Failure::usage(format!(
            "{subnet} is IPv6: only IPv4 subnets can be offered so far"
        )));
    }
    if subnet.prefix() < SHORTEST_PREFIX {
        return Err(Failure::usage(format!(
            "{subnet} is too large for a LAN: its prefix must be {SHORTEST_PREFIX} or longer"
        )));
    }
    Ok(subnet)
}

impl Daemon {
    /// Offers a subnet of this host's LAN.
    pub fn offer_route(&self, text: &str) -> Outcome<RouteOffered> {
        let (subnet, subnets) = (subnet(text)?, &self.subnets);
        let network = subnets.network();
        if subnet.overlaps(&network) {
            return Err(Failure::refused(format!(
                "{subnet} overlaps the network's own subnet {network}"
            )));
        }
        let reaches = |route: &Cidr| {
            route.prefix() > 0
                && route.prefix() <= subnet.prefix()
                && route.contains(&subnet.addr())
        };
        if !subnets
            .local_routes(|netlink| routes::routes(netlink, routes::MAIN))?
            .iter()
            .any(reaches)
        {
            return Err(Failure::refused(format!(
                "this machine has no route to {subnet}: connect it to that network first"
            )));
        }
        tokio::task::block_in_place(crate::preflight::for_offer)?;
        let before = lock(&subnets.kept).clone();
        subnets.change(|kept| {
            if !kept.offers.contains(&subnet) {
                kept.offers.push(subnet);
                kept.since = UnixTime::now().0;
            }
            Ok(())
        })?;
        if let Some(why) = subnets
            .keeper
            .report()
            .forwarding
            .filter(|_| !before.offers.contains(&subnet))
        {
            // It has not been published: nothing half-done stays.
            subnets.change(|kept| {
                *kept = before;
                Ok(())
            })?;
            return Err(Failure::new(
                Kind::Failed,
                format!("{subnet} is not offered: this machine cannot forward into it: {why}"),
            ));
        }
        let note = lock(&subnets.views)
            .iter()
            .find(|v| v.subnet == subnet.to_string() && v.member == self.me().to_string())
            .map(|v| v.note.clone());
        Ok(RouteOffered {
            note,
            offered: subnet.to_string(),
        })
    }

    /// Takes an offer back.
    pub fn withdraw_route(&self, text: &str) -> Outcome<RouteWithdrawn> {
        let subnet = subnet(text)?;
        self.subnets.change(|kept| {
            let before = kept.offers.len();
            kept.offers.retain(|offered| *offered != subnet);
            if kept.offers.len() == before {
                return Err(Failure::not_found(format!(
                    "this member does not offer {subnet}: see 'p2pvm route list'"
                )));
            }
            Ok(())
        })?;
        Ok(RouteWithdrawn {
            withdrawn: subnet.to_string(),
        })
    }

    /// Whether this host uses what others offer: all of it, or `only` one subnet.
    pub fn accept_routes(&self, on: bool, only: Option<&str>) -> Outcome<RoutesAccepted> {
        let only = only.map(subnet).transpose()?;
        self.subnets.change(|kept| match only {
            None => {
                kept.accept = Some(on);
                kept.refused.clear();
                Ok(())
            }
            Some(_) if on && kept.accept == Some(false) => Err(Failure::refused(
                "no subnet of others is used here: 'p2pvm route accept' first",
            )),
            Some(subnet) => {
                kept.refused.retain(|refused| *refused != subnet);
                kept.refused.extend((!on).then_some(subnet));
                Ok(())
            }
        })?;
        let used = self
            .routes()
            .iter()
            .filter(|r| r.used && r.member != self.me().to_string())
            .count();
        Ok(RoutesAccepted { accept: on, used })
    }

    /// All offers known, and what is done with each here.
    pub fn routes(&self) -> Vec<RouteView> {
        lock(&self.subnets.views).clone()
    }
}
