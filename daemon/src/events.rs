//! What the daemon does when its planes report an event.

use crate::{
    addresses::{ports::Ports, reach::Reach},
    lifecycle::Lifecycle,
    members::expelled,
    parts::Parts,
};
use p2pvm_api::{EventKind, Failure};
use p2pvm_authority::Subject;
use p2pvm_overlay::{MemberId, control::ControlEvent, membership::Refusal, plane::PlaneEvent};
use std::{net::IpAddr, sync::Arc, time::Duration};
use tokio::sync::{broadcast, mpsc};

/// Follows the packet plane. Addresses that packets go to and no member has announced are sent to
/// `want`.
pub(crate) async fn follow_plane(
    (parts, reach, ports): (Arc<Parts>, Arc<Reach>, Arc<Ports>),
    mut events: mpsc::Receiver<PlaneEvent>,
    want: mpsc::Sender<IpAddr>,
) {
    while let Some(event) = events.recv().await {
        match event {
            // A full queue drops the wish; the packet's sender repeats it.
            PlaneEvent::Unresolved(ip) => drop(want.try_send(ip)),
            PlaneEvent::GuestFrame { vm, frame } => ports.frame(vm, &frame),
            PlaneEvent::PathChanged { member, path } => {
                tracing::info!(
                    member = %parts.name_of(member),
                    path = %path.as_ref().map_or("none".to_owned(), |p| parts.path_text(p)),
                    "the path to a member changed"
                )
            }
            PlaneEvent::StaleEpoch {
                addr,
                from,
                sent,
                known,
            } => {
                tracing::warn!(%addr, from = %parts.name_of(from), %sent, %known, "dropped \
                    packets of a fenced VM");
                let reach = reach.clone();
                tokio::spawn(async move { reach.tell_stale(addr, from, known).await });
            }
            PlaneEvent::MovedHint { addr, route } => {
                tracing::debug!(
                    %addr,
                    to = %parts.name_of(route.member),
                    epoch = %route.epoch,
                    "an address moved to another member"
                );
                reach.note_hint(addr, route);
            }
        }
    }
}

/// Follows the control plane: members that connect, disconnect or are revoked.
pub(crate) async fn follow_control(
    (parts, reach, lifecycle): (Arc<Parts>, Arc<Reach>, Arc<Lifecycle>),
    mut events: broadcast::Receiver<ControlEvent>,
) {
    loop {
        match events.recv().await {
            Ok(ControlEvent::Connected(member)) => {
                lifecycle.note(|times, ms| times.connected = times.connected.or(Some(ms)));
                parts.records.membership_changed();
                connected(&parts, member);
                let (reach, spread) = (reach.clone(), parts.spread.clone());
                tokio::spawn(async move { reach.meet(member).await });
                tokio::spawn(async move {
                    if let Err(error) = spread.meet(member).await {
                        tracing::debug!(
                            ?member,
                            error = %p2pvm_host::chain(&error),
                            "the member did not exchange notices"
                        );
                    }
                });
            }
            Ok(ControlEvent::Disconnected(member)) => {
                parts.records.membership_changed();
                disconnected(&parts, member);
            }
            Ok(ControlEvent::Revoked(member)) => {
                tracing::warn!(member = %parts.name_of(member), "a member was revoked");
                let text = |name: &str| format!("{name} was expelled from the network.");
                record(&parts, EventKind::MemberRevoked, member, text);
                parts.plane.remove_peer(member);
                parts.notices.touch();
            }
            Ok(ControlEvent::ThisNodeRevoked) => {
                let why = expelled::sentence(&parts.trust, &parts.certificate, &Refusal::Revoked);
                return lifecycle.expel(Failure::refused(why));
            }
            Err(broadcast::error::RecvError::Lagged(missed)) => {
                tracing::warn!(missed, "events of the control plane were missed")
            }
            Err(broadcast::error::RecvError::Closed) => return,
        }
    }
}

/// Records that a member connected, and whether this host knew it.
fn connected(parts: &Parts, member: MemberId) {
    if parts.events.is_new(member) {
        let text = |name: &str| format!("{name} connected for the first time.");
        record(parts, EventKind::MemberJoined, member, text);
    } else {
        let text = |name: &str| format!("{name} connected.");
        record(parts, EventKind::MemberConnected, member, text);
    }
}

/// Records that a connection to a member ended, and whether the member left the network.
fn disconnected(parts: &Parts, member: MemberId) {
    if parts.control.has_left(member) {
        let text = |name: &str| format!("{name} left the network.");
        record(parts, EventKind::MemberLeft, member, text);
    } else {
        let text = |name: &str| format!("The connection to {name} ended.");
        record(parts, EventKind::MemberLost, member, text);
    }
}

/// Records an event of a member, with a sentence from its name.
fn record(parts: &Parts, kind: EventKind, member: MemberId, text: impl Fn(&str) -> String) {
    let name = parts.name_of(member);
    let text = text(&name);
    parts
        .events
        .record(kind, Subject::Member(member, name), &[], text);
}

/// Notes when this host got its address, and when the claim of it was through.
pub(crate) async fn time_address(reach: Arc<Reach>, lifecycle: Arc<Lifecycle>) {
    // A previous address is there at once, its claim later.
    let mut claimed = reach.claimed();
    let millis = |took: Option<Duration>| took.map(|d| d.as_millis() as u64);
    if reach.lease().wait_for(Option::is_some).await.is_ok() {
        let claim = millis(*claimed.borrow());
        lifecycle.note(|times, ms| (times.address, times.claim) = (Some(ms), claim));
    }
    if let Ok(took) = claimed.wait_for(Option::is_some).await.map(|took| *took) {
        lifecycle.note(|times, _| times.claim = millis(took));
    }
}
