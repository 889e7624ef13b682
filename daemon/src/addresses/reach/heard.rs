//! What this node knows of each address, and which told records it believes.
//!
//! A member's signature shows the signer, not the address's owner: anybody makes a VM's key and
//! signs any address with it. The DHT's replicas decide on the owner. A told record is therefore
//! believed only from the owner that is known already, for its next epochs: so a VM that
//! moved is followed with one message. Only a host's own IPv6 address needs no question: it follows
//! from the key of the member that tells it.
//!
//! What was only told gives way to the DHT in the end: an epoch that its holder never wrote there
//! does not last.

use p2pvm_dhcp::{Holder, RENEW_AFTER, Subject};
use p2pvm_overlay::{Epoch, MemberId, plane::Route};
use std::{
    collections::HashMap,
    net::IpAddr,
    time::{Duration, Instant},
};

/// How many addresses are kept. Reason: networks of this program are smaller; further ones are
/// asked for each time.
const MAX_ADDRESSES: usize = 1 << 16;
/// How long a told epoch stands against the DHT's older one. Reason: a holder that could not write
/// writes again when it renews.
const TOLD_FOR: Duration = Duration::from_secs(RENEW_AFTER.as_secs() + 300);

/// What is to be done about a told record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It says less than is known.
    Old,
    /// It is so.
    Believed,
    /// The DHT has to say.
    Doubtful,
}

/// What the DHT's answer changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// The route is this, unless a larger epoch is known.
    Set(Route),
    /// The route is this, whatever was known.
    Replace(Route),
}

struct Claim {
    subject: Subject,
    route: Route,
    /// The newest epoch that the DHT or this host itself has confirmed.
    confirmed: Epoch,
    /// When a member told more than is confirmed.
    told: Option<Instant>,
}

/// What is known of addresses.
#[derive(Default)]
pub(super) struct Claims(HashMap<IpAddr, Claim>);

fn route(holder: &Holder) -> Route {
    Route {
        member: holder.member,
        epoch: holder.epoch,
    }
}

impl Claims {
    /// Judges what `from` told of an address, signed by its owner.
    pub fn told(
        &mut self,
        now: Instant,
        from: MemberId,
        (ip, holder): (IpAddr, &Holder),
    ) -> Verdict {
        let new = route(holder);
        let Some(known) = self.0.get_mut(&ip) else {
            let derived = ip.is_ipv6() && holder.vm.is_none() && holder.member == from;
            if derived {
                self.confirm(ip, holder.subject(), new);
            }
            return if derived {
                Verdict::Believed
            } else {
                Verdict::Doubtful
            };
        };
        if known.subject != holder.subject() {
            return Verdict::Doubtful;
        }
        if new.epoch < known.route.epoch {
            return Verdict::Old;
        }
        if new == known.route {
            return Verdict::Believed;
        }
        // An epoch has one holder. A member tells of what is with itself only.
        if !new.epoch.follows(known.route.epoch)
            || !new.epoch.follows(known.confirmed)
            || holder.member != from
        {
            return Verdict::Doubtful;
        }
        (known.route, known.told) = (new, Some(now));
        Verdict::Believed
    }

    /// Takes what the DHT says.
    pub fn found(&mut self, now: Instant, ip: IpAddr, holder: &Holder) -> Change {
        let new = route(holder);
        let change = match self.0.get_mut(&ip) {
            Some(known) if known.subject == holder.subject() => {
                let is_late = |told: Instant| now.saturating_duration_since(told) >= TOLD_FOR;
                if new.epoch >= known.route.epoch {
                    Change::Set(new)
                } else if known.told.is_some_and(is_late) {
                    Change::Replace(new)
                } else {
                    known.confirmed = known.confirmed.max(new.epoch);
                    return Change::Set(known.route);
                }
            }
            _ => Change::Replace(new),
        };
        self.confirm(ip, holder.subject(), new);
        change
    }

    /// Notes what this host knows of itself.
    pub fn confirm(&mut self, ip: IpAddr, subject: Subject, route: Route) {
        if self.0.len() < MAX_ADDRESSES || self.0.contains_key(&ip) {
            let claim = Claim {
                subject,
                route,
                confirmed: route.epoch,
                told: None,
            };
            self.0.insert(ip, claim);
        }
    }

    /// Notes that this host handed a known address on, or took it back.
    pub fn moved(&mut self, ip: IpAddr, route: Route) {
        if let Some(known) = self.0.get_mut(&ip) {
            (known.route, known.confirmed, known.told) = (route, route.epoch, None);
        }
    }

    /// Notes that the packet plane follows an address to where its holder said that it went.
    pub fn hinted(&mut self, now: Instant, ip: IpAddr, route: Route) {
        if let Some(known) = self.0.get_mut(&ip) {
            (known.route, known.told) = (route, Some(now));
        }
    }

    /// Forgets an address.
    pub fn forget(&mut self, ip: &IpAddr) {
        self.0.remove(ip);
    }

    /// At most `many` addresses of which the DHT should have heard by now what was told here. They
    /// are due again after as long a time.
    pub fn overdue(&self, now: Instant, many: usize) -> Vec<IpAddr> {
        let is_due = |told: Instant| now.saturating_duration_since(told) >= TOLD_FOR;
        let due = self.0.iter().filter(|(_, c)| c.told.is_some_and(is_due));
        due.map(|(ip, _)| *ip).take(many).collect()
    }

    /// The DHT does not say whose an address is now: it is asked again when it should know.
    pub fn defer(&mut self, now: Instant, ip: IpAddr) {
        if let Some(known) = self.0.get_mut(&ip)
            && known.told.is_some()
        {
            known.told = Some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2pvm_overlay::VmId;

    const IP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 1, 2, 3));

    fn holder(vm: u8, member: u8, epoch: u64) -> Holder {
        Holder {
            member: MemberId([member; 32]),
            epoch: Epoch(epoch),
            vm: (vm > 0).then_some(VmId([vm; 32])),
            name: "web".into(),
        }
    }

    fn tell(heard: &mut Claims, now: Instant, told: &Holder) -> Verdict {
        heard.told(now, told.member, (IP, told))
    }

    #[test]
    fn only_the_known_owner_is_believed_and_only_for_its_next_epochs() {
        let (mut heard, now) = (Claims::default(), Instant::now());
        let first = holder(9, 1, 5);
        assert_eq!(tell(&mut heard, now, &first), Verdict::Doubtful);
        assert_eq!(heard.found(now, IP, &first), Change::Replace(route(&first)));
        for (told, verdict) in [
            (holder(9, 1, 5), Verdict::Believed),
            (holder(9, 2, 4), Verdict::Old),
            (holder(9, 2, 5), Verdict::Doubtful),
            (holder(8, 2, 6), Verdict::Doubtful),
            (holder(0, 2, 0), Verdict::Doubtful),
            (holder(9, 2, 5 + Epoch::MAX_STEP + 1), Verdict::Doubtful),
            (holder(9, 2, u64::MAX), Verdict::Doubtful),
            (holder(9, 2, 6), Verdict::Believed),
            (holder(9, 1, 5), Verdict::Old),
        ] {
            assert_eq!(tell(&mut heard, now, &told), verdict, "{told:?}");
        }
        let other = MemberId([3; 32]);
        let verdict = heard.told(now, other, (IP, &holder(9, 2, 7)));
        assert_eq!(verdict, Verdict::Doubtful, "another member's word of it");
    }

    #[test]
    fn a_hosts_own_ipv6_address_is_believed_from_itself_alone() {
        let (mut heard, now) = (Claims::default(), Instant::now());
        let ip: IpAddr = "fd00::7".parse().unwrap();
        let own = holder(0, 1, 0);
        let other = MemberId([2; 32]);
        assert_eq!(heard.told(now, other, (ip, &own)), Verdict::Doubtful);
        assert_eq!(heard.told(now, own.member, (ip, &own)), Verdict::Believed);
    }

    #[test]
    fn of_two_owners_the_one_in_the_dht_has_the_address() {
        let (mut heard, now) = (Claims::default(), Instant::now());
        let (vm, host) = (holder(9, 1, 7), holder(0, 2, 0));
        heard.found(now, IP, &vm);
        // Its epoch is smaller, but it is another's.
        assert_eq!(heard.found(now, IP, &host), Change::Replace(route(&host)));
        assert_eq!(tell(&mut heard, now, &vm), Verdict::Doubtful);
    }

    #[test]
    fn an_epoch_that_is_never_in_the_dht_does_not_last() {
        let (mut heard, now) = (Claims::default(), Instant::now());
        let (kept, told) = (holder(9, 1, 5), holder(9, 2, 6));
        heard.found(now, IP, &kept);
        assert_eq!(tell(&mut heard, now, &told), Verdict::Believed);
        assert_eq!(
            heard.found(now, IP, &kept),
            Change::Set(route(&told)),
            "not yet"
        );
        assert!(heard.overdue(now, 9).is_empty());
        let later = now + TOLD_FOR;
        assert_eq!(heard.overdue(later, 9), [IP]);
        assert_eq!(heard.found(later, IP, &kept), Change::Replace(route(&kept)));
        assert!(heard.overdue(later, 9).is_empty());
        // One that is confirmed stands against an older answer.
        assert_eq!(heard.found(later, IP, &told), Change::Set(route(&told)));
        let last = later + TOLD_FOR * 9;
        assert_eq!(heard.found(last, IP, &kept), Change::Set(route(&told)));
    }

    #[test]
    fn small_steps_do_not_lead_far_from_what_the_dht_says() {
        let (mut heard, now) = (Claims::default(), Instant::now());
        heard.found(now, IP, &holder(9, 1, 1));
        let believed = |heard: &mut Claims, epochs: std::ops::Range<u64>| {
            epochs
                .filter(|e| tell(heard, now, &holder(9, 2, *e)) == Verdict::Believed)
                .count() as u64
        };
        assert_eq!(believed(&mut heard, 2..1000), Epoch::MAX_STEP);
        // The DHT follows: so does this node.
        heard.found(now, IP, &holder(9, 2, 1 + Epoch::MAX_STEP));
        assert_eq!(believed(&mut heard, 10..1000), Epoch::MAX_STEP);
    }
}
