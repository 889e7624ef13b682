//! The answer of `testbed status`: hosts with their addresses, and the links' counts.

use super::{Error, Testbed};
use crate::{forwarder::Counters, namespace};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv6Addr};

/// The answer of `testbed status`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Name of the testbed.
    pub name: String,
    /// Its hosts.
    pub hosts: Vec<HostStatus>,
    /// Its links, by direction; those that carried nothing, lost nothing and are not cut are left
    /// out.
    pub links: Vec<LinkStatus>,
}

/// A host, as `testbed status` shows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HostStatus {
    /// Name.
    pub name: String,
    /// Site.
    pub site: String,
    /// Address on its own interface.
    pub address: IpAddr,
    /// IPv6 address on its own interface.
    pub address6: Option<Ipv6Addr>,
    /// Address that others see.
    pub public: IpAddr,
    /// Processes running on it.
    pub processes: usize,
}

/// One direction of a link, as `testbed status` shows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LinkStatus {
    /// Site it comes from.
    pub from: String,
    /// Site it goes to.
    pub to: String,
    /// Its counts.
    pub counters: Counters,
}

impl Testbed {
    /// Hosts with their addresses, and what went over the links.
    pub fn status(&self) -> Result<Status, Error> {
        let mut links = Vec::new();
        for (from, row) in self.counters()?.into_iter().enumerate() {
            for (to, counters) in row
                .into_iter()
                .enumerate()
                .filter(|(_, counters)| *counters != Counters::default())
            {
                links.push(LinkStatus {
                    from: self.plan.sites[from].name.clone(),
                    to: self.plan.sites[to].name.clone(),
                    counters,
                });
            }
        }
        let hosts = self.plan.hosts.iter().map(|host| HostStatus {
            name: host.name.clone(),
            site: self.plan.sites[host.site].name.clone(),
            address: host.address,
            address6: host.address6,
            public: self.plan.public_address(host),
            processes: namespace::processes(&host.namespace, &host.dir).len(),
        });
        Ok(Status {
            name: self.plan.name.clone(),
            hosts: hosts.collect(),
            links,
        })
    }
}
