//! Proves that a guest is reached through its TAP: the gateway asks it for its Ethernet address
//! ([`super::neighbour`]), and its answer has to come out of the TAP. That a TAP exists and is up
//! proves neither.
//!
//! If no answer comes, the kernel's counters tell where packets stop: what QEMU has taken out of
//! the TAP went into a buffer that the guest's own driver had given it, so this host has done its
//! part; what the kernel drops on the way never came so far.

use super::{
    neighbour::questions,
    port::Port,
    reach::{GuestProof, GuestReach},
};
use crate::{
    id::VmId,
    plane::{core::Inner, handle::Plane, tasks::Task},
};
use p2pvm_host::links::links;
use std::{
    fs,
    io::{self, ErrorKind},
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};
use tokio::sync::oneshot;

/// How long before the question is repeated.
const AGAIN: Duration = Duration::from_millis(350);
/// How many packets have been taken out of an interface, in the calling thread's network namespace.
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
    /// Proves on a thread of its own, which inherits the caller's network namespace, the plane's.
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
                    .tables
                    .ports
                    .load()
                    .get(vm)
                    .cloned()
                    .filter(|port| port.is_open());
                // The asker may have given up.
                let _ = answer.send(port.map(|port| GuestProof {
                    ifname: port.config.ifname.clone(),
                    reach: ask(&inner, &port, limit),
                }));
            });
        if let Err(error) = started {
            tracing::debug!(
                error = %p2pvm_host::chain(&error),
                "cannot start the thread of a proof"
            );
        }
    }
}

fn ask(inner: &Inner, port: &Port, limit: Duration) -> GuestReach {
    let (tell, heard) = mpsc::channel();
    port.listening.begin(tell);
    let found = asked(inner, port, &heard, limit);
    port.listening.end();
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
        for frame in questions(&port.config, widely) {
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
        // Reached early if a second asker replaced this one.
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
    /// Asks a guest of this host through its TAP, as a router asks a neighbour. `None` if the guest
    /// has no port here or is fenced. Costs a few small frames.
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

    #[test]
    fn packets_taken_out_of_an_interface_are_read_by_its_full_name() {
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
}
