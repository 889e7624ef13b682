//! Decides the use of an offered subnet here, by the policy, this host's own routes and the members
//! that answer.

use super::SHORTEST_PREFIX;
use p2pvm_host::rules::DEFAULT_LIKE;
use p2pvm_overlay::{
    MemberId, UnixTime,
    membership::{Cidr, NetworkPolicy, policy::Party},
};
use std::{collections::BTreeSet, fmt};

/// The use of an offer here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum SubnetUse {
    /// Packets for it go there, except for a part that this host reaches by itself.
    Used(Option<Cidr>),
    /// Packets for it go there although that member does not answer, because no other one does.
    Silent,
    Own,
    NotAccepted,
    SwitchedOff,
    Refused(Cidr),
    NotAllowed,
    OverlapsNetwork(Cidr),
    OverlapsRoute(Cidr),
    Elder(MemberId),
    Unreachable,
    Recovering,
}

impl SubnetUse {
    /// Whether packets for it go to the member that offers it.
    pub fn is_used(&self) -> bool {
        matches!(self, Self::Used(_) | Self::Silent)
    }
}

impl fmt::Display for SubnetUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Used(None) => f.write_str("used"),
            Self::Used(Some(part)) => write!(
                f,
                "used, except for {part}, which this machine \
                reaches by itself"
            ),
            Self::Silent => f.write_str("used, but the member that offers it does not answer"),
            Self::Own => f.write_str("offered by this member"),
            Self::NotAccepted => f.write_str(
                "not used: the network has no policy, and 'p2pvm \
                route accept' was not given here",
            ),
            Self::SwitchedOff => f.write_str("not used: 'p2pvm route accept --off' was given here"),
            Self::Refused(subnet) => write!(
                f,
                "not used: 'p2pvm route accept --off {subnet}' was \
                given here"
            ),
            Self::NotAllowed => f.write_str(
                "not used: the policy does not allow this member to \
                offer it ([[route]])",
            ),
            Self::OverlapsNetwork(network) => write!(
                f,
                "not used: it overlaps the network's own \
                subnet {network}"
            ),
            Self::OverlapsRoute(route) => write!(
                f,
                "not used: this machine has a route of its \
                own to {route}"
            ),
            Self::Elder(_) => f.write_str(
                "not used: another member has offered the same subnet \
                for longer",
            ),
            Self::Recovering => f.write_str(
                "not used yet: the member answers again since a \
                moment, and another offers the same subnet",
            ),
            Self::Unreachable => f.write_str(
                "not used: the member does not answer, and another \
                offers the same subnet",
            ),
        }
    }
}

/// The state by which an offer is judged.
pub(super) struct Judge<'a> {
    pub me: MemberId,
    pub network: Cidr,
    /// This host's other routes.
    pub local: &'a [Cidr],
    pub policy: Option<&'a NetworkPolicy>,
    pub accept: Option<bool>,
    /// Subnets that are never used.
    pub refused: &'a [Cidr],
    /// Members that do not answer.
    pub silent: &'a BTreeSet<MemberId>,
    /// Silent members that have just answered again.
    pub recovering: &'a BTreeSet<MemberId>,
}

/// One offered subnet.
#[derive(Clone, Debug)]
pub(super) struct OfferedSubnet {
    pub member: MemberId,
    pub party: Party,
    pub subnet: Cidr,
    pub since: UnixTime,
}

impl Judge<'_> {
    fn allows(&self, offer: &OfferedSubnet) -> bool {
        self.policy
            .is_none_or(|policy| policy.allows_route(&offer.subnet, &offer.party).is_some())
    }

    /// The use of `offer`, given all known offers.
    pub fn judge(&self, offer: &OfferedSubnet, all: &[OfferedSubnet]) -> SubnetUse {
        if offer.subnet.overlaps(&self.network)
            || offer.subnet.prefix() < SHORTEST_PREFIX
            || !offer.subnet.addr().is_ipv4()
        {
            return SubnetUse::OverlapsNetwork(self.network);
        }
        if !self.allows(offer) {
            return SubnetUse::NotAllowed;
        }
        if offer.member == self.me {
            return SubnetUse::Own;
        }
        match (self.accept, self.policy) {
            (Some(false), _) => return SubnetUse::SwitchedOff,
            (None, None) => return SubnetUse::NotAccepted,
            _ => {}
        }
        let holds = |refused: &&Cidr| {
            refused.prefix() <= offer.subnet.prefix() && refused.contains(&offer.subnet.addr())
        };
        if let Some(refused) = self.refused.iter().find(holds) {
            return SubnetUse::Refused(*refused);
        }
        // A default route, also one in pieces, hides nothing.
        let own = || {
            self.local.iter().filter(|route| {
                u32::from(route.prefix()) > DEFAULT_LIKE && route.overlaps(&offer.subnet)
            })
        };
        if let Some(route) = own().find(|route| route.prefix() <= offer.subnet.prefix()) {
            return SubnetUse::OverlapsRoute(*route);
        }
        let silent = |offer: &OfferedSubnet| self.silent.contains(&offer.member);
        // Of those that answer the oldest; if none does, the oldest of all.
        let rank = |offer: &OfferedSubnet| (silent(offer), offer.since, offer.member);
        let rivals = all.iter().filter(|other| {
            other.subnet == offer.subnet && other.member != self.me && self.allows(other)
        });
        match rivals
            .min_by_key(|other| rank(other))
            .filter(|best| rank(best) < rank(offer))
        {
            Some(_) if silent(offer) && self.recovering.contains(&offer.member) => {
                SubnetUse::Recovering
            }
            Some(_) if silent(offer) => SubnetUse::Unreachable,
            Some(best) => SubnetUse::Elder(best.member),
            None if silent(offer) && !self.recovering.contains(&offer.member) => SubnetUse::Silent,
            None => SubnetUse::Used(own().next().copied()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2pvm_overlay::membership::{Groups, policy::AddressOwner};
    use std::net::{IpAddr, Ipv6Addr};

    fn block(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    fn offered(member: u8, subnet: &str, since: u64) -> OfferedSubnet {
        let owner = AddressOwner::Member {
            id: MemberId([member; 32]),
            name: format!("m{member}"),
            groups: Groups::default(),
        };
        let party = Party {
            addr: IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            owner,
        };
        OfferedSubnet {
            member: MemberId([member; 32]),
            party,
            subnet: block(subnet),
            since: UnixTime(since),
        }
    }

    fn judged(
        policy: Option<&str>,
        accept: Option<bool>,
        offers: &[OfferedSubnet],
    ) -> Vec<SubnetUse> {
        judged_without(policy, accept, offers, &[])
    }

    fn judged_without(
        policy: Option<&str>,
        accept: Option<bool>,
        offers: &[OfferedSubnet],
        silent: &[u8],
    ) -> Vec<SubnetUse> {
        let silent = silent
            .iter()
            .map(|member| MemberId([*member; 32]))
            .collect();
        let policy = policy.map(|text| NetworkPolicy::parse(text).unwrap());
        let local = [
            block("0.0.0.0/0"),
            block("0.0.0.0/1"),
            block("128.0.0.0/1"),
            block("172.16.0.0/16"),
        ];
        let judge = Judge {
            me: MemberId([9; 32]),
            network: block("10.9.0.0/16"),
            local: &local,
            policy: policy.as_ref(),
            accept,
            refused: &[block("192.168.99.0/24")],
            silent: &silent,
            recovering: &BTreeSet::new(),
        };
        offers
            .iter()
            .map(|offer| judge.judge(offer, offers))
            .collect()
    }

    #[test]
    fn an_offer_is_used_by_consent_or_if_a_policy_allows_it() {
        let offers = [offered(1, "192.168.7.0/24", 5)];
        let allowed = "default = 'allow'\n[[route]]\nsubnet = '192.168.0.0/16'\nby = 'member:m1'";
        assert_eq!(judged(None, None, &offers), [SubnetUse::NotAccepted]);
        assert_eq!(judged(None, Some(true), &offers), [SubnetUse::Used(None)]);
        assert_eq!(
            judged(Some(allowed), None, &offers),
            [SubnetUse::Used(None)]
        );
        assert_eq!(
            judged(Some(allowed), Some(false), &offers),
            [SubnetUse::SwitchedOff]
        );
        assert_eq!(
            judged(Some("default = 'allow'"), Some(true), &offers),
            [SubnetUse::NotAllowed]
        );
    }

    #[test]
    fn an_overlapping_offer_is_not_used_and_a_default_route_hides_none() {
        let offers = [
            offered(1, "10.9.8.0/24", 5),
            offered(1, "172.16.3.0/24", 5),
            offered(1, "172.0.0.0/8", 5),
            offered(1, "10.8.0.0/16", 5),
        ];
        let own = block("172.16.0.0/16");
        assert_eq!(
            judged(None, Some(true), &offers),
            [
                SubnetUse::OverlapsNetwork(block("10.9.0.0/16")),
                SubnetUse::OverlapsRoute(own),
                SubnetUse::Used(Some(own)),
                SubnetUse::Used(None)
            ],
            "a longer route of this host's own goes before a part of the offer only"
        );
    }

    #[test]
    fn the_elder_of_two_offers_is_used_whatever_their_order() {
        let offers = [
            offered(2, "192.168.7.0/24", 5),
            offered(1, "192.168.7.0/24", 6),
            offered(3, "192.168.7.0/24", 5),
        ];
        let elder = || SubnetUse::Elder(MemberId([2; 32]));
        assert_eq!(
            judged(None, Some(true), &offers),
            [SubnetUse::Used(None), elder(), elder()]
        );
        let policy = "default = 'allow'\n[[route]]\nsubnet = '192.168.7.0/24'\nby = ['member:m1', \
            'member:m3']";
        assert_eq!(
            judged(Some(policy), None, &offers),
            [
                SubnetUse::NotAllowed,
                SubnetUse::Elder(MemberId([3; 32])),
                SubnetUse::Used(None)
            ],
            "who may not offer does not count"
        );
    }

    #[test]
    fn a_refused_subnet_is_not_used_and_others_are() {
        let offers = [
            offered(1, "192.168.99.0/25", 5),
            offered(1, "192.168.0.0/16", 5),
        ];
        let refused = SubnetUse::Refused(block("192.168.99.0/24"));
        assert_eq!(
            judged(None, Some(true), &offers),
            [refused, SubnetUse::Used(None)]
        );
    }

    #[test]
    fn own_offers_are_offered_whatever_is_accepted_here() {
        assert_eq!(
            judged(None, None, &[offered(9, "172.16.0.0/16", 5)]),
            [SubnetUse::Own]
        );
    }

    #[test]
    fn the_eldest_answering_offer_is_used_or_the_eldest_of_all() {
        let offers = [
            offered(1, "192.168.7.0/24", 5),
            offered(2, "192.168.7.0/24", 6),
        ];
        let elder = |member| SubnetUse::Elder(MemberId([member; 32]));
        assert_eq!(
            judged_without(None, Some(true), &offers, &[]),
            [SubnetUse::Used(None), elder(1)]
        );
        assert_eq!(
            judged_without(None, Some(true), &offers, &[1]),
            [SubnetUse::Unreachable, SubnetUse::Used(None)]
        );
        assert_eq!(
            judged_without(None, Some(true), &offers, &[1, 2]),
            [SubnetUse::Silent, SubnetUse::Unreachable]
        );
        assert_eq!(
            judged_without(None, Some(true), &offers[..1], &[1]),
            [SubnetUse::Silent]
        );
    }
}
