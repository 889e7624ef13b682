//! Notices that this host has moved: an address or default route came or went (the kernel says so over netlink), or the
//! machine slept (the clock that counts sleep ran ahead of the one that does not; or, for a process that stood still, a tick
//! came far too late). Then every link is tried at once in every way that is known, with pings that ask the far end to
//! follow, and the connector is told, which exchanges addresses anew over the control plane.

use super::{Inner, clock::refresh_local_addresses, core::lock};
use nix::{
    errno::Errno,
    ifaddrs::getifaddrs,
    net::if_::InterfaceFlags,
    sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket},
    time::{ClockId, clock_gettime},
};
use std::{
    fs,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    thread,
    time::{Duration, Instant},
};

/// A change comes as several messages: they are waited for this long.
const GATHER: Duration = Duration::from_millis(50);
/// Where the kernel tells nothing, the addresses are looked at this often.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// A sleep, or standstill, shorter than this changes nothing that probes would not find.
const SLEPT: Duration = Duration::from_secs(3);
/// Groups of rtnetlink(7): links, and both families' addresses and routes.
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;

/// What the host's place in its networks is made of, as text that changes when it does. The overlay's own device and
/// interfaces without an address of their own (guests') do not count.
fn place(device: &str) -> Vec<String> {
    let mut place = Vec::new();
    for interface in getifaddrs().into_iter().flatten() {
        let up = interface.flags.contains(InterfaceFlags::IFF_UP | InterfaceFlags::IFF_RUNNING);
        if !up || interface.interface_name == device || interface.flags.contains(InterfaceFlags::IFF_LOOPBACK) {
            continue;
        }
        let Some(address) = interface.address else { continue };
        let v4 = address.as_sockaddr_in().map(|a| std::net::IpAddr::V4(a.ip()));
        let ip = v4.or_else(|| address.as_sockaddr_in6().map(|a| std::net::IpAddr::V6(a.ip())));
        place.extend(ip.filter(super::packet::is_unicast).map(|ip| format!("{} {ip}", interface.interface_name)));
    }
    // This thread's own files: it may stand in another network namespace than the process.
    let routes = |file: &str| fs::read_to_string(file).unwrap_or_default();
    for line in routes("/proc/thread-self/net/route").lines() {
        let mut fields = line.split_ascii_whitespace();
        if let (Some(name), Some("00000000"), Some(gateway)) = (fields.next(), fields.next(), fields.next()) {
            place.push(format!("default {name} {gateway}"));
        }
    }
    for line in routes("/proc/thread-self/net/ipv6_route").lines() {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        if let (Some(&"00"), Some(gateway), Some(&name)) = (fields.get(1), fields.get(4), fields.last())
            && name != "lo"
        {
            place.push(format!("default {name} {gateway}"));
        }
    }
    place.retain(|line| !line.starts_with(&format!("default {device} ")));
    place.sort();
    place.dedup();
    place
}

fn listen() -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, GROUPS))?;
    Ok(socket)
}

/// Takes every message that is there: that something changed is all that is wanted of them.
fn drain(socket: &OwnedFd) {
    let mut buf = [0; 8192];
    loop {
        match recv(socket.as_raw_fd(), &mut buf, MsgFlags::MSG_DONTWAIT) {
            Ok(0) | Err(Errno::EAGAIN) => return,
            // Messages were lost for want of room (ENOBUFS): as good as one that came.
            Ok(_) | Err(Errno::ENOBUFS | Errno::EINTR) => {}
            Err(_) => return,
        }
    }
}

/// The thread that watches the host's addresses and routes.
pub(crate) fn run(inner: &Inner) {
    let socket = listen().inspect_err(|error| tracing::debug!(%error, "no news of addresses from the kernel")).ok();
    let mut known = place(&inner.device);
    while !inner.stop.raised() {
        match &socket {
            Some(socket) => {
                if !inner.stop.wait_readable(socket.as_fd()) {
                    return;
                }
                thread::sleep(GATHER);
                drain(socket);
            }
            None => thread::sleep(LOOK_EVERY),
        }
        let now = place(&inner.device);
        if now != known {
            tracing::info!(was = known.join(", "), is = now.join(", "), "this host's addresses have changed");
            known = now;
            inner.roamed("address");
        }
    }
}

/// Tells by two clocks whether time passed that this process did not see.
pub(crate) struct SleepWatch {
    seen: Instant,
    ahead: Option<Duration>,
}

impl SleepWatch {
    pub fn new(now: Instant) -> Self {
        Self { seen: now, ahead: ahead() }
    }

    /// How long the machine slept or the process stood still since the last call, if it did; `pause` is how long the
    /// caller meant to wait in between.
    pub fn slept(&mut self, now: Instant, pause: Duration) -> Option<Duration> {
        let (ahead, late) = (ahead(), now.saturating_duration_since(self.seen).saturating_sub(pause));
        let asleep = ahead.zip(self.ahead).map_or(Duration::ZERO, |(is, was)| is.saturating_sub(was));
        (self.seen, self.ahead) = (now, ahead);
        let lost = asleep.max(late);
        (lost >= SLEPT).then_some(lost)
    }
}

/// How far the clock that counts sleep is ahead of the one that does not.
fn ahead() -> Option<Duration> {
    let read = |clock| clock_gettime(clock).ok().map(Duration::from);
    Some(read(ClockId::CLOCK_BOOTTIME)?.saturating_sub(read(ClockId::CLOCK_MONOTONIC)?))
}

impl Inner {
    /// Tries every link again in every way, and tells the connector.
    pub fn roamed(&self, why: &'static str) {
        refresh_local_addresses(self);
        let now = Instant::now();
        for peer in self.peers.load().iter().filter(|p| p.sending.load().is_some()) {
            peer.paths().rouse(now);
            peer.pmtu().restart(now);
            peer.show_limit();
            self.run_paths(peer, now);
        }
        *lock(&self.last_roamed) = Some((now, why));
        self.has_roamed.notify_one();
        self.kick.kick();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standstill_is_noticed_and_a_normal_tick_is_not() {
        let start = Instant::now();
        let mut watch = SleepWatch::new(start);
        assert_eq!(watch.slept(start + Duration::from_millis(300), Duration::from_millis(250)), None);
        let late = watch.slept(start + Duration::from_millis(300) + SLEPT + Duration::from_secs(1), Duration::from_millis(250));
        assert!(late.is_some_and(|d| d >= SLEPT));
    }

    #[test]
    fn the_place_is_the_same_when_nothing_changes() {
        assert_eq!(place("none0"), place("none0"));
    }
}
