//! The resolver for this machine's own programs: on a loopback address of the network and on the
//! machine's address in the network. The machine's lists of name servers are kept pointing to it
//! ([`p2pvm_host::names`]).

use super::{Names, Resolver, Sockets, serve};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrIn, bind, setsockopt, socket,
    sockopt::ReuseAddr,
};
use p2pvm_host::{
    Finding,
    names::{
        Keeper, NameSettings,
        holders::{self, SocketHolder},
        loopback,
    },
};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket},
    os::fd::AsRawFd,
    sync::Arc,
    time::Duration,
};
use tokio::sync::watch;

const PORT: u16 = 53;
/// How long to wait, first and at most, before a port in use is tried again.
const RETRY: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(30)];

/// The resolver for this machine's own programs.
pub struct HostResolver {
    /// Answers the questions.
    pub resolver: Resolver,
    /// The source of the answers.
    pub names: Arc<dyn Names>,
    /// The network's id, which its loopback address is derived from.
    pub network: String,
    /// This machine's own name in the network.
    pub own_name: String,
    /// Points the machine's programs here; `None` leaves them alone.
    pub keeper: Option<Arc<Keeper>>,
}

/// Bound sockets, or why there are none.
type BindResult = Result<Sockets, (io::Error, Vec<SocketHolder>)>;

/// Binds although another program has the port on all addresses: possible if both allow it.
fn beside_others(at: SocketAddrV4) -> io::Result<Sockets> {
    let udp = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        SockProtocol::Udp,
    )?;
    setsockopt(&udp, ReuseAddr, &true)?;
    bind(udp.as_raw_fd(), &SockaddrIn::from(at))?;
    let udp = UdpSocket::from(udp);
    Ok(Sockets {
        udp: tokio::net::UdpSocket::from_std(udp)?,
        tcp: None,
    })
}

async fn bind_one(at: SocketAddrV4) -> BindResult {
    match Sockets::bind(at.into()).await {
        Ok(sockets) => Ok(sockets),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let holders = holders::of(IpAddr::V4(*at.ip()), at.port());
            let udp: Vec<&SocketHolder> = holders
                .iter()
                .filter(|holder| holder.protocol == "udp")
                .collect();
            // A holder of this very address may be another network of ours: then each would get
            // half of the questions.
            let all_wide =
                !udp.is_empty() && udp.iter().all(|holder| holder.address.is_unspecified());
            match all_wide.then(|| beside_others(at)) {
                Some(Ok(sockets)) => Ok(sockets),
                _ => Err((error, holders)),
            }
        }
        Err(error) => Err((error, Vec::new())),
    }
}

/// Binds port 53, or any port: systemd-resolved can be given either.
async fn bind_in_network(v4: Ipv4Addr) -> BindResult {
    match bind_one(SocketAddrV4::new(v4, PORT)).await {
        Err((error, holders)) if error.kind() == io::ErrorKind::AddrInUse => {
            Sockets::bind((v4, 0).into())
                .await
                .map_err(|_| (error, holders))
        }
        bound => bound,
    }
}

async fn bind_loopback(network: &str) -> BindResult {
    let mut why = (io::ErrorKind::AddrNotAvailable.into(), Vec::new());
    for ip in loopback::choices(network) {
        match bind_one(SocketAddrV4::new(ip, PORT)).await {
            Ok(sockets) => return Ok(sockets),
            Err(error) => why = error,
        }
        // A program that has the port on all addresses has it on the next one too.
        if why.1.iter().any(|holder| holder.address.is_unspecified()) {
            break;
        }
    }
    Err(why)
}

/// Waits until port 53 of an address is free; for ever without an address.
async fn is_free(v4: Option<Ipv4Addr>) {
    let Some(v4) = v4 else {
        return std::future::pending().await;
    };
    loop {
        tokio::time::sleep(RETRY[1]).await;
        if bind_one(SocketAddrV4::new(v4, PORT)).await.is_ok() {
            return;
        }
    }
}

fn trouble((error, holders): &(io::Error, Vec<SocketHolder>)) -> Finding {
    let found =
        "this machine's programs do not find the network's names: p2pvm's resolver has no port 53";
    match holders.first() {
        Some(holder) => Finding::failed(
            format!("{found}: {holder}"),
            "let that program listen on its own addresses only (dnsmasq: bind-dynamic; unbound: \
                interface: 127.0.0.1); p2pvm tries again by itself",
        ),
        None => Finding::failed(
            format!("{found}: {}", p2pvm_host::chain(&error)),
            "'ip link set lo up' if the loopback is down; p2pvm needs CAP_NET_BIND_SERVICE",
        ),
    }
}

/// The address of one of the two sockets, or why there is none; `None` until it is known.
type Endpoint = watch::Sender<Option<Result<SocketAddr, Finding>>>;

impl HostResolver {
    /// Serves for as long as it is polled, with `v4` as this machine's address in the network.
    /// Programs are pointed here once `ready` has ended.
    pub async fn run(&self, v4: Ipv4Addr, ready: impl Future<Output = ()>) {
        let (loopback, overlay): (Endpoint, Endpoint) =
            (watch::channel(None).0, watch::channel(None).0);
        let lead = async {
            ready.await;
            match &self.keeper {
                Some(keeper) => {
                    self.lead(keeper, v4, loopback.subscribe(), overlay.subscribe())
                        .await
                }
                None => std::future::pending().await,
            }
        };
        let on_loopback = async {
            match self.keeper {
                Some(_) => self.keep_serving(&loopback, None).await,
                None => std::future::pending().await,
            }
        };
        let on_overlay = self.keep_serving(&overlay, Some(v4));
        tokio::join!(lead, on_loopback, on_overlay);
    }

    /// Serves on the address in the network, or on a loopback address.
    async fn keep_serving(&self, place: &Endpoint, v4: Option<Ipv4Addr>) {
        let mut pause = RETRY[0];
        let mut said = String::new();
        loop {
            let bound = match v4 {
                Some(v4) => bind_in_network(v4).await,
                None => bind_loopback(&self.network).await,
            };
            let why = match &bound {
                Ok(sockets) => match sockets.address() {
                    Ok(at) if at.port() != PORT => format!(
                        "names are served on {at} as port {PORT} is taken: others cannot ask there"
                    ),
                    _ => String::new(),
                },
                Err(why) => trouble(why).found,
            };
            // With a keeper, the board of findings has it.
            if why != said && self.keeper.is_none() && !why.is_empty() {
                tracing::warn!("{why}");
            }
            said = why;
            match bound {
                Ok(sockets) => {
                    pause = RETRY[0];
                    let at = sockets.address().ok();
                    place.send_replace(at.map(Ok));
                    let is_elsewhere = at.is_some_and(|at| at.port() != PORT);
                    tokio::select! {
                        ended = serve(sockets, self.resolver.clone(), self.names.clone()) => {
                            tracing::debug!(?ended, "serving names ended; starting it again");
                        }
                        () = is_free(v4.filter(|_| is_elsewhere)) => continue,
                    }
                }
                Err(why) => drop(place.send_replace(Some(Err(trouble(&why))))),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY[1]);
        }
    }

    /// Tells the keeper our addresses whenever they change.
    async fn lead(
        &self,
        keeper: &Keeper,
        v4: Ipv4Addr,
        mut loopback: watch::Receiver<Option<Result<SocketAddr, Finding>>>,
        mut overlay: watch::Receiver<Option<Result<SocketAddr, Finding>>>,
    ) {
        loop {
            let (own, link) = (
                loopback.borrow_and_update().clone(),
                overlay.borrow_and_update().clone(),
            );
            if let (Some(own), Some(link)) = (own, link) {
                let link = link.ok();
                // Without a loopback address the one in the network serves, if it has port 53.
                let at_53 = link.filter(|at| at.port() == PORT).map(|at| at.ip());
                let server = own.as_ref().ok().map(SocketAddr::ip).or(at_53);
                let server = server.and_then(|ip| {
                    if let IpAddr::V4(ip) = ip {
                        Some(ip)
                    } else {
                        None
                    }
                });
                let link = link.or(own.as_ref().ok().copied());
                let trouble = own.err().into_iter().collect();
                keeper.want(Some(NameSettings {
                    server,
                    link,
                    probe: (self.own_name.clone(), v4),
                    trouble,
                }));
            }
            tokio::select! {
                changed = loopback.changed() => if changed.is_err() { return },
                changed = overlay.changed() => if changed.is_err() { return },
            }
        }
    }
}
