//! The clock's thread: handshakes and probes that are due, liveness, unused links.

use super::{
    core::Inner,
    path::{moves::SleepWatch, peer::Peers},
};
use crate::link::Session;
use crate::lock;
use std::time::{Duration, Instant};

/// Time between ticks while some path is being probed.
const BUSY_TICK: Duration = Duration::from_millis(20);
/// Time between ticks while links exist; bounds how late a timeout is noticed.
const CALM_TICK: Duration = Duration::from_millis(250);
/// Time between ticks without any link.
const IDLE_TICK: Duration = Duration::from_secs(2);
/// How long a link may carry no data before it is dropped.
const IDLE_LINK: Duration = Duration::from_secs(300);
/// How long a link that only the ring ever used is kept after the ring has let it go.
const SPARE_LINK: Duration = Duration::from_secs(30);
/// How long a member without any link is remembered.
const FORGET: Duration = Duration::from_secs(30);

pub(super) fn run(inner: &Inner) {
    let (mut sleep, mut busy) = (SleepWatch::new(Instant::now()), Duration::ZERO);
    while !inner.stop.raised() {
        let now = Instant::now();
        if let Some(slept) = sleep.slept(now, busy) {
            tracing::info!(seconds = slept.as_secs(), "this host slept");
            inner.roamed("sleep");
        }
        if inner.udp.take_refused() {
            inner
                .tables
                .peers
                .load()
                .iter()
                .for_each(|peer| peer.pmtu().doubt(now));
        }
        inner.relaying.tick(now);
        inner.traffic.tick(now);
        busy = tick(inner, now);
        lock(&inner.waiting.unresolved).expire(now);
        lock(&inner.waiting.unknown_sources).expire(now);
        inner.clock.wait(busy);
    }
    // A handle may outlive this thread; a device that is down carries nothing. It is set down here
    // because this thread is in the device's network namespace.
    lock(&inner.device_wanted).closed = true;
    let _ = inner.tun().and_then(|tun| tun.enabled(false));
}

/// One round over all peers; returns the time until the next.
fn tick(inner: &Inner, now: Instant) -> Duration {
    let (mut forgotten, mut pause) = (Vec::new(), IDLE_TICK);
    for peer in inner.tables.peers.load().iter() {
        let idle = peer.idle(now);
        let limit = if peer.is_spare() {
            SPARE_LINK
        } else {
            IDLE_LINK
        };
        let index = inner.new_index();
        if let Some(link) = peer.link().as_mut() {
            if idle >= limit {
                link.close();
            }
            link.tick(now, idle < Session::ACTIVE, index);
        }
        inner.run_link(peer, now);
        let probing = {
            let mut paths = peer.paths();
            if idle >= limit {
                paths.remove_all(now);
            }
            paths.tick(now, inner.activity(peer));
            paths.probing()
        };
        inner.run_paths(peer, now);
        let probing = inner.run_pmtu(peer, now) || probing;
        pause = pause.min(if probing { BUSY_TICK } else { CALM_TICK });
        if idle >= FORGET
            && peer.path().is_none()
            && peer.link().as_ref().is_none_or(|l| l.sending().is_none())
        {
            forgotten.push(peer.member);
        }
    }
    if !forgotten.is_empty() {
        inner.tables.peers.rcu(|peers| {
            let mut peers = Peers::clone(peers);
            forgotten.iter().for_each(|member| peers.remove(member));
            peers
        });
    }
    pause
}
