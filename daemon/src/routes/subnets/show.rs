//! The use of each offer, for views, log lines and findings.

use super::{
    Subnets, beside,
    judge::{OfferedSubnet, SubnetUse},
    lock, net,
};
use p2pvm_api::RouteView;
use p2pvm_host::{Finding, keeper::Report};
use p2pvm_overlay::{
    MemberId,
    membership::{Cidr, policy::AddressOwner},
};
use std::{collections::BTreeMap, net::IpAddr};

impl Subnets {
    /// Stores the use of each offer for views, and logs what changed.
    pub(super) fn show(&self, judged: &[(&OfferedSubnet, SubnetUse)], report: &Report) {
        let note = |offer: &OfferedSubnet, done: &SubnetUse| match done {
            SubnetUse::Own => own_note(&offer.subnet, report),
            done => done.to_string(),
        };
        let beside = |offer: &OfferedSubnet, done: &SubnetUse| {
            let net = net(&offer.subnet).filter(|_| done.is_used())?;
            beside::note(&net, &report.shared).map(|(here, said)| match done {
                SubnetUse::Silent if here => (
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
                    by: name(offer),
                    member: offer.member.to_string().into(),
                    used: (done.is_used() && is_here)
                        || (*done == SubnetUse::Own && report.forwarding.is_none()),
                    note: shared.map_or_else(|| note(offer, done), |(_, said)| said),
                    may_be_used: done.is_used()
                        || matches!(
                            done,
                            SubnetUse::Elder(_) | SubnetUse::Unreachable | SubnetUse::Recovering
                        ),
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
        // A LAN that another network of this machine leads to is reached.
        let is_here = |offer: &OfferedSubnet, done: &SubnetUse| {
            beside(offer, done).is_none_or(|(here, _)| here)
        };
        let is_silent = |offer: &OfferedSubnet, done: &SubnetUse| {
            *done == SubnetUse::Silent && is_here(offer, done)
        };
        let silent = judged
            .iter()
            .filter(|(offer, done)| is_silent(offer, done))
            .map(|(offer, _)| {
                let by = name(offer);
                Finding::warning(
                    format!(
                        "{} is not reached: {by}, which offers it, does not answer",
                        offer.subnet
                    ),
                    format!("p2pvm ping {by}"),
                )
            });
        let shared = beside::findings(&report.shared, self.layout.dir());
        self.kernel.add_findings(silent.chain(shared).collect());
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
}

fn name(offer: &OfferedSubnet) -> String {
    match &offer.party.owner {
        AddressOwner::Member { name, .. } => name.clone(),
        _ => offer.member.short(),
    }
}

/// The note on an own offer.
fn own_note(subnet: &Cidr, report: &Report) -> String {
    match (&report.forwarding, report.blocked.first()) {
        (Some(why), _) => format!("not offered: this machine does not forward into it: {why}"),
        _ if net(subnet).is_some_and(|net| report.nowhere.contains(&net)) => {
            "offered by this member, but no interface of this machine leads there".to_owned()
        }
        (None, Some((found, advice))) => format!("offered by this member, but {found}: {advice}"),
        (None, None) => SubnetUse::Own.to_string(),
    }
}
