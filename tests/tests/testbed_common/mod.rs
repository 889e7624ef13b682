//! What the testbed's tests share: a name of one's own, and UDP sockets on hosts.
#![allow(dead_code)]

use p2pvm_lab::{Sites, Testbed, chain};
use std::{
    io::ErrorKind,
    net::{SocketAddr, UdpSocket},
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

/// Long enough for a packet on the testbeds here, short enough to wait for one that must not come.
pub const PATIENCE: Duration = Duration::from_millis(300);

/// A name no other test and no other run has.
pub fn name() -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    format!(
        "t{}-{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::SeqCst)
    )
}

pub fn up(sites: &str) -> Testbed {
    Testbed::up(&Sites::parse(sites).unwrap(), &name()).unwrap_or_else(|e| {
        panic!(
            "{} (these tests need root, iproute2 and nftables)",
            chain(&e)
        )
    })
}

/// A socket on a host, bound to a port (0: any).
pub fn socket(testbed: &Testbed, host: &str, port: u16) -> UdpSocket {
    let socket = testbed
        .inside(host, || UdpSocket::bind(("0.0.0.0", port)))
        .unwrap()
        .unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// An IPv6 socket on a host, bound to a port.
pub fn socket6(testbed: &Testbed, host: &str, port: u16) -> UdpSocket {
    let socket = testbed
        .inside(host, || UdpSocket::bind(("::", port)))
        .unwrap()
        .unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// The IPv6 address of a host and a port on it.
pub fn at6(testbed: &Testbed, host: &str, port: u16) -> SocketAddr {
    (
        testbed
            .host(host)
            .unwrap()
            .address6
            .expect("its site has IPv6"),
        port,
    )
        .into()
}

/// The public address of a host and a port on it.
pub fn at(testbed: &Testbed, host: &str, port: u16) -> SocketAddr {
    (
        testbed.plan().public_address(testbed.host(host).unwrap()),
        port,
    )
        .into()
}

/// The next datagram's text and sender, or none within [`PATIENCE`].
pub fn receive(socket: &UdpSocket) -> Option<(String, SocketAddr)> {
    let mut buffer = [0; 2048];
    match socket.recv_from(&mut buffer) {
        Ok((length, from)) => Some((
            String::from_utf8_lossy(&buffer[..length]).into_owned(),
            from,
        )),
        Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => None,
        Err(e) => panic!("receive: {e}"),
    }
}
