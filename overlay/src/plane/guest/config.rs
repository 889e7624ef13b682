//! A guest's interface and addresses, as the plane's owner says them.

use crate::id::{Epoch, VmId};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The gateway's link-local address on every guest port.
pub(crate) const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// How far a guest's departure has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaving {
    /// It stays and gets what was held for it.
    Not,
    /// Its memory is being copied.
    Soon,
    /// It was stopped for the hand-over: packets for it are held until
    /// [`crate::plane::Plane::set_forward`] names its new host.
    StandsStill,
}

/// A guest's interface and addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestPort {
    /// Whose it is.
    pub vm: VmId,
    /// The TAP's name on this host.
    pub ifname: String,
    /// The guest's MAC address.
    pub mac: [u8; 6],
    /// The MAC address that the overlay shows to the guest.
    pub gateway_mac: [u8; 6],
    /// The gateway's IPv4 address: what the guest sends there (DNS) is the daemon's to answer.
    pub gateway: Ipv4Addr,
    /// The guest's IPv4 address.
    pub v4: Ipv4Addr,
    /// Its IPv6 addresses.
    pub v6: Vec<Ipv6Addr>,
    /// The epoch under which this host runs the guest.
    pub epoch: Epoch,
    /// How much the guest may send, and how much receive, bits a second; `None` for no limit.
    pub bits_per_second: Option<u64>,
}

impl GuestPort {
    /// All addresses of the guest, IPv4 last.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let v6 = self.v6.iter().map(|addr| IpAddr::V6(*addr));
        v6.chain([IpAddr::V4(self.v4)])
    }

    pub(crate) fn owns(&self, addr: &IpAddr) -> bool {
        match addr {
            IpAddr::V4(v4) => *v4 == self.v4,
            IpAddr::V6(v6) => self.v6.contains(v6),
        }
    }
}
