//! The clock thread: handshakes that are due, probes, liveness, links that nobody uses.

use super::{Inner, core::lock, roam::SleepWatch};
use crate::link::Session;
use std::{
    sync::{Condvar, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// While some path is being probed.
const BUSY_TICK: Duration = Duration::from_millis(20);
/// While links exist; bounds how late a timeout is noticed.
const CALM_TICK: Duration = Duration::from_millis(250);
/// With no link at all.
const IDLE_TICK: Duration = Duration::from_secs(2);
/// A link that carried no data for this long is dropped.
pub(crate) const IDLE_LINK: Duration = Duration::from_secs(300);
/// A link that only the ring ever used is dropped so long after the ring has let it go.
const SPARE_LINK: Duration = Duration::from_secs(30);
/// A member without any link is forgotten after this.
const FORGET: Duration = Duration::from_secs(30);

/// Wakes the clock before its next tick.
#[derive(Default)]
pub(crate) struct Kick {
    kicked: Mutex<bool>,
    bell: Condvar,
}

impl Kick {
    pub fn kick(&self) {
        *self.kicked.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.bell.notify_one();
    }

    fn wait(&self, limit: Duration) {
        let kicked = self.kicked.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut kicked, _) = self
            .bell
            .wait_timeout_while(kicked, limit, |k| !*k)
            .unwrap_or_else(PoisonError::into_inner);
        *kicked = false;
    }
}

pub(crate) fn run(inner: &Inner) {
    let (mut sleep, mut busy) = (SleepWatch::new(Instant::now()), Duration::ZERO);
    while !inner.stop.raised() {
        let now = Instant::now();
        if let Some(slept) = sleep.slept(now, busy) {
            tracing::info!(seconds = slept.as_secs(), "this host slept");
            inner.roamed("sleep");
        }
        if inner.udp.take_refused() {
            inner
                .peers
                .load()
                .iter()
                .for_each(|peer| peer.pmtu().doubt(now));
        }
        inner.relaying.tick(now);
        inner.traffic.tick(now);
        busy = tick(inner, now);
        lock(&inner.unresolved).expire(now);
        lock(&inner.unknown_sources).expire(now);
        inner.kick.wait(busy);
    }
    // A handle may outlive this; down, the device carries nothing. Done here because this thread is
    // surely in its namespace.
    lock(&inner.device_wanted).closed = true;
    let _ = inner.tun.enabled(false);
}

/// One round over all peers; how long until the next.
fn tick(inner: &Inner, now: Instant) -> Duration {
    let (mut forgotten, mut pause) = (Vec::new(), IDLE_TICK);
    for peer in inner.peers.load().iter() {
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
        inner.peers.rcu(|peers| {
            let mut peers = super::peer::Peers::clone(peers);
            forgotten.iter().for_each(|member| peers.remove(member));
            peers
        });
    }
    pause
}
