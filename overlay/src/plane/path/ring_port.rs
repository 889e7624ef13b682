//! What the plane keeps of the ring: the neighbours, and the queue to the ring's driver.

use crate::lock;
use crate::{
    id::MemberId,
    ring::{Header, Mode, Node, Packet, Position, RingHop, Table},
};
use arc_swap::ArcSwap;
use std::sync::{Arc, Mutex, atomic::AtomicU64};
use tokio::sync::mpsc;

/// How many packets may wait for the driver. Reason: more than a burst of all neighbours at once is
/// a flood.
const MAX_WAITING: usize = 512;

pub(crate) struct RingPort {
    /// The routing table; empty until a driver runs.
    pub table: Arc<ArcSwap<Table>>,
    pub to_driver: mpsc::Sender<(MemberId, Packet)>,
    driver_receiver: Mutex<Option<mpsc::Receiver<(MemberId, Packet)>>>,
    /// How many packets of other pairs were handed on.
    pub carried: AtomicU64,
}

impl RingPort {
    pub fn new(me: MemberId) -> Self {
        let (to_driver, receiver) = mpsc::channel(MAX_WAITING);
        let table = Table::new(me, false, [], []);
        Self {
            table: Arc::new(ArcSwap::from_pointee(table)),
            to_driver,
            driver_receiver: Mutex::new(Some(receiver)),
            carried: AtomicU64::new(0),
        }
    }

    /// The packets for the ring's state machine; only the first caller gets the receiver.
    pub fn take_packets(&self) -> Option<mpsc::Receiver<(MemberId, Packet)>> {
        lock(&self.driver_receiver).take()
    }
}

/// The neighbour to which a packet of this node goes first, and the agent that the packet must name
/// so that answers arrive here. `via`: this neighbour in any case.
pub(crate) fn first_hop(
    table: &Table,
    header: &Header,
    via: Option<Position>,
) -> Option<(MemberId, Option<Position>)> {
    let first = match via {
        Some(via) => {
            let at = |nodes: &[Node]| {
                nodes
                    .binary_search_by_key(&via, |n| n.position)
                    .ok()
                    .map(|i| nodes[i].member)
            };
            at(table.members()).or_else(|| at(table.leaves()))?
        }
        None => {
            // A leaf of this node is reached through this node.
            let ours = header.to == table.me().position;
            let next = if ours {
                table.route(header)
            } else {
                table.next(header.to, Mode::Exact)
            };
            let RingHop::Via(member) = next else {
                return None;
            };
            member
        }
    };
    Some((
        first,
        via.or_else(|| (!table.joined()).then(|| Position::of(&first))),
    ))
}
