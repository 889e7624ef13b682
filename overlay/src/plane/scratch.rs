//! A packet thread's scratch: batches for the socket, the TUN and a guest. Nothing in it is
//! allocated for each packet. `guest/deliver.rs` fills and flushes it.

use super::{guest::port::Port, io::udp::Batch, shape::join::Join, traffic::Tally};
use std::sync::Arc;

#[derive(Default)]
pub(crate) struct Scratch {
    pub out: Batch,
    pub to_tun: Join,
    pub to_guest: Join,
    /// The guest that `to_guest` is for.
    pub guest: Option<Arc<Port>>,
    pub tally: Tally,
}
