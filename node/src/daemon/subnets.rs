//! Subnet routes: this member's offers of its LAN, and the use of others' offers.
//!
//! An offer is a signed notice that runs out unless it is renewed. It is used if the policy allows it
//! (`[[route]] subnet, by`) or, in a network without a policy, by members that said `p2pvm route accept`: a stranger's
//! word moves nobody's traffic. An offer that overlaps the network's own subnet or a route that this host has otherwise
//! is not used, and `route list` says so. Of two offers of one subnet the elder is used, by everyone alike. Kernel routes
//! lead into the overlay's interface and go with it; what forwarding needs is undone by [`super::changes`].

use super::{Daemon, Parts, changes, policy::Policies};
use crate::{
    api::types::RouteView,
    failure::{Doing, Failure, Outcome},
    layout::{Layout, read_if_there, write_atomically},
};
use p2pvm_dhcp::subnet::parse_routes;
use p2pvm_overlay::{
    MemberId, UnixTime,
    membership::{
        Cidr, NetworkPolicy, Notice, Offer,
        policy::{Party, Who},
    },
    network_time::{NetworkTime, next_number},
};
use route_manager::{Route, RouteManager};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// An offer that is not renewed is forgotten after this: its host is gone.
const OFFER_SECONDS: u64 = 1800;
/// Three chances to be heard within that.
const RENEW_EVERY: Duration = Duration::from_secs(600);
/// This host's own routes change without anybody telling.
const LOOK_EVERY: Duration = Duration::from_secs(10);
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
}

/// What is done with an offer here.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Use {
    Used,
    Own,
    NotAccepted,
    SwitchedOff,
    NotAllowed,
    OverlapsNetwork(Cidr),
    OverlapsRoute(Cidr),
    Elder(MemberId),
}

impl fmt::Display for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Used => f.write_str("used"),
            Self::Own => f.write_str("offered by this member"),
            Self::NotAccepted => f.write_str("not used: the network has no policy, and 'p2pvm route accept' was not said here"),
            Self::SwitchedOff => f.write_str("not used: 'p2pvm route accept --off' was said here"),
            Self::NotAllowed => f.write_str("not used: the policy does not allow this member to offer it ([[route]])"),
            Self::OverlapsNetwork(network) => write!(f, "not used: it overlaps the network's own subnet {network}"),
            Self::OverlapsRoute(route) => write!(f, "not used: it overlaps this machine's route to {route}"),
            Self::Elder(_) => f.write_str("not used: another member has offered the same subnet for longer"),
        }
    }
}

/// What an offer is judged by.
struct Judge<'a> {
    me: MemberId,
    network: Cidr,
    local: &'a [Cidr],
    policy: Option<&'a NetworkPolicy>,
    accept: Option<bool>,
}

/// One offered subnet.
#[derive(Clone, Debug)]
struct Offered {
    member: MemberId,
    party: Party,
    subnet: Cidr,
    since: UnixTime,
}

impl Judge<'_> {
    fn judge(&self, offer: &Offered, all: &[Offered]) -> Use {
        if offer.subnet.overlaps(&self.network) || offer.subnet.prefix() < SHORTEST_PREFIX || !offer.subnet.addr().is_ipv4() {
            return Use::OverlapsNetwork(self.network);
        }
        if self.policy.is_some_and(|policy| policy.allows_route(&offer.subnet, &offer.party).is_none()) {
            return Use::NotAllowed;
        }
        if offer.member == self.me {
            return Use::Own;
        }
        match (self.accept, self.policy) {
            (Some(false), _) => return Use::SwitchedOff,
            (None, None) => return Use::NotAccepted,
            _ => {}
        }
        if let Some(route) = self.local.iter().find(|route| route.prefix() > 0 && route.overlaps(&offer.subnet)) {
            return Use::OverlapsRoute(*route);
        }
        let rival = |other: &&Offered| {
            let allowed = self.policy.is_none_or(|policy| policy.allows_route(&other.subnet, &other.party).is_some());
            other.subnet == offer.subnet && allowed && (other.since, other.member) < (offer.since, offer.member)
        };
        all.iter().find(rival).map_or(Use::Used, |other| Use::Elder(other.member))
    }
}

/// The subnets of this node.
pub struct Subnets {
    parts: Arc<Parts>,
    policies: Arc<Policies>,
    layout: Layout,
    device: String,
    /// Whether guests here take others' multicast.
    multicast: bool,
    kept: Mutex<Kept>,
    views: Mutex<Vec<RouteView>>,
    /// What the kernel was told.
    installed: Mutex<BTreeSet<Cidr>>,
    forwarded: Mutex<Vec<Cidr>>,
    published: Mutex<Option<(Instant, Vec<Cidr>, bool)>>,
    /// The number of the newest offer made here, and how often the network's time had been set by then.
    told: Mutex<(Option<u64>, u64)>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Subnets {
    /// Reads what this node offered before.
    pub fn open(parts: Arc<Parts>, policies: Arc<Policies>, layout: &Layout, device: &str, multicast: bool) -> Outcome<Arc<Self>> {
        let kept = match read_if_there(&layout.routes())? {
            None => Kept::default(),
            Some(bytes) => serde_json::from_slice(&bytes).doing(format_args!("{} is damaged: remove it", layout.routes().display()))?,
        };
        Ok(Arc::new(Self {
            parts,
            policies,
            layout: layout.clone(),
            device: device.to_owned(),
            multicast,
            kept: Mutex::new(kept),
            views: Mutex::default(),
            installed: Mutex::default(),
            forwarded: Mutex::default(),
            published: Mutex::default(),
            told: Mutex::default(),
        }))
    }

    fn network(&self) -> Cidr {
        let subnet = self.parts.network.subnet;
        Cidr::new(IpAddr::V4(subnet.addr), subnet.prefix).expect("a founded subnet has no host bits")
    }

    /// The routes that this host has besides those into the overlay.
    fn local_routes(&self) -> Outcome<Vec<Cidr>> {
        let text = std::fs::read_to_string("/proc/net/route").doing("reading this machine's routes")?;
        let others = |line: &&str| line.split_whitespace().next().is_none_or(|interface| interface != self.device);
        let others = text.lines().filter(others).collect::<Vec<_>>().join("\n");
        Ok(parse_routes(&others).into_iter().filter_map(|r| Cidr::new(IpAddr::V4(r.addr), r.prefix)).collect())
    }

    /// Follows offers, policy and this host's routes until the daemon ends.
    pub async fn run(&self) {
        let mut changes = self.parts.notices.changes();
        loop {
            if let Err(failure) = self.settle() {
                tracing::warn!(%failure, "subnet routes are not as they should be");
            }
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }

    /// Brings the notices, the packet plane and the kernel into line.
    fn settle(&self) -> Outcome<()> {
        let kept = lock(&self.kept).clone();
        self.policies.apply();
        let policy = self.policies.standing();
        let multicast = self.multicast && policy.as_ref().is_none_or(|(_, policy)| policy.multicast);
        self.publish(&kept, multicast)?;
        let local = self.local_routes()?;
        let judge = Judge {
            me: self.parts.me(),
            network: self.network(),
            local: &local,
            policy: policy.as_ref().map(|(_, policy)| policy.as_ref()),
            accept: kept.accept,
        };
        let offers = self.parts.notices.offers();
        let all: Vec<Offered> = offers.iter().flat_map(offered).collect();
        let judged: Vec<_> = all.iter().map(|offer| (offer, judge.judge(offer, &all))).collect();
        let own: Vec<Cidr> = judged.iter().filter(|(_, done)| *done == Use::Own).map(|(offer, _)| offer.subnet).collect();
        let used: Vec<(Cidr, MemberId)> =
            judged.iter().filter(|(_, done)| *done == Use::Used).map(|(offer, _)| (offer.subnet, offer.member)).collect();
        *lock(&self.views) = judged
            .iter()
            .map(|(offer, done)| RouteView {
                subnet: offer.subnet.to_string(),
                by: self.name(offer),
                member: offer.member.to_string(),
                used: matches!(done, Use::Used | Use::Own),
                note: done.to_string(),
            })
            .collect();
        let me = self.parts.me();
        self.parts.plane.set_subnets(own.iter().map(|subnet| (*subnet, me)).chain(used.iter().copied()).collect());
        let takers = offers.iter().filter(|offer| offer.multicast() && offer.member() != me).map(Offer::member).collect();
        self.parts.plane.set_multicast(multicast.then_some(takers));
        let routed = self.install(&used.iter().map(|(subnet, _)| *subnet).collect());
        let mut forwarded = lock(&self.forwarded);
        if *forwarded != own {
            tokio::task::block_in_place(|| changes::forward(&self.layout, &self.device, &self.network().to_string(), &own))?;
            *forwarded = own;
        }
        routed
    }

    fn name(&self, offer: &Offered) -> String {
        match &offer.party.who {
            Who::Member { name, .. } => name.clone(),
            _ => offer.member.short(),
        }
    }

    /// Tells the others what is offered here, if that is news or due.
    fn publish(&self, kept: &Kept, multicast: bool) -> Outcome<()> {
        let mut published = lock(&self.published);
        let due = match &*published {
            Some((at, subnets, cast)) => {
                // Others may hold an offer of ours that is newer by its number: a clock that was ahead made it.
                let (told, time) = *lock(&self.told);
                let overtaken = self.parts.notices.offer_number(self.parts.me()) > told || time != NetworkTime::of_process().times_set();
                *subnets != kept.offers || *cast != multicast || at.elapsed() >= RENEW_EVERY || overtaken
            }
            // A former run may have been killed before it could take its offer back.
            None => multicast || !kept.offers.is_empty() || self.parts.notices.offers().iter().any(|o| o.member() == self.parts.me()),
        };
        if due {
            let offer = self.offer(kept.offers.clone(), multicast, kept.since);
            self.parts.spread.publish(offer).doing("telling what this member offers")?;
            *published = Some((Instant::now(), kept.offers.clone(), multicast));
        }
        Ok(())
    }

    fn offer(&self, subnets: Vec<Cidr>, multicast: bool, since: u64) -> Notice {
        let parts = &self.parts;
        let seq = next_number(parts.notices.offer_number(parts.me()));
        *lock(&self.told) = (Some(seq), NetworkTime::of_process().times_set());
        let ends = UnixTime::now().plus(OFFER_SECONDS);
        let offer = Offer::sign(parts.identity.keys(), parts.certificate.clone(), (subnets, multicast), UnixTime(since), (seq, ends));
        Notice::Offer(Box::new(offer))
    }

    /// Makes the kernel's routes into the overlay these and no others.
    fn install(&self, wanted: &BTreeSet<Cidr>) -> Outcome<()> {
        let mut installed = lock(&self.installed);
        if *installed == *wanted {
            return Ok(());
        }
        let index = nix::net::if_::if_nametoindex(self.device.as_str()).doing(format_args!("finding {}", self.device))?;
        let mut manager = RouteManager::new().doing("opening the kernel's routes")?;
        let route = |subnet: &Cidr| Route::new(subnet.addr(), subnet.prefix()).with_if_index(index);
        for gone in installed.clone().difference(wanted) {
            if let Err(error) = manager.delete(&route(gone)) {
                tracing::debug!(subnet = %gone, %error, "its route was gone already");
            }
            installed.remove(gone);
        }
        for new in wanted.difference(&installed.clone()) {
            manager.add(&route(new)).doing(format_args!("routing {new} into {}", self.device))?;
            installed.insert(*new);
        }
        Ok(())
    }

    /// The member through which an address of an offered subnet is reached.
    pub fn offerer(&self, addr: &IpAddr) -> Option<MemberId> {
        let views = lock(&self.views);
        let fits = |view: &&RouteView| view.used && view.subnet.parse::<Cidr>().is_ok_and(|subnet| subnet.contains(addr));
        views.iter().find(fits).and_then(|view| view.member.parse().ok())
    }

    /// Takes the offers back: the daemon ends.
    pub async fn close(&self) {
        let offers = lock(&self.published).take().is_some_and(|(_, subnets, multicast)| !subnets.is_empty() || multicast);
        if offers && let Err(refusal) = self.parts.spread.publish_now(self.offer(Vec::new(), false, 0), FAREWELL).await {
            tracing::warn!(%refusal, "what this member offers is not taken back; it runs out by itself");
        }
    }

    fn change(&self, change: impl FnOnce(&mut Kept) -> Outcome<()>) -> Outcome<()> {
        {
            let mut kept = lock(&self.kept);
            let mut new = kept.clone();
            change(&mut new)?;
            write_atomically(&self.layout.routes(), &serde_json::to_vec_pretty(&new).doing("encoding")?, 0o600)?;
            *kept = new;
        }
        self.settle()
    }
}

fn offered(offer: &Offer) -> Vec<Offered> {
    let certificate = offer.certificate();
    let who = Who::Member { id: offer.member(), name: certificate.name().to_owned(), groups: certificate.groups().clone() };
    // Permissions to offer name members, not addresses.
    let party = Party { addr: IpAddr::V6(Ipv6Addr::UNSPECIFIED), who };
    let one = |subnet: &Cidr| Offered { member: offer.member(), party: party.clone(), subnet: *subnet, since: offer.since() };
    offer.subnets().iter().map(one).collect()
}

fn subnet(text: &str) -> Outcome<Cidr> {
    let subnet: Cidr = text.parse().map_err(|e| Failure::usage(format!("{e}")))?;
    if !subnet.addr().is_ipv4() {
        return Err(Failure::usage(format!("{subnet} is IPv6: only IPv4 subnets can be offered so far")));
    }
    if subnet.prefix() < SHORTEST_PREFIX {
        return Err(Failure::usage(format!("{subnet} is too large for a LAN: its prefix must be {SHORTEST_PREFIX} or longer")));
    }
    Ok(subnet)
}

impl Daemon {
    /// Offers a subnet of this host's LAN.
    pub fn offer_route(&self, text: &str) -> Outcome<Value> {
        let (subnet, subnets) = (subnet(text)?, &self.subnets);
        let network = subnets.network();
        if subnet.overlaps(&network) {
            return Err(Failure::refused(format!("{subnet} overlaps the network's own subnet {network}")));
        }
        let reaches = |route: &Cidr| route.prefix() > 0 && route.prefix() <= subnet.prefix() && route.contains(&subnet.addr());
        if !subnets.local_routes()?.iter().any(reaches) {
            return Err(Failure::refused(format!("this machine has no route to {subnet}: connect it to that network first")));
        }
        tokio::task::block_in_place(crate::preflight::for_offer)?;
        subnets.change(|kept| {
            if !kept.offers.contains(&subnet) {
                kept.offers.push(subnet);
                kept.since = UnixTime::now().0;
            }
            Ok(())
        })?;
        let note = lock(&subnets.views)
            .iter()
            .find(|v| v.subnet == subnet.to_string() && v.member == self.me().to_string())
            .map(|v| v.note.clone());
        Ok(json!({ "offered": subnet.to_string(), "note": note }))
    }

    /// Takes an offer back.
    pub fn withdraw_route(&self, text: &str) -> Outcome<Value> {
        let subnet = subnet(text)?;
        self.subnets.change(|kept| {
            let before = kept.offers.len();
            kept.offers.retain(|offered| *offered != subnet);
            if kept.offers.len() == before {
                return Err(Failure::not_found(format!("this member does not offer {subnet}: see 'p2pvm route list'")));
            }
            Ok(())
        })?;
        Ok(json!({ "withdrawn": subnet.to_string() }))
    }

    /// Whether this host uses what others offer.
    pub fn accept_routes(&self, on: bool) -> Outcome<Value> {
        self.subnets.change(|kept| {
            kept.accept = Some(on);
            Ok(())
        })?;
        Ok(json!({ "accept": on, "used": self.routes().iter().filter(|r| r.used && r.member != self.me().to_string()).count() }))
    }

    /// All offers known, and what is done with each here.
    pub fn routes(&self) -> Vec<RouteView> {
        lock(&self.subnets.views).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2pvm_overlay::membership::Groups;

    fn block(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    fn offered(member: u8, subnet: &str, since: u64) -> Offered {
        let who = Who::Member { id: MemberId([member; 32]), name: format!("m{member}"), groups: Groups::default() };
        let party = Party { addr: IpAddr::V6(Ipv6Addr::UNSPECIFIED), who };
        Offered { member: MemberId([member; 32]), party, subnet: block(subnet), since: UnixTime(since) }
    }

    fn judged(policy: Option<&str>, accept: Option<bool>, offers: &[Offered]) -> Vec<Use> {
        let policy = policy.map(|text| NetworkPolicy::parse(text).unwrap());
        let local = [block("0.0.0.0/0"), block("172.16.0.0/16")];
        let judge = Judge { me: MemberId([9; 32]), network: block("10.9.0.0/16"), local: &local, policy: policy.as_ref(), accept };
        offers.iter().map(|offer| judge.judge(offer, offers)).collect()
    }

    #[test]
    fn without_a_policy_an_offer_is_used_by_those_who_said_so_and_with_one_if_it_is_allowed() {
        let offers = [offered(1, "192.168.7.0/24", 5)];
        let allowed = "default = 'allow'\n[[route]]\nsubnet = '192.168.0.0/16'\nby = 'member:m1'";
        assert_eq!(judged(None, None, &offers), [Use::NotAccepted]);
        assert_eq!(judged(None, Some(true), &offers), [Use::Used]);
        assert_eq!(judged(Some(allowed), None, &offers), [Use::Used]);
        assert_eq!(judged(Some(allowed), Some(false), &offers), [Use::SwitchedOff]);
        assert_eq!(judged(Some("default = 'allow'"), Some(true), &offers), [Use::NotAllowed]);
    }

    #[test]
    fn an_offer_that_overlaps_the_network_or_a_local_route_is_not_used_and_the_default_route_hides_nothing() {
        let offers =
            [offered(1, "10.9.8.0/24", 5), offered(1, "172.16.3.0/24", 5), offered(1, "172.0.0.0/8", 5), offered(1, "10.8.0.0/16", 5)];
        let local = || Use::OverlapsRoute(block("172.16.0.0/16"));
        assert_eq!(judged(None, Some(true), &offers), [Use::OverlapsNetwork(block("10.9.0.0/16")), local(), local(), Use::Used]);
    }

    #[test]
    fn of_two_offers_of_one_subnet_the_elder_is_used_whatever_the_order() {
        let offers = [offered(2, "192.168.7.0/24", 5), offered(1, "192.168.7.0/24", 6), offered(3, "192.168.7.0/24", 5)];
        let elder = || Use::Elder(MemberId([2; 32]));
        assert_eq!(judged(None, Some(true), &offers), [Use::Used, elder(), elder()]);
        let policy = "default = 'allow'\n[[route]]\nsubnet = '192.168.7.0/24'\nby = ['member:m1', 'member:m3']";
        assert_eq!(
            judged(Some(policy), None, &offers),
            [Use::NotAllowed, Use::Elder(MemberId([3; 32])), Use::Used],
            "who may not offer does not count"
        );
    }

    #[test]
    fn own_offers_are_offered_whatever_is_accepted_here() {
        assert_eq!(judged(None, None, &[offered(9, "172.16.0.0/16", 5)]), [Use::Own]);
    }
}
