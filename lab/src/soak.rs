//! Hostile datagrams against a running daemon: those that an attacker on the path can send.
//!
//! The attacker is on the router before the victim. It replays the datagrams that the victim gets:
//! whole, cut, with flipped bits, from other addresses. It also sends noise of every length and the
//! beginnings of handshakes, STUN requests and QUIC packets from forged addresses, and noise to the
//! TCP port. It counts the bytes that the victim sends to each forged address: more than three
//! times the bytes sent from there would make the victim an amplifier (the bound of RFC 9000 §8.1).

use crate::{
    figures::Figure,
    lab::{Lab, LabError},
    sites::Sites,
    testbed::{self, Testbed},
};
use nix::{
    net::if_::if_nametoindex,
    sys::socket::{
        AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, recvfrom,
        sendto, setsockopt, socket, sockopt,
    },
};
use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use std::{
    collections::{BTreeMap, VecDeque},
    fs,
    io::Write,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
    time::{Duration, Instant},
};

/// How many datagrams to the victim are kept for replay.
const KEPT: usize = 2048;
/// The networks of forged sources: documentation networks (RFC 5737), which no host of the testbed
/// has.
const FORGED: [Ipv4Addr; 3] = [
    Ipv4Addr::new(192, 0, 2, 0),
    Ipv4Addr::new(198, 51, 100, 0),
    Ipv4Addr::new(203, 0, 113, 0),
];
/// The longest datagram sent.
/// Reason: longer ones would be fragments.
const LONGEST: usize = 1472;
/// The TTL of the attacker's packets.
/// Reason: packets of other hosts have passed one router more, so their TTL differs.
const OUR_HOPS: u8 = 64;
/// How many TCP connections with noise are left open.
const KNOCKS: usize = 64;

/// The target and the volume of an attack.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The victim's host.
    pub victim: String,
    /// Its UDP ports: the packet plane's and the control plane's.
    pub udp: Vec<u16>,
    /// Its TCP port.
    pub tcp: Option<u16>,
    /// Datagrams a second.
    pub pace: u32,
    /// How long the attack lasts.
    pub lasting: Duration,
    /// The seed of the packets.
    pub seed: u64,
}

/// What was sent and what came back.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Outcome {
    /// Datagrams sent, by kind.
    pub sent: BTreeMap<&'static str, u64>,
    /// Datagrams of other hosts that were seen on their way to the victim.
    pub seen: u64,
    /// Bytes, IP headers included, sent with forged sources.
    pub forged_bytes: u64,
    /// Bytes, IP headers included, that the victim sent to forged addresses.
    pub answered_bytes: u64,
    /// The greatest answer to one forged source, as a multiple of what was sent from it.
    pub worst_amplification: f64,
}

/// A whole soak: the victim before and after the attack.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// How long the attack lasted, seconds.
    pub seconds: f64,
    /// What was sent and what came back.
    pub outcome: Outcome,
    /// The daemon's resident memory before, bytes.
    pub resident_before: u64,
    /// The same after the attack, bytes.
    pub resident_after: u64,
    /// Probes of another member that the victim answered during the attack, and all of them.
    pub pings: (u32, u32),
    /// Whether the same daemon still runs.
    pub same_daemon: bool,
    /// Lines of its log that report a panic.
    pub panics: Vec<String>,
}

impl Report {
    /// Its figures, for docs/figures.
    pub fn figures(&self) -> Vec<Figure> {
        let (outcome, mega) = (&self.outcome, 1e6);
        let sent: u64 = outcome.sent.values().sum();
        let figure =
            |name: &str, what: &str, unit: &str, value: f64| Figure::new(name, what, unit, [value]);
        vec![
            figure("seconds", "how long", "s", self.seconds),
            figure("sent", "sent, all kinds", "million", sent as f64 / mega).digits(1),
            figure("kinds", "kinds", "", outcome.sent.len() as f64),
            figure(
                "forged",
                "with forged sources",
                "MB",
                outcome.forged_bytes as f64 / mega,
            ),
            figure(
                "answered",
                "answered",
                "MB",
                outcome.answered_bytes as f64 / mega,
            )
            .digits(1),
            figure(
                "amplification",
                "at worst, of what one source had sent",
                "times",
                outcome.worst_amplification,
            )
            .digits(3)
            .aim("≤ 3 times"),
            figure(
                "memory-before",
                "before",
                "MB",
                self.resident_before as f64 / mega,
            )
            .digits(1),
            figure(
                "memory-after",
                "after",
                "MB",
                self.resident_after as f64 / mega,
            )
            .digits(1),
            figure(
                "pings",
                "pings of another member",
                "",
                f64::from(self.pings.1),
            ),
            figure("pongs", "of these answered", "", f64::from(self.pings.0)),
            figure("panics", "panics", "", self.panics.len() as f64).aim("0"),
        ]
    }
}

/// The victim's ports: the control plane's and the packet plane's.
const PORTS: (u16, u16) = (4001, 4002);

/// Founds a network of two public hosts and one behind a NAT on a testbed of its own, and attacks
/// the founder's daemon.
///
/// # Errors
/// If the network does not come up or the daemon does not answer afterwards.
pub fn soak(
    program: &Path,
    name: &str,
    pace: u32,
    lasting: Duration,
    seed: u64,
) -> Result<Report, LabError> {
    let lab = found_network(program, name)?;
    let pid_file = lab.dir("victim")?.join("daemon.pid");
    let pid = || fs::read_to_string(&pid_file).unwrap_or_default();
    let resident = || Ok::<_, LabError>(lab.status("victim")?.resident_bytes);
    let (pid_before, resident_before) = (pid(), resident()?);
    let plan = Plan {
        victim: "victim".into(),
        udp: vec![PORTS.0, PORTS.1],
        tcp: Some(PORTS.0),
        pace,
        lasting,
        seed,
    };
    let probes = (lasting.as_millis() / 250).clamp(4, 1_000_000) as u32;
    let (outcome, answered) = std::thread::scope(|scope| {
        let pinging = scope.spawn(|| {
            lab.ping("peer", "victim", probes, "250ms")
                .map(|p| p.rtts_ms.len() as u32)
        });
        let outcome = attack(lab.testbed(), &plan);
        (outcome, pinging.join().unwrap_or(Ok(0)))
    });
    let (outcome, answered) = (outcome?, answered?);
    let resident_after = resident()?;
    lab.ping("home", "victim", 3, "100ms")?;
    let log = fs::read_to_string(lab.dir("victim")?.join("daemon.log")).unwrap_or_default();
    let panics = log
        .lines()
        .filter(|l| l.contains("panicked"))
        .map(str::to_owned)
        .collect();
    let same_daemon = !pid_before.is_empty() && pid_before == pid();
    lab.down()?;
    let seconds = lasting.as_secs_f64();
    Ok(Report {
        seconds,
        outcome,
        resident_before,
        resident_after,
        pings: (answered, probes),
        same_daemon,
        panics,
    })
}

/// The victim, a public peer, and a member behind a NAT, which all reach one another.
fn found_network(program: &Path, name: &str) -> Result<Lab, LabError> {
    const SITES: &str = "seed = 5\n[default]\nrtt_ms = 10\nmbit = 1000\n\
        [[site]]\nname = \"victim\"\n[[site]]\nname = \"peer\"\n\
        [[site]]\nname = \"home\"\nnat = \"port-restricted\"\n";
    let lab = Lab::up(&Sites::parse(SITES)?, name, program)?;
    for host in ["victim", "peer", "home"] {
        let ports = if host == "victim" {
            format!("port = {}\nlink_port = {}\n", PORTS.0, PORTS.1)
        } else {
            String::new()
        };
        lab.configure(host, &format!("cpus = 1\nautonomic = false\n{ports}"))?;
    }
    lab.found("victim", "lab")?;
    let invite = lab.invite("victim", 2)?;
    lab.join("peer", &invite)?;
    lab.join("home", &invite)?;
    for host in ["peer", "home"] {
        lab.ping(host, "victim", 2, "100ms")?;
    }
    Ok(lab)
}

/// Attacks from the router of the victim's site until the time is over.
///
/// # Errors
/// If there is no such host or the sockets cannot be opened.
pub fn attack(bed: &Testbed, plan: &Plan) -> Result<Outcome, testbed::Error> {
    let host = bed.host(&plan.victim)?;
    let site = bed.plan().sites[host.site].name.clone();
    let std::net::IpAddr::V4(address) = host.address else {
        return Err(testbed::Error::Sites(format!(
            "{}: only a host with IPv4 can be attacked",
            host.name
        )));
    };
    bed.inside_router(&site, || {
        Attack::open(plan, address)
            .and_then(Attack::run)
            .map_err(|e| testbed::Error::Io("send hostile datagrams".into(), e))
    })?
}

/// Source, port of the victim, and body.
type Datagram = (SocketAddr, u16, Vec<u8>);

struct Attack<'a> {
    plan: &'a Plan,
    victim: Ipv4Addr,
    raw: OwnedFd,
    sniff: OwnedFd,
    rng: ChaCha8Rng,
    /// The router's interface towards the victim.
    bridge: u32,
    kept: VecDeque<Datagram>,
    knocks: VecDeque<TcpStream>,
    /// Bytes sent from and answered to each forged source.
    forged: BTreeMap<Ipv4Addr, (u64, u64)>,
    outcome: Outcome,
}

impl<'a> Attack<'a> {
    fn open(plan: &'a Plan, victim: Ipv4Addr) -> std::io::Result<Self> {
        let raw = socket(
            AddressFamily::Inet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::Raw,
        )?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let sniff = socket(
            AddressFamily::Packet,
            SockType::Raw,
            flags,
            SockProtocol::EthAll,
        )?;
        setsockopt(&sniff, sockopt::RcvBuf, &(4 << 20))?;
        Ok(Self {
            plan,
            victim,
            raw,
            sniff,
            bridge: if_nametoindex("lan")?,
            rng: ChaCha8Rng::seed_from_u64(plan.seed),
            kept: VecDeque::new(),
            knocks: VecDeque::new(),
            forged: BTreeMap::new(),
            outcome: Outcome::default(),
        })
    }

    fn run(mut self) -> std::io::Result<Outcome> {
        let began = Instant::now();
        let mut sent = 0u64;
        while began.elapsed() < self.plan.lasting {
            let due = (began.elapsed().as_secs_f64() * f64::from(self.plan.pace)) as u64;
            while sent < due {
                self.send_one()?;
                sent += 1;
            }
            self.look()?;
            if let Some(port) = self.plan.tcp
                && self.rng.random_bool(0.02)
            {
                self.knock(port);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        // Packets in flight count too.
        std::thread::sleep(Duration::from_millis(300));
        self.look()?;
        self.outcome.forged_bytes = self.forged.values().map(|(sent, _)| sent).sum();
        self.outcome.answered_bytes = self.forged.values().map(|(_, answered)| answered).sum();
        self.outcome.worst_amplification = self
            .forged
            .values()
            .filter(|(sent, _)| *sent > 0)
            .map(|(sent, answered)| *answered as f64 / *sent as f64)
            .fold(0.0, f64::max);
        Ok(self.outcome)
    }

    fn noise(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.rng.fill_bytes(&mut bytes);
        bytes
    }

    fn forged_source(&mut self) -> SocketAddr {
        let [a, b, c, _] = FORGED[self.rng.random_range(0..FORGED.len())].octets();
        (
            Ipv4Addr::new(a, b, c, self.rng.random_range(1..=254)),
            self.rng.random_range(1024..=u16::MAX),
        )
            .into()
    }

    /// Sends one datagram of a random kind.
    fn send_one(&mut self) -> std::io::Result<()> {
        let port = self.plan.udp[self.rng.random_range(0..self.plan.udp.len())];
        let again = if self.kept.is_empty() {
            None
        } else {
            self.kept
                .get(self.rng.random_range(0..self.kept.len()))
                .cloned()
        };
        let forged = self.forged_source();
        let kind = self.rng.random_range(0..8);
        let (kind, source, port, body) = match again.filter(|_| kind < 4) {
            Some(again) => self.repeat(kind, again, forged),
            None => {
                let (kind, body) = self.invent(kind);
                (kind, forged, port, body)
            }
        };
        let SocketAddr::V4(from) = source else {
            return Ok(());
        };
        let packet = datagram(*from.ip(), from.port(), self.victim, port, &body);
        if is_forged(*from.ip()) {
            self.forged.entry(*from.ip()).or_default().0 += packet.len() as u64;
        }
        match sendto(
            self.raw.as_raw_fd(),
            &packet,
            &SockaddrIn::from(std::net::SocketAddrV4::new(self.victim, 0)),
            MsgFlags::empty(),
        ) {
            Ok(_) => *self.outcome.sent.entry(kind).or_default() += 1,
            // A full queue drops the packet, as a router does.
            Err(nix::Error::ENOBUFS | nix::Error::EAGAIN) => {}
            Err(e) => return Err(e.into()),
        }
        Ok(())
    }

    /// A replayed datagram, whole or changed.
    fn repeat(
        &mut self,
        kind: u32,
        (source, port, mut body): Datagram,
        forged: SocketAddr,
    ) -> (&'static str, SocketAddr, u16, Vec<u8>) {
        match kind {
            0 => ("replayed", source, port, body),
            1 => ("replayed from elsewhere", forged, port, body),
            2 => {
                for _ in 0..self.rng.random_range(1..=8) {
                    let at = self.rng.random_range(0..body.len().max(1));
                    if let Some(byte) = body.get_mut(at) {
                        *byte ^= 1 << self.rng.random_range(0..8);
                    }
                }
                ("bits flipped", source, port, body)
            }
            _ => {
                let len = self.rng.random_range(0..=LONGEST);
                body.resize(len, 0);
                ("cut or stretched", source, port, body)
            }
        }
    }

    /// Noise, or noise with the beginning of a known protocol.
    fn invent(&mut self, kind: u32) -> (&'static str, Vec<u8>) {
        match kind {
            4 => {
                // The beginnings that the plane tells apart by their first byte.
                let len = [148, 92, 64, 32, 16, 100, 116][self.rng.random_range(0..7)];
                let mut body = self.noise(len);
                body[..4].copy_from_slice(&[self.rng.random_range(0..6), 0, 0, 0]);
                ("like a handshake", body)
            }
            5 => {
                let extra = self.rng.random_range(0..10usize) * 4;
                let mut body = self.noise(20 + extra);
                body[..2].copy_from_slice(&[0, 1]);
                body[2..4].copy_from_slice(&(extra as u16).to_be_bytes());
                body[4..8].copy_from_slice(&0x2112_a442u32.to_be_bytes());
                ("like STUN", body)
            }
            6 => {
                let len = [1200, 1252, 50][self.rng.random_range(0..3)];
                let mut body = self.noise(len);
                body[..6].copy_from_slice(&[0xc3, 0, 0, 0, 1, 8]);
                ("like QUIC", body)
            }
            _ => {
                let len = self.rng.random_range(0..=LONGEST);
                ("noise", self.noise(len))
            }
        }
    }

    /// Reads the packets on the bridge: keeps datagrams to the victim, counts answers to forged
    /// addresses.
    fn look(&mut self) -> std::io::Result<()> {
        let mut frame = [0u8; 2048];
        loop {
            let (len, interface) = match recvfrom::<LinkAddr>(self.sniff.as_raw_fd(), &mut frame) {
                Ok((len, from)) => (len.min(frame.len()), from.map(|from| from.ifindex())),
                Err(nix::Error::EAGAIN) => return Ok(()),
                Err(nix::Error::EINTR) => continue,
                Err(e) => return Err(e.into()),
            };
            // Each frame is also seen on the bridge's ports: it counts once.
            if interface != Some(self.bridge as usize) {
                continue;
            }
            let Some(passed) = udp_of(&frame[..len]) else {
                continue;
            };
            if passed.from.0 == self.victim && is_forged(passed.to.0) {
                self.forged.entry(passed.to.0).or_default().1 += passed.total;
            } else if passed.to.0 == self.victim
                && passed.hops_left != OUR_HOPS
                && self.plan.udp.contains(&passed.to.1)
            {
                self.outcome.seen += 1;
                if self.kept.len() == KEPT {
                    self.kept.pop_front();
                }
                self.kept
                    .push_back((passed.from.into(), passed.to.1, passed.body.to_vec()));
            }
        }
    }

    fn knock(&mut self, port: u16) {
        let to = SocketAddr::from((self.victim, port));
        if let Ok(mut stream) = TcpStream::connect_timeout(&to, Duration::from_millis(50)) {
            let len = self.rng.random_range(1..4096);
            let noise = self.noise(len);
            // An error means that the victim closed it.
            let _ = stream.set_nonblocking(true);
            let _ = stream.write(&noise);
            self.knocks.push_back(stream);
            *self
                .outcome
                .sent
                .entry("TCP connections with noise")
                .or_default() += 1;
        }
        if self.knocks.len() > KNOCKS {
            self.knocks.pop_front();
        }
    }
}

/// An IPv4 packet with a UDP datagram; no UDP checksum, which IPv4 allows; the kernel fills in the
/// header's.
fn datagram(from: Ipv4Addr, from_port: u16, to: Ipv4Addr, to_port: u16, body: &[u8]) -> Vec<u8> {
    let total = (28 + body.len()) as u16;
    let mut packet = Vec::with_capacity(usize::from(total));
    packet.extend([0x45, 0]);
    packet.extend(total.to_be_bytes());
    packet.extend([0, 0, 0, 0, OUR_HOPS, 17, 0, 0]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(from_port.to_be_bytes());
    packet.extend(to_port.to_be_bytes());
    packet.extend((total - 20).to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(body);
    packet
}

/// A UDP datagram that passed.
struct PassedDatagram<'a> {
    from: (Ipv4Addr, u16),
    to: (Ipv4Addr, u16),
    hops_left: u8,
    /// Bytes of the IP packet.
    total: u64,
    body: &'a [u8],
}

/// The UDP datagram in an Ethernet frame.
fn udp_of(frame: &[u8]) -> Option<PassedDatagram<'_>> {
    let packet = frame.get(14..).filter(|_| frame[12..14] == [8, 0])?;
    let header = usize::from(packet.first()? & 15) * 4;
    if packet[0] >> 4 != 4 || *packet.get(9)? != 17 {
        return None;
    }
    let total = usize::from(u16::from_be_bytes(packet.get(2..4)?.try_into().ok()?));
    let packet = packet.get(..total)?;
    let address = |at: usize| {
        Some(Ipv4Addr::from(
            <[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?,
        ))
    };
    let udp = packet.get(header..)?;
    let port = |at: usize| Some(u16::from_be_bytes(udp.get(at..at + 2)?.try_into().ok()?));
    Some(PassedDatagram {
        from: (address(12)?, port(0)?),
        to: (address(16)?, port(2)?),
        hops_left: packet[8],
        total: total as u64,
        body: udp.get(8..)?,
    })
}

fn is_forged(ip: Ipv4Addr) -> bool {
    FORGED
        .iter()
        .any(|net| net.octets()[..3] == ip.octets()[..3])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_that_was_made_is_parsed_and_a_cut_one_refused() {
        let (from, to) = (Ipv4Addr::new(192, 0, 2, 7), Ipv4Addr::new(198, 18, 1, 10));
        let mut frame = vec![0; 12];
        frame.extend([8, 0]);
        frame.extend(datagram(from, 5, to, 6, b"body"));
        let seen = udp_of(&frame).expect("a whole datagram");
        assert_eq!(
            (seen.from, seen.to, seen.hops_left, seen.total, seen.body),
            ((from, 5), (to, 6), OUR_HOPS, 32, &b"body"[..])
        );
        assert!(is_forged(from) && !is_forged(to));
        for len in 0..frame.len() {
            assert!(udp_of(&frame[..len]).is_none());
        }
    }
}
