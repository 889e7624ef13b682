//! What came of a look, for the commands that ask and for the board.

use crate::{
    finding::{Board, Finding},
    look::Seen,
    net::Net,
    opening::hooks,
    outbound::Carried,
    sharing::{self, Shared},
    wanted::Wanted,
};

/// What came of a look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Why packets are not forwarded into offered subnets, if they are not.
    pub forwarding: Option<String>,
    /// What drops packets into offered subnets or back: a sentence, and the command that helps.
    pub blocked: Vec<(String, String)>,
    /// Offered subnets that no interface of this machine reaches.
    pub nowhere: Vec<Net>,
    /// Accepted LANs that another p2pvm network of this machine accepts too.
    pub shared: Vec<Shared>,
    /// The VPN that p2pvm's own packets are led past.
    pub past: Option<Carried>,
    routes: Vec<Finding>,
    forwarding_findings: Vec<Finding>,
    firewall: Vec<Finding>,
}

impl Report {
    /// The machine could not be looked at.
    pub(super) fn unseen(why: String) -> Self {
        let routes = vec![Finding::failed(why.clone(), "")];
        Self {
            forwarding: Some(why),
            routes,
            ..Self::default()
        }
    }

    /// After a look and its steps, some of which fail.
    pub(super) fn of(
        wanted: &Wanted,
        seen: &Seen,
        failing: impl Iterator<Item = (String, String)>,
    ) -> Self {
        let shared = sharing::shared(wanted, &seen.observed);
        let carried = seen.observed.carried.clone();
        let past = carried.clone().filter(|carried| carried.is_passed);
        let mut report = Self {
            nowhere: seen.nowhere.clone(),
            shared,
            past,
            ..Self::default()
        };
        let device = &wanted.device;
        if let Some(carried) = carried.filter(|carried| !carried.is_passed) {
            let advice = "give the VPN a routing table of its own (wg-quick does for AllowedIPs = \
                0.0.0.0/0) and rules from 20 on, or each member's address a route by the uplink";
            report
                .routes
                .push(Finding::failed(carried.sentence(), advice));
        }
        for (what, why) in failing {
            if what.starts_with("forwarding") {
                report.forwarding_findings.push(Finding::failed(
                    format!(
                        "packets from {device} are not forwarded into the offered subnets: {why}"
                    ),
                    "settle what the message says; p2pvm tries again by itself",
                ));
                report.forwarding.get_or_insert(why);
            } else if what.starts_with("rout") {
                report.routes.push(Finding::failed(
                    format!("{what} cannot be set up: {why}"),
                    "p2pvm tries again by itself",
                ));
            } else {
                report.firewall.push(Finding::warning(
                    format!("{what} cannot be opened: {why}"),
                    "p2pvm tries again by itself",
                ));
            }
        }
        for net in &report.nowhere {
            let found = format!("this machine offers {net}, but no interface of it leads there");
            report.routes.push(Finding::failed(
                found,
                format!("connect the interface, or: p2pvm route withdraw {net}"),
            ));
        }
        if let Some(conflict) = &seen.conflict {
            report.routes.push(Finding::failed(
                format!("the network's own subnet {conflict}"),
                "renumber that network, or leave this one and join one with another subnet (p2pvm \
                    init --subnet)",
            ));
        }
        for (block, commands) in &seen.survey.input {
            let found = format!("{block} lets nothing in from {device}");
            report
                .firewall
                .push(Finding::warning(found, commands.join(" && ")));
        }
        for (block, commands) in &seen.survey.forward {
            let (found, advice) = (
                format!("{block} drops what {device} forwards into the offered subnets"),
                commands.join(" && "),
            );
            report.blocked.push((found.clone(), advice.clone()));
            report.firewall.push(Finding::failed(found, advice));
        }
        for dropped in &seen.survey.elsewhere {
            let hooks::Dropped {
                block,
                hook,
                what,
                command,
                offered,
            } = dropped;
            let found = format!("{block}, at the hook {hook}, drops {what}");
            if *offered {
                report.blocked.push((found.clone(), command.clone()));
                report
                    .firewall
                    .push(Finding::failed(found, command.clone()));
            } else {
                report
                    .firewall
                    .push(Finding::warning(found, command.clone()));
            }
        }
        report
    }

    /// Puts it on the board; `more` is what the network itself found wrong with routes.
    pub(super) fn show(&self, board: &Board, more: Vec<Finding>) {
        let past = self
            .past
            .iter()
            .map(|carried| Finding::note(carried.sentence(), ""));
        board.set(
            "routes",
            self.routes
                .iter()
                .cloned()
                .chain(more)
                .chain(past)
                .collect(),
        );
        board.set("forwarding", self.forwarding_findings.clone());
        board.set("firewall", self.firewall.clone());
    }
}
