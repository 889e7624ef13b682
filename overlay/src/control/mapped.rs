//! A port mapping on the home router for the control plane. As long as this node has no public IPv4
//! address, its QUIC port is mapped on the router ([`crate::portmap`]: PCP, NAT-PMP, UPnP), and the
//! outside address is the first of those that it publishes and puts into invites.
//!
//! Reason: without it no machine could join a network whose members are all behind such routers.
//! The ports of the packet plane are found out with the help of members, and a joiner has none yet.
//! A mapping with an outside address that is not public, as behind a carrier's NAT, is not
//! published.

use super::{
    address::{ip_of, is_loopback, is_public, is_quic},
    shared::{Command, Shared},
};
use crate::portmap::{self, Mapping};
use crate::read_lock;
use libp2p::{Multiaddr, multiaddr::Protocol};
use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::{Notify, oneshot, watch};

/// How long before a router that did not map the port is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(300);
/// How long before this node's own addresses are checked for changes again.
const LOOK: Duration = Duration::from_secs(2);
/// How long before the first such check, doubled each time up to [`LOOK`]. Reason: right after the
/// start the sockets are not open yet.
const LOOK_FIRST: Duration = Duration::from_millis(50);
/// How long to wait for the router at the end. A router that does not answer keeps the mapping
/// until it expires.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// The control of the task that keeps the mapping.
pub struct WayIn {
    settled: watch::Sender<bool>,
    closing: Notify,
    closed: Notify,
}

impl WayIn {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            settled: watch::Sender::new(false),
            closing: Notify::new(),
            closed: Notify::new(),
        })
    }

    /// Waits until the router has been asked once, or need not be.
    pub async fn settled(&self) {
        // This node holds the sender as long.
        let _ = self.settled.subscribe().wait_for(|done| *done).await;
    }

    /// Removes the mapping.
    pub async fn close(&self) {
        self.closing.notify_one();
        let _ = tokio::time::timeout(CLOSE_LIMIT, self.closed.notified()).await;
    }

    /// Keeps a mapping as long as it is of use.
    pub async fn keep(self: Arc<Self>, shared: Arc<Shared>) {
        let mut held = None;
        tokio::select! {
            () = self.closing.notified() => {}
            () = self.tend(&shared, &mut held) => {}
        }
        if let Some(mapping) = held.take() {
            mapping.release().await;
        }
        self.closed.notify_one();
    }

    async fn tend(&self, shared: &Shared, held: &mut Option<Mapping>) {
        let mut told: Option<SocketAddr> = None;
        loop {
            let own = own_addresses(shared);
            let wanted = own.wants_mapping();
            *held = match (wanted, held.take()) {
                (true, Some(mapping)) => match mapping.renew().await {
                    Some(renewed) => Some(renewed),
                    None => portmap::map(&own.ips, own.port).await,
                },
                (true, None) => portmap::map(&own.ips, own.port).await,
                (false, Some(mapping)) => {
                    mapping.release().await;
                    None
                }
                (false, None) => None,
            };
            let usable = held.as_ref().map(Mapping::external).filter(|outside| {
                is_public(outside.ip()) && shared.is_usable(&multiaddr(*outside))
            });
            if usable != told {
                tracing::info!(
                    outside = ?usable, protocol = ?held.as_ref().map(Mapping::protocol),
                    "the router lets others in"
                );
                let (done, published) = oneshot::channel();
                let command = Command::Mapped {
                    old: told,
                    new: usable,
                    done,
                };
                if shared.commands.send(command).await.is_err() || published.await.is_err() {
                    return;
                }
                told = usable;
            }
            self.settled.send_replace(own.is_known());
            let mut pause = if own.is_known() { LOOK } else { LOOK_FIRST };
            let until = Instant::now()
                + if held.is_some() {
                    portmap::LEASE / 2
                } else {
                    ASK_AGAIN
                };
            while Instant::now() < until {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LOOK);
                if own_addresses(shared) != own {
                    break;
                }
            }
        }
    }
}

/// The IPv4 addresses that this node listens on, and the port of QUIC there.
#[derive(Debug, Default, PartialEq, Eq)]
struct ListenAddresses {
    ips: Vec<IpAddr>,
    port: u16,
}

impl ListenAddresses {
    fn is_known(&self) -> bool {
        !self.ips.is_empty()
    }

    fn wants_mapping(&self) -> bool {
        self.is_known() && !self.ips.iter().any(|ip| is_public(*ip))
    }
}

fn own_addresses(shared: &Shared) -> ListenAddresses {
    let listening = read_lock(&shared.listening);
    let mut own = ListenAddresses::default();
    for address in listening.iter().filter_map(|a| a.parse::<Multiaddr>().ok()) {
        let port = address.iter().find_map(|part| {
            if let Protocol::Udp(port) = part {
                Some(port)
            } else {
                None
            }
        });
        let Some((ip @ IpAddr::V4(_), port)) = ip_of(&address).zip(port) else {
            continue;
        };
        if is_quic(&address) && !is_loopback(&address) && shared.is_usable(&address) {
            own.ips.push(ip);
            own.port = port;
        }
    }
    own.ips.sort_unstable();
    own
}

/// The multiaddress of a mapped QUIC port.
pub fn multiaddr(outside: SocketAddr) -> Multiaddr {
    Multiaddr::from(outside.ip())
        .with(Protocol::Udp(outside.port()))
        .with(Protocol::QuicV1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_is_wanted_behind_a_home_router_only() {
        let of = |ips: &[&str]| ListenAddresses {
            ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
            port: 4001,
        };
        assert!(of(&["192.168.1.9"]).wants_mapping());
        assert!(of(&["192.168.1.9", "10.0.0.2"]).wants_mapping());
        assert!(
            !of(&["192.168.1.9", "198.18.3.4"]).wants_mapping(),
            "a public address needs no router"
        );
        assert!(
            !of(&[]).wants_mapping(),
            "a machine without a network has no router"
        );
        assert_eq!(
            multiaddr("198.18.3.4:4001".parse().unwrap()).to_string(),
            "/ip4/198.18.3.4/udp/4001/quic-v1"
        );
    }
}
