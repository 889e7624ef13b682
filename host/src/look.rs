//! Looks at the machine: everything that [`crate::plan`] needs, at one time.

use crate::{
    causes::chain,
    error::Error,
    forwarding::{self, ForwardingState},
    journal::{Change, Entries},
    kernel, legacy,
    links::{Link, links},
    net::Net,
    netlink::Netlink,
    observed::{NeighbourRoute, Observed, TableState},
    opening::{self, Survey},
    outbound::{self, CarriedVpn},
    overlap::{self, Conflict},
    passage::Passage,
    plan::rules_in,
    reached::reached,
    routes::{self, MAIN, Route},
    rules::{DEFAULT_LIKE, MachineRules, SILENT, rules},
    ruleset::Ruleset,
    run::RunError,
    sharing,
    wanted::NetworkNeeds,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

/// The nftables rules of the last listing. A listing starts a process, so it is made only after a
/// change.
#[derive(Default)]
pub(crate) struct RulesCache {
    listed: Option<Ruleset>,
    programs: opening::OtherFirewalls,
    /// The network's own table: the text from which it was made, and how nft listed it then.
    made: Option<(String, Ruleset)>,
    /// Why they could not be listed.
    failed: Option<String>,
}

impl RulesCache {
    /// Makes the next look list them again.
    pub fn forget(&mut self) {
        self.listed = None;
    }

    /// Lists them if that is due.
    pub fn list(&mut self) {
        // The kernel does not report changes of these.
        self.programs.legacy = legacy::list();
        self.programs.tables = legacy::list_others();
        if self.listed.is_some() {
            return;
        }
        self.failed = None;
        let listed = match kernel::ruleset() {
            Ok(ruleset) => ruleset,
            // Without nft there are no nftables rules that matter here, and a step that needs nft
            // fails with that reason.
            Err(RunError::Missing { .. }) => Ruleset::default(),
            Err(error) => {
                self.failed = Some(chain(&error));
                Ruleset::default()
            }
        };
        self.programs.firewalld =
            listed.tables.keys().any(|(_, name)| name == "firewalld") && opening::firewalld_runs();
        self.listed = Some(listed);
    }

    fn own(&self, table: &str) -> Ruleset {
        let Some(all) = &self.listed else {
            return Ruleset::default();
        };
        let ours = |id: &(String, String, String)| id.0 == "ip" && id.1 == table;
        Ruleset {
            chains: all
                .chains
                .iter()
                .filter(|(id, _)| ours(id))
                .map(|(id, chain)| (id.clone(), chain.clone()))
                .collect(),
            sets: all
                .sets
                .iter()
                .filter(|(id, _)| ours(id))
                .map(|(id, set)| (id.clone(), set.clone()))
                .collect(),
            tables: all
                .tables
                .iter()
                .filter(|((f, t), _)| f == "ip" && t == table)
                .map(|(k, v)| (k.clone(), v.clone()))
                .collect(),
        }
    }

    /// Notes that the network's own table has just been made.
    pub fn made(&mut self, table: &str, text: String) {
        self.forget();
        self.list();
        let own = self.own(table);
        // Another program may have changed it before the listing.
        let whole = own
            .chains
            .values()
            .map(|chain| chain.rules.len())
            .sum::<usize>()
            == rules_in(&text);
        self.made = whole.then_some((text, own));
    }

    fn state(&self, table: &str) -> TableState {
        let now = self.own(table);
        match &self.made {
            _ if now.tables.is_empty() => TableState::Absent,
            Some((text, then)) if *then == now => TableState::Made(text.clone()),
            _ => TableState::Changed,
        }
    }
}

/// The machine at one look.
pub(crate) struct HostState {
    pub observed: Observed,
    pub survey: Survey,
    /// What the network's own subnet conflicts with.
    pub conflict: Option<Conflict>,
    /// Offered subnets that no interface of this machine reaches.
    pub nowhere: Vec<Net>,
}

/// What rtnetlink tells at one moment.
struct Reading {
    links: Vec<Link>,
    /// The index of the network's interface, if it is up.
    index: Option<u32>,
    main: Vec<Route>,
    reached: Vec<Route>,
    table: Vec<Route>,
    rules: MachineRules,
    carried: Option<CarriedVpn>,
    held: BTreeSet<NeighbourRoute>,
}

impl Reading {
    fn take(wanted: &NetworkNeeds) -> io::Result<Self> {
        let links = links()?;
        let mut netlink = Netlink::open()?;
        let main = routes::routes(&mut netlink, MAIN)?;
        let reached = reached(&mut netlink)?;
        let own = own(&links, wanted);
        let index = own.filter(|link| link.up).map(|link| link.index);
        let table = routes::routes(&mut netlink, wanted.routing_table())?;
        let rules = rules(&mut netlink)?;
        let carried = index.and_then(|index| outbound::carried_by(index, &links));
        let held = sharing::held(&mut netlink, &wanted.device, &links)?;
        Ok(Self {
            links,
            index,
            main,
            reached,
            table,
            rules,
            carried,
            held,
        })
    }

    /// The part of [`Observed`] that comes from rtnetlink; the rest is empty.
    fn observed(&self, wanted: &NetworkNeeds) -> Observed {
        let nets =
            |routes: &mut dyn Iterator<Item = &Route>| routes.map(|route| route.net).collect();
        let leads_in = |route: &&Route| self.index.is_some() && route.device == self.index;
        let own = own(&self.links, wanted);
        Observed {
            device: self.index,
            marks: self
                .links
                .iter()
                .filter_map(|link| link.mark().map(|mark| (link.name.clone(), mark)))
                .collect(),
            rules: self.rules.ours.clone(),
            // p2pvm's rules must come before the one that leads packets to such a VPN.
            rules_base: match self.carried {
                Some(_) => self.rules.base.min(self.rules.first),
                None => self.rules.base,
            },
            carried: self.carried.clone(),
            routes: nets(&mut self.table.iter().filter(leads_in)),
            silent: nets(
                &mut self
                    .table
                    .iter()
                    .filter(leads_in)
                    .filter(|route| route.protocol == SILENT),
            ),
            held: self.held.clone(),
            throws: nets(&mut self.table.iter().filter(|route| route.throw)),
            local: nets(&mut self.reached.iter().filter(|route| is_local(route, own))),
            ..Observed::default()
        }
    }
}

fn own<'a>(links: &'a [Link], wanted: &NetworkNeeds) -> Option<&'a Link> {
    links.iter().find(|link| link.name == wanted.device)
}

/// Looks at the machine.
pub(crate) fn look(
    wanted: &NetworkNeeds,
    entries: &Entries,
    cache: &mut RulesCache,
) -> Result<HostState, Error> {
    let reading = Reading::take(wanted).map_err(|cause| {
        Error::Kernel("look at this machine's interfaces and routes".into(), cause)
    })?;
    let (lans, nowhere) = lans(wanted, &reading.links, &reading.main);
    cache.list();
    let ruleset = cache.listed.clone().unwrap_or_default();
    let uplinks = uplinks(wanted, &reading.links, &reading.main);
    let survey = opening::survey(
        wanted,
        (&lans, &uplinks),
        &ruleset,
        &cache.programs,
        &noted(entries),
    );
    let switched: BTreeSet<String> = entries.switched().cloned().collect();
    let observed = reading.observed(wanted);
    let observed = Observed {
        forwarding: forwarding_of(
            lans.iter().chain(&switched).chain([&wanted.device]),
            &switched,
        ),
        switched_by_others: kernel::switched_by_others(
            &ruleset,
            &observed.marks,
            &wanted.nft_table(),
        ),
        lans,
        switched,
        table: cache.state(&wanted.nft_table()),
        passages: survey.passages.clone(),
        passages_there: survey.there.clone(),
        passages_stale: survey.stale.clone(),
        ..observed
    };
    let is_there = own(&reading.links, wanted).is_some();
    let conflict = wanted.overlay.filter(|_| is_there).and_then(|net| {
        let (device, links) = (Some(wanted.device.as_str()), &reading.links);
        overlap::find(net, device, links, &reading.reached, &[])
    });
    Ok(HostState {
        observed,
        survey,
        conflict,
        nowhere,
    })
}

/// The passages that the journal says were opened.
fn noted(entries: &Entries) -> Vec<Passage> {
    let passage = |change: &Change| match change {
        Change::Passage { passage, .. } => Some(passage.clone()),
        _ => None,
    };
    entries.kernel.iter().filter_map(passage).collect()
}

/// How these interfaces forward. If one that p2pvm `switched` on is gone, it may have been renamed:
/// then also those that forward for p2pvm.
fn forwarding_of<'a>(
    interfaces: impl Iterator<Item = &'a String>,
    switched: &BTreeSet<String>,
) -> BTreeMap<String, ForwardingState> {
    let mut matter: BTreeSet<String> = interfaces.cloned().collect();
    if switched
        .iter()
        .any(|interface| forwarding::forwarding(interface).is_none())
    {
        matter.extend(forwarding::forwarding_for_us());
    }
    let state = |interface: String| Some((forwarding::forwarding(&interface)?, interface));
    matter
        .into_iter()
        .filter_map(state)
        .map(|(state, interface)| (interface, state))
        .collect()
}

/// Whether it is a route of the machine's own, other than a default route.
fn is_local(route: &Route, own: Option<&Link>) -> bool {
    u32::from(route.net.prefix()) > DEFAULT_LIKE
        && !route.throw
        && own.is_none_or(|own| Some(own.index) != route.device)
}

/// The interfaces by which members are reached: those of default routes, or all that are up if
/// there is no default route.
fn uplinks(wanted: &NetworkNeeds, links: &[Link], main: &[Route]) -> BTreeSet<String> {
    let is_other =
        |link: &&Link| link.name != wanted.device && link.mark().is_none() && !link.loopback;
    let leads_out = |link: &&Link| {
        let by = |route: &Route| {
            route.device == Some(link.index) && u32::from(route.net.prefix()) <= DEFAULT_LIKE
        };
        main.iter().any(|route| !route.throw && by(route))
    };
    let others = || links.iter().filter(is_other);
    let found: BTreeSet<String> = others()
        .filter(leads_out)
        .map(|link| link.name.clone())
        .collect();
    if !found.is_empty() {
        return found;
    }
    let has_v4 = |link: &&Link| link.up && link.addresses.iter().any(|(ip, _)| ip.is_ipv4());
    others()
        .filter(has_v4)
        .map(|link| link.name.clone())
        .collect()
}

/// The interfaces that lead to the offered subnets, and the subnets that no interface leads to.
fn lans(wanted: &NetworkNeeds, links: &[Link], main: &[Route]) -> (BTreeSet<String>, Vec<Net>) {
    let (mut lans, mut nowhere) = (BTreeSet::new(), Vec::new());
    let is_ours = |link: &Link| link.name == wanted.device || link.mark().is_some();
    let others: Vec<(&Route, &Link)> = main
        .iter()
        .filter_map(|route| {
            links
                .iter()
                .find(|link| Some(link.index) == route.device)
                .map(|link| (route, link))
        })
        .filter(|(route, link)| !is_ours(link) && u32::from(route.net.prefix()) > DEFAULT_LIKE)
        .collect();
    for net in &wanted.offered {
        let longest = others
            .iter()
            .filter(|(route, _)| route.net.covers(net))
            .map(|(route, _)| route.net.prefix())
            .max();
        let leads = |route: &Route| {
            (route.net.covers(net) && Some(route.net.prefix()) == longest) || net.covers(&route.net)
        };
        let found: Vec<_> = others
            .iter()
            .filter(|(route, _)| leads(route))
            .map(|(_, link)| link.name.clone())
            .collect();
        if found.is_empty() {
            nowhere.push(*net);
        }
        lans.extend(found);
    }
    (lans, nowhere)
}
