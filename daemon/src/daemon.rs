//! The daemon: its services, and what it does when its planes report an event.

use crate::{
    access::policy::Policies,
    addresses::{ports::Ports, reach::Reach, resolver::Integration},
    layout::Layout,
    machine::proof::Proofs,
    members::expelled,
    parts::Parts,
    placement::{drain::Drains, manager::Manager},
    routes::subnets::Subnets,
    traces::Exporter,
    vms::{absent::Absent, guests::Guests},
};
use p2pvm_api::{Failure, StartTimes};
use p2pvm_host::Keeper;
use p2pvm_overlay::{
    Fabric, MemberId, control::ControlEvent, membership::Refusal,
    network_time::Exchange as ClockExchange, plane::PlaneEvent, ring::ask::AskAll,
    ring_driver::RingDriver,
};
use p2pvm_vm_manager::{Traces, host::Host};
use std::{
    net::IpAddr,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::{broadcast, mpsc, watch};

/// The running node.
pub(crate) struct Daemon {
    pub(crate) parts: Arc<Parts>,
    pub(crate) reach: Arc<Reach>,
    pub(crate) host: Arc<Host>,
    pub(crate) manager: Arc<Manager>,
    pub(crate) absent: Arc<Absent>,
    pub(crate) drains: Drains,
    pub(crate) policies: Arc<Policies>,
    pub(crate) subnets: Arc<Subnets>,
    pub(crate) keeper: Arc<Keeper>,
    pub(crate) integration: Integration,
    pub(crate) began: Instant,
    pub(crate) times: Arc<Mutex<StartTimes>>,
    pub(crate) stop: watch::Sender<bool>,
    /// Whether the program is to start again when it has ended.
    pub(crate) again: AtomicBool,
    /// Why the daemon cannot go on, if it cannot.
    pub(crate) expelled: Mutex<Option<Failure>>,
    pub(crate) layout: Layout,
    pub(crate) traces: Traces,
    /// Where spans go, if anybody wants them.
    pub(crate) exporter: Option<Exporter>,
    pub(crate) _ring: RingDriver,
    pub(crate) _clocks: ClockExchange,
    pub(crate) ask: OnceLock<AskAll>,
    pub(crate) guests: Guests,
    pub(crate) proofs: Proofs,
}

impl Daemon {
    pub(crate) async fn follow_plane(
        self: Arc<Self>,
        mut events: mpsc::Receiver<PlaneEvent>,
        ports: Arc<Ports>,
        want: mpsc::Sender<IpAddr>,
    ) {
        while let Some(event) = events.recv().await {
            match event {
                // A full queue drops the wish; the packet's sender repeats it.
                PlaneEvent::Unresolved(ip) => drop(want.try_send(ip)),
                PlaneEvent::GuestFrame { vm, frame } => ports.frame(vm, &frame),
                PlaneEvent::PathChanged { member, path } => {
                    tracing::info!(
                        member = %self.name_of(member),
                        path = %path.as_ref().map_or("none".to_owned(), |p| self.path_text(p)),
                        "path"
                    )
                }
                PlaneEvent::StaleEpoch {
                    addr,
                    from,
                    sent,
                    known,
                } => {
                    tracing::warn!(%addr, from = %self.name_of(from), %sent, %known, "dropped \
                        packets of a fenced VM");
                    let reach = self.reach.clone();
                    tokio::spawn(async move { reach.tell_stale(addr, from, known).await });
                }
                PlaneEvent::MovedHint { addr, route } => {
                    tracing::debug!(
                        %addr, to = %self.name_of(route.member), epoch = %route.epoch, "moved"
                    )
                }
            }
        }
    }

    pub(crate) async fn follow_control(
        self: Arc<Self>,
        mut events: broadcast::Receiver<ControlEvent>,
    ) {
        loop {
            match events.recv().await {
                Ok(ControlEvent::Connected(member)) => {
                    self.note(|times, ms| times.connected = times.connected.or(Some(ms)));
                    self.parts.records.membership_changed();
                    let (reach, spread) = (self.reach.clone(), self.parts.spread.clone());
                    tokio::spawn(async move { reach.meet(member).await });
                    tokio::spawn(async move {
                        if let Err(error) = spread.meet(member).await {
                            tracing::debug!(?member, %error, "notices not exchanged");
                        }
                    });
                }
                Ok(ControlEvent::Disconnected(_)) => self.parts.records.membership_changed(),
                Ok(ControlEvent::Revoked(member)) => {
                    tracing::warn!(member = %self.name_of(member), "revoked");
                    self.parts.plane.remove_peer(member);
                    self.parts.notices.touch();
                }
                Ok(ControlEvent::ThisNodeRevoked) => {
                    let expelled = expelled::sentence(
                        &self.parts.trust,
                        &self.parts.certificate,
                        &Refusal::Revoked,
                    );
                    *self.expelled.lock().unwrap_or_else(PoisonError::into_inner) =
                        Some(Failure::refused(expelled));
                    self.stop();
                    return;
                }
                Err(broadcast::error::RecvError::Lagged(missed)) => {
                    tracing::warn!(missed, "events of the control plane were missed")
                }
                Err(broadcast::error::RecvError::Closed) => return,
            }
        }
    }

    pub(crate) async fn time_address(self: Arc<Self>) {
        // An address of before is there at once, its claim later.
        let mut claimed = self.reach.claimed();
        let millis = |took: Option<Duration>| took.map(|d| d.as_millis() as u64);
        if self.reach.lease().wait_for(Option::is_some).await.is_ok() {
            let claim = millis(*claimed.borrow());
            self.note(|times, ms| (times.address, times.claim) = (Some(ms), claim));
        }
        if let Ok(took) = claimed.wait_for(Option::is_some).await.map(|took| *took) {
            self.note(|times, _| times.claim = millis(took));
        }
    }

    pub(crate) fn note(&self, set: impl FnOnce(&mut StartTimes, u64)) {
        let elapsed = self.began.elapsed().as_millis() as u64;
        set(
            &mut self.times.lock().unwrap_or_else(PoisonError::into_inner),
            elapsed,
        );
    }

    /// This member.
    pub(crate) fn me(&self) -> MemberId {
        self.parts.me()
    }

    /// What makes spans.
    pub(crate) fn traces(&self) -> &Traces {
        &self.traces
    }

    /// The control plane.
    pub(crate) fn fabric(&self) -> Arc<dyn Fabric> {
        self.parts.fabric()
    }

    /// Tells the daemon to end, and the program to start again after that.
    pub(crate) fn start_again(&self) {
        self.again.store(true, Ordering::Release);
        self.stop();
    }

    /// Tells the daemon to end.
    pub(crate) fn stop(&self) {
        self.stop.send_replace(true);
    }
}
