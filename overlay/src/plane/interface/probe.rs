//! The packets that prove that a stack answers ([`super::prove`]): an ICMP echo request, a UDP
//! datagram and a TCP connection request, and what counts as an answer to them. A stack that
//! answers at all has been reached, also with "port unreachable".

use super::proof::{AnswerKind, Proof};
use crate::plane::shape::{checksum, packet};
use etherparse::PacketBuilder;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::{
    io,
    mem::MaybeUninit,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};
use tun_rs::VIRTIO_NET_HDR_LEN;

/// Asked by UDP and TCP: where names are answered, if anything is.
const PORT: u16 = 53;
const HOPS: u8 = 64;
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP_V6: u8 = 58;

/// What came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The stack was reached.
    Reached(AnswerKind),
    /// A firewall says that it is not to be.
    Refused,
}

/// One question, told from others by its token.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Probe {
    from: IpAddr,
    to: IpAddr,
    /// The echo's id, and the port that UDP and TCP ask from.
    token: u16,
}

impl Probe {
    pub fn new(from: IpAddr, to: IpAddr) -> Self {
        // Above the ports that systems give to their own.
        Self {
            from,
            to,
            token: 61_000 + rand::random::<u16>() % 4_500,
        }
    }

    /// The packets, each behind the header that the TUN wants; `by_all`: by UDP and TCP too.
    pub fn questions(&self, by_all: bool) -> Vec<Vec<u8>> {
        let (Some(echo), Some(udp), Some(tcp)) = (self.echo(), self.udp(), self.tcp()) else {
            return Vec::new();
        };
        if by_all {
            vec![echo, udp, tcp]
        } else {
            vec![echo]
        }
    }

    fn echo(&self) -> Option<Vec<u8>> {
        let mut out = vec![0; VIRTIO_NET_HDR_LEN];
        let written = match (self.from, self.to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let builder = PacketBuilder::ipv4(from.octets(), to.octets(), HOPS);
                builder
                    .icmpv4_echo_request(self.token, 1)
                    .write(&mut out, &[0; 8])
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let builder = PacketBuilder::ipv6(from.octets(), to.octets(), HOPS);
                builder
                    .icmpv6_echo_request(self.token, 1)
                    .write(&mut out, &[0; 8])
            }
            _ => return None,
        };
        written.ok().map(|()| out)
    }

    fn udp(&self) -> Option<Vec<u8>> {
        let mut out = vec![0; VIRTIO_NET_HDR_LEN];
        let written = match (self.from, self.to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                PacketBuilder::ipv4(from.octets(), to.octets(), HOPS)
                    .udp(self.token, PORT)
                    .write(&mut out, &[0; 12])
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                PacketBuilder::ipv6(from.octets(), to.octets(), HOPS)
                    .udp(self.token, PORT)
                    .write(&mut out, &[0; 12])
            }
            _ => return None,
        };
        written.ok().map(|()| out)
    }

    fn tcp(&self) -> Option<Vec<u8>> {
        let mut out = vec![0; VIRTIO_NET_HDR_LEN];
        let written = match (self.from, self.to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                PacketBuilder::ipv4(from.octets(), to.octets(), HOPS)
                    .tcp(self.token, PORT, 1, 1024)
                    .syn()
                    .write(&mut out, &[])
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                PacketBuilder::ipv6(from.octets(), to.octets(), HOPS)
                    .tcp(self.token, PORT, 1, 1024)
                    .syn()
                    .write(&mut out, &[])
            }
            _ => return None,
        };
        written.ok().map(|()| out)
    }

    /// Whether a packet is an answer to one of the questions.
    pub fn answered_by(&self, packet: &[u8]) -> Option<Answer> {
        let (src, dst) = packet::addresses(packet)?;
        if dst != self.from || src != self.to {
            return None;
        }
        let (protocol, transport) = transport(packet)?;
        let port = |at: usize| {
            Some(u16::from_be_bytes([
                *transport.get(at)?,
                *transport.get(at + 1)?,
            ]))
        };
        match protocol {
            ICMP | ICMP_V6 => match (protocol, transport.first()?) {
                (ICMP, 0) | (ICMP_V6, 129) => {
                    (port(4)? == self.token).then_some(Answer::Reached(AnswerKind::Echo))
                }
                (ICMP, 3) | (ICMP_V6, 1) => self.unreachable(
                    protocol,
                    transport[1..].first().copied()?,
                    transport.get(8..)?,
                ),
                _ => None,
            },
            UDP => (port(0)? == PORT && port(2)? == self.token)
                .then_some(Answer::Reached(AnswerKind::Udp)),
            TCP => (port(0)? == PORT && port(2)? == self.token)
                .then_some(Answer::Reached(AnswerKind::Tcp)),
            _ => None,
        }
    }

    /// What "unreachable" means as an answer to a question: no program listens at a port of a
    /// host that was reached, or else a firewall answers in its place.
    fn unreachable(&self, by: u8, code: u8, question: &[u8]) -> Option<Answer> {
        let (src, dst) = packet::addresses(question)?;
        if src != self.from || dst != self.to {
            return None;
        }
        let no_port = if by == ICMP { 3 } else { 4 };
        match transport(question)?.0 {
            UDP if code == no_port => Some(Answer::Reached(AnswerKind::Udp)),
            _ => Some(Answer::Refused),
        }
    }
}

/// The protocol of a packet without extension headers, and what stands behind its IP header.
fn transport(packet: &[u8]) -> Option<(u8, &[u8])> {
    match packet.first()? >> 4 {
        4 => Some((
            *packet.get(9)?,
            packet.get(usize::from(packet[0] & 15) * 4..)?,
        )),
        6 => Some((*packet.get(6)?, packet.get(40..)?)),
        _ => None,
    }
}

/// Asks another host from `own` as any program does: by an echo request, and by TCP where that is
/// not answered.
pub(crate) fn ask_host(
    own: IpAddr,
    to: IpAddr,
    limit: Duration,
    again: Duration,
    ended: impl Fn() -> bool,
) -> io::Result<Option<Proof>> {
    let until = Instant::now() + limit;
    let echo = Echo::open(own, to)?;
    let mut asked = 0u16;
    while Instant::now() < until && !ended() {
        let at = Instant::now();
        asked += 1;
        // The send may fail while the route is being looked up.
        let sent = echo.ask(asked);
        let wait = (at + again)
            .min(until)
            .saturating_duration_since(Instant::now());
        if sent.is_ok() && echo.hear(asked, wait)? {
            return Ok(Some(Proof {
                rtt: at.elapsed(),
                by: AnswerKind::Echo,
            }));
        }
        if sent.is_err() {
            std::thread::sleep(wait);
        }
        if asked >= 2
            && let Some(proof) = by_tcp(
                own,
                to,
                again.min(until.saturating_duration_since(Instant::now())),
            )?
        {
            return Ok(Some(proof));
        }
    }
    Ok(None)
}

fn by_tcp(own: IpAddr, to: IpAddr, limit: Duration) -> io::Result<Option<Proof>> {
    let at = Instant::now();
    let socket = Socket::new(
        Domain::for_address(SocketAddr::new(to, PORT)),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.bind(&SockAddr::from(SocketAddr::new(own, 0)))?;
    if limit.is_zero() {
        return Ok(None);
    }
    let answered = match socket.connect_timeout(&SockAddr::from(SocketAddr::new(to, PORT)), limit) {
        Ok(()) => true,
        Err(error) => error.kind() == io::ErrorKind::ConnectionRefused,
    };
    Ok(answered.then(|| Proof {
        rtt: at.elapsed(),
        by: AnswerKind::Tcp,
    }))
}

/// A socket for echo requests.
struct Echo {
    socket: Socket,
    v4: bool,
    /// IPv4's raw sockets give the IP header too.
    is_raw: bool,
    token: u64,
}

impl Echo {
    fn open(own: IpAddr, to: IpAddr) -> io::Result<Self> {
        let v4 = to.is_ipv4();
        let (domain, protocol) = if v4 {
            (Domain::IPV4, Protocol::ICMPV4)
        } else {
            (Domain::IPV6, Protocol::ICMPV6)
        };
        let (socket, is_raw) = match Socket::new(domain, Type::RAW, Some(protocol)) {
            Ok(socket) => (socket, true),
            // Without CAP_NET_RAW, where the system lets everybody ask (icmp(7), ping_group_range).
            Err(_) => (Socket::new(domain, Type::DGRAM, Some(protocol))?, false),
        };
        socket.bind(&SockAddr::from(SocketAddr::new(own, 0)))?;
        socket.connect(&SockAddr::from(SocketAddr::new(to, 0)))?;
        Ok(Self {
            socket,
            v4,
            is_raw,
            token: rand::random(),
        })
    }

    fn ask(&self, sequence: u16) -> io::Result<()> {
        let mut message = [0; 16];
        message[0] = if self.v4 { 8 } else { 128 };
        // The id: its own for a raw socket, the kernel's for the other.
        message[4..6].copy_from_slice(&(self.token as u16).to_be_bytes());
        message[6..8].copy_from_slice(&sequence.to_be_bytes());
        message[8..].copy_from_slice(&self.token.to_be_bytes());
        if self.v4 {
            // IPv6's is the kernel's to make.
            let sum = checksum::finish(checksum::add(&message, 0));
            message[2..4].copy_from_slice(&sum);
        }
        self.socket.send(&message).map(drop)
    }

    /// Whether the reply to this request comes within `limit`.
    fn hear(&self, sequence: u16, limit: Duration) -> io::Result<bool> {
        let until = Instant::now() + limit;
        let mut buf = [MaybeUninit::<u8>::uninit(); 256];
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            self.socket.set_read_timeout(Some(left))?;
            let len = match self.socket.recv(&mut buf) {
                Ok(len) => len,
                Err(e)
                    if matches!(
                        e.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                    ) =>
                {
                    return Ok(false);
                }
                // An ICMP error of an earlier request.
                Err(_) => continue,
            };
            // SAFETY: the kernel has written the first `len` bytes.
            let bytes: Vec<u8> = buf[..len]
                .iter()
                .map(|byte| unsafe { byte.assume_init() })
                .collect();
            if self.is_reply(&bytes, sequence) {
                return Ok(true);
            }
        }
    }

    fn is_reply(&self, bytes: &[u8], sequence: u16) -> bool {
        let skip = if self.v4 && self.is_raw {
            bytes.first().map_or(0, |b| usize::from(b & 15) * 4)
        } else {
            0
        };
        let Some(message) = bytes.get(skip..).and_then(|rest| rest.first_chunk::<16>()) else {
            return false;
        };
        let reply = if self.v4 { 0 } else { 129 };
        message[0] == reply
            && message[6..8] == sequence.to_be_bytes()
            && message[8..] == self.token.to_be_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn probe() -> Probe {
        Probe {
            from: [10, 77, 0, 1].into(),
            to: [10, 77, 0, 3].into(),
            token: 61_234,
        }
    }

    fn packet(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut out = Vec::new();
        write(&mut out);
        out
    }

    fn back() -> etherparse::PacketBuilderStep<etherparse::IpHeaders> {
        PacketBuilder::ipv4([10, 77, 0, 3], [10, 77, 0, 1], 64)
    }

    #[test]
    fn any_answer_counts_as_reached_but_a_firewalls_refusal() {
        let probe = probe();
        let echo = packet(|out| {
            back()
                .icmpv4_echo_reply(61_234, 1)
                .write(out, &[0; 8])
                .unwrap()
        });
        assert_eq!(
            probe.answered_by(&echo),
            Some(Answer::Reached(AnswerKind::Echo))
        );
        let reset = packet(|out| back().tcp(53, 61_234, 0, 0).rst().write(out, &[]).unwrap());
        assert_eq!(
            probe.answered_by(&reset),
            Some(Answer::Reached(AnswerKind::Tcp))
        );
        let names = packet(|out| back().udp(53, 61_234).write(out, &[0; 12]).unwrap());
        assert_eq!(
            probe.answered_by(&names),
            Some(Answer::Reached(AnswerKind::Udp))
        );
        let unreachable = |code, question: &[u8]| {
            packet(|out| {
                back()
                    .icmpv4_raw(3, code, [0; 4])
                    .write(out, question)
                    .unwrap()
            })
        };
        let questions: Vec<Vec<u8>> = probe
            .questions(true)
            .iter()
            .map(|q| q[VIRTIO_NET_HDR_LEN..].to_vec())
            .collect();
        assert_eq!(
            probe.answered_by(&unreachable(3, &questions[1])),
            Some(Answer::Reached(AnswerKind::Udp)),
            "nobody listens"
        );
        for (code, question) in [(3, 0), (13, 0), (10, 1), (13, 2), (3, 2)] {
            assert_eq!(
                probe.answered_by(&unreachable(code, &questions[question])),
                Some(Answer::Refused),
                "{code} {question}"
            );
        }
    }

    #[test]
    fn what_others_send_to_the_gateway_is_no_answer() {
        let probe = probe();
        let other = packet(|out| back().icmpv4_echo_reply(7, 1).write(out, &[0; 8]).unwrap());
        assert_eq!(probe.answered_by(&other), None);
        let elsewhere = Probe {
            from: [10, 77, 0, 9].into(),
            ..probe
        };
        let echo = packet(|out| {
            back()
                .icmpv4_echo_reply(61_234, 1)
                .write(out, &[0; 8])
                .unwrap()
        });
        assert_eq!(elsewhere.answered_by(&echo), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_looked_at_without_panic(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..120), protocol in 0usize..4
        ) {
            if bytes.len() >= 20 {
                (bytes[0], bytes[9]) = (0x45, [1, 6, 17, 58][protocol]);
                bytes[12..20].copy_from_slice(&[10, 77, 0, 3, 10, 77, 0, 1]);
            }
            let _ = probe().answered_by(&bytes);
        }
    }
}
