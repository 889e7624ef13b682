//! How the TUN's thread finds the answer to a proof's question among what the host sends.

use super::probe;
use crate::lock;
use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::Instant,
};

/// An answer, and when it came.
pub(crate) type TimedAnswer = (probe::Answer, Instant);

/// The answer that the TUN thread looks for while something is proved.
#[derive(Default)]
pub(crate) struct Proofs {
    /// Spares the TUN thread the lock while nothing is proved.
    pub on: AtomicBool,
    pub waiting: Mutex<Option<(probe::Probe, mpsc::Sender<TimedAnswer>)>>,
    /// Held during a proof: only one at a time.
    pub turn: Mutex<()>,
}

impl Proofs {
    /// Whether a packet that the host sends answers a question of the proof; then it is not
    /// carried.
    #[inline]
    pub fn takes(&self, packet: &[u8], now: Instant) -> bool {
        self.on.load(Ordering::Relaxed) && self.look_at(packet, now)
    }

    #[cold]
    fn look_at(&self, packet: &[u8], now: Instant) -> bool {
        let waiting = lock(&self.waiting);
        let Some((probe, found)) = &*waiting else {
            return false;
        };
        match probe.answered_by(packet) {
            Some(answer) => {
                // The asker may have given up.
                let _ = found.send((answer, now));
                true
            }
            None => false,
        }
    }
}
