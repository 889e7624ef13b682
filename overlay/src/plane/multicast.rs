//! Guests' multicast, such as mDNS, from guest to guest over the overlay: off unless the owner says
//! which members have guests that take part. Only UDP, only from guests, so many packets a second
//! and no more. What comes from another member goes to this host's guests and never on, so there
//! are no loops.
//!
//! IPv6's link-local sources are not carried: a guest speaks for its own addresses only.

use super::{Inner, core::lock, deliver::Ctx};
use crate::{id::MemberId, link::frame::Frame};
use arc_swap::ArcSwapOption;
use std::{
    net::IpAddr,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

/// Packets a second that this host's guests send to all: discovery needs a few, video is no use
/// over a wide area.
const SENT_A_SECOND: f64 = 50.0;
/// Packets a second that all others may send to this host's guests.
const TAKEN_A_SECOND: f64 = 200.0;
/// A second's worth may come at once.
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

/// Who takes part, and how much passed lately.
pub(crate) struct Multicast {
    on: AtomicBool,
    members: ArcSwapOption<Vec<MemberId>>,
    sent: Mutex<Bucket>,
    taken: Mutex<Bucket>,
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
            taken: bucket(),
        }
    }
}

impl Multicast {
    /// The other members that take part; `None`: nobody here does.
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

impl Inner {
    /// A guest's packet to a multicast address, held by the guest under `from_epoch`.
    pub fn multicast_out(
        &self,
        ctx: &mut Ctx,
        from_epoch: u32,
        packet: &[u8],
        src: &IpAddr,
        dst: &IpAddr,
        now: Instant,
    ) {
        let wanted =
            self.multicast.on.load(Ordering::Relaxed) && dst.is_multicast() && is_udp(packet);
        if !wanted || !lock(&self.multicast.sent).take(SENT_A_SECOND, now) {
            return;
        }
        self.to_guests(ctx, packet, src, now);
        let members = self.multicast.members.load();
        for member in members.iter().flat_map(|members| members.iter()) {
            let peer = self.peer(*member);
            self.send_frame(
                &mut ctx.out,
                &peer,
                Frame::Ip {
                    from_epoch,
                    to_epoch: 0,
                    passed_on: false,
                },
                packet,
                now,
            );
        }
    }

    /// Another member's guest's packet to a multicast address; its source has been checked.
    pub fn multicast_in(&self, ctx: &mut Ctx, packet: &[u8], src: &IpAddr, now: Instant) {
        let wanted = self.multicast.on.load(Ordering::Relaxed) && is_udp(packet);
        if wanted && lock(&self.multicast.taken).take(TAKEN_A_SECOND, now) {
            self.to_guests(ctx, packet, src, now);
        }
    }

    fn to_guests(&self, ctx: &mut Ctx, packet: &[u8], src: &IpAddr, now: Instant) {
        for port in self.ports.load().iter() {
            let guest = IpAddr::V4(port.config.v4);
            let own = guest == *src || port.config.v6.iter().any(|v6| IpAddr::V6(*v6) == *src);
            if !own && self.access.admits(packet, src, &guest, now) {
                ctx.give_guest(port, packet);
            }
        }
    }
}

/// The Ethernet address that a packet goes to at a guest: the group's for multicast (RFC 1112 §6.4,
/// RFC 2464 §7).
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
