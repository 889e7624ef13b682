//! A second UDP port, for addresses that a router on the way has made unreachable from the first.
//!
//! A router tracks each flow by its addresses and ports, and keeps what it decided at the flow's
//! first packet: if a translation rule was added later, or the answers are routed elsewhere by now,
//! the flow stays a black hole for as long as packets keep it alive, and probes and keepalives do.
//! Only another port makes another flow. Datagrams to such addresses therefore leave from a socket
//! of their own until that does not help either. The first port stays, since a router may map it
//! to this host and members know it.
//!
//! [`crate::connect`] chooses the addresses. A member that answers to the second port from an
//! unknown address, its NAT's mapping for that port, is answered from the second port too.

use super::udp::Udp;
use crate::{read_lock, write_lock};
use arc_swap::ArcSwapOption;
use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// How long an address stays with the second port after something last came from it. Reason: a
/// NAT's mapping is gone by then too.
pub(crate) const ADDRESS_LIFE: Duration = Duration::from_secs(180);
/// How often it is noted that an address is in use. Reason: the table is locked for it.
const NOTED_EVERY: Duration = Duration::from_secs(5);
/// How long an address stays with the second port at least. Reason: the probes of one try take
/// some 4 s.
const LEAST_STAY: Duration = Duration::from_secs(5);
/// How many addresses are sent to from the second port.
const MAX_ADDRESSES: usize = 256;

/// Where a UDP datagram came from, and to which port of this node. A flow of a NAT or a firewall
/// has both: what arrives at one port says nothing about what leaves from the other.
#[derive(Clone, Copy)]
pub(crate) struct UdpSource {
    pub addr: SocketAddr,
    /// Whether it came to the second port.
    pub is_second_port: bool,
}

/// The second port and the addresses that are sent to from it.
#[derive(Default)]
pub(crate) struct SecondPort {
    is_used: AtomicBool,
    /// Nothing leaves from the first port, so that routers forget its flows.
    is_first_silent: AtomicBool,
    /// When each was last asked for, or heard.
    addresses: RwLock<HashMap<SocketAddr, Instant>>,
    socket: ArcSwapOption<Udp>,
}

impl SecondPort {
    /// The socket for this address, if it is not the first.
    pub fn socket_for(&self, to: &SocketAddr) -> Option<Arc<Udp>> {
        if self.sends_to(to) {
            self.socket.load_full()
        } else {
            None
        }
    }

    /// The second port's socket, if it is open.
    pub fn socket(&self) -> Option<Arc<Udp>> {
        self.socket.load_full()
    }

    /// Replaces the socket; an earlier one's thread ends.
    pub fn open(&self, udp: Arc<Udp>) {
        self.socket.store(Some(udp));
    }

    /// Whether `udp` is the second port's socket still.
    pub fn is_current(&self, udp: &Arc<Udp>) -> bool {
        let socket = self.socket.load();
        socket
            .as_ref()
            .is_some_and(|current| Arc::ptr_eq(current, udp))
    }

    /// Whether some address is sent to from the second port.
    pub fn is_used(&self) -> bool {
        self.is_used.load(Ordering::Relaxed)
    }

    /// Whether datagrams to this address leave from the second port.
    pub fn sends_to(&self, to: &SocketAddr) -> bool {
        self.is_used() && self.has(to)
    }

    /// Whether a datagram is answered from the second port. An answer leaves from the port to which
    /// the question came, as only then it shows that the path works both ways (RFC 8445 §7.3.1.1),
    /// but never from a first port that has to be silent.
    pub fn answers(&self, from: UdpSource) -> bool {
        from.is_second_port
            || (self.is_first_silent.load(Ordering::Relaxed) && self.sends_to(&from.addr))
    }

    pub fn silence_first(&self, silent: bool) {
        self.is_first_silent.store(silent, Ordering::Relaxed);
    }

    /// Returns an address that was heard at the first port to it, unless the second has lately
    /// tried or heard it. True if it was returned.
    pub fn return_to_first(&self, address: &SocketAddr, now: Instant) -> bool {
        let mut known = write_lock(&self.addresses);
        let is_stale = known
            .get(address)
            .is_some_and(|at| now.saturating_duration_since(*at) >= LEAST_STAY)
            && !self.is_first_silent.load(Ordering::Relaxed);
        if is_stale {
            known.remove(address);
            self.is_used.store(!known.is_empty(), Ordering::Relaxed);
        }
        is_stale
    }

    /// Whether the address has been given to the second port.
    pub fn has(&self, addr: &SocketAddr) -> bool {
        read_lock(&self.addresses).contains_key(addr)
    }

    /// Gives addresses to the second port, or notes that they are in use.
    pub fn add(&self, addresses: impl IntoIterator<Item = SocketAddr>, now: Instant) {
        let mut known = write_lock(&self.addresses);
        known.retain(|_, at| now.saturating_duration_since(*at) < ADDRESS_LIFE);
        for address in addresses {
            if known.len() < MAX_ADDRESSES || known.contains_key(&address) {
                known.insert(address, now);
            }
        }
        self.is_used.store(!known.is_empty(), Ordering::Relaxed);
    }

    /// Notes that something came from an address of the second port.
    pub fn note(&self, address: &SocketAddr, now: Instant) {
        let known = read_lock(&self.addresses).get(address).copied();
        if known.is_some_and(|at| now.saturating_duration_since(at) >= NOTED_EVERY) {
            self.add([*address], now);
        }
    }

    /// Returns all addresses to the first port, and lets go of `udp` unless it has been replaced.
    pub fn close(&self, udp: &Arc<Udp>) {
        write_lock(&self.addresses).clear();
        self.is_used.store(false, Ordering::Relaxed);
        self.socket.rcu(|current| {
            current
                .as_ref()
                .filter(|current| !Arc::ptr_eq(current, udp))
                .cloned()
        });
    }

    /// Whether there is no address, or none that was heard lately.
    pub fn is_idle(&self, now: Instant) -> bool {
        let known = read_lock(&self.addresses);
        known
            .values()
            .all(|at| now.saturating_duration_since(*at) >= ADDRESS_LIFE)
    }

    /// Returns addresses to the first port.
    pub fn remove(&self, addresses: &[SocketAddr]) {
        let mut known = write_lock(&self.addresses);
        known.retain(|address, _| !addresses.contains(address));
        self.is_used.store(!known.is_empty(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_port_sends_only_to_named_addresses_in_use() {
        let (port, now) = (SecondPort::default(), Instant::now());
        let (a, b): (SocketAddr, SocketAddr) =
            (([192, 0, 2, 1], 7).into(), ([192, 0, 2, 2], 7).into());
        port.open(Arc::new(Udp::bind(0).unwrap()));
        assert!(port.socket_for(&a).is_none());
        port.add([a], now);
        assert!(port.socket_for(&a).is_some() && port.socket_for(&b).is_none());
        port.add([b], now + ADDRESS_LIFE);
        assert!(
            port.socket_for(&a).is_none() && port.socket_for(&b).is_some(),
            "nothing came from it for long"
        );
        port.remove(&[b]);
        assert!(port.socket_for(&b).is_none() && !port.is_used());
    }

    #[test]
    fn an_address_heard_at_the_first_port_returns_there() {
        let (port, now) = (SecondPort::default(), Instant::now());
        let a: SocketAddr = ([192, 0, 2, 1], 7).into();
        port.open(Arc::new(Udp::bind(0).unwrap()));
        port.add([a], now);
        assert!(
            !port.return_to_first(&a, now + Duration::from_secs(4)) && port.sends_to(&a),
            "its probes are under way"
        );
        // The second port hears it, so it is of use there.
        port.note(&a, now + LEAST_STAY);
        assert!(!port.return_to_first(&a, now + LEAST_STAY + Duration::from_secs(4)));
        assert!(
            port.return_to_first(&a, now + LEAST_STAY * 2)
                && !port.sends_to(&a)
                && port.socket_for(&a).is_none()
        );
        assert!(!port.return_to_first(&a, now + LEAST_STAY * 3), "once");
        // A first port that has to be silent neither answers nor gets addresses back.
        port.add([a], now);
        let to_first = UdpSource {
            addr: a,
            is_second_port: false,
        };
        assert!(
            !port.answers(to_first)
                && port.answers(UdpSource {
                    is_second_port: true,
                    ..to_first
                })
        );
        port.silence_first(true);
        assert!(port.answers(to_first) && !port.return_to_first(&a, now + LEAST_STAY * 2));
    }
}
