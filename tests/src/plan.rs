//! What a sites file means in addresses and names: computed once, written to the state directory, read by every later command.
//!
//! Site `i` owns 198.18.`i+1`.0/24 of the benchmarking range (RFC 2544). A site without NAT numbers its hosts from it; behind a NAT the
//! router holds .1 and the hosts are in 192.168.`i+1`.0/24.

use crate::sites::{Nat, Shape, Sites};
use serde::{Deserialize, Serialize};
use std::{net::Ipv4Addr, path::PathBuf};

/// Where running testbeds leave their plan, control socket and keeper's id.
pub const RUN_DIR: &str = "/run/p2pvm-testbed";
/// Where hosts keep their state: disks of guests go here, so it is no tmpfs.
pub const HOSTS_DIR: &str = "/var/tmp/p2pvm-testbed";

/// A host: one network namespace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostPlan {
    /// Name, unique in the testbed.
    pub name: String,
    /// Index of its site.
    pub site: usize,
    /// Its address on `eth0`.
    pub address: Ipv4Addr,
    /// Name of its network namespace.
    pub namespace: String,
    /// Its state directory, `P2PVM_DIR` of what runs on it.
    pub dir: PathBuf,
}

/// A site: one router namespace and its hosts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SitePlan {
    /// Name, unique among sites.
    pub name: String,
    /// NAT of its router.
    pub nat: Nat,
    /// Whether UDP passes.
    pub udp: bool,
    /// Name of the router's network namespace.
    pub namespace: String,
    /// The address the rest of the world sees of a site behind a NAT; the router's own elsewhere.
    pub public: Ipv4Addr,
    /// The router's address towards its hosts; they are in the same /24.
    pub gateway: Ipv4Addr,
}

/// The whole testbed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Name of the testbed.
    pub name: String,
    /// Seed of all decisions.
    pub seed: u64,
    /// Sites, in file order.
    pub sites: Vec<SitePlan>,
    /// Hosts, in file order.
    pub hosts: Vec<HostPlan>,
    /// `shapes[from][to]`, by site index.
    pub shapes: Vec<Vec<Shape>>,
}

impl Plan {
    /// Lays out `sites` (already checked) under `name` (already checked).
    pub fn new(name: &str, sites: &Sites) -> Result<Plan, String> {
        let mut plan = Plan { name: name.into(), seed: sites.seed, sites: Vec::new(), hosts: Vec::new(), shapes: Vec::new() };
        for (index, site) in sites.sites.iter().enumerate() {
            let number = u8::try_from(index + 1).map_err(|_| "too many sites".to_string())?;
            let gateway = if site.nat == Nat::None { Ipv4Addr::new(198, 18, number, 1) } else { Ipv4Addr::new(192, 168, number, 1) };
            let [x, y, z, _] = gateway.octets();
            for (host_number, host) in (10u8..).zip(site.host_names()) {
                plan.hosts.push(HostPlan {
                    site: index,
                    address: Ipv4Addr::new(x, y, z, host_number),
                    namespace: format!("{}h.{host}", namespace_prefix(name)),
                    dir: PathBuf::from(HOSTS_DIR).join(name).join(&host),
                    name: host,
                });
            }
            plan.sites.push(SitePlan {
                name: site.name.clone(),
                nat: site.nat,
                udp: site.udp,
                namespace: format!("{}r.{}", namespace_prefix(name), site.name),
                public: Ipv4Addr::new(198, 18, number, 1),
                gateway,
            });
            plan.shapes.push(sites.sites.iter().map(|to| sites.shape(&site.name, &to.name)).collect::<Result<_, _>>()?);
        }
        Ok(plan)
    }

    /// Index of the site that holds a public address.
    pub fn site_of(address: Ipv4Addr) -> Option<usize> {
        match address.octets() {
            [198, 18, number, _] => usize::from(number).checked_sub(1),
            _ => None,
        }
    }

    /// The host of this name.
    pub fn host(&self, name: &str) -> Option<&HostPlan> {
        self.hosts.iter().find(|host| host.name == name)
    }

    /// The address others reach a host's site by: the host's own, or its router's if it is behind a NAT.
    pub fn public_address(&self, host: &HostPlan) -> Ipv4Addr {
        let site = &self.sites[host.site];
        if site.nat == Nat::None { host.address } else { site.public }
    }
}

/// Every namespace of testbed `name` begins with this, and no other testbed's does.
pub(crate) fn namespace_prefix(name: &str) -> String {
    format!("p2pvm-{name}.")
}
