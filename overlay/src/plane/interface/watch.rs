//! The thread that watches this host's interfaces: the kernel reports over netlink when an
//! interface, an address or a route comes or goes.
//!
//! It notices that the host has moved: its addresses or default routes are others. Every link is
//! then probed at once on every known path, with pings that ask the far end to follow, and the
//! connector exchanges addresses again over the control plane.
//!
//! It also keeps the snapshot of the machine's networks up to date ([`crate::underlay`]), puts back
//! what others changed of the TUN and of guests' ports ([`super::mend`]), and does for other
//! threads what has to be done in the plane's network namespace ([`crate::plane::tasks`]).

use crate::lock;
use crate::plane::{core::Inner, shape::packet::is_unicast, tasks::Task};
use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
    },
};
use p2pvm_host::links::{Link, links};
use std::{
    fs,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};
use tokio::sync::oneshot;

/// How long further messages are waited for. Reason: one change comes as several.
const GATHER: Duration = Duration::from_millis(50);
/// How often everything is looked at. Reason: the kernel does not report every change.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How often everything is looked at if the kernel reports nothing at all.
const LOOK_UNREPORTED: Duration = Duration::from_secs(2);
/// Groups of rtnetlink(7): links, and both families' addresses and routes.
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;

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
            .filter(|ip| is_unicast(ip));
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

pub(crate) fn run(inner: &Arc<Inner>) {
    let socket = listen()
        .inspect_err(|error| {
            tracing::debug!(
                error = %p2pvm_host::chain(error),
                "the kernel cannot report changes of addresses"
            )
        })
        .ok();
    let pause = if socket.is_some() {
        LOOK_EVERY
    } else {
        LOOK_UNREPORTED
    };
    let mut known = inner.look_around();
    while !inner.stop.raised() {
        let fds: Vec<BorrowedFd> = socket
            .iter()
            .map(AsFd::as_fd)
            .chain([inner.tasks.bell.fd()])
            .collect();
        if !inner.stop.wait_any(&fds, pause) {
            return;
        }
        if !inner.tasks.bell.heard() {
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
        for task in std::mem::take(&mut *lock(&inner.tasks.queue)) {
            match task {
                Task::Mend(done) => drop(done.send(mended.clone())),
                Task::Prove(question) => inner.prove(question),
                Task::ProveGuest(vm, limit, answer) => inner.prove_guest(vm, limit, answer),
            }
        }
    }
}

impl Inner {
    /// Hands the thread something to do, or has it look around now.
    pub fn ask_host(&self, task: Option<Task>) {
        lock(&self.tasks.queue).extend(task);
        self.tasks.bell.ring();
        if self.stop.raised() {
            self.clear_tasks();
        }
    }

    /// Ends the wait of everyone that waits for the thread, which has ended.
    pub fn clear_tasks(&self) {
        lock(&self.tasks.queue).clear();
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
            .inspect_err(|error| {
                tracing::debug!(
                    error = %p2pvm_host::chain(error),
                    "the interfaces cannot be listed"
                )
            })
            .ok()?;
        if self.underlay.renew_from(&links) {
            self.leave_tunnels();
        }
        self.mend_ports(&links, Instant::now());
        let view = self.underlay.view();
        Some(place(&links, |name| view.is_ours(name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_is_the_same_when_nothing_changes() {
        let place = || place(&links().unwrap(), |_| false);
        assert_eq!(place(), place());
    }
}
