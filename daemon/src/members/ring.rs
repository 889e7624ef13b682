//! The ring in the control API, and the use of its state: in a network that is too large for a full
//! mesh, the control plane's connections follow the ring's neighbours.

use super::service::Members;
use crate::parts::Parts;
use p2pvm_api::{Failure, Outcome, RingNeighbour, RingView, TraceHop, Traced};
use p2pvm_overlay::{
    MemberId,
    ring::{Neighbour, Position, trace::Hop},
};
use std::{collections::HashMap, sync::Arc, time::Duration};

/// How long before the control plane gets the neighbours again.
const FOLLOW_EVERY: Duration = Duration::from_secs(2);
/// How long before a trace that has not come back counts as lost.
const TRACE_LIMIT: Duration = Duration::from_secs(5);
/// How many digits of a place are shown. Reason: they tell neighbours apart by eye.
const SHORT_POSITION: usize = 6;

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn role(neighbour: &Neighbour) -> String {
    let roles = [
        (neighbour.near, "near"),
        (neighbour.far, "far"),
        (neighbour.shortcut, "shortcut"),
        (neighbour.leaf, "leaf"),
    ];
    let roles: Vec<&str> = roles
        .iter()
        .filter(|(is, _)| *is)
        .map(|(_, name)| *name)
        .collect();
    if roles.is_empty() {
        "link".to_owned()
    } else {
        roles.join("+")
    }
}

/// Keeps the control plane connected to the ring's neighbours, until the daemon ends.
pub(crate) async fn follow(parts: Arc<Parts>) {
    loop {
        tokio::time::sleep(FOLLOW_EVERY).await;
        if let Some(status) = parts.ring.status() {
            let neighbours = status
                .neighbours
                .iter()
                .filter(|n| n.near || n.far || n.shortcut);
            parts
                .control
                .set_ring_neighbours(neighbours.map(|n| n.node.member).collect());
        }
    }
}

impl Members {
    /// This member's place on the ring.
    pub(crate) fn ring_view(&self) -> RingView {
        let ring = &self.parts.ring;
        let position = ring.me().position.to_string();
        let Some(status) = ring.status() else {
            return RingView {
                position,
                ..RingView::default()
            };
        };
        let count = |is: fn(&Neighbour) -> bool| status.neighbours.iter().filter(|n| is(n)).count();
        RingView {
            joined: status.joined,
            was_joined: status.was_joined,
            position,
            size_estimate: status.size,
            near: count(|n| n.near),
            far: count(|n| n.far),
            shortcuts: count(|n| n.shortcut),
            leaves: count(|n| n.leaf),
            repairs: status.repairs,
            carried: ring.carried(),
            coordinate_error: status.coordinate_error,
        }
    }

    /// The neighbours on the ring, with their roles.
    pub(crate) fn ring_neighbours(&self) -> HashMap<MemberId, RingNeighbour> {
        let Some(status) = self.parts.ring.status() else {
            return HashMap::new();
        };
        let row = |n: &Neighbour| RingNeighbour {
            role: role(n),
            rtt_ms: n.rtt.map(ms),
            distance_ms: n
                .coordinate
                .map(|there| ms(status.coordinate.estimate(&there))),
            error: n.coordinate.map(|there| there.error()),
        };
        status
            .neighbours
            .iter()
            .map(|n| (n.node.member, row(n)))
            .collect()
    }

    /// Traces the path over the ring to a member.
    pub async fn trace(&self, text: &str) -> Outcome<Traced> {
        let member = self.parts.resolve_member(text).await?;
        if member == self.parts.me() {
            return Err(Failure::usage(format!("{text} is this member")));
        }
        let ring = &self.parts.ring;
        if !ring.stands() {
            return Err(Failure::refused(
                "this node has no neighbour on the ring yet: see 'p2pvm status'",
            ));
        }
        let began = std::time::Instant::now();
        let report = ring.trace(Position::of(&member), TRACE_LIMIT).await;
        let report = report.ok_or_else(|| {
            Failure::timed_out(format!(
                "no answer over the ring from {text}, nor from any hop on the way"
            ))
        })?;
        let round_trip_ms = ms(began.elapsed());
        let neighbours = self.ring_neighbours();
        let direct_ms = neighbours.get(&member).and_then(|n| n.rtt_ms);
        let hops = report
            .hops
            .iter()
            .map(|hop| self.hop(hop, &neighbours))
            .collect();
        Ok(Traced {
            reached: report.reached,
            hops,
            round_trip_ms,
            direct_ms,
        })
    }

    fn hop(&self, hop: &Hop, neighbours: &HashMap<MemberId, RingNeighbour>) -> TraceHop {
        let known = self.parts.control.peers().into_iter().map(|p| p.member);
        let member = known
            .chain(neighbours.keys().copied())
            .find(|m| m.0[..8] == hop.member);
        let position = member.map(|m| Position::of(&m).to_string()[..SHORT_POSITION].to_owned());
        let unknown = || {
            hop.member
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect::<String>()
        };
        TraceHop {
            name: member.map_or_else(unknown, |m| self.parts.name_of(m)),
            position: position.unwrap_or_default(),
            rtt_ms: hop.rtt.map(ms),
            edge: member
                .and_then(|m| neighbours.get(&m))
                .map(|n| n.role.clone())
                .unwrap_or_default(),
        }
    }
}
