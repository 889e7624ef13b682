//! Where addresses are: which member holds one and since which epoch, and the packets that wait for
//! an answer. A smaller epoch never replaces a larger one: that is the fence against a host that
//! lost a VM and does not know it.

use crate::{
    id::{Epoch, MemberId},
    membership::Cidr,
};
use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    time::{Duration, Instant},
};

/// Where an address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Route {
    /// The member that holds it.
    pub member: MemberId,
    /// Since which epoch; zero for a host's own address.
    pub epoch: Epoch,
}

/// The table that packet threads read as a snapshot: addresses, offered subnets, and the IPv4
/// address that was last said to be each member's host's. A host that joined anew has another, and
/// the former one's route is still here.
#[derive(Clone, Debug, Default)]
pub struct Routes(
    HashMap<IpAddr, Route>,
    Vec<(Cidr, Route)>,
    HashMap<MemberId, IpAddr>,
);

/// Whether it is the route of a host's own IPv4 address.
fn is_host(addr: &IpAddr, route: &Route) -> bool {
    addr.is_ipv4() && route.epoch == Epoch(0)
}

impl Routes {
    /// The route of an address: its own, else that of the smallest offered subnet that it lies in.
    pub fn get(&self, addr: &IpAddr) -> Option<&Route> {
        self.0.get(addr).or_else(|| {
            self.1
                .iter()
                .find(|(subnet, _)| subnet.contains(addr))
                .map(|(_, route)| route)
        })
    }

    /// Replaces the offered subnets. Of two offers of one subnet the first counts.
    pub fn set_subnets(&mut self, subnets: &[(Cidr, MemberId)]) {
        self.1 = subnets
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
        self.1
            .sort_by_key(|(subnet, _)| std::cmp::Reverse(subnet.prefix()));
    }

    /// Whether `addr` is of a subnet that `member` offers, and nobody's own.
    pub fn is_offered_by(&self, addr: &IpAddr, member: &MemberId) -> bool {
        !self.1.is_empty()
            && !self.0.contains_key(addr)
            && self.get(addr).is_some_and(|route| route.member == *member)
    }

    /// Sets a route unless a larger epoch is known; whether it now stands.
    pub fn set(&mut self, addr: IpAddr, route: Route) -> bool {
        if self
            .0
            .get(&addr)
            .is_some_and(|known| known.epoch > route.epoch)
        {
            return false;
        }
        self.0.insert(addr, route);
        if is_host(&addr, &route) {
            self.2.insert(route.member, addr);
        }
        true
    }

    /// Whether [`Routes::set`] would change anything.
    pub fn would_change(&self, addr: &IpAddr, route: &Route) -> bool {
        let newer = is_host(addr, route) && self.2.get(&route.member) != Some(addr);
        self.0
            .get(addr)
            .is_none_or(|known| known.epoch <= route.epoch && (known != route || newer))
    }

    /// Forgets an address.
    pub fn remove(&mut self, addr: &IpAddr) {
        if let Some(route) = self.0.remove(addr)
            && self.2.get(&route.member) == Some(addr)
        {
            self.2.remove(&route.member);
        }
    }

    /// The IPv4 address that was last said to be a member's host's.
    pub fn host_of(&self, member: &MemberId) -> Option<IpAddr> {
        self.2.get(member).copied()
    }

    /// All routes, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (IpAddr, Route)> + '_ {
        self.0.iter().map(|(a, r)| (*a, *r))
    }
}

/// Packets held per address: a few datagrams, or what a connection sends while its guest changes
/// hosts.
const HELD_PER_ADDRESS: usize = 128;
/// Addresses waited for at once; a scan of the subnet must not eat memory.
const MAX_ADDRESSES: usize = 256;
/// A packet is not worth sending after this time: TCP has tried again by then.
const HOLD: Duration = Duration::from_secs(4);
/// An address is asked for at most this often.
const ASK_EVERY: Duration = Duration::from_millis(1000);

struct Waiting<T> {
    asked: Instant,
    items: VecDeque<(Instant, T)>,
}

/// Packets that wait for the route of an address.
pub struct Waitlist<T>(HashMap<IpAddr, Waiting<T>>);

impl<T> Default for Waitlist<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T> Waitlist<T> {
    /// Holds `item` for `addr`; true if the address should be asked for now.
    pub fn hold(&mut self, now: Instant, addr: IpAddr, item: T) -> bool {
        if self.0.len() >= MAX_ADDRESSES && !self.0.contains_key(&addr) {
            self.expire(now);
            if self.0.len() >= MAX_ADDRESSES {
                return false;
            }
        }
        let mut ask = !self.0.contains_key(&addr);
        let waiting = self.0.entry(addr).or_insert_with(|| Waiting {
            asked: now,
            items: VecDeque::new(),
        });
        if now.saturating_duration_since(waiting.asked) >= ASK_EVERY {
            (waiting.asked, ask) = (now, true);
        }
        if waiting.items.len() >= HELD_PER_ADDRESS {
            waiting.items.pop_front();
        }
        waiting.items.push_back((now, item));
        ask
    }

    /// What waited for `addr` and is not too old.
    pub fn take(&mut self, now: Instant, addr: &IpAddr) -> Vec<T> {
        let items = self.0.remove(addr).map(|w| w.items).unwrap_or_default();
        items
            .into_iter()
            .filter(|(at, _)| now.saturating_duration_since(*at) < HOLD)
            .map(|(_, item)| item)
            .collect()
    }

    /// Drops what waited too long.
    pub fn expire(&mut self, now: Instant) {
        self.0.retain(|_, w| {
            w.items
                .retain(|(at, _)| now.saturating_duration_since(*at) < HOLD);
            !w.items.is_empty()
        });
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
    fn an_address_of_its_own_goes_before_a_subnet_and_a_small_subnet_before_a_large_one() {
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

    #[test]
    fn an_address_is_asked_for_once_a_second_and_old_packets_are_dropped() {
        let (mut list, addr, now) = (
            Waitlist::default(),
            "10.1.2.3".parse().unwrap(),
            Instant::now(),
        );
        assert!(list.hold(now, addr, 1));
        assert!(!list.hold(now, addr, 2));
        assert!(list.hold(now + ASK_EVERY, addr, 3));
        assert_eq!(list.take(now + HOLD, &addr), vec![3]);
    }

    #[test]
    fn a_scan_of_a_subnet_holds_a_bounded_number_of_addresses() {
        let (mut list, now) = (Waitlist::default(), Instant::now());
        let asked = (0..10_000u32)
            .filter(|n| list.hold(now, IpAddr::from(n.to_be_bytes()), ()))
            .count();
        assert_eq!(asked, MAX_ADDRESSES);
    }
}
