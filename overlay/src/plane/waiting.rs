//! Packets that wait for the route of an address, or for a guest that is on its way here.

use crate::id::MemberId;
use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    sync::Mutex,
    time::{Duration, Instant},
};

/// How many packets are held for each address. Reason: that is what a connection sends while its
/// guest changes hosts.
const HELD_PER_ADDRESS: usize = 128;
/// How many addresses are waited for at once. Reason: a scan of the subnet must not exhaust memory.
const MAX_ADDRESSES: usize = 256;
/// How long a packet is held. Reason: TCP has retransmitted by then.
const HOLD: Duration = Duration::from_secs(4);
/// How often an address is asked for at most.
const ASK_EVERY: Duration = Duration::from_millis(1000);

struct Queue<T> {
    asked: Instant,
    items: VecDeque<(Instant, T)>,
}

/// Packets that wait for the route of an address.
pub(crate) struct Waitlist<T>(HashMap<IpAddr, Queue<T>>);

impl<T> Default for Waitlist<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T> Waitlist<T> {
    /// Holds `item` for `addr`. True if the address is to be asked for now.
    pub fn hold(&mut self, now: Instant, addr: IpAddr, item: T) -> bool {
        if self.0.len() >= MAX_ADDRESSES && !self.0.contains_key(&addr) {
            self.expire(now);
            if self.0.len() >= MAX_ADDRESSES {
                return false;
            }
        }
        let mut ask = !self.0.contains_key(&addr);
        let waiting = self.0.entry(addr).or_insert_with(|| Queue {
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

    /// Takes what waited for `addr` and is not too old.
    pub fn take(&mut self, now: Instant, addr: &IpAddr) -> Vec<T> {
        let items = self.0.remove(addr).map(|w| w.items).unwrap_or_default();
        items
            .into_iter()
            .filter(|(at, _)| now.saturating_duration_since(*at) < HOLD)
            .map(|(_, item)| item)
            .collect()
    }

    /// Drops what has waited too long.
    pub fn expire(&mut self, now: Instant) {
        self.0.retain(|_, w| {
            w.items
                .retain(|(at, _)| now.saturating_duration_since(*at) < HOLD);
            !w.items.is_empty()
        });
    }
}

/// A packet from a member, whose source address has no known route yet.
pub(crate) struct HeldPacket {
    pub from: MemberId,
    pub from_epoch: u32,
    pub to_epoch: u32,
    pub packet: Vec<u8>,
}

#[derive(Default)]
pub(crate) struct WaitingPackets {
    /// Packets to addresses without a route, with the epoch of their source.
    pub unresolved: Mutex<Waitlist<(u32, Vec<u8>)>>,
    pub unknown_sources: Mutex<Waitlist<HeldPacket>>,
    /// Packets that a guest's former host passed on before the guest had its port here.
    pub early: Mutex<Waitlist<Vec<u8>>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_asked_for_once_a_second_old_packets_dropped() {
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
