//! What the plane reports: events to its owner, and members to the connector. A receiver that falls
//! behind loses reports and never slows packets down.

use super::types::PlaneEvent;
use crate::id::MemberId;
use crate::lock;
use std::sync::Mutex;
use tokio::sync::mpsc;

/// How many members may wait for the connector to look at them.
const MAX_MEMBERS: usize = 256;

type Receiver = Mutex<Option<mpsc::Receiver<MemberId>>>;

pub(crate) struct Reports {
    events: mpsc::Sender<PlaneEvent>,
    wanted: mpsc::Sender<MemberId>,
    wanted_receiver: Receiver,
    silent: mpsc::Sender<MemberId>,
    silent_receiver: Receiver,
}

impl Reports {
    pub fn new(events: mpsc::Sender<PlaneEvent>) -> Self {
        let (wanted, wanted_receiver) = mpsc::channel(MAX_MEMBERS);
        let (silent, silent_receiver) = mpsc::channel(MAX_MEMBERS);
        Self {
            events,
            wanted,
            wanted_receiver: Mutex::new(Some(wanted_receiver)),
            silent,
            silent_receiver: Mutex::new(Some(silent_receiver)),
        }
    }

    pub fn event(&self, event: PlaneEvent) {
        if self.events.try_send(event).is_err() {
            tracing::debug!("plane event dropped: its owner is behind");
        }
    }

    /// A path to the member is wanted.
    pub fn wanted(&self, member: MemberId) {
        let _ = self.wanted.try_send(member);
    }

    /// The selected path of the member does not answer.
    pub fn silent(&self, member: MemberId) {
        let _ = self.silent.try_send(member);
    }

    /// The members of [`Reports::wanted`]; only the first caller gets the receiver.
    pub fn take_wanted(&self) -> Option<mpsc::Receiver<MemberId>> {
        lock(&self.wanted_receiver).take()
    }

    /// The members of [`Reports::silent`]; only the first caller gets the receiver.
    pub fn take_silent(&self) -> Option<mpsc::Receiver<MemberId>> {
        lock(&self.silent_receiver).take()
    }
}
