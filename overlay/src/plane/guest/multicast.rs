//! Guests' multicast, such as mDNS, from guest to guest over the overlay: off unless the owner says
//! which members have guests that take part. Only guests may send it, only UDP, and only at a
//! limited rate. What comes from another member goes to this host's guests and never on, so there
//! are no loops.
//!
//! IPv6's link-local sources are not carried: a guest may send from its own addresses only.

use crate::id::MemberId;
use crate::lock;
use arc_swap::ArcSwapOption;
use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

/// How many packets a second this host's guests may send. Reason: discovery needs a few, and video
/// is of no use over a wide area.
const SENT_A_SECOND: f64 = 50.0;
/// How many packets a second all others may send to this host's guests.
const RECEIVED_A_SECOND: f64 = 200.0;
/// How many seconds' worth may come at once.
const BURST_SECONDS: f64 = 1.0;

/// A token bucket.
struct Bucket {
    tokens: f64,
    at: Option<Instant>,
}

impl Bucket {
    fn take(&mut self, rate: f64, now: Instant) -> bool {
        let most = rate * BURST_SECONDS;
        let gained = self.at.map_or(most, |at| {
            now.saturating_duration_since(at).as_secs_f64() * rate
        });
        (self.tokens, self.at) = ((self.tokens + gained).min(most), Some(now));
        let has = self.tokens >= 1.0;
        if has {
            self.tokens -= 1.0;
        }
        has
    }
}

/// The members that take part, and how much passed lately.
pub(crate) struct Multicast {
    on: AtomicBool,
    pub members: ArcSwapOption<Vec<MemberId>>,
    sent: Mutex<Bucket>,
    received: Mutex<Bucket>,
}

impl Default for Multicast {
    fn default() -> Self {
        let bucket = || {
            Mutex::new(Bucket {
                tokens: 0.0,
                at: None,
            })
        };
        Self {
            on: AtomicBool::new(false),
            members: ArcSwapOption::empty(),
            sent: bucket(),
            received: bucket(),
        }
    }
}

impl Multicast {
    /// Whether a packet that a guest sends may go to the group: it is UDP and within the rate.
    pub fn may_send(&self, packet: &[u8], now: Instant) -> bool {
        self.on.load(Ordering::Relaxed)
            && is_udp(packet)
            && lock(&self.sent).take(SENT_A_SECOND, now)
    }

    /// Whether a packet of another member's guest may go to this host's guests.
    pub fn may_receive(&self, packet: &[u8], now: Instant) -> bool {
        self.on.load(Ordering::Relaxed)
            && is_udp(packet)
            && lock(&self.received).take(RECEIVED_A_SECOND, now)
    }

    /// The other members that take part; `None`: this host's guests do not.
    pub fn set(&self, members: Option<Vec<MemberId>>) {
        self.on.store(members.is_some(), Ordering::Relaxed);
        self.members.store(members.map(Into::into));
    }
}

fn is_udp(packet: &[u8]) -> bool {
    match packet.first().map(|b| b >> 4) {
        Some(4) => packet.get(9) == Some(&17),
        Some(6) => packet.get(6) == Some(&17),
        _ => false,
    }
}

/// The Ethernet address of a multicast packet's group (RFC 1112 §6.4, RFC 2464 §7).
pub(crate) fn group_mac(packet: &[u8]) -> Option<[u8; 6]> {
    match packet.first()? >> 4 {
        4 => packet
            .get(16..20)
            .filter(|dst| dst[0] & 0xf0 == 0xe0)
            .map(|dst| [1, 0, 0x5e, dst[1] & 0x7f, dst[2], dst[3]]),
        6 => packet
            .get(24..40)
            .filter(|dst| dst[0] == 0xff)
            .map(|dst| [0x33, 0x33, dst[12], dst[13], dst[14], dst[15]]),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_second_holds_its_rate_and_no_more() {
        let (mut bucket, start) = (
            Bucket {
                tokens: 0.0,
                at: None,
            },
            Instant::now(),
        );
        let mut taken = 0;
        for ms in 0..10_000u64 {
            taken += usize::from(bucket.take(50.0, start + Duration::from_millis(ms)));
        }
        assert!(
            (540..=550).contains(&taken),
            "{taken} in ten seconds, with one second's worth at once"
        );
    }

    #[test]
    fn groups_have_ethernet_addresses_of_their_own() {
        let mut packet = Vec::new();
        etherparse::PacketBuilder::ipv4([10, 0, 0, 1], [224, 128, 0, 251], 1)
            .udp(5353, 5353)
            .write(&mut packet, b"")
            .unwrap();
        assert_eq!(group_mac(&packet), Some([1, 0, 0x5e, 0, 0, 251]));
        packet[16] = 10;
        assert_eq!(group_mac(&packet), None);
    }
}
