//! The addresses and names of a testbed: computed once from the sites file, written to the state
//! directory, read by every later command.
//!
//! Site `i` owns 198.18.`i+1`.0/24 and 2001:2:0:`i+1`::/64 of the benchmarking ranges (RFC 2544,
//! RFC 5180), and 198.19.`i+1`.0/24 and 2001:2:0:`256+i+1`::/64 to move to when it is renumbered. A
//! site without NAT numbers its hosts from it; behind a NAT the router holds .1 and the hosts are
//! in 192.168.`i+1`.0/24; behind a carrier's NAT the router has 100.64.`i+1`.2 and the carrier the
//! public address. A site whose router maps ports is in 198.20 and 198.21 instead: miniupnpd maps
//! none on an address of a reserved range.

use crate::{
    root::RootPlan,
    sites::{Ipv6, Nat, Shape, Sites},
};
use serde::{Deserialize, Serialize};
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

/// The directory of running testbeds: their plan, control socket and keeper's id.
pub const RUN_DIR: &str = "/run/p2pvm-testbed";
/// The directory of the hosts' state.
/// Reason: the disks of guests are too large for a tmpfs.
pub const HOSTS_DIR: &str = "/var/tmp/p2pvm-testbed";
/// The last octet of a site's first host.
const FIRST_HOST: u8 = 10;

/// A host: one network namespace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostPlan {
    /// Name, unique in the testbed.
    pub name: String,
    /// Index of the site where it is now.
    pub site: usize,
    /// Its address on `eth0`: IPv4, or IPv6 at a site that has nothing else.
    pub address: IpAddr,
    /// Its IPv6 address at a site that has IPv6.
    pub address6: Option<Ipv6Addr>,
    /// The last octet of its addresses.
    pub number: u8,
    /// Its cable's name in the router.
    pub cable: String,
    /// Name of its network namespace.
    pub namespace: String,
    /// Its state directory, `P2PVM_DIR` of what runs on it.
    pub dir: PathBuf,
    /// Its own root file system, if it has one.
    #[serde(default)]
    pub root: Option<RootPlan>,
}

/// A site: one router namespace and its hosts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SitePlan {
    /// Name, unique among sites.
    pub name: String,
    /// NAT of its router.
    pub nat: Nat,
    /// NAT of its carrier.
    pub carrier: Nat,
    /// Whether UDP passes.
    pub udp: bool,
    /// Whether it has IPv6.
    pub ipv6: Ipv6,
    /// Whether its router lets in answers alone.
    pub firewall: bool,
    /// Whether its router maps ports.
    pub upnp: bool,
    /// Name of the router's network namespace.
    pub namespace: String,
    /// Name of the carrier's network namespace, if there is one.
    pub carrier_namespace: Option<String>,
    /// Its number in its addresses.
    pub number: u8,
    /// Whether it is at its second set of public addresses.
    pub renumbered: bool,
    /// The public address of a site behind a NAT; elsewhere the router's own.
    pub public: Ipv4Addr,
    /// The router's address towards its hosts; they are in the same /24.
    pub gateway: Ipv4Addr,
    /// The router's IPv6 address towards its hosts; they are in the same /64.
    pub gateway6: Option<Ipv6Addr>,
}

impl SitePlan {
    /// Whether it has IPv4.
    pub fn has_v4(&self) -> bool {
        self.ipv6 != Ipv6::Only
    }

    /// The outer address of its router: public, or the carrier's private one.
    pub(crate) fn wan(&self) -> Ipv4Addr {
        if self.carrier_namespace.is_some() {
            Ipv4Addr::new(100, 64, self.number, 2)
        } else {
            self.public
        }
    }

    /// The carrier's address towards the site's router.
    pub(crate) fn carrier_gateway(&self) -> Ipv4Addr {
        Ipv4Addr::new(100, 64, self.number, 1)
    }

    /// The IPv6 addresses of the line between its router and the carrier's, that of its router
    /// first.
    pub(crate) fn carrier_line6(&self) -> [Ipv6Addr; 2] {
        [2, 1].map(|end| Ipv6Addr::new(0xfd00, 0x64, 0, u16::from(self.number), 0, 0, 0, end))
    }

    /// Gives it the addresses that follow from its number and whether it is renumbered.
    pub(crate) fn number_addresses(&mut self) {
        let (number, other) = (self.number, u8::from(self.renumbered));
        let prefix = if self.upnp { 20 } else { 18 } + other;
        self.public = Ipv4Addr::new(198, prefix, number, 1);
        self.gateway = if self.nat == Nat::None {
            self.public
        } else {
            Ipv4Addr::new(192, 168, number, 1)
        };
        let subnet = u16::from(other) << 8 | u16::from(number);
        self.gateway6 =
            (self.ipv6 != Ipv6::None).then(|| Ipv6Addr::new(0x2001, 2, 0, subnet, 0, 0, 0, 1));
    }

    /// The addresses of host `number` here, of the families that the site has.
    pub(crate) fn host_addresses(&self, number: u8) -> (Option<Ipv4Addr>, Option<Ipv6Addr>) {
        let [x, y, z, _] = self.gateway.octets();
        let v6 = self.gateway6.map(|gateway| {
            let [a, b, c, d, ..] = gateway.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, u16::from(number))
        });
        (self.has_v4().then(|| Ipv4Addr::new(x, y, z, number)), v6)
    }
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
        let mut plan = Plan {
            name: name.into(),
            seed: sites.seed,
            sites: Vec::new(),
            hosts: Vec::new(),
            shapes: Vec::new(),
        };
        let prefix = namespace_prefix(name);
        for (index, site) in sites.sites.iter().enumerate() {
            let mut planned = SitePlan {
                name: site.name.clone(),
                nat: site.nat,
                carrier: site.carrier,
                udp: site.udp,
                ipv6: site.ipv6,
                firewall: site.firewall,
                upnp: site.upnp,
                namespace: format!("{prefix}r.{}", site.name),
                carrier_namespace: (site.carrier != Nat::None)
                    .then(|| format!("{prefix}c.{}", site.name)),
                number: u8::try_from(index + 1).map_err(|_| "too many sites".to_string())?,
                renumbered: false,
                public: Ipv4Addr::UNSPECIFIED,
                gateway: Ipv4Addr::UNSPECIFIED,
                gateway6: None,
            };
            planned.number_addresses();
            for (number, host) in (FIRST_HOST..).zip(site.host_names()) {
                let (address, address6) = own_addresses(&planned, number);
                plan.hosts.push(HostPlan {
                    site: index,
                    address,
                    address6,
                    number,
                    cable: format!("h{}", plan.hosts.len()),
                    namespace: format!("{prefix}h.{host}"),
                    dir: PathBuf::from(HOSTS_DIR).join(name).join(&host),
                    name: host,
                    root: None,
                });
            }
            plan.sites.push(planned);
            plan.shapes.push(
                sites
                    .sites
                    .iter()
                    .map(|to| sites.shape(&site.name, &to.name))
                    .collect::<Result<_, _>>()?,
            );
        }
        Ok(plan)
    }

    /// Index of the site that holds a public address.
    pub fn site_of(address: IpAddr) -> Option<usize> {
        let number = match address {
            IpAddr::V4(v4) => match v4.octets() {
                [198, 18..=21, number, _] => number,
                _ => return None,
            },
            IpAddr::V6(v6) => match v6.segments() {
                [0x2001, 2, 0, subnet, ..] if subnet < 0x200 => (subnet & 0xff) as u8,
                _ => return None,
            },
        };
        usize::from(number).checked_sub(1)
    }

    /// The host of this name.
    pub fn host(&self, name: &str) -> Option<&HostPlan> {
        self.hosts.iter().find(|host| host.name == name)
    }

    /// The address by which others reach a host's site: the host's own, or its router's or
    /// carrier's if it is behind a NAT.
    pub fn public_address(&self, host: &HostPlan) -> IpAddr {
        let site = &self.sites[host.site];
        if site.nat == Nat::None {
            host.address
        } else {
            site.public.into()
        }
    }

    /// Gives a site its other set of public addresses.
    pub(crate) fn renumber(&mut self, site: usize) {
        let planned = &mut self.sites[site];
        planned.renumbered = !planned.renumbered;
        planned.number_addresses();
        for host in self.hosts.iter_mut().filter(|host| host.site == site) {
            (host.address, host.address6) = own_addresses(&self.sites[site], host.number);
        }
    }

    /// Gives a host a free address at `site`.
    pub(crate) fn rehost(&mut self, host: usize, site: usize) -> Result<(), String> {
        let taken: Vec<u8> = self
            .hosts
            .iter()
            .filter(|other| other.site == site)
            .map(|other| other.number)
            .collect();
        let old = self.hosts[host].number;
        let free =
            (FIRST_HOST..=u8::MAX - 1).find(|number| *number != old && !taken.contains(number));
        let number =
            free.ok_or_else(|| format!("site {} has no address left", self.sites[site].name))?;
        let (address, address6) = own_addresses(&self.sites[site], number);
        let host = &mut self.hosts[host];
        (host.site, host.number, host.address, host.address6) = (site, number, address, address6);
        Ok(())
    }
}

fn own_addresses(site: &SitePlan, number: u8) -> (IpAddr, Option<Ipv6Addr>) {
    let (v4, v6) = site.host_addresses(number);
    // A site has at least one family: only `Ipv6::Only` removes IPv4.
    (
        v4.map(IpAddr::from)
            .or(v6.map(IpAddr::from))
            .unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        v6,
    )
}

/// Every namespace of testbed `name` begins with this, and no other testbed's does.
pub(crate) fn namespace_prefix(name: &str) -> String {
    format!("p2pvm-{name}.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_leads_back_to_its_site_and_hosts_share_none() {
        let text = "[[site]]\nname='a'\nipv6='dual'\nhosts=2\n[[site]]\nname='b'\nnat='symmetric'\n\
            upnp=true\n[[site]]\nname='c'\nipv6='only'\n";
        let mut plan = Plan::new("t", &Sites::parse(text).unwrap()).unwrap();
        let before = plan.clone();
        for round in 0..2 {
            for host in &plan.hosts {
                let addresses = [
                    Some(plan.public_address(host)),
                    host.address6.map(IpAddr::from),
                ];
                assert!(
                    addresses
                        .into_iter()
                        .flatten()
                        .all(|a| Plan::site_of(a) == Some(host.site)),
                    "round {round}: {host:?}"
                );
            }
            (0..3).for_each(|site| plan.renumber(site));
            assert_eq!(plan == before, round == 1);
        }
        plan.rehost(2, 1).unwrap();
        assert_ne!(
            plan.hosts[2].address, before.hosts[2].address,
            "another address than before"
        );
        plan.rehost(2, 0).unwrap();
        assert_eq!(
            (plan.hosts[2].site, plan.hosts[2].address),
            (0, "198.18.1.12".parse().unwrap())
        );
    }
}
