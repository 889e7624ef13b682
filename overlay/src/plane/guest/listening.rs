//! How a port's thread finds the answer to a proof's question among the guest's frames.

use super::{config::GuestPort, neighbour::is_answer};
use crate::lock;
use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::Instant,
};

/// Where the guest's frames are reported while it is asked whether it is there.
#[derive(Default)]
pub(crate) struct FrameListener {
    /// Spares the port's thread the lock while nothing is asked.
    on: AtomicBool,
    heard: Mutex<Option<mpsc::Sender<(bool, Instant)>>>,
}

impl FrameListener {
    /// Sends each of the guest's frames to `heard` from now on: whether it is an answer, and when
    /// it came. An earlier asker hears nothing more.
    pub fn begin(&self, heard: mpsc::Sender<(bool, Instant)>) {
        *lock(&self.heard) = Some(heard);
        self.on.store(true, Ordering::Relaxed);
    }

    pub fn end(&self) {
        self.on.store(false, Ordering::Relaxed);
        *lock(&self.heard) = None;
    }

    /// Notes a frame of the guest's.
    #[inline]
    pub fn note(&self, config: &GuestPort, frame: &[u8]) {
        if self.on.load(Ordering::Relaxed) {
            self.look_at(config, frame);
        }
    }

    #[cold]
    fn look_at(&self, config: &GuestPort, frame: &[u8]) {
        if let Some(heard) = &*lock(&self.heard) {
            // The asker may have given up.
            let _ = heard.send((
                is_answer(frame, config.v4.octets(), &config.v6),
                Instant::now(),
            ));
        }
    }
}
