//! Shared by the testbed's tests: a name for each testbed, and UDP sockets on hosts.
#![allow(dead_code)]

use p2pvm_lab::{Sites, Testbed, chain};
use std::{
    io::ErrorKind,
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

/// How long a packet that must come may take before the test fails.
/// Reason: a busy machine stands still for a second at times.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// How long a test waits for a packet that must not come.
/// Reason: many times what a packet takes on these testbeds.
pub const SILENCE: Duration = Duration::from_millis(300);

/// A name that no other test and no other run has.
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

/// Both ends of a TCP connection from a host to a port of another, the client's first.
pub fn connection(testbed: &Testbed, from: &str, to: &str, port: u16) -> (TcpStream, TcpStream) {
    let listener = testbed
        .inside(to, || TcpListener::bind(("0.0.0.0", port)))
        .unwrap()
        .unwrap();
    let address = at(testbed, to, port);
    let client = testbed
        .inside(from, || TcpStream::connect(address))
        .unwrap()
        .unwrap();
    (client, listener.accept().unwrap().0)
}

/// The next datagram's text and sender; panics if none comes within [`PATIENCE`].
pub fn receive(socket: &UdpSocket) -> (String, SocketAddr) {
    next(socket).expect("a datagram")
}

/// Whether nothing comes within [`SILENCE`].
pub fn silent(socket: &UdpSocket) -> bool {
    socket.set_read_timeout(Some(SILENCE)).unwrap();
    let heard = next(socket);
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    heard.is_none()
}

/// Whether a knock from `from` at `address` is heard by `to`, as the test expects: a knock that is
/// expected has more time than one that is not.
pub fn heard(from: &UdpSocket, address: SocketAddr, to: &UdpSocket, expected: bool) -> bool {
    // Without a route the kernel returns an error at once, which is as good as silence.
    if from.send_to(b"knock", address).is_err() {
        return false;
    }
    if expected {
        next(to).is_some()
    } else {
        !silent(to)
    }
}

/// Whether a knock from `from` at `address`, which must be heard, is heard by `to`.
pub fn reaches(from: &UdpSocket, address: SocketAddr, to: &UdpSocket) -> bool {
    heard(from, address, to, true)
}

/// Whether a knock from `from` at `address`, which must not be heard, is not heard by `to`.
pub fn kept_out(from: &UdpSocket, address: SocketAddr, to: &UdpSocket) -> bool {
    !heard(from, address, to, false)
}

fn next(socket: &UdpSocket) -> Option<(String, SocketAddr)> {
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
