//! The dashboard's listeners: a unix socket for root, always; this host's addresses in the network
//! while the dashboard is on; and its addresses on a LAN, if the settings name some
//! ([`super::lan`]).
//!
//! On the network it accepts only connections from addresses of the network. Reason: Linux answers
//! on any interface for an address of any other, so a host on the LAN that is not a member could
//! connect. It counts connections, in all and by source, so that one source with many connections
//! keeps no other out; a request's head has to arrive in time.

use super::{Dashboard, access::Hosts, limits::Source, routes};
use crate::http::connection::converse;
use axum::{Extension, Router};
use p2pvm_api::{Doing, Outcome};
use p2pvm_host::{SocketPath, chain, lock};
use std::{
    collections::HashMap,
    future::Future,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::unix::fs::PermissionsExt,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixListener},
    sync::Semaphore,
    task::JoinSet,
};

/// How many connections may be open.
const MAX_CONNECTIONS: usize = 128;
/// How many connections one source may have open. Reason: a browser opens at most six, and one for
/// each console.
const MAX_OF_ONE: usize = 24;
/// How long a request's head may take to arrive.
pub(super) const HEAD_LIMIT: Duration = Duration::from_secs(15);
/// How long to wait after a failed listen or accept before the next one.
pub(super) const RETRY: Duration = Duration::from_secs(2);

impl Dashboard {
    /// Serves on the unix socket, and on the network while the dashboard is switched on. Ends with
    /// the daemon.
    pub async fn serve(self: Arc<Self>) {
        let (local, network, lan) = (self.clone(), self.clone(), self);
        tokio::join!(
            local.serve_local(),
            network.serve_network(),
            lan.serve_lan()
        );
    }

    async fn serve_local(self: Arc<Self>) {
        let listener = match self.bind_local() {
            Ok(listener) => listener,
            Err(failure) => return tracing::warn!(%failure, "the dashboard has no local socket"),
        };
        let router = routes::router(&self, Hosts::Local);
        let seats = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut running = JoinSet::new();
        loop {
            while running.try_join_next().is_some() {}
            let Ok(seat) = seats.clone().acquire_owned().await else {
                return;
            };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let router = router.clone();
                    running.spawn(async move {
                        serve_connection(stream, router).await;
                        drop(seat);
                    });
                }
                Err(_) => tokio::time::sleep(RETRY).await,
            }
        }
    }

    fn bind_local(&self) -> Outcome<UnixListener> {
        // The lock makes this daemon the only one, so an existing socket is a dead daemon's.
        let _ = std::fs::remove_file(&self.socket);
        let listener = UnixListener::bind(
            SocketPath::to(&self.socket)
                .doing("opening the state directory")?
                .path(),
        )
        .doing(format_args!("opening {}", self.socket.display()))?;
        std::fs::set_permissions(&self.socket, std::fs::Permissions::from_mode(0o600))
            .doing("restricting the dashboard's socket")?;
        Ok(listener)
    }

    async fn serve_network(self: Arc<Self>) {
        let (mut switch, mut lease) = (self.switch.follow(), self.reach.lease());
        loop {
            let on = *switch.borrow_and_update();
            let address = lease.borrow_and_update().as_ref().map(|lease| lease.v4);
            let serving = async {
                match address.filter(|_| on) {
                    Some(address) => self.serve_on(address).await,
                    None => {
                        self.note_trouble(None);
                        std::future::pending().await
                    }
                }
            };
            // Dropping `serving` closes all connections, so that off means off.
            tokio::select! {
                () = serving => {}
                changed = switch.changed() => if changed.is_err() { return },
                changed = moved(&mut lease, address) => if changed.is_err() { return },
            }
        }
    }

    /// Serves on both of this host's addresses, with the same names and one count of connections.
    async fn serve_on(self: &Arc<Self>, v4: Ipv4Addr) {
        let v6 = self.parts.own_v6();
        let names = Hosts::Named {
            names: self.parts.host_names(),
            addresses: vec![v4.into(), v6.into()],
            port: self.port,
            tls: false,
        };
        let (router, seats) = (routes::router(self, names), Seats::default());
        tokio::join!(
            self.serve_at(v4.into(), &router, &seats),
            self.serve_at(v6.into(), &router, &seats)
        );
    }

    async fn serve_at(&self, address: IpAddr, router: &Router, seats: &Seats) {
        let here = SocketAddr::from((address, self.port));
        let listener = self.bind(here).await;
        tracing::info!(%here, "the dashboard is served on the network");
        let known = |ip: IpAddr| {
            let is_member = self.parts.in_network(ip);
            is_member.then(|| Source::in_network(ip))
        };
        let serve = |stream: TcpStream, source: Source| {
            let router = router.clone().layer(Extension(source));
            serve_connection(stream, router)
        };
        accept(&listener, seats, known, serve).await;
    }

    /// Listens as soon as possible. It reports trouble with IPv4, which the printed link uses; IPv6
    /// may be off on a host.
    async fn bind(&self, here: SocketAddr) -> TcpListener {
        let mut told = false;
        loop {
            let error = match TcpListener::bind(here).await {
                Ok(listener) => {
                    if here.is_ipv4() {
                        self.note_trouble(None);
                    }
                    return listener;
                }
                Err(error) => error,
            };
            let advice = match error.kind() {
                std::io::ErrorKind::AddrInUse => {
                    "; another program has that port: set dashboard_port in node.toml"
                }
                _ => "",
            };
            match (std::mem::replace(&mut told, true), here.is_ipv4()) {
                (false, true) => self.note_trouble(Some(format!(
                    "cannot listen on {here}: {}{advice}",
                    chain(&error)
                ))),
                (false, false) => {
                    tracing::warn!(
                        %here,
                        error = %chain(&error),
                        "the dashboard is not served over IPv6{advice}"
                    )
                }
                (true, _) => {}
            }
            tokio::time::sleep(RETRY).await;
        }
    }
}

/// Serves connections of sources that are known and have not too many, until it is dropped.
pub(super) async fn accept<F: Future<Output = ()> + Send + 'static>(
    listener: &TcpListener,
    seats: &Seats,
    known: impl Fn(IpAddr) -> Option<Source>,
    serve: impl Fn(TcpStream, Source) -> F,
) {
    let mut running = JoinSet::new();
    loop {
        while running.try_join_next().is_some() {}
        let (stream, source) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(
                    error = %chain(&error),
                    "accepting a connection to the dashboard failed"
                );
                tokio::time::sleep(RETRY).await;
                continue;
            }
        };
        // A rejected connection is closed without an answer.
        let Some(source) = known(source.ip()) else {
            continue;
        };
        let Some(seat) = seats.take(source) else {
            continue;
        };
        let serving = serve(stream, source);
        running.spawn(async move {
            serving.await;
            drop(seat);
        });
    }
}

/// Waits until the lease has another address than `known`.
async fn moved(
    lease: &mut tokio::sync::watch::Receiver<Option<p2pvm_dhcp::Lease>>,
    known: Option<Ipv4Addr>,
) -> Result<(), tokio::sync::watch::error::RecvError> {
    lease
        .wait_for(|lease| lease.as_ref().map(|lease| lease.v4) != known)
        .await
        .map(drop)
}

/// Serves one connection until it ends.
pub(super) async fn serve_connection<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    router: Router,
) {
    if let Err(error) = converse(stream, router, HEAD_LIMIT).await {
        tracing::debug!(error = %chain(&error), "a connection to the dashboard ended");
    }
}

/// The number of connections of each source.
#[derive(Clone, Default)]
pub(super) struct Seats(Arc<Mutex<HashMap<Source, usize>>>);

/// A counted connection; dropping it releases its place.
struct Seat(Seats, Source);

impl Seats {
    fn take(&self, source: Source) -> Option<Seat> {
        let mut seats = lock(&self.0);
        let (all, own) = (
            seats.values().sum::<usize>(),
            seats.get(&source).copied().unwrap_or(0),
        );
        if all >= MAX_CONNECTIONS || own >= MAX_OF_ONE {
            return None;
        }
        seats.insert(source, own + 1);
        Some(Seat(self.clone(), source))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut seats = lock(&self.0.0);
        if let Some(own) = seats.get_mut(&self.1) {
            *own -= 1;
            if *own == 0 {
                seats.remove(&self.1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_source_that_opens_many_connections_keeps_nobody_else_out() {
        let seats = Seats::default();
        let ip = |n: usize| Source::in_network(IpAddr::from([10, 0, 0, n as u8]));
        let mut taken: Vec<Seat> = (0..100).filter_map(|_| seats.take(ip(1))).collect();
        assert_eq!(taken.len(), MAX_OF_ONE);
        assert!(seats.take(ip(2)).is_some());
        taken.extend((2..100).filter_map(|n| seats.take(ip(n))));
        assert_eq!(taken.len(), MAX_OF_ONE + 98);
        taken.extend((100..200).filter_map(|n| seats.take(ip(n))));
        assert_eq!(taken.len(), MAX_CONNECTIONS);
        taken.clear();
        assert!(seats.0.lock().unwrap().is_empty() && seats.take(ip(1)).is_some());
    }
}
