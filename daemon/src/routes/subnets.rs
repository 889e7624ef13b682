//! Subnet routes: this member's offers of its LAN, and the use of others' offers.
//!
//! An offer is a signed notice that expires unless it is renewed. It is used if the policy allows
//! it (`[[route]] subnet, by`) or, in a network without a policy, by members with `p2pvm route
//! accept`: otherwise any member could redirect traffic ([`judge`]). Of two offers of one subnet
//! the oldest whose member answers is used ([`answers`]). [`p2pvm_host::keeper`] makes the kernel's
//! routes and forwarding; an offer is published once this host forwards for it.

mod answers;
mod beside;
mod judge;
mod publish;
mod service;
mod show;

use crate::{
    access::policy::Policies,
    layout::{Layout, read_if_there, write_atomically},
    parts::Parts,
};
use answers::Answers;
use judge::{Judge, OfferedSubnet, SubnetUse};
use p2pvm_api::{Doing, Outcome, RouteView};
use p2pvm_host::lock;
use p2pvm_host::{
    Finding, Keeper, Net, NetworkNeeds, keeper::Report, links::links, netlink::Netlink, reached,
    routes::Route,
};
use p2pvm_overlay::{
    MemberId, UnixTime, durable,
    membership::{
        Certificate, Cidr, NetworkPolicy, Offer,
        policy::{AddressOwner, Party},
    },
};
use serde::{Deserialize, Serialize};
use std::{
    io,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio::sync::Notify;

/// How long before this host's own routes are read again. Reason: they change without notice.
const LOOK_EVERY: Duration = Duration::from_secs(4);
/// How long before members whose offers are used here are probed again.
const PROBE_EVERY: Duration = Duration::from_secs(4);
/// How long before they are probed again while one does not answer. Reason: the state shown should
/// be recent.
const PROBE_SILENT: Duration = Duration::from_millis(1500);
/// How long to wait for the rest of a burst of changes. Reason: this host's routes and interfaces
/// may change in bursts.
const AFTER_NEWS: Duration = Duration::from_millis(700);
/// How long before a probe without an answer counts as lost.
const PROBE_LIMIT: Duration = Duration::from_secs(2);
/// The shortest prefix of an offer. Reason: neither a default route nor half of the internet is a
/// LAN.
const SHORTEST_PREFIX: u8 = 8;

/// The state that outlives a restart.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct SavedRoutes {
    #[serde(default)]
    offers: Vec<Cidr>,
    #[serde(default)]
    since: u64,
    /// `None`: as the policy says, and not without one.
    #[serde(default)]
    accept: Option<bool>,
    /// Subnets that are never used here.
    #[serde(default)]
    refused: Vec<Cidr>,
}

/// The last published offer.
struct PublishedOffer {
    at: Instant,
    subnets: Vec<Cidr>,
    multicast: bool,
    /// How many times it has been repeated.
    times: usize,
}

/// The kernel's forwarding for subnets: [`Keeper`], except in tests.
pub(crate) trait Kernel: Send + Sync {
    /// The result of the last look.
    fn report(&self) -> Report;
    /// Sets what is wanted, and waits until it was tried once.
    fn settle(&self, wanted: NetworkNeeds) -> Report;
    /// Adds findings to its own on the board.
    fn add_findings(&self, findings: Vec<Finding>);
}

impl Kernel for Keeper {
    fn report(&self) -> Report {
        Keeper::report(self)
    }

    fn settle(&self, wanted: NetworkNeeds) -> Report {
        Keeper::settle(self, wanted)
    }

    fn add_findings(&self, findings: Vec<Finding>) {
        Keeper::add_findings(self, findings);
    }
}

/// The subnets of this node.
pub struct Subnets {
    parts: Arc<Parts>,
    policies: Arc<Policies>,
    layout: Layout,
    kernel: Arc<dyn Kernel>,
    /// The needs except for subnets.
    bare: NetworkNeeds,
    /// Whether guests here receive others' multicast.
    multicast: bool,
    kept: Mutex<SavedRoutes>,
    views: Mutex<Vec<RouteView>>,
    answers: Mutex<Answers>,
    /// What the kernel was last asked for; locked while it is asked.
    wanted: Mutex<NetworkNeeds>,
    published: Mutex<Option<PublishedOffer>>,
    /// The number of this member's newest offer, and how many times the network's time had been set
    /// by then.
    told: Mutex<(Option<u64>, u64)>,
}

impl Subnets {
    /// Loads this node's previous offers. `kernel` makes the settings wanted beside `bare`.
    pub fn open(
        parts: Arc<Parts>,
        policies: Arc<Policies>,
        layout: &Layout,
        (kernel, bare): (Arc<dyn Kernel>, NetworkNeeds),
        multicast: bool,
    ) -> Outcome<Arc<Self>> {
        let kept = match read_if_there(&layout.routes())? {
            None => SavedRoutes::default(),
            Some(bytes) => serde_json::from_slice(&bytes).doing(format_args!(
                "{} is damaged: remove it",
                layout.routes().display()
            ))?,
        };
        Ok(Arc::new(Self {
            parts,
            policies,
            layout: layout.clone(),
            kernel,
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

    /// The routes that `read` returns, except those into this network.
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

    /// Follows offers, policy, this host's routes and the members' answers until the daemon ends.
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

    /// Adjusts the notices, the packet plane and the kernel to the present state.
    fn settle(&self) -> Outcome<()> {
        // One at a time: the kernel must get the newest judgement last.
        let mut wanted = lock(&self.wanted);
        let kept = lock(&self.kept).clone();
        self.policies.apply();
        let policy = self.policies.standing().map(|(_, policy)| policy);
        let multicast = self.multicast && policy.as_ref().is_none_or(|policy| policy.multicast);
        let local = self.local_routes(reached::reached)?;
        let offers = self.parts.notices.offers();
        let all = self.all_offered(&kept, &offers);
        let judged = self.judge(&kept, (policy.as_deref(), &local), &all);
        self.tell_plane(&judged, &offers, multicast);
        let now = NetworkNeeds {
            accepted: nets(&judged, SubnetUse::is_used),
            silent: nets(&judged, |done| *done == SubnetUse::Silent),
            offered: nets(&judged, |done| *done == SubnetUse::Own),
            ..self.bare.clone()
        };
        let report = if *wanted == now {
            self.kernel.report()
        } else {
            tokio::task::block_in_place(|| self.kernel.settle(now.clone()))
        };
        *wanted = now;
        self.show(&judged, &report);
        // A subnet that this host does not forward into is not offered: others would send packets
        // here for nothing.
        let is_own = |subnet: &Cidr| {
            judged
                .iter()
                .any(|(offer, done)| *done == SubnetUse::Own && offer.subnet == *subnet)
        };
        let offered = match report.forwarding {
            Some(_) => kept.offers.into_iter().filter(|o| !is_own(o)).collect(),
            None => kept.offers,
        };
        self.publish(offered, multicast, kept.since)
    }

    /// The offers of all members, this one's first.
    fn all_offered(&self, kept: &SavedRoutes, offers: &[Offer]) -> Vec<OfferedSubnet> {
        let me = self.parts.me();
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
        mine.chain(theirs).collect()
    }

    /// The use of each offer here.
    fn judge<'a>(
        &self,
        kept: &SavedRoutes,
        (policy, local): (Option<&NetworkPolicy>, &[Cidr]),
        all: &'a [OfferedSubnet],
    ) -> Vec<(&'a OfferedSubnet, SubnetUse)> {
        let (silent, recovering) = {
            let answers = lock(&self.answers);
            (answers.silent(), answers.recovering())
        };
        let judge = Judge {
            me: self.parts.me(),
            network: self.network(),
            local,
            policy,
            accept: kept.accept,
            refused: &kept.refused,
            silent: &silent,
            recovering: &recovering,
        };
        all.iter()
            .map(|offer| (offer, judge.judge(offer, all)))
            .collect()
    }

    /// Makes the packet plane send packets for the subnets to the members that offer them, and
    /// multicast to those that receive it.
    fn tell_plane(
        &self,
        judged: &[(&OfferedSubnet, SubnetUse)],
        offers: &[Offer],
        multicast: bool,
    ) {
        let me = self.parts.me();
        let own = judged.iter().filter(|(_, done)| *done == SubnetUse::Own);
        let used = judged.iter().filter(|(_, done)| done.is_used());
        self.parts.plane.set_subnets(
            own.map(|(offer, _)| (offer.subnet, me))
                .chain(used.map(|(offer, _)| (offer.subnet, offer.member)))
                .collect(),
        );
        let takers = offers
            .iter()
            .filter(|offer| offer.multicast() && offer.member() != me)
            .map(Offer::member)
            .collect();
        self.parts.plane.set_multicast(multicast.then_some(takers));
    }

    /// Probes the members whose offers could be used here; returns when the result changed
    /// something, or never.
    async fn probe(&self, mut next: Instant) {
        loop {
            tokio::time::sleep_until(next.into()).await;
            next = Instant::now() + self.probe_every();
            let views = lock(&self.views).clone();
            let me = self.parts.me().to_string();
            let of_others = views
                .iter()
                .filter(|view| view.may_be_used && view.member.as_str() != me);
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

    fn change(&self, change: impl FnOnce(&mut SavedRoutes) -> Outcome<()>) -> Outcome<()> {
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

fn offered(
    certificate: &Certificate,
    member: MemberId,
    subnet: Cidr,
    since: UnixTime,
) -> OfferedSubnet {
    let owner = AddressOwner::Member {
        id: member,
        name: certificate.name().to_owned(),
        groups: certificate.groups().clone(),
    };
    // Permissions to offer name members, not addresses.
    OfferedSubnet {
        member,
        party: Party {
            addr: IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            owner,
        },
        subnet,
        since,
    }
}

/// The IPv4 subnets of those offers that are used as `wanted`.
fn nets<T: FromIterator<Net>>(
    judged: &[(&OfferedSubnet, SubnetUse)],
    wanted: impl Fn(&SubnetUse) -> bool,
) -> T {
    judged
        .iter()
        .filter(|(_, done)| wanted(done))
        .filter_map(|(offer, _)| net(&offer.subnet))
        .collect()
}

fn net(subnet: &Cidr) -> Option<Net> {
    if let IpAddr::V4(addr) = subnet.addr() {
        Some(Net::new(addr, subnet.prefix()))
    } else {
        None
    }
}

#[cfg(test)]
#[path = "subnets_golden_tests.rs"]
mod golden_tests;
