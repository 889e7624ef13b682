//! Answers on sockets: datagrams and streams of one address.

use super::{Carrier, Names, Resolver, wire::HEADER_BYTES};
use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Semaphore,
    task::JoinSet,
};

/// Questions about the network's names answered at a time; more are dropped, and their senders ask
/// again.
const MAX_CONCURRENT: usize = 128;
/// Questions passed on at a time: they have room of their own, as servers that do not answer hold
/// it for seconds.
const MAX_PASSED_ON: usize = 256;
/// Connections at a time.
const MAX_CONNECTIONS: usize = 64;
/// A connection on which nothing is asked is closed after this (RFC 7766 §6.2.3).
const IDLE: Duration = Duration::from_secs(10);
/// After an error of the whole machine, such as no free descriptors.
const BREATH: Duration = Duration::from_millis(200);

/// What names are served on: one address by UDP, and by TCP where that could be had too.
#[derive(Debug)]
pub struct Sockets {
    /// Datagrams.
    pub udp: UdpSocket,
    /// Streams.
    pub tcp: Option<TcpListener>,
}

impl Sockets {
    /// Binds both on one address. TCP may be missing: nearly all questions do without.
    ///
    /// # Errors
    /// What the kernel says of UDP.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        let udp = UdpSocket::bind(address).await?;
        let tcp = TcpListener::bind(udp.local_addr()?).await;
        if let Err(error) = &tcp {
            tracing::debug!(%address, %error, "names are served by UDP alone");
        }
        Ok(Self { udp, tcp: tcp.ok() })
    }

    /// The address.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.udp.local_addr()
    }
}

struct Serving {
    resolver: Resolver,
    names: Arc<dyn Names>,
    /// Where this is; who asks from here is this machine itself.
    own: IpAddr,
    ours: Arc<Semaphore>,
    others: Arc<Semaphore>,
}

impl Serving {
    /// The answer, empty for none.
    async fn answer(&self, query: &[u8], from: IpAddr, carrier: Carrier) -> Vec<u8> {
        let is_host = from == self.own || from.is_loopback();
        let elsewhere = if is_host && !self.resolver.upstream().get().is_empty() {
            self.resolver.elsewhere(query)
        } else {
            None
        };
        match elsewhere {
            Some(name) => {
                let Ok(_slot) = self.others.try_acquire() else {
                    return self.resolver.failed(query);
                };
                self.resolver.pass_on(&name, query, carrier).await
            }
            None => {
                let Ok(_slot) = self.ours.try_acquire() else {
                    return Vec::new();
                };
                self.resolver.answer(query, self.names.as_ref()).await
            }
        }
    }
}

/// Answers on the sockets until UDP fails or the future is dropped.
///
/// # Errors
/// What receiving says.
pub async fn serve(sockets: Sockets, resolver: Resolver, names: Arc<dyn Names>) -> io::Result<()> {
    let serving = Arc::new(Serving {
        resolver,
        names,
        own: sockets.address()?.ip(),
        ours: Arc::new(Semaphore::new(MAX_CONCURRENT)),
        others: Arc::new(Semaphore::new(MAX_PASSED_ON)),
    });
    let streams = async {
        match sockets.tcp {
            Some(listener) => accept(&serving, &listener).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        ended = datagrams(&serving, Arc::new(sockets.udp)) => ended,
        () = streams => Ok(()),
    }
}

async fn datagrams(serving: &Arc<Serving>, socket: Arc<UdpSocket>) -> io::Result<()> {
    let mut tasks = JoinSet::new();
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let (length, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            // An ICMP error for an answer sent earlier: that client is gone, the others are not.
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset
                ) =>
            {
                continue;
            }
            Err(e) => return Err(e),
        };
        while tasks.try_join_next().is_some() {}
        if tasks.len() >= MAX_CONCURRENT + MAX_PASSED_ON {
            continue;
        }
        let (socket, serving, query) = (socket.clone(), serving.clone(), buffer[..length].to_vec());
        tasks.spawn(async move {
            let answer = serving.answer(&query, from.ip(), Carrier::Udp).await;
            if !answer.is_empty()
                && let Err(error) = socket.send_to(&answer, from).await
            {
                tracing::debug!(%from, %error, "a DNS answer was not sent");
            }
        });
    }
}

async fn accept(serving: &Arc<Serving>, listener: &TcpListener) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%error, "a DNS connection was not taken");
                tokio::time::sleep(BREATH).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        if connections.len() < MAX_CONNECTIONS {
            let serving = serving.clone();
            connections.spawn(async move {
                if let Err(error) = converse(&serving, stream, from.ip()).await {
                    tracing::debug!(%from, %error, "a DNS connection ended");
                }
            });
        }
    }
}

/// Answers the questions of one connection, one after the other.
async fn converse(serving: &Serving, mut stream: TcpStream, from: IpAddr) -> io::Result<()> {
    loop {
        let asked = async {
            let length = usize::from(stream.read_u16().await?);
            let mut query = vec![0; length];
            stream.read_exact(&mut query).await?;
            Ok::<_, io::Error>(query)
        };
        let query = match tokio::time::timeout(IDLE, asked).await {
            Ok(Ok(query)) if query.len() >= HEADER_BYTES => query,
            Ok(Err(e)) if e.kind() != io::ErrorKind::UnexpectedEof => return Err(e),
            _ => return Ok(()),
        };
        let answer = serving.answer(&query, from, Carrier::Tcp).await;
        let length = u16::try_from(answer.len()).map_err(|_| io::ErrorKind::InvalidData)?;
        if length == 0 {
            return Ok(());
        }
        stream
            .write_all(&[&length.to_be_bytes()[..], &answer].concat())
            .await?;
    }
}
