//! Dials addresses with names in them (`/dns/home.example.org/...`): the name is looked up at each
//! dial, by the machine's present name servers ([`super::names`]). libp2p's own transport for names
//! reads the machine's list of servers once and keeps it, although a machine moves between
//! networks.

use super::{host::Connection, names};
use crate::lock;
use futures::{FutureExt, future::BoxFuture};
use libp2p::{
    Multiaddr, Transport,
    core::transport::{Boxed, DialOpts, ListenerId, TransportError, TransportEvent},
    multiaddr::Protocol,
};
use std::{
    io,
    net::IpAddr,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll},
};

/// How many addresses of a name are tried.
const MAX_ADDRESSES: usize = 16;

type Inner = Boxed<Connection>;

/// Looks up the names in addresses before they are dialled.
pub struct Lookup(Arc<Mutex<Inner>>);

impl Lookup {
    /// A lookup before both of these transports.
    pub fn before(one: Inner, other: Inner) -> Self {
        let both = one.or_transport(other).map(|either, _| either.into_inner());
        Self(Arc::new(Mutex::new(both.boxed())))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        lock(&self.0)
    }
}

/// The address families that are wanted for a name.
type FamilyFilter = fn(&IpAddr) -> bool;

/// The name in an address, its place, and whether addresses of a family are wanted for it.
fn name_in(address: &Multiaddr) -> Option<(usize, String, FamilyFilter)> {
    address
        .iter()
        .enumerate()
        .find_map(|(place, part)| match part {
            Protocol::Dns(name) => Some((place, name.into_owned(), (|_| true) as FamilyFilter)),
            Protocol::Dns4(name) => Some((place, name.into_owned(), IpAddr::is_ipv4)),
            Protocol::Dns6(name) => Some((place, name.into_owned(), IpAddr::is_ipv6)),
            _ => None,
        })
}

impl Transport for Lookup {
    type Output = Connection;
    type Error = io::Error;
    type ListenerUpgrade = <Inner as Transport>::ListenerUpgrade;
    type Dial = BoxFuture<'static, io::Result<Connection>>;

    fn listen_on(
        &mut self,
        id: ListenerId,
        address: Multiaddr,
    ) -> Result<(), TransportError<io::Error>> {
        self.inner().listen_on(id, address)
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.inner().remove_listener(id)
    }

    fn dial(
        &mut self,
        address: Multiaddr,
        options: DialOpts,
    ) -> Result<Self::Dial, TransportError<io::Error>> {
        let Some((place, name, is_wanted)) = name_in(&address) else {
            return self.inner().dial(address, options).map(FutureExt::boxed);
        };
        let inner = self.0.clone();
        let dial = async move {
            let found = names::addresses(&name).await.map_err(io::Error::other)?;
            let mut why = io::Error::other(format!("'{name}' has no address of the wanted kind"));
            for ip in found.into_iter().filter(is_wanted).take(MAX_ADDRESSES) {
                let Some(address) = address.replace(place, |_| Some(ip.into())) else {
                    break;
                };
                let dialled = lock(&inner).dial(address, options);
                match dialled {
                    Ok(connection) => match connection.await {
                        Ok(connection) => return Ok(connection),
                        Err(error) => why = error,
                    },
                    Err(TransportError::Other(error)) => why = error,
                    Err(error) => why = io::Error::other(p2pvm_host::chain(&error)),
                }
            }
            Err(why)
        };
        Ok(dial.boxed())
    }

    fn poll(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, io::Error>> {
        Pin::new(&mut *self.inner()).poll(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_in_an_address_is_found_with_its_kind() {
        let of = |text: &str| {
            name_in(&text.parse().unwrap()).map(|(place, name, is_wanted)| {
                (
                    place,
                    name,
                    is_wanted(&"192.0.2.1".parse().unwrap()),
                    is_wanted(&"2001:db8::1".parse().unwrap()),
                )
            })
        };
        assert_eq!(
            of("/dns/a.org/udp/4001/quic-v1"),
            Some((0, "a.org".into(), true, true))
        );
        assert_eq!(
            of("/dns4/a.org/tcp/4001"),
            Some((0, "a.org".into(), true, false))
        );
        assert_eq!(
            of("/dns6/a.org/tcp/4001"),
            Some((0, "a.org".into(), false, true))
        );
        assert_eq!(of("/ip4/192.0.2.1/tcp/4001"), None);
    }
}
