//! What other threads ask of the thread that watches the interfaces: it stands in the plane's
//! network namespace.

use super::{guest::reach::GuestProof, interface::proof::Question, io::wake::Bell};
use crate::id::VmId;
use std::{io, sync::Mutex, time::Duration};
use tokio::sync::oneshot;

/// One thing to do.
pub(crate) enum Task {
    /// Put back what differs of the device now, and say what that was.
    Mend(oneshot::Sender<Vec<String>>),
    /// Prove that packets pass.
    Prove(Question),
    /// Ask a guest through its interface.
    ProveGuest(VmId, Duration, oneshot::Sender<Option<GuestProof>>),
}

/// What is to be done, and how the thread hears of it.
pub(crate) struct Tasks {
    pub queue: Mutex<Vec<Task>>,
    pub bell: Bell,
}

impl Tasks {
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            queue: Mutex::default(),
            bell: Bell::new()?,
        })
    }
}
