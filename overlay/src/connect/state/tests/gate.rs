//! What stands between a simulated member and the internet, in the terms of RFC 4787.

use crate::connect::message::NatKind;
use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

/// A kind of home.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Home {
    Open,
    /// No NAT, but a firewall that lets in the addresses and ports that were written to.
    Firewall,
    /// Endpoint-independent mapping, and the three kinds of filtering.
    FullCone,
    AddressCone,
    PortCone,
    /// A mapping for each destination, at random ports or at the next one.
    Symmetric,
    Counting,
    NoUdp,
}

impl Home {
    pub const ALL: [Self; 8] = [
        Self::Open,
        Self::Firewall,
        Self::FullCone,
        Self::AddressCone,
        Self::PortCone,
        Self::Symmetric,
        Self::Counting,
        Self::NoUdp,
    ];

    /// What a survey is to find.
    pub fn kind(self) -> NatKind {
        match self {
            Self::Open => NatKind::Open,
            Self::Firewall => NatKind::Firewalled,
            Self::FullCone => NatKind::FullCone,
            Self::AddressCone => NatKind::AddressCone,
            Self::PortCone => NatKind::Cone,
            Self::Symmetric => NatKind::Symmetric,
            Self::Counting => NatKind::Counting,
            Self::NoUdp => NatKind::Blocked,
        }
    }
}

/// The gate of one home.
pub struct Gate {
    home: Home,
    number: u8,
    /// Outside ports by inside port and, where the NAT maps so, destination.
    mappings: HashMap<(u16, Option<SocketAddr>), u16>,
    inside: HashMap<u16, u16>,
    written: HashSet<(u16, SocketAddr)>,
    next_port: u16,
    next_own: u16,
}

impl Gate {
    pub fn new(home: Home, number: u8, first_port: u16) -> Self {
        Self {
            home,
            number,
            mappings: HashMap::new(),
            inside: HashMap::new(),
            written: HashSet::new(),
            next_port: first_port,
            next_own: 61_000,
        }
    }

    pub fn home(&self) -> Home {
        self.home
    }

    fn has_nat(&self) -> bool {
        !matches!(self.home, Home::Open | Home::Firewall | Home::NoUdp)
    }

    /// The address that others see.
    pub fn outside(&self) -> IpAddr {
        Ipv4Addr::new(198, 18, self.number, 1).into()
    }

    /// The member's own address.
    pub fn local(&self) -> IpAddr {
        if self.has_nat() || self.home == Home::NoUdp {
            Ipv4Addr::new(192, 168, self.number, 2).into()
        } else {
            self.outside()
        }
    }

    /// A port of its own that the member opens for another.
    pub fn open_port(&mut self) -> u16 {
        self.next_own += 1;
        self.next_own
    }

    /// Other traffic of the home takes some mappings.
    pub fn take_ports(&mut self, n: u16) {
        self.next_port = 20_000 + (self.next_port - 20_000 + n) % 40_000;
    }

    /// A datagram leaves from an inside port; where it comes from as others see it.
    pub fn sent(&mut self, port: u16, to: SocketAddr) -> Option<SocketAddr> {
        if self.home == Home::NoUdp {
            return None;
        }
        if !self.has_nat() {
            self.written.insert((port, to));
            return Some(SocketAddr::new(self.outside(), port));
        }
        let by_destination = matches!(self.home, Home::Symmetric | Home::Counting);
        let key = (port, by_destination.then_some(to));
        let outside = match self.mappings.get(&key) {
            Some(outside) => *outside,
            None => {
                // A port far from the last, or the next.
                let step = if self.home == Home::Symmetric { 997 } else { 1 };
                self.next_port = 20_000 + (self.next_port - 20_000 + step) % 40_000;
                self.mappings.insert(key, self.next_port);
                self.inside.insert(self.next_port, port);
                self.next_port
            }
        };
        self.written.insert((outside, to));
        Some(SocketAddr::new(self.outside(), outside))
    }

    /// A datagram arrives; the inside port that it reaches, if it is let in.
    pub fn received(&self, port: u16, from: SocketAddr) -> Option<u16> {
        let inside = if self.has_nat() {
            *self.inside.get(&port)?
        } else {
            port
        };
        let exact = self.written.contains(&(port, from));
        let by_address = || {
            let mut to = self.written.iter().filter(|(p, _)| *p == port);
            to.any(|(_, to)| to.ip() == from.ip())
        };
        let lets_in = match self.home {
            Home::Open | Home::FullCone => true,
            Home::AddressCone => by_address(),
            Home::NoUdp => false,
            _ => exact,
        };
        lets_in.then_some(inside)
    }
}
