//! Where addresses are: which member holds one, and since which epoch. A smaller epoch never
//! replaces a larger one: that is the fence against a host that lost a VM and does not know it.

use crate::{
    id::{Epoch, MemberId},
    membership::Cidr,
};
use std::{collections::HashMap, net::IpAddr};

/// The member that holds an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Route {
    /// The holder.
    pub member: MemberId,
    /// The epoch since which it holds the address; zero for a host's own address.
    pub epoch: Epoch,
}

/// The routing table.
#[derive(Clone, Debug, Default)]
pub struct Routes {
    addresses: HashMap<IpAddr, Route>,
    /// Subnets that members forward into, the longest prefix first.
    subnets: Vec<(Cidr, Route)>,
    /// The IPv4 address last set as each member's host's. A host that joined again has another one,
    /// and the former one's route may still be in the table.
    hosts: HashMap<MemberId, IpAddr>,
}

/// Whether this is the route of a host's own IPv4 address.
fn is_host(addr: &IpAddr, route: &Route) -> bool {
    addr.is_ipv4() && route.epoch == Epoch(0)
}

impl Routes {
    /// The route of an address: its own, else that of the smallest offered subnet around it.
    pub fn get(&self, addr: &IpAddr) -> Option<&Route> {
        self.addresses.get(addr).or_else(|| {
            self.subnets
                .iter()
                .find(|(subnet, _)| subnet.contains(addr))
                .map(|(_, route)| route)
        })
    }

    /// Replaces the offered subnets. Of two offers of one subnet the first wins.
    pub fn set_subnets(&mut self, subnets: &[(Cidr, MemberId)]) {
        self.subnets = subnets
            .iter()
            .map(|(subnet, member)| {
                (
                    *subnet,
                    Route {
                        member: *member,
                        epoch: Epoch(0),
                    },
                )
            })
            .collect();
        // The longest prefix first; the sort keeps the order of equals.
        self.subnets
            .sort_by_key(|(subnet, _)| std::cmp::Reverse(subnet.prefix()));
    }

    /// Whether `addr` is in a subnet that `member` offers, and has no route of its own.
    pub fn is_offered_by(&self, addr: &IpAddr, member: &MemberId) -> bool {
        !self.subnets.is_empty()
            && !self.addresses.contains_key(addr)
            && self.get(addr).is_some_and(|route| route.member == *member)
    }

    /// Sets a route unless a larger epoch is known. True if it was set.
    pub fn set(&mut self, addr: IpAddr, route: Route) -> bool {
        if self
            .addresses
            .get(&addr)
            .is_some_and(|known| known.epoch > route.epoch)
        {
            return false;
        }
        self.addresses.insert(addr, route);
        if is_host(&addr, &route) {
            self.hosts.insert(route.member, addr);
        }
        true
    }

    /// Sets a route whatever epoch is known: the address is another owner's.
    pub fn replace(&mut self, addr: IpAddr, route: Route) {
        self.remove(&addr);
        self.set(addr, route);
    }

    /// The member that holds an address itself, not a subnet around it.
    pub fn holder(&self, addr: &IpAddr) -> Option<&Route> {
        self.addresses.get(addr)
    }

    /// Whether [`Routes::set`] would change anything.
    pub fn would_change(&self, addr: &IpAddr, route: &Route) -> bool {
        let newer = is_host(addr, route) && self.hosts.get(&route.member) != Some(addr);
        self.addresses
            .get(addr)
            .is_none_or(|known| known.epoch <= route.epoch && (known != route || newer))
    }

    /// Removes the route of an address.
    pub fn remove(&mut self, addr: &IpAddr) {
        if let Some(route) = self.addresses.remove(addr)
            && self.hosts.get(&route.member) == Some(addr)
        {
            self.hosts.remove(&route.member);
        }
    }

    /// The IPv4 address last set as a member's host's.
    pub fn host_of(&self, member: &MemberId) -> Option<IpAddr> {
        self.hosts.get(member).copied()
    }

    /// All routes, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (IpAddr, Route)> + '_ {
        self.addresses.iter().map(|(a, r)| (*a, *r))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_smaller_epoch_never_replaces_a_larger_one() {
        let (mut routes, addr) = (Routes::default(), "10.1.2.3".parse().unwrap());
        let route = |m, e| Route {
            member: MemberId([m; 32]),
            epoch: Epoch(e),
        };
        assert!(routes.set(addr, route(1, 5)));
        assert!(!routes.set(addr, route(2, 4)));
        assert_eq!(routes.get(&addr), Some(&route(1, 5)));
        assert!(routes.set(addr, route(2, 6)));
        routes.replace(addr, route(3, 0));
        assert_eq!(routes.get(&addr), Some(&route(3, 0)));
        assert_eq!(routes.host_of(&MemberId([3; 32])), Some(addr));
    }

    #[test]
    fn a_host_that_joined_anew_has_its_last_address() {
        let (mut routes, addr) = (Routes::default(), |text: &str| {
            text.parse::<IpAddr>().unwrap()
        });
        let route = |m, e| Route {
            member: MemberId([m; 32]),
            epoch: Epoch(e),
        };
        for (text, route) in [
            ("10.1.0.9", route(1, 0)),
            ("10.1.0.2", route(1, 0)),
            ("10.1.0.3", route(1, 4)),
            ("fd00::1", route(1, 0)),
        ] {
            assert!(routes.would_change(&addr(text), &route) && routes.set(addr(text), route));
        }
        let host = MemberId([1; 32]);
        assert_eq!(routes.host_of(&host), Some(addr("10.1.0.2")));
        assert!(!routes.would_change(&addr("10.1.0.2"), &route(1, 0)));
        // It got its former one back.
        assert!(
            routes.would_change(&addr("10.1.0.9"), &route(1, 0))
                && routes.set(addr("10.1.0.9"), route(1, 0))
        );
        assert_eq!(routes.host_of(&host), Some(addr("10.1.0.9")));
        routes.remove(&addr("10.1.0.9"));
        assert_eq!(routes.host_of(&host), None);
    }

    #[test]
    fn own_addresses_precede_subnets_and_small_subnets_precede_large_ones() {
        let (mut routes, addr) = (Routes::default(), |text: &str| {
            text.parse::<IpAddr>().unwrap()
        });
        let subnet = |text: &str, m| (text.parse().unwrap(), MemberId([m; 32]));
        routes.set_subnets(&[
            subnet("192.168.0.0/16", 1),
            subnet("192.168.7.0/24", 2),
            subnet("192.168.7.0/24", 3),
        ]);
        routes.set(
            addr("192.168.7.9"),
            Route {
                member: MemberId([4; 32]),
                epoch: Epoch(0),
            },
        );
        let member = |text: &str| routes.get(&addr(text)).map(|r| r.member.0[0]);
        assert_eq!(
            [
                member("192.168.7.9"),
                member("192.168.7.8"),
                member("192.168.8.8"),
                member("10.0.0.1")
            ],
            [Some(4), Some(2), Some(1), None]
        );
        assert!(routes.is_offered_by(&addr("192.168.7.8"), &MemberId([2; 32])));
        assert!(!routes.is_offered_by(&addr("192.168.7.9"), &MemberId([4; 32])));
    }
}
