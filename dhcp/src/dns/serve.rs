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

/// How many questions about the network's names are answered at a time; more are dropped, and their
/// senders retry.
const MAX_CONCURRENT: usize = 128;
/// How many questions are forwarded at a time.
/// Reason: a limit of their own, as servers that do not answer hold them for seconds.
const MAX_PASSED_ON: usize = 256;
/// How many connections are open at a time.
const MAX_CONNECTIONS: usize = 64;
/// How long a connection is idle before it is closed (RFC 7766 §6.2.3).
const IDLE: Duration = Duration::from_secs(10);
/// How long to wait after an error of the whole machine, such as no free descriptors.
const BREATH: Duration = Duration::from_millis(200);

/// The sockets of one address: UDP, and TCP if it could be bound.
#[derive(Debug)]
pub struct Sockets {
    /// Datagrams.
    pub udp: UdpSocket,
    /// Streams.
    pub tcp: Option<TcpListener>,
}

impl Sockets {
    /// Binds both on one address. TCP may be missing: nearly all questions come over UDP.
    ///
    /// # Errors
    /// UDP cannot be bound.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        let udp = UdpSocket::bind(address).await?;
        let tcp = TcpListener::bind(udp.local_addr()?).await;
        if let Err(error) = &tcp {
            tracing::debug!(
                %address,
                error = %p2pvm_host::chain(error),
                "names are served by UDP alone"
            );
        }
        Ok(Self { udp, tcp: tcp.ok() })
    }

    /// The address.
    ///
    /// # Errors
    /// The socket's error.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.udp.local_addr()
    }
}

struct Server {
    resolver: Resolver,
    names: Arc<dyn Names>,
    /// The sockets' address: a question from it is the machine's own.
    own: IpAddr,
    ours: Arc<Semaphore>,
    others: Arc<Semaphore>,
}

impl Server {
    /// The answer; empty if there is none.
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
/// The UDP socket's error.
pub async fn serve(sockets: Sockets, resolver: Resolver, names: Arc<dyn Names>) -> io::Result<()> {
    let server = Arc::new(Server {
        resolver,
        names,
        own: sockets.address()?.ip(),
        ours: Arc::new(Semaphore::new(MAX_CONCURRENT)),
        others: Arc::new(Semaphore::new(MAX_PASSED_ON)),
    });
    let streams = async {
        match sockets.tcp {
            Some(listener) => accept(&server, &listener).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        ended = datagrams(&server, Arc::new(sockets.udp)) => ended,
        () = streams => Ok(()),
    }
}

async fn datagrams(server: &Arc<Server>, socket: Arc<UdpSocket>) -> io::Result<()> {
    let mut tasks = JoinSet::new();
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let (length, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            // An ICMP error for an earlier answer: that client is gone, others are not.
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
        let (socket, server, query) = (socket.clone(), server.clone(), buffer[..length].to_vec());
        tasks.spawn(async move {
            let answer = server.answer(&query, from.ip(), Carrier::Udp).await;
            if !answer.is_empty()
                && let Err(error) = socket.send_to(&answer, from).await
            {
                tracing::debug!(
                    %from,
                    error = %p2pvm_host::chain(&error),
                    "a DNS answer was not sent"
                );
            }
        });
    }
}

async fn accept(server: &Arc<Server>, listener: &TcpListener) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(
                    error = %p2pvm_host::chain(&error),
                    "a DNS connection was not accepted"
                );
                tokio::time::sleep(BREATH).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        if connections.len() < MAX_CONNECTIONS {
            let server = server.clone();
            connections.spawn(async move {
                if let Err(error) = converse(&server, stream, from.ip()).await {
                    tracing::debug!(
                        %from,
                        error = %p2pvm_host::chain(&error),
                        "a DNS connection ended"
                    );
                }
            });
        }
    }
}

/// Answers the questions of one connection, one after the other.
async fn converse(server: &Server, mut stream: TcpStream, from: IpAddr) -> io::Result<()> {
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
        let answer = server.answer(&query, from, Carrier::Tcp).await;
        let length = u16::try_from(answer.len()).map_err(|_| io::ErrorKind::InvalidData)?;
        if length == 0 {
            return Ok(());
        }
        stream
            .write_all(&[&length.to_be_bytes()[..], &answer].concat())
            .await?;
    }
}
