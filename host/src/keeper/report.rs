//! The result of a look, for commands and for the board.

use crate::{
    finding::{Board, Finding},
    look::HostState,
    net::Net,
    opening::{Survey, hooks::DroppingChain},
    outbound::CarriedVpn,
    sharing::{self, SharedLan},
    wanted::NetworkNeeds,
};

/// The result of a look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Why packets are not forwarded into offered subnets, if they are not.
    pub forwarding: Option<String>,
    /// Chains that drop packets into offered subnets or back: a sentence, and the command that
    /// helps.
    pub blocked: Vec<(String, String)>,
    /// Offered subnets that no interface of this machine reaches.
    pub nowhere: Vec<Net>,
    /// Accepted LANs that another p2pvm network of this machine accepts too.
    pub shared: Vec<SharedLan>,
    /// The VPN that p2pvm's own packets are led past.
    pub past: Option<CarriedVpn>,
    routes: Vec<Finding>,
    forwarding_findings: Vec<Finding>,
    firewall: Vec<Finding>,
}

impl Report {
    /// For a look that failed.
    pub(super) fn unseen(why: String) -> Self {
        let routes = vec![Finding::failed(why.clone(), "")];
        Self {
            forwarding: Some(why),
            routes,
            ..Self::default()
        }
    }

    /// After a look and its steps; `failing` has the steps that failed.
    pub(super) fn of(
        wanted: &NetworkNeeds,
        seen: &HostState,
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
        if let Some(carried) = carried.filter(|carried| !carried.is_passed) {
            report.add_carried(&carried);
        }
        for (what, why) in failing {
            report.add_failing(&wanted.device, &what, why);
        }
        report.add_routes(seen);
        report.add_firewalls(&wanted.device, &seen.survey);
        report
    }

    fn add_carried(&mut self, carried: &CarriedVpn) {
        let advice = "give the VPN a routing table of its own (wg-quick does for AllowedIPs = \
            0.0.0.0/0) and rules from 20 on, or each member's address a route by the uplink";
        self.routes
            .push(Finding::failed(carried.sentence(), advice));
    }

    /// A step that failed.
    fn add_failing(&mut self, device: &str, what: &str, why: String) {
        if what.starts_with("forwarding") {
            self.forwarding_findings.push(Finding::failed(
                format!("packets from {device} are not forwarded into the offered subnets: {why}"),
                "settle what the message says; p2pvm tries again by itself",
            ));
            self.forwarding.get_or_insert(why);
        } else if what.starts_with("rout") {
            self.routes.push(Finding::failed(
                format!("{what} cannot be set up: {why}"),
                "p2pvm tries again by itself",
            ));
        } else {
            self.firewall.push(Finding::warning(
                format!("{what} cannot be opened: {why}"),
                "p2pvm tries again by itself",
            ));
        }
    }

    fn add_routes(&mut self, seen: &HostState) {
        for net in &self.nowhere {
            let found = format!("this machine offers {net}, but no interface of it leads there");
            self.routes.push(Finding::failed(
                found,
                format!("connect the interface, or: p2pvm route withdraw {net}"),
            ));
        }
        if let Some(conflict) = &seen.conflict {
            self.routes.push(Finding::failed(
                format!("the network's own subnet {conflict}"),
                "renumber that network, or leave this one and join one with another subnet (p2pvm \
                    init --subnet)",
            ));
        }
    }

    fn add_firewalls(&mut self, device: &str, survey: &Survey) {
        for (block, commands) in &survey.input {
            let found = format!("{block} lets nothing in from {device}");
            self.firewall
                .push(Finding::warning(found, commands.join(" && ")));
        }
        for (block, commands) in &survey.forward {
            let found = format!("{block} drops what {device} forwards into the offered subnets");
            self.add_blocked(found, commands.join(" && "));
        }
        for dropping in &survey.elsewhere {
            let DroppingChain {
                block,
                hook,
                what,
                command,
                offered,
            } = dropping;
            let found = format!("{block}, at the hook {hook}, drops {what}");
            if *offered {
                self.add_blocked(found, command.clone());
            } else {
                self.firewall.push(Finding::warning(found, command.clone()));
            }
        }
    }

    /// Packets into offered subnets, or back, are dropped.
    fn add_blocked(&mut self, found: String, advice: String) {
        self.blocked.push((found.clone(), advice.clone()));
        self.firewall.push(Finding::failed(found, advice));
    }

    /// Puts it on the board. `more` are the caller's own findings about routes.
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
