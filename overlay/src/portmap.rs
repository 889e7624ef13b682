//! Asks the router for a port mapping: by PCP (RFC 6887) or its predecessor NAT-PMP (RFC 6886),
//! which are one datagram each way, else by UPnP (Internet Gateway Device). A mapping is renewed
//! after half of its lifetime, and removed at the end.
//!
//! The crate `crab_nat` implements PCP and NAT-PMP, `igd-next` UPnP; this module chooses between
//! them and finds the router. The router's abilities can be queried without mapping anything:
//! [`offers`].

use crab_nat::{
    InternetProtocol, PortMapping, PortMappingOptions, PortMappingType, TimeoutConfig, natpmp,
};
use igd_next::{
    PortMappingProtocol, SearchOptions,
    aio::{Gateway, tokio::Tokio, tokio::search_gateway},
};
use serde::Serialize;
use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    num::NonZeroU16,
    time::Duration,
};
use tokio::net::UdpSocket;

/// The requested lifetime of a mapping; renewed after half of it.
pub const LEASE: Duration = Duration::from_secs(3600);
/// How long to wait for a UPnP router. Reason: it answers a multicast in its own network at once.
const SEARCH: Duration = Duration::from_secs(3);
/// The timeouts for the router, which is one hop away: three tries within a second and a half.
const TRIES: TimeoutConfig = TimeoutConfig {
    initial_timeout: Duration::from_millis(200),
    max_retries: 2,
    max_retry_timeout: Some(Duration::from_millis(800)),
};
/// Where the kernel lists IPv4 routes (proc_pid_net(5)).
const ROUTES: &str = "/proc/net/route";

/// The protocol of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// Port Control Protocol.
    Pcp,
    /// NAT Port Mapping Protocol.
    NatPmp,
    /// Internet Gateway Device.
    Upnp,
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Pcp => "PCP",
            Self::NatPmp => "NAT-PMP",
            Self::Upnp => "UPnP",
        })
    }
}

enum ActiveMapping {
    /// PCP or NAT-PMP.
    Control(PortMapping),
    Upnp(Box<Gateway<Tokio>>, SocketAddr),
}

/// A port mapping on the router.
pub struct Mapping {
    external: SocketAddr,
    held: ActiveMapping,
}

impl Mapping {
    /// The address by which others reach the port.
    pub fn external(&self) -> SocketAddr {
        self.external
    }

    /// The protocol that made it.
    pub fn protocol(&self) -> Protocol {
        match &self.held {
            ActiveMapping::Control(mapping)
                if matches!(mapping.mapping_type(), PortMappingType::NatPmp) =>
            {
                Protocol::NatPmp
            }
            ActiveMapping::Control(_) => Protocol::Pcp,
            ActiveMapping::Upnp(..) => Protocol::Upnp,
        }
    }

    /// Renews the mapping; `None` if the router refuses.
    pub async fn renew(mut self) -> Option<Self> {
        match &mut self.held {
            ActiveMapping::Control(mapping) => {
                mapping.renew().await.ok()?;
                self.external.set_port(mapping.external_port().get());
                if let PortMappingType::Pcp { external_ip, .. } = mapping.mapping_type() {
                    self.external.set_ip(external_ip.to_canonical());
                }
            }
            ActiveMapping::Upnp(gateway, local) => {
                let port = self.external.port();
                gateway
                    .add_port(PortMappingProtocol::UDP, port, *local, lease(), "p2pvm")
                    .await
                    .ok()?;
                self.external.set_ip(gateway.get_external_ip().await.ok()?);
            }
        }
        Some(self)
    }

    /// Removes the mapping; if that fails, it expires.
    pub async fn release(self) {
        let (external, protocol) = (self.external, self.protocol());
        let failed = match self.held {
            ActiveMapping::Control(mapping) => mapping
                .try_drop()
                .await
                .err()
                .map(|(error, _)| error.to_string()),
            ActiveMapping::Upnp(gateway, _) => gateway
                .remove_port(PortMappingProtocol::UDP, external.port())
                .await
                .err()
                .map(|error| error.to_string()),
        };
        if let Some(error) = failed {
            tracing::debug!(%external, %protocol, %error, "the mapping is left to run out");
        }
    }
}

fn lease() -> u32 {
    u32::try_from(LEASE.as_secs()).unwrap_or(u32::MAX)
}

/// Maps a UDP port of this host, outside at the same port if that is free; `None` if no router maps
/// it.
pub async fn map(local: &[IpAddr], port: u16) -> Option<Mapping> {
    let port = NonZeroU16::new(port)?;
    if let Some((router, ours)) =
        default_router().and_then(|router| Some((router, closest(local, router)?)))
        && let Some(mapping) = by_control(router, ours, port).await
    {
        return Some(mapping);
    }
    by_upnp(local, port.get()).await
}

async fn by_control(router: Ipv4Addr, ours: Ipv4Addr, port: NonZeroU16) -> Option<Mapping> {
    let options = PortMappingOptions {
        external_port: Some(port),
        lifetime_seconds: Some(lease()),
        timeout_config: Some(TRIES),
    };
    let mapped = PortMapping::new(
        router.into(),
        ours.into(),
        InternetProtocol::Udp,
        port,
        options,
    )
    .await;
    let mapping = mapped
        .inspect_err(|error| {
            tracing::debug!(
                error = %p2pvm_host::chain(error),
                "the router maps no port by PCP or NAT-PMP"
            )
        })
        .ok()?;
    let ip = match mapping.mapping_type() {
        PortMappingType::Pcp { external_ip, .. } => external_ip.to_canonical(),
        PortMappingType::NatPmp => natpmp::external_address(router.into(), Some(TRIES))
            .await
            .ok()?
            .into(),
    };
    Some(Mapping {
        external: SocketAddr::new(ip, mapping.external_port().get()),
        held: ActiveMapping::Control(mapping),
    })
}

async fn gateway() -> Option<Gateway<Tokio>> {
    let mut options = SearchOptions::default();
    options.timeout = Some(SEARCH);
    search_gateway(options).await.ok()
}

async fn by_upnp(local: &[IpAddr], port: u16) -> Option<Mapping> {
    let gateway = gateway().await?;
    let IpAddr::V4(router) = gateway.addr.ip() else {
        return None;
    };
    let ours = SocketAddr::from((closest(local, router)?, port));
    let same = gateway
        .add_port(PortMappingProtocol::UDP, port, ours, lease(), "p2pvm")
        .await;
    let external = match same {
        Ok(()) => SocketAddr::new(gateway.get_external_ip().await.ok()?, port),
        // Another host of the site has the port, such as a second member there.
        Err(_) => {
            let any = gateway
                .get_any_address(PortMappingProtocol::UDP, ours, lease(), "p2pvm")
                .await;
            any.inspect_err(|error| {
                tracing::debug!(
                    error = %p2pvm_host::chain(error),
                    "the router maps no port by UPnP"
                )
            })
            .ok()?
        }
    };
    Some(Mapping {
        external,
        held: ActiveMapping::Upnp(Box::new(gateway), ours),
    })
}

/// The address of ours that shares the longest prefix with the router's.
fn closest(local: &[IpAddr], router: Ipv4Addr) -> Option<Ipv4Addr> {
    let ours = local.iter().filter_map(|ip| {
        if let IpAddr::V4(v4) = ip {
            Some(*v4)
        } else {
            None
        }
    });
    ours.max_by_key(|ip| (u32::from(*ip) ^ u32::from(router)).leading_zeros())
}

/// The router that this host's IPv4 default route leads to.
fn default_router() -> Option<Ipv4Addr> {
    parse_routes(&std::fs::read_to_string(ROUTES).ok()?)
}

fn parse_routes(text: &str) -> Option<Ipv4Addr> {
    text.lines().skip(1).find_map(|line| {
        // Interface, destination, gateway, ...; addresses as hexadecimal numbers in the machine's
        // byte order.
        let mut fields = line.split_whitespace().skip(1);
        let (destination, gateway) = (fields.next()?, fields.next()?);
        let gateway = u32::from_str_radix(gateway, 16)
            .ok()
            .filter(|gateway| destination == "00000000" && *gateway != 0)?;
        Some(Ipv4Addr::from(gateway.to_ne_bytes()))
    })
}

/// The abilities of the router.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Offers {
    /// The router of the default route.
    pub router: Option<Ipv4Addr>,
    /// Whether it speaks PCP.
    pub pcp: bool,
    /// Whether it speaks NAT-PMP.
    pub nat_pmp: bool,
    /// Whether it speaks UPnP.
    pub upnp: bool,
    /// The outside address that it claims.
    pub outside: Option<IpAddr>,
}

/// Queries the router's abilities, without mapping anything. Takes up to three seconds if there are
/// none.
pub async fn offers(local: &[IpAddr]) -> Offers {
    let router = default_router();
    let ours = router.and_then(|router| closest(local, router));
    let pcp = async {
        match (router, ours) {
            (Some(router), Some(ours)) => speaks_pcp(router, ours).await,
            _ => false,
        }
    };
    let nat_pmp = async {
        match router {
            Some(router) => natpmp::external_address(router.into(), Some(TRIES))
                .await
                .ok(),
            None => None,
        }
    };
    let upnp = async {
        match gateway().await {
            Some(gateway) => (true, gateway.get_external_ip().await.ok()),
            None => (false, None),
        }
    };
    let (pcp, nat_pmp, (upnp, outside)) = tokio::join!(pcp, nat_pmp, upnp);
    Offers {
        router,
        pcp,
        nat_pmp: nat_pmp.is_some(),
        upnp,
        outside: nat_pmp.map(IpAddr::from).or(outside),
    }
}

/// Our PCP version, and the opcode of an announcement, which changes nothing (RFC 6887 §14.1).
const PCP_VERSION: u8 = 2;
const PCP_ANNOUNCE: u8 = 0;
/// Marks an answer (RFC 6887 §7.2).
const PCP_ANSWER: u8 = 0x80;
const PCP_HEADER: usize = 24;

fn announce(ours: Ipv4Addr) -> [u8; PCP_HEADER] {
    let mut request = [0; PCP_HEADER];
    (request[0], request[1]) = (PCP_VERSION, PCP_ANNOUNCE);
    request[8..].copy_from_slice(&ours.to_ipv6_mapped().octets());
    request
}

fn is_pcp_answer(bytes: &[u8]) -> bool {
    bytes.len() >= PCP_HEADER && bytes[0] == PCP_VERSION && bytes[1] == PCP_ANNOUNCE | PCP_ANSWER
}

async fn speaks_pcp(router: Ipv4Addr, ours: Ipv4Addr) -> bool {
    let ask = async {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await.ok()?;
        crate::underlay::mark(&socket);
        socket
            .connect((router, crab_nat::GATEWAY_PORT))
            .await
            .ok()?;
        let mut answer = [0; 1100];
        for pause in [200, 400, 800] {
            socket.send(&announce(ours)).await.ok()?;
            if let Ok(got) =
                tokio::time::timeout(Duration::from_millis(pause), socket.recv(&mut answer)).await
            {
                return Some(is_pcp_answer(&answer[..got.ok()?]));
            }
        }
        None
    };
    ask.await == Some(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_default_route_names_the_router() {
        let text = "Iface\tDestination\tGateway \tFlags\n\
                    eth0\t0001A8C0\t00000000\t0001\n\
                    eth0\t00000000\t0101A8C0\t0003\n";
        assert_eq!(parse_routes(text), Some([192, 168, 1, 1].into()));
        assert_eq!(parse_routes("Iface\n"), None);
        assert_eq!(
            parse_routes("Iface\nwan\t00000000\t00000000\t0001\n"),
            None,
            "a route without a router"
        );
    }

    #[test]
    fn an_announcement_is_laid_out_as_rfc_6887_says() {
        let request = announce([192, 168, 1, 9].into());
        assert_eq!(request[..8], [2, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(
            request[8..],
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 168, 1, 9]
        );
        let mut answer = [0; 24];
        (answer[0], answer[1]) = (2, 0x80);
        assert!(
            is_pcp_answer(&answer) && !is_pcp_answer(&request) && !is_pcp_answer(&answer[..23])
        );
        // A NAT-PMP router answers in its own version that it does not know ours (RFC 6886 §3.5).
        answer[0] = 0;
        assert!(!is_pcp_answer(&answer));
    }

    #[test]
    fn of_several_addresses_the_one_in_the_routers_network_is_mapped() {
        let local = [
            "10.0.0.9".parse().unwrap(),
            "192.168.1.9".parse().unwrap(),
            "2001:db8::1".parse().unwrap(),
        ];
        assert_eq!(
            closest(&local, [192, 168, 1, 1].into()),
            Some([192, 168, 1, 9].into())
        );
        assert_eq!(closest(&local[2..], [192, 168, 1, 1].into()), None);
    }

    proptest! {
        #[test]
        fn any_answer_and_any_routes_are_read_without_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..64), text in "[ -~\t\n]{0,200}"
        ) {
            let _ = (is_pcp_answer(&bytes), parse_routes(&text));
        }
    }
}
