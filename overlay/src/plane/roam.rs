//! The thread that watches this host: the kernel says over netlink when an interface, an address or
//! a route came or went.
//!
//! It notices that the host has moved: an address or default route is another (or the machine
//! slept: the clock that counts sleep ran ahead of the one that does not; or, for a process that
//! stood still, a tick came far too late). Then every link is tried at once in every way that is
//! known, with pings that ask the far end to follow, and the connector is told, which exchanges
//! addresses anew over the control plane.
//!
//! It keeps the snapshot of the machine's networks new ([`crate::underlay`]), puts back what others
//! changed of the TUN and of guests' ports ([`super::mend`]), and does for other threads what has
//! to be done in the plane's network namespace.

use super::{Inner, core::lock, guest_proof::GuestProof, proof::Question, wake::Bell};
use crate::id::VmId;
use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
    },
    time::{ClockId, clock_gettime},
};
use p2pvm_host::links::{Link, links};
use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};
use tokio::sync::oneshot;

/// A change comes as several messages: they are waited for this long.
const GATHER: Duration = Duration::from_millis(50);
/// Everything is looked at this often, whatever the kernel tells: of some changes it tells nothing.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// As above where it tells nothing at all.
const LOOK_UNTOLD: Duration = Duration::from_secs(2);
/// A sleep, or standstill, shorter than this changes nothing that probes would not find.
const SLEPT: Duration = Duration::from_secs(3);
/// Groups of rtnetlink(7): links, and both families' addresses and routes.
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;

/// What others ask of the thread.
pub(crate) enum Task {
    /// Put back what differs of the device now, and say what that was.
    Mend(oneshot::Sender<Vec<String>>),
    /// Prove that packets pass.
    Prove(Question),
    /// Ask a guest through its interface.
    ProveGuest(VmId, Duration, oneshot::Sender<Option<GuestProof>>),
}

/// What others asked, and how the thread hears of it.
pub(crate) struct Desk {
    tasks: Mutex<Vec<Task>>,
    bell: Bell,
}

impl Desk {
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            tasks: Mutex::default(),
            bell: Bell::new()?,
        })
    }
}

/// What the host's place in its networks is made of, as text that changes when it does. p2pvm's own
/// interfaces, of whichever network, and those without an address of their own (guests') do not
/// count.
fn place(links: &[Link], is_ours: impl Fn(&str) -> bool) -> Vec<String> {
    let mut place = Vec::new();
    for link in links
        .iter()
        .filter(|link| link.carrier && !link.loopback && !is_ours(&link.name))
    {
        let addresses = link
            .addresses
            .iter()
            .map(|(ip, _)| ip)
            .filter(|ip| super::packet::is_unicast(ip));
        place.extend(addresses.map(|ip| format!("{} {ip}", link.name)));
    }
    // This thread's own files: it may stand in another network namespace than the process.
    let routes = |file: &str| fs::read_to_string(file).unwrap_or_default();
    for line in routes("/proc/thread-self/net/route").lines() {
        let mut fields = line.split_ascii_whitespace();
        if let (Some(name), Some("00000000"), Some(gateway)) =
            (fields.next(), fields.next(), fields.next())
            && !is_ours(name)
        {
            place.push(format!("default {name} {gateway}"));
        }
    }
    for line in routes("/proc/thread-self/net/ipv6_route").lines() {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        if let (Some(&"00"), Some(gateway), Some(&name)) =
            (fields.get(1), fields.get(4), fields.last())
            && name != "lo"
            && !is_ours(name)
        {
            place.push(format!("default {name} {gateway}"));
        }
    }
    place.sort();
    place.dedup();
    place
}

fn listen() -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        flags,
        SockProtocol::NetlinkRoute,
    )?;
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

/// The thread.
pub(crate) fn run(inner: &Arc<Inner>) {
    let socket = listen()
        .inspect_err(|error| tracing::debug!(%error, "no news of addresses from the kernel"))
        .ok();
    let pause = if socket.is_some() {
        LOOK_EVERY
    } else {
        LOOK_UNTOLD
    };
    let mut known = inner.look_around();
    while !inner.stop.raised() {
        let fds: Vec<BorrowedFd> = socket
            .iter()
            .map(AsFd::as_fd)
            .chain([inner.desk.bell.fd()])
            .collect();
        if !inner.stop.wait_any(&fds, pause) {
            return;
        }
        if !inner.desk.bell.heard() {
            thread::sleep(GATHER);
        }
        if let Some(socket) = &socket {
            drain(socket);
        }
        if let Some(now) = inner.look_around()
            && Some(&now) != known.as_ref()
            && let Some(before) = known.replace(now.clone())
        {
            tracing::info!(
                was = before.join(", "),
                is = now.join(", "),
                "this host's addresses have changed"
            );
            inner.roamed("address");
        }
        let mended = inner.mend_device(Instant::now());
        for task in std::mem::take(&mut *lock(&inner.desk.tasks)) {
            match task {
                Task::Mend(done) => drop(done.send(mended.clone())),
                Task::Prove(question) => inner.prove(question),
                Task::ProveGuest(vm, limit, answer) => inner.prove_guest(vm, limit, answer),
            }
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
        Self {
            seen: now,
            ahead: ahead(),
        }
    }

    /// How long the machine slept or the process stood still since the last call, if it did;
    /// `pause` is how long the caller meant to wait in between.
    pub fn slept(&mut self, now: Instant, pause: Duration) -> Option<Duration> {
        let (ahead, late) = (
            ahead(),
            now.saturating_duration_since(self.seen)
                .saturating_sub(pause),
        );
        let asleep = ahead
            .zip(self.ahead)
            .map_or(Duration::ZERO, |(is, was)| is.saturating_sub(was));
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
    /// Hands the thread something to do, or has it look around now.
    pub fn ask_host(&self, task: Option<Task>) {
        lock(&self.desk.tasks).extend(task);
        self.desk.bell.ring();
        if self.stop.raised() {
            self.clear_desk();
        }
    }

    /// Lets those go who wait for the thread, which has ended.
    pub fn clear_desk(&self) {
        lock(&self.desk.tasks).clear();
    }

    /// Has the thread put back what differs of the device; what that was.
    pub async fn mend(&self) -> Vec<String> {
        let (done, mended) = oneshot::channel();
        self.ask_host(Some(Task::Mend(done)));
        // Nothing comes if the plane ends meanwhile.
        mended.await.unwrap_or_default()
    }

    /// Renews the snapshot of the machine's networks and puts guests' interfaces back; where the
    /// host stands now, if the kernel tells.
    fn look_around(&self) -> Option<Vec<String>> {
        let links = links()
            .inspect_err(|error| tracing::debug!(%error, "the interfaces cannot be listed"))
            .ok()?;
        if self.underlay.renew_from(&links) {
            self.leave_tunnels();
        }
        self.mend_ports(&links, Instant::now());
        let view = self.underlay.view();
        Some(place(&links, |name| view.is_ours(name)))
    }

    /// Gives up what paths lead through tunnels of this machine, as it has just turned out.
    fn leave_tunnels(&self) {
        let (view, now) = (self.underlay.view(), Instant::now());
        for peer in self.peers.load().iter() {
            peer.paths().forget(
                |path| matches!(path, super::Path::Direct(to) if view.is_inside(&to.ip())),
                now,
            );
            self.run_paths(peer, now);
        }
    }

    /// Tries every link again in every way, and tells the connector.
    pub fn roamed(&self, why: &'static str) {
        let now = Instant::now();
        for peer in self
            .peers
            .load()
            .iter()
            .filter(|p| p.sending.load().is_some())
        {
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
        assert_eq!(
            watch.slept(
                start + Duration::from_millis(300),
                Duration::from_millis(250)
            ),
            None
        );
        let late = watch.slept(
            start + Duration::from_millis(300) + SLEPT + Duration::from_secs(1),
            Duration::from_millis(250),
        );
        assert!(late.is_some_and(|d| d >= SLEPT));
    }

    #[test]
    fn the_place_is_the_same_when_nothing_changes() {
        let place = || place(&links().unwrap(), |_| false);
        assert_eq!(place(), place());
    }
}
