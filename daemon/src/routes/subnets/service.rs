//! Subnet routes as the control API changes and shows them.

use super::{SHORTEST_PREFIX, Subnets, lock};
use p2pvm_api::{Failure, Kind, Outcome, RouteOffered, RouteView, RouteWithdrawn, RoutesAccepted};
use p2pvm_host::routes;
use p2pvm_overlay::{UnixTime, membership::Cidr};

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

impl Subnets {
    /// Offers a subnet of this host's LAN.
    pub fn offer(&self, text: &str) -> Outcome<RouteOffered> {
        let subnet = subnet(text)?;
        let network = self.network();
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
        if !self
            .local_routes(|netlink| routes::routes(netlink, routes::MAIN))?
            .iter()
            .any(reaches)
        {
            return Err(Failure::refused(format!(
                "this machine has no route to {subnet}: connect it to that network first"
            )));
        }
        tokio::task::block_in_place(crate::preflight::for_offer)?;
        let before = lock(&self.kept).clone();
        self.change(|kept| {
            if !kept.offers.contains(&subnet) {
                kept.offers.push(subnet);
                kept.since = UnixTime::now().0;
            }
            Ok(())
        })?;
        if let Some(why) = self
            .kernel
            .report()
            .forwarding
            .filter(|_| !before.offers.contains(&subnet))
        {
            // It has not been published: no half-done change stays.
            self.change(|kept| {
                *kept = before;
                Ok(())
            })?;
            return Err(Failure::new(
                Kind::Failed,
                format!("{subnet} is not offered: this machine cannot forward into it: {why}"),
            ));
        }
        let me = self.parts.me().to_string();
        let note = lock(&self.views)
            .iter()
            .find(|v| v.subnet == subnet.to_string() && v.member.as_str() == me)
            .map(|v| v.note.clone());
        Ok(RouteOffered {
            note,
            offered: subnet.to_string(),
        })
    }

    /// Withdraws an offer.
    pub fn withdraw(&self, text: &str) -> Outcome<RouteWithdrawn> {
        let subnet = subnet(text)?;
        self.change(|kept| {
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

    /// Sets whether this host uses others' offers: all of them, or `only` one subnet.
    pub fn accept(&self, on: bool, only: Option<&str>) -> Outcome<RoutesAccepted> {
        let only = only.map(subnet).transpose()?;
        self.change(|kept| match only {
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
        let me = self.parts.me().to_string();
        let used = self
            .list()
            .iter()
            .filter(|r| r.used && r.member.as_str() != me)
            .count();
        Ok(RoutesAccepted { accept: on, used })
    }

    /// All known offers, and the use of each here.
    pub fn list(&self) -> Vec<RouteView> {
        lock(&self.views).clone()
    }
}
