//! Proves that a guest is reached through its TAP: the gateway asks it for its Ethernet address, by
//! ARP (RFC 826) and by neighbour discovery (RFC 4861), and its answer has to come out of the TAP.
//! That a TAP is there and up shows neither.
//!
//! Where no answer comes, the kernel's counters tell whose matter that is: what QEMU has taken out
//! of the TAP went into a buffer that the guest's own driver had given it, so the host has done its
//! part; what the kernel drops on the way never came so far.

use super::{
    Inner, Plane, core::lock, packet::ETHERNET_LEN, port::GATEWAY_V6, port::Port, roam::Task,
};
use crate::id::VmId;
use etherparse::PacketBuilder;
use p2pvm_host::links::links;
use std::{
    fs,
    io::{self, ErrorKind},
    net::Ipv6Addr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};
use tokio::sync::oneshot;

/// The question is repeated after this.
const AGAIN: Duration = Duration::from_millis(350);
const BROADCAST: [u8; 6] = [0xff; 6];
const ARP: [u8; 2] = [0x08, 0x06];
const ARP_REPLY: [u8; 2] = [0, 2];
/// Ethernet, IPv4, and the lengths of their addresses (RFC 826).
const ARP_KIND: [u8; 6] = [0, 1, 0x08, 0, 6, 4];
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const HOPS: u8 = 255;

/// What was found of the way to a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuestReach {
    /// The guest answered.
    Answers {
        /// From the question to the answer.
        rtt: Duration,
    },
    /// The guest took the questions and does not answer.
    Quiet {
        /// Whether it sent anything meanwhile.
        talks: bool,
    },
    /// Nothing takes packets out of the interface: the guest's network driver does not run, or the
    /// guest stands still.
    NotTaken,
    /// The interface is gone.
    Missing,
    /// The interface is down.
    Down,
    /// Nothing holds the interface's other end.
    NoCarrier,
    /// This machine drops what is for the guest.
    Dropped {
        /// What the kernel said.
        why: String,
    },
}

/// What was found, and of which interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestProof {
    /// The TAP's name on this host.
    pub ifname: String,
    /// What was found.
    pub reach: GuestReach,
}

/// What a port's thread looks out for while its guest is asked.
#[derive(Default)]
pub(crate) struct Listening {
    /// Spares the port's thread the rest.
    on: AtomicBool,
    heard: Mutex<Option<mpsc::Sender<(bool, Instant)>>>,
}

impl Listening {
    /// Notes a frame of the guest's.
    #[inline]
    pub fn note(&self, port: &Port, frame: &[u8]) {
        if self.on.load(Ordering::Relaxed) {
            self.look_at(port, frame);
        }
    }

    #[cold]
    fn look_at(&self, port: &Port, frame: &[u8]) {
        if let Some(heard) = &*lock(&self.heard) {
            let config = &port.config;
            // Who asked may have given up.
            let _ = heard.send((
                is_answer(frame, config.v4.octets(), &config.v6),
                Instant::now(),
            ));
        }
    }
}

/// Whether a guest's frame says which Ethernet address it has.
fn is_answer(frame: &[u8], v4: [u8; 4], v6: &[Ipv6Addr]) -> bool {
    let Some(packet) = frame.get(ETHERNET_LEN..) else {
        return false;
    };
    match [frame[12], frame[13]] {
        ARP => packet.len() >= 28 && packet[6..8] == ARP_REPLY && packet[14..18] == v4,
        [0x86, 0xdd] => {
            let target = packet
                .get(48..64)
                .and_then(|bytes| <[u8; 16]>::try_from(bytes).ok());
            let is_advertisement =
                packet.len() >= 64 && packet[6] == 58 && packet[40] == NEIGHBOUR_ADVERTISEMENT;
            is_advertisement && target.is_some_and(|target| v6.contains(&Ipv6Addr::from(target)))
        }
        _ => false,
    }
}

/// The questions: ARP to the guest alone, or to all where `widely`, and a solicitation for each
/// IPv6 address.
fn questions(port: &Port, widely: bool) -> Vec<Vec<u8>> {
    let config = &port.config;
    let mut arp = Vec::with_capacity(42);
    arp.extend_from_slice(if widely { &BROADCAST } else { &config.mac });
    arp.extend_from_slice(&config.gateway_mac);
    arp.extend_from_slice(&ARP);
    arp.extend_from_slice(&ARP_KIND);
    arp.extend_from_slice(&[0, 1]);
    arp.extend_from_slice(&config.gateway_mac);
    arp.extend_from_slice(&config.gateway.octets());
    arp.extend_from_slice(&[0; 6]);
    arp.extend_from_slice(&config.v4.octets());
    let solicitations = config
        .v6
        .iter()
        .filter_map(|addr| solicitation(config.gateway_mac, addr));
    std::iter::once(arp).chain(solicitations).collect()
}

fn solicitation(gateway_mac: [u8; 6], target: &Ipv6Addr) -> Option<Vec<u8>> {
    let last = target.octets();
    let group = Ipv6Addr::new(
        0xff02,
        0,
        0,
        0,
        0,
        1,
        0xff00 | u16::from(last[13]),
        u16::from_be_bytes([last[14], last[15]]),
    );
    let to = [0x33, 0x33, 0xff, last[13], last[14], last[15]];
    let mut body = last.to_vec();
    // The asker's Ethernet address (RFC 4861 §4.6.1).
    body.extend_from_slice(&[1, 1]);
    body.extend_from_slice(&gateway_mac);
    let mut frame = Vec::with_capacity(86);
    let builder =
        PacketBuilder::ethernet2(gateway_mac, to).ipv6(GATEWAY_V6.octets(), group.octets(), HOPS);
    builder
        .icmpv6_raw(NEIGHBOUR_SOLICITATION, 0, [0; 4])
        .write(&mut frame, &body)
        .ok()?;
    Some(frame)
}

/// How many packets were taken out of an interface, in the calling thread's network namespace.
fn taken(ifname: &str) -> Option<u64> {
    taken_in(
        &fs::read_to_string("/proc/thread-self/net/dev").ok()?,
        ifname,
    )
}

/// The tenth of the counters in a line of `/proc/net/dev` (proc_net_dev in proc(5)): packets sent.
fn taken_in(table: &str, ifname: &str) -> Option<u64> {
    let line = table
        .lines()
        .find_map(|line| line.trim_start().strip_prefix(ifname)?.strip_prefix(':'))?;
    line.split_ascii_whitespace().nth(9)?.parse().ok()
}

impl Inner {
    /// Proves on a thread of its own, which stands in the plane's network namespace as the caller
    /// does.
    pub fn prove_guest(
        self: &Arc<Self>,
        vm: VmId,
        limit: Duration,
        answer: oneshot::Sender<Option<GuestProof>>,
    ) {
        let inner = self.clone();
        let started = thread::Builder::new()
            .name("p2pvm-proof".into())
            .spawn(move || {
                let port = inner
                    .ports
                    .load()
                    .get(vm)
                    .cloned()
                    .filter(|port| port.is_open());
                // Who asked may have given up.
                let _ = answer.send(port.map(|port| GuestProof {
                    ifname: port.config.ifname.clone(),
                    reach: ask(&inner, &port, limit),
                }));
            });
        if let Err(error) = started {
            tracing::debug!(%error, "nothing can be proved");
        }
    }
}

fn ask(inner: &Inner, port: &Port, limit: Duration) -> GuestReach {
    let (tell, heard) = mpsc::channel();
    // A second asker takes the first one's place, which then hears nothing more.
    *lock(&port.listening.heard) = Some(tell);
    port.listening.on.store(true, Ordering::Relaxed);
    let found = asked(inner, port, &heard, limit);
    port.listening.on.store(false, Ordering::Relaxed);
    *lock(&port.listening.heard) = None;
    found
}

fn asked(
    inner: &Inner,
    port: &Port,
    heard: &mpsc::Receiver<(bool, Instant)>,
    limit: Duration,
) -> GuestReach {
    let ifname = port.config.ifname.as_str();
    let until = Instant::now() + limit;
    let before = taken(ifname);
    let (mut talks, mut widely, mut refused) = (false, false, None);
    while Instant::now() < until && !inner.stop.raised() && !port.stop.raised() {
        let asked_at = Instant::now();
        refused = None;
        for frame in questions(port, widely) {
            refused = port.ask(&frame).err().or(refused);
        }
        widely = true;
        let again = (asked_at + AGAIN).min(until);
        while let Ok((answers, at)) =
            heard.recv_timeout(again.saturating_duration_since(Instant::now()))
        {
            if answers {
                return GuestReach::Answers {
                    rtt: at.saturating_duration_since(asked_at),
                };
            }
            talks = true;
        }
        // A second asker took this one's place.
        thread::sleep(again.saturating_duration_since(Instant::now()));
    }
    let state = links()
        .ok()
        .map(|links| links.into_iter().find(|link| link.name == ifname));
    match state {
        Some(None) => return GuestReach::Missing,
        Some(Some(link)) if !link.up => return GuestReach::Down,
        Some(Some(link)) if !link.carrier => return GuestReach::NoCarrier,
        _ => {}
    }
    match refused {
        Some(error) => GuestReach::Dropped {
            why: in_words(&error),
        },
        None if taken(ifname) > before => GuestReach::Quiet { talks },
        None => GuestReach::NotTaken,
    }
}

/// ENOBUFS is what packet(7) gives for a packet that a rule on the way out, or the interface's
/// queue, has dropped.
fn in_words(error: &io::Error) -> String {
    match (error.raw_os_error(), error.kind()) {
        (Some(libc::ENOBUFS), _) => {
            "a rule for what leaves by it, or its queue, drops them".to_owned()
        }
        (_, ErrorKind::WouldBlock) => "its queue is full".to_owned(),
        _ => error.to_string(),
    }
}

impl Plane {
    /// Asks a guest of this host through its TAP, as a router asks a neighbour, and says what came
    /// of it; nothing for a guest that has no port here, or whose port is closed. Cheap: a few
    /// small frames.
    pub async fn prove_guest(&self, vm: VmId, limit: Duration) -> Option<GuestProof> {
        let (answer, answered) = oneshot::channel();
        self.inner()
            .ask_host(Some(Task::ProveGuest(vm, limit, answer)));
        answered.await.ok().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const V4: [u8; 4] = [10, 77, 0, 9];

    fn v6() -> Ipv6Addr {
        "fd77::9".parse().unwrap()
    }

    fn arp(operation: u8, sender: [u8; 4]) -> Vec<u8> {
        let mut frame = vec![2; 12];
        frame.extend_from_slice(&ARP);
        frame.extend_from_slice(&ARP_KIND);
        frame.extend_from_slice(&[0, operation, 2, 2, 2, 2, 2, 2]);
        frame.extend_from_slice(&sender);
        frame.extend_from_slice(&[2, 2, 2, 2, 2, 2, 10, 77, 0, 1]);
        frame
    }

    fn discovery(kind: u8, target: Ipv6Addr) -> Vec<u8> {
        let mut frame = Vec::new();
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv6(
            target.octets(),
            GATEWAY_V6.octets(),
            HOPS,
        );
        builder
            .icmpv6_raw(kind, 0, [0; 4])
            .write(&mut frame, &target.octets())
            .unwrap();
        frame
    }

    #[test]
    fn only_the_guests_own_word_of_its_own_address_is_an_answer() {
        let answers = |frame: &[u8]| is_answer(frame, V4, &[v6()]);
        assert!(answers(&arp(2, V4)) && answers(&discovery(NEIGHBOUR_ADVERTISEMENT, v6())));
        assert!(!answers(&arp(1, V4)), "a question of its own");
        assert!(!answers(&arp(2, [10, 77, 0, 8])), "another's address");
        assert!(!answers(&discovery(NEIGHBOUR_SOLICITATION, v6())));
        assert!(!answers(&discovery(
            NEIGHBOUR_ADVERTISEMENT,
            "fd77::8".parse().unwrap()
        )));
    }

    #[test]
    fn a_solicitation_goes_to_the_group_of_its_target_with_a_sum_that_fits() {
        let frame = solicitation([6; 6], &"fd77::1:0203:0405".parse().unwrap()).unwrap();
        assert_eq!(frame[..6], [0x33, 0x33, 0xff, 3, 4, 5]);
        let parsed = etherparse::PacketHeaders::from_ethernet_slice(&frame).unwrap();
        let Some(etherparse::TransportHeader::Icmpv6(icmp)) = parsed.transport else {
            panic!("{parsed:?}")
        };
        assert_eq!(frame[54], NEIGHBOUR_SOLICITATION);
        let Some(etherparse::NetHeaders::Ipv6(ip, _)) = parsed.net else {
            panic!("no IPv6")
        };
        let sum = icmp
            .icmp_type
            .calc_checksum(ip.source, ip.destination, parsed.payload.slice())
            .unwrap();
        assert_eq!((icmp.checksum, ip.hop_limit), (sum, HOPS));
    }

    #[test]
    fn what_was_taken_out_of_an_interface_is_read_by_its_whole_name() {
        let table = "Inter-|   Receive |  Transmit\n face |bytes\n  pv1a: 1 2 3 4 5 6 7 8 9 10 11 \
            12 13 14 15 16\n    pv1:9 9 9 9 9 9 9 9 9 77 9 9 9 9 9 9\n";
        assert_eq!(
            (
                taken_in(table, "pv1a"),
                taken_in(table, "pv1"),
                taken_in(table, "pv")
            ),
            (Some(10), Some(77), None)
        );
        assert!(taken("lo").is_some(), "the kernel's own table");
    }

    proptest! {
        #[test]
        fn any_frame_of_a_guest_is_looked_at_without_panic(
            frame in proptest::collection::vec(any::<u8>(), 0..120)
        ) {
            let _ = is_answer(&frame, V4, &[v6()]);
        }
    }
}
