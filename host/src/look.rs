//! Looks at the machine: everything that [`crate::plan`] wants to know, in one go.

use crate::{
    causes::chain,
    error::Error,
    journal::{Change, Entries},
    kernel, legacy,
    links::{Link, links},
    net::Net,
    netlink::Netlink,
    opening::{self, Survey},
    outbound,
    overlap::{self, Conflict},
    plan::rules_in,
    routes::{self, MAIN, Route},
    rules::{DEFAULT_LIKE, SILENT, rules},
    ruleset::Ruleset,
    run::RunError,
    sharing,
    wanted::{Observed, TableState, Wanted},
};
use std::{collections::BTreeSet, io};

/// The nftables rules as they were when they were listed last; listing them costs a process, so it
/// is done when they changed.
#[derive(Default)]
pub(crate) struct Rules {
    listed: Option<Ruleset>,
    programs: opening::Others,
    /// The network's own table: the text from which it was made, and how nft listed it then.
    made: Option<(String, Ruleset)>,
    /// Why they could not be listed.
    failed: Option<String>,
}

impl Rules {
    /// Lists them anew at the next look.
    pub fn forget(&mut self) {
        self.listed = None;
    }

    /// Lists them if that is due.
    pub fn list(&mut self) {
        // Nothing tells when these change.
        self.programs.legacy = legacy::list();
        self.programs.tables = legacy::list_others();
        if self.listed.is_some() {
            return;
        }
        self.failed = None;
        let listed = match kernel::ruleset() {
            Ok(ruleset) => ruleset,
            // Without nft nobody has rules in nftables that matter here, and what needs nft says so
            // itself.
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

    /// Remembers that the network's own table has just been made.
    pub fn made(&mut self, table: &str, text: String) {
        self.forget();
        self.list();
        let own = self.own(table);
        // Somebody may have changed it before it was listed: then it is not what was made.
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

/// What a look found.
pub(crate) struct Seen {
    pub observed: Observed,
    pub survey: Survey,
    /// What the network's own subnet is in the way of.
    pub conflict: Option<Conflict>,
    /// Offered subnets that no interface of this machine reaches.
    pub nowhere: Vec<Net>,
}

/// Looks.
pub(crate) fn look(
    wanted: &Wanted,
    entries: &Entries,
    rules_listed: &mut Rules,
) -> Result<Seen, Error> {
    let failed = |cause: io::Error| {
        Error::Kernel("look at this machine's interfaces and routes".into(), cause)
    };
    let links = links().map_err(failed)?;
    let mut netlink = Netlink::open().map_err(failed)?;
    let main = routes::routes(&mut netlink, MAIN).map_err(failed)?;
    let reached = routes::of_machine(&mut netlink).map_err(failed)?;
    let own = links.iter().find(|link| link.name == wanted.device);
    let index = own.filter(|link| link.up).map(|link| link.index);
    let table = routes::routes(&mut netlink, wanted.routing_table()).map_err(failed)?;
    let placed = rules(&mut netlink).map_err(failed)?;
    let carried = index.and_then(|index| outbound::carried_by(index, &links));
    let held = sharing::held(&mut netlink, &wanted.device, &links).map_err(failed)?;
    let leads_in = |route: &&Route| index.is_some() && route.device == index;
    let (lans, nowhere) = lans(wanted, &links, &main);
    rules_listed.list();
    let ruleset = rules_listed.listed.clone().unwrap_or_default();
    let noted: Vec<_> = entries
        .kernel
        .iter()
        .filter_map(|c| {
            if let Change::Passage { passage, .. } = c {
                Some(passage.clone())
            } else {
                None
            }
        })
        .collect();
    let survey = opening::survey(
        wanted,
        (&lans, &uplinks(wanted, &links, &main)),
        &ruleset,
        &rules_listed.programs,
        &noted,
    );
    let marks = links
        .iter()
        .filter_map(|link| link.mark().map(|mark| (link.name.clone(), mark)))
        .collect();
    let switched: BTreeSet<String> = entries.switched().cloned().collect();
    let mut matter: BTreeSet<String> = lans
        .iter()
        .chain(&switched)
        .chain([&wanted.device])
        .cloned()
        .collect();
    if switched
        .iter()
        .any(|interface| kernel::forwarding(interface).is_none())
    {
        matter.extend(kernel::forwarding_for_us());
    }
    let observed = Observed {
        device: index,
        rules: placed.ours,
        // Whatever leads packets to such a VPN must come later.
        rules_base: match carried {
            Some(_) => placed.base.min(placed.first),
            None => placed.base,
        },
        carried,
        routes: table
            .iter()
            .filter(leads_in)
            .map(|route| route.net)
            .collect(),
        silent: table
            .iter()
            .filter(leads_in)
            .filter(|route| route.protocol == SILENT)
            .map(|route| route.net)
            .collect(),
        held,
        throws: table
            .iter()
            .filter(|route| route.throw)
            .map(|route| route.net)
            .collect(),
        local: reached
            .iter()
            .filter(|route| is_local(route, own))
            .map(|route| route.net)
            .collect(),
        forwarding: matter
            .into_iter()
            .filter_map(|i| kernel::forwarding(&i).map(|on| (i, on)))
            .collect(),
        switched_by_others: kernel::switched_by_others(&ruleset, &marks, &wanted.nft_table()),
        marks,
        lans,
        switched,
        table: rules_listed.state(&wanted.nft_table()),
        passages: survey.passages.clone(),
        passages_there: survey.there.clone(),
        passages_stale: survey.stale.clone(),
    };
    let conflict = wanted
        .overlay
        .filter(|_| own.is_some())
        .and_then(|net| overlap::find(net, Some(&wanted.device), &links, &reached, &[]));
    Ok(Seen {
        observed,
        survey,
        conflict,
        nowhere,
    })
}

/// Whether this machine reaches something by a route of its own, other than by a default route.
fn is_local(route: &Route, own: Option<&Link>) -> bool {
    u32::from(route.net.prefix()) > DEFAULT_LIKE
        && !route.throw
        && own.is_none_or(|own| Some(own.index) != route.device)
}

/// The interfaces by which members are reached: those of default routes, or where there is none all
/// that are up.
fn uplinks(wanted: &Wanted, links: &[Link], main: &[Route]) -> BTreeSet<String> {
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

/// The interfaces behind which the offered subnets lie, and the subnets that lie behind none.
fn lans(wanted: &Wanted, links: &[Link], main: &[Route]) -> (BTreeSet<String>, Vec<Net>) {
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
