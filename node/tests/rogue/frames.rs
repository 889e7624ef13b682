//! Ethernet frames as a hostile guest's driver makes them, and the way to send them: the descriptor
//! of the guest's TAP, which its QEMU holds, so that a frame comes from the guest for all that is
//! behind it.

use p2pvm_lab::lab::Lab;
use std::{
    fs::{self, File},
    io::{ErrorKind, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

pub const BROADCAST: [u8; 6] = [0xff; 6];
pub const IPV4: u16 = 0x0800;
pub const ARP: u16 = 0x0806;
pub const IPV6: u16 = 0x86dd;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

/// The guest's end of its interface.
pub struct Tap {
    file: File,
    /// Bytes of the virtio-net header before each frame.
    header: usize,
    /// The process that holds it.
    pub qemu: i32,
}

impl Tap {
    /// That of the only guest on a host.
    pub fn of(lab: &Lab, host: &str) -> Self {
        let processes = lab.testbed().processes(host).unwrap();
        let is_qemu = |pid: &i32| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm"));
            name.is_ok_and(|name| name.starts_with("qemu"))
        };
        let (qemu, fd) = processes
            .into_iter()
            .filter(is_qemu)
            .find_map(|pid| Some((pid, descriptor(pid)?)))
            .expect("a QEMU with a TAP");
        let tap = borrow(qemu, fd);
        let mut header: libc::c_int = 0;
        // SAFETY: the pointer is to a c_int that lives across the call.
        let read =
            unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNGETVNETHDRSZ as _, &raw mut header) };
        assert!(read == 0 && header >= 10, "{read} {header}");
        Self {
            file: tap.into(),
            header: header as usize,
            qemu,
        }
    }

    /// Sends a frame with an empty virtio-net header.
    pub fn send(&self, frame: &[u8]) {
        let empty = vec![0; self.header];
        assert!(self.send_raw(&empty, frame), "the kernel does not take it");
    }

    /// Sends a frame behind any header. False if the kernel itself refuses it.
    pub fn send_raw(&self, header: &[u8], frame: &[u8]) -> bool {
        let mut bytes = header.to_vec();
        bytes.resize(self.header, 0);
        bytes.extend_from_slice(frame);
        loop {
            match (&self.file).write(&bytes) {
                Ok(_) => return true,
                Err(e) if e.kind() == ErrorKind::WouldBlock => std::thread::yield_now(),
                Err(_) => return false,
            }
        }
    }

    /// Bytes of the virtio-net header.
    pub fn header_len(&self) -> usize {
        self.header
    }
}

fn descriptor(pid: i32) -> Option<i32> {
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten() {
        let is_tun = fs::read_link(entry.path()).is_ok_and(|to| to.as_os_str() == "/dev/net/tun");
        let fd = entry.file_name().to_str()?.parse().ok()?;
        if is_tun {
            return Some(fd);
        }
    }
    None
}

/// A copy of a process's descriptor, by pidfd_getfd(2).
fn borrow(pid: i32, fd: i32) -> OwnedFd {
    // SAFETY: the arguments are numbers.
    let process = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    assert!(process >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: the kernel has just made it for us.
    let process = unsafe { OwnedFd::from_raw_fd(process as i32) };
    // SAFETY: the arguments are numbers.
    let copy = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), fd, 0) };
    assert!(copy >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: the kernel has just made it for us.
    unsafe { OwnedFd::from_raw_fd(copy as i32) }
}

/// The ones' complement sum that IP and its transports end with.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

pub fn ethernet(to: [u8; 6], from: [u8; 6], kind: u16, content: &[u8]) -> Vec<u8> {
    [&to[..], &from, &kind.to_be_bytes(), content].concat()
}

fn ipv4(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, content: &[u8]) -> Vec<u8> {
    let length = (20 + content.len()) as u16;
    let mut packet = vec![0x45, 0];
    packet.extend(length.to_be_bytes());
    packet.extend([0, 1, 0, 0, 64, protocol, 0, 0]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(content);
    packet
}

fn ipv6(from: Ipv6Addr, to: Ipv6Addr, protocol: u8, content: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((content.len() as u16).to_be_bytes());
    packet.extend([protocol, 255]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(content);
    packet
}

/// The checksum of a transport over IPv6, whose field in `content` is still zero.
fn sum_v6(from: Ipv6Addr, to: Ipv6Addr, protocol: u8, content: &[u8]) -> [u8; 2] {
    let mut pseudo = [from.octets(), to.octets()].concat();
    pseudo.extend((content.len() as u32).to_be_bytes());
    pseudo.extend([0, 0, 0, protocol]);
    pseudo.extend(content);
    checksum(&pseudo).to_be_bytes()
}

/// A UDP packet; both addresses are of one family.
pub fn udp(from: (IpAddr, u16), to: (IpAddr, u16), content: &[u8]) -> (u16, Vec<u8>) {
    let mut datagram = Vec::new();
    datagram.extend(from.1.to_be_bytes());
    datagram.extend(to.1.to_be_bytes());
    datagram.extend(((8 + content.len()) as u16).to_be_bytes());
    // None, which IPv4 allows.
    datagram.extend([0, 0]);
    datagram.extend(content);
    match (from.0, to.0) {
        (IpAddr::V4(from), IpAddr::V4(to)) => (IPV4, ipv4(from, to, UDP, &datagram)),
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let sum = sum_v6(from, to, UDP, &datagram);
            datagram[6..8].copy_from_slice(&sum);
            (IPV6, ipv6(from, to, UDP, &datagram))
        }
        other => panic!("two families: {other:?}"),
    }
}

/// An ICMPv6 packet; the checksum in `message` is filled in.
pub fn icmpv6(from: Ipv6Addr, to: Ipv6Addr, message: &[u8]) -> Vec<u8> {
    let mut message = message.to_vec();
    message[2..4].fill(0);
    let sum = sum_v6(from, to, ICMPV6, &message);
    message[2..4].copy_from_slice(&sum);
    ipv6(from, to, ICMPV6, &message)
}

/// An ARP message: 1 asks, 2 answers.
pub fn arp(operation: u8, from: ([u8; 6], Ipv4Addr), to: ([u8; 6], Ipv4Addr)) -> Vec<u8> {
    let mut message = vec![0, 1, 8, 0, 6, 4, 0, operation];
    message.extend(from.0);
    message.extend(from.1.octets());
    message.extend(to.0);
    message.extend(to.1.octets());
    message
}

/// A question for the A record of a name.
pub fn question(name: &str) -> Vec<u8> {
    let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(label.len() as u8);
        query.extend(label.as_bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    query
}
