//! The questions to the DHT that told records give rise to: how many for each member, and what was
//! told.

use crate::addresses::allowance::Allowance;
use p2pvm_dhcp::Holder;
use p2pvm_overlay::MemberId;
use std::{
    collections::{HashMap, hash_map::Entry},
    net::IpAddr,
    time::{Duration, Instant},
};

/// How many addresses are asked for at a time. Reason: a member that meets others is told their
/// addresses; what is beyond is asked for when a packet wants it.
const MAX_OPEN: usize = 512;
/// How many questions one member may give rise to at once, and how long until one more.
const BURST: u32 = 64;
const EACH: Duration = Duration::from_secs(1);
/// How many members' words are kept of one address.
const MAX_TOLD: usize = 4;
/// How many members are counted. Reason: more do not tell much within a minute.
const MAX_MEMBERS: usize = 4096;

#[derive(Default)]
pub(super) struct OpenQuestions {
    open: HashMap<IpAddr, HashMap<MemberId, Holder>>,
    /// Those not yet begun.
    new: Vec<IpAddr>,
    allowances: HashMap<MemberId, Allowance>,
}

impl OpenQuestions {
    /// Opens a question about what `from` told, if it may. True if there is a new one to begin.
    pub fn open(&mut self, now: Instant, from: MemberId, ip: IpAddr, holder: &Holder) -> bool {
        if let Some(told) = self.open.get_mut(&ip) {
            if told.len() < MAX_TOLD || told.contains_key(&from) {
                told.insert(from, holder.clone());
            }
            return false;
        }
        if self.open.len() >= MAX_OPEN || !self.allows(now, from) {
            return false;
        }
        self.open
            .insert(ip, HashMap::from([(from, holder.clone())]));
        self.new.push(ip);
        true
    }

    /// Opens a question of this node's own.
    pub fn check(&mut self, ip: IpAddr) {
        if let Entry::Vacant(place) = self.open.entry(ip) {
            place.insert(HashMap::new());
            self.new.push(ip);
        }
    }

    fn allows(&mut self, now: Instant, from: MemberId) -> bool {
        if self.allowances.len() >= MAX_MEMBERS {
            self.allowances.retain(|_, a| !a.is_full(now));
        }
        if self.allowances.len() >= MAX_MEMBERS && !self.allowances.contains_key(&from) {
            return false;
        }
        self.allowances
            .entry(from)
            .or_insert_with(|| Allowance::new(now, BURST, EACH))
            .take(now)
    }

    /// The questions to begin.
    pub fn take_new(&mut self) -> Vec<IpAddr> {
        std::mem::take(&mut self.new)
    }

    /// What was told of an address while its question is open.
    pub fn told(&self, ip: &IpAddr) -> Vec<(MemberId, Holder)> {
        let told = self.open.get(ip).into_iter().flatten();
        told.map(|(from, holder)| (*from, holder.clone())).collect()
    }

    /// A question is over.
    pub fn close(&mut self, ip: &IpAddr) {
        self.open.remove(ip);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2pvm_overlay::Epoch;
    use std::net::Ipv4Addr;

    #[test]
    fn a_member_that_tells_much_uses_up_its_own_questions_only() {
        let (mut asks, now) = (OpenQuestions::default(), Instant::now());
        let (liar, other) = (MemberId([1; 32]), MemberId([2; 32]));
        let holder = Holder {
            member: liar,
            epoch: Epoch(1),
            vm: None,
            name: "x".into(),
        };
        let ip = |n: u32| IpAddr::V4(Ipv4Addr::from_bits(n));
        let mut open = |from, n| asks.open(now, from, ip(n), &holder);
        assert_eq!((0..9999).filter(|n| open(liar, *n)).count(), BURST as usize);
        assert!(open(other, 10_000) && !open(other, 10_000));
        let new = asks.take_new();
        assert_eq!(new.len(), BURST as usize + 1);
        new.iter().for_each(|ip| asks.close(ip));
        assert!(asks.open.is_empty() && asks.take_new().is_empty());
        assert!(asks.open(now + EACH, liar, ip(1), &holder));
    }
}
