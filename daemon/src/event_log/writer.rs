//! The thread that writes events: all that wait with one flush. While the disk does not take them
//! they wait in memory, up to a bound, and are written when it does.

use super::{file::Log, wall_ms};
use p2pvm_api::EventKind;
use p2pvm_authority::{Event, Subject};
use p2pvm_host::{Repeated, chain};
use p2pvm_overlay::identity::Identity;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::Duration,
};
use tokio::sync::{broadcast, oneshot};

/// How many events one flush has at most.
const BATCH: usize = 256;
/// How many events wait in memory for a disk that does not take them.
const MOST_KEPT: usize = 2048;
/// How long before the disk is tried again.
const AGAIN: Duration = Duration::from_secs(2);
/// How often old files are looked for while nothing happens.
const QUIET: Duration = Duration::from_secs(3600);

/// What the writer is told.
pub(super) enum Message {
    /// An event to write.
    Event(Box<Event>),
    /// An answer is wanted when all before is on the disk.
    Flushed(oneshot::Sender<()>),
}

/// The writer.
pub(super) struct Writer {
    log: Log,
    identity: Arc<Identity>,
    written: broadcast::Sender<Arc<Event>>,
    /// How many events found no room on their way here, and are in no event yet.
    refused: Arc<AtomicU64>,
    kept: Vec<Event>,
    lost: u64,
    failing: Repeated,
}

impl Writer {
    pub fn new(
        log: Log,
        identity: Arc<Identity>,
        written: broadcast::Sender<Arc<Event>>,
        refused: Arc<AtomicU64>,
    ) -> Self {
        Self {
            log,
            identity,
            written,
            refused,
            kept: Vec::new(),
            lost: 0,
            failing: Repeated::new(),
        }
    }

    /// Writes until the log is dropped.
    pub fn run(mut self, messages: &Receiver<Message>) {
        loop {
            let patience = if self.has_work() { AGAIN } else { QUIET };
            let mut next = match messages.recv_timeout(patience) {
                Ok(message) => Some(message),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => {
                    self.count_refused();
                    return self.write();
                }
            };
            let (mut asked, mut is_drained) = (Vec::new(), next.is_none());
            while let Some(message) = next {
                match message {
                    Message::Event(event) => self.keep(*event),
                    Message::Flushed(answer) => asked.push(answer),
                }
                let has_room = self.kept.len() < BATCH;
                next = match has_room {
                    true => messages.try_recv().ok(),
                    false => None,
                };
                is_drained = has_room && next.is_none();
            }
            // Not before: there is one event for all that a burst lost.
            if is_drained {
                self.count_refused();
            }
            self.write();
            self.log.trim(wall_ms());
            for answer in asked {
                // The caller may have given up.
                let _ = answer.send(());
            }
        }
    }

    fn has_work(&self) -> bool {
        !self.kept.is_empty() || self.lost > 0 || self.refused.load(Ordering::Relaxed) > 0
    }

    fn count_refused(&mut self) {
        self.lost += self.refused.swap(0, Ordering::Relaxed);
    }

    fn keep(&mut self, event: Event) {
        match self.kept.len() < MOST_KEPT {
            true => self.kept.push(event),
            false => self.lost += 1,
        }
    }

    fn write(&mut self) {
        if self.kept.is_empty() && self.lost == 0 {
            return;
        }
        let mut batch = self.kept.clone();
        if self.lost > 0 {
            batch.push(lost(self.lost));
        }
        match self.log.append(self.identity.keys(), &batch) {
            Ok(numbered) => {
                self.kept.clear();
                self.lost = 0;
                self.failing.over();
                for event in numbered {
                    // Without a reader that follows, nobody misses it.
                    let _ = self.written.send(Arc::new(event));
                }
            }
            Err(error) => {
                if let Some(times) = self.failing.again("events") {
                    tracing::warn!(times, error = %chain(&error), "events cannot be written: they \
                        wait in memory");
                }
            }
        }
    }
}

/// The event that says how many others were lost.
fn lost(count: u64) -> Event {
    Event {
        seq: 0,
        at_ms: wall_ms(),
        subject: Subject::Host,
        kind: EventKind::EventsLost.to_string(),
        fields: vec![("count".to_owned(), count.to_string())],
        sentence: format!("{count} events were lost: more came than the disk took."),
        link: None,
    }
}
