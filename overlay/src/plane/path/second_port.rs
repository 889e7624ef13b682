//! Which datagrams leave from the second UDP port ([`SecondPort`](crate::plane::io::second_port)),
//! and its thread.

use super::{peer::Peer, stun::PAUSES_MS};
use crate::{
    connect::is_private,
    plane::{
        core::Inner,
        io::{
            second_port::{ADDRESS_LIFE, UdpSource},
            udp::{READ_BYTES, Udp},
        },
        scratch::Scratch,
        types::Path,
    },
    stun,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

/// How often the thread looks whether the plane has ended or its port was replaced, in
/// milliseconds.
const LOOK_EVERY_MS: u16 = 500;

impl Inner {
    /// Whether datagrams to the source leave from the port to which this one came.
    pub fn is_answered_by_its_port(&self, from: UdpSource) -> bool {
        self.udp.second_port().sends_to(&from.addr) == from.is_second_port
    }

    /// Keeps an address with the port to which it answered a probe: that port works both ways,
    /// though the address may have been given to the other port since.
    pub fn keep_port(&self, from: UdpSource, now: Instant) {
        let second = self.udp.second_port();
        match (from.is_second_port, second.sends_to(&from.addr)) {
            (false, true) if second.answers(from) => {}
            (false, true) => second.remove(&[from.addr]),
            (true, false) => second.add([from.addr], now),
            _ => {}
        }
    }

    /// Returns an address to the first port if a member is heard there and does not use the
    /// address as its path: the second port has given it up.
    pub fn turn_to_port(&self, peer: &Peer, from: UdpSource, now: Instant) {
        let is_given_up = peer.path() != Some(Path::Direct(from.addr));
        let second = self.udp.second_port();
        if is_given_up
            && !from.is_second_port
            && second.is_used()
            && second.return_to_first(&from.addr, now)
        {
            tracing::debug!(member = ?peer.member, way = %from.addr, "sending from the first port \
                again: the member is heard there");
        }
    }

    /// The second port's number, while some address is sent to from it.
    pub fn second_port(&self) -> Option<u16> {
        let second = self.udp.second_port();
        if second.is_used() {
            second.socket().map(|udp| udp.port())
        } else {
            None
        }
    }

    /// Sends to these addresses from the second port from now on.
    pub fn move_to_second_port(self: &Arc<Self>, addresses: &[SocketAddr]) -> io::Result<()> {
        let second = self.udp.second_port();
        if second.socket().is_none() {
            self.open_second_port()?;
        }
        second.add(addresses.iter().copied(), Instant::now());
        Ok(())
    }

    /// Sends to all public addresses of members from the second port from now on, and probes every
    /// path again.
    pub fn move_all_to_second_port(self: &Arc<Self>) {
        let now = Instant::now();
        let peers: Vec<Arc<Peer>> = self
            .tables
            .peers
            .load()
            .iter()
            .filter(|p| p.sending.load().is_some())
            .cloned()
            .collect();
        let addresses: Vec<SocketAddr> = peers
            .iter()
            .flat_map(|p| p.paths().direct_addresses())
            .filter(|to| !is_private(&to.ip()))
            .collect();
        if let Err(error) = self.move_to_second_port(&addresses) {
            tracing::debug!(error = %p2pvm_host::chain(&error), "cannot open a second port");
            return;
        }
        self.udp.second_port().silence_first(true);
        for peer in &peers {
            peer.paths().rouse(now);
            self.run_paths(peer, now);
        }
        self.clock.wake();
    }

    /// Sends to these addresses from the first port again.
    pub fn move_to_first_port(&self, addresses: &[SocketAddr]) {
        let second = self.udp.second_port();
        if second.is_used() {
            second.remove(addresses);
        }
    }

    /// Whether some link's path is an address of the second port.
    fn is_second_port_on_a_path(&self) -> bool {
        let second = self.udp.second_port();
        self.tables
            .peers
            .load()
            .iter()
            .any(|peer| matches!(peer.path(), Some(Path::Direct(to)) if second.has(&to)))
    }

    fn open_second_port(self: &Arc<Self>) -> io::Result<()> {
        let udp = Arc::new(Udp::bind(0)?);
        tracing::debug!(
            port = udp.port(),
            "opened a second port for addresses that the first does not reach"
        );
        self.udp.second_port().open(udp.clone());
        let inner = self.clone();
        thread::Builder::new()
            .name("p2pvm-aside".into())
            .spawn(move || inner.read_second_port(&udp))
            .map(drop)
    }

    /// Asks the STUN server at `server` for the address that it sees for the second port.
    pub async fn stun_from_second_port(
        self: &Arc<Self>,
        server: SocketAddr,
        timeout: Duration,
    ) -> Option<SocketAddr> {
        let (id, request) = stun::request()?;
        // A port that no path uses may have become a black hole too, if it was opened before the
        // cause had ended: it is replaced.
        if self.udp.second_port().socket().is_none() || !self.is_second_port_on_a_path() {
            self.open_second_port().ok()?;
        }
        let ask = async {
            for pause in PAUSES_MS {
                if let Some(udp) = self.udp.second_port().socket() {
                    udp.send(server, &request);
                }
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = ask => None,
            got = self.hear_stun(id, timeout) => got,
        }
    }

    /// The second port's thread, until the plane ends or another port replaces this one.
    fn read_second_port(&self, udp: &Arc<Udp>) {
        let (mut buf, mut scratch) = (vec![0; READ_BYTES], Scratch::default());
        let opened = Instant::now();
        let second = self.udp.second_port();
        while !self.stop.raised() && second.is_current(udp) {
            match udp.receive(&mut buf) {
                Ok((addr, len, stride)) => {
                    let (now, datagrams) = (Instant::now(), &mut buf[..len]);
                    let from = UdpSource {
                        addr,
                        is_second_port: true,
                    };
                    self.datagrams(&mut scratch, datagrams, stride, from, now);
                    self.note_second_port(addr, now);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    scratch.flush(self);
                    scratch.rest(self);
                    if opened.elapsed() >= ADDRESS_LIFE && second.is_idle(Instant::now()) {
                        second.close(udp);
                        return;
                    }
                    let _ = poll(
                        &mut [PollFd::new(udp.fd(), PollFlags::POLLIN)],
                        PollTimeout::from(LOOK_EVERY_MS),
                    );
                }
                // An ICMP error of an earlier datagram: its path will be found dead by silence.
                Err(error) => tracing::trace!(
                    error = %p2pvm_host::chain(&error),
                    "the second UDP port reports an error"
                ),
            }
        }
    }

    /// Notes a datagram that came to the second port. If it came from an address that is a path to
    /// a member, that member is answered from the second port.
    fn note_second_port(&self, from: SocketAddr, now: Instant) {
        let second = self.udp.second_port();
        let path = Path::Direct(from);
        if second.has(&from) {
            second.note(&from, now);
        } else if self
            .tables
            .peers
            .load()
            .iter()
            .any(|p| p.path() != Some(path) && p.paths().knows(path))
        {
            second.add([from], now);
        }
    }
}
