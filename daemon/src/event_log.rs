//! The log of events: what happened to the VMs and members that this host knows, and to the host
//! itself. It is on the disk, bounded in size and age, and its reader needs no other member.
//!
//! Any part of the daemon writes with one line, [`EventLog::record`], which never waits: a thread
//! gives the event its number and place in the chain, writes all that wait with one flush, and then
//! passes them to the readers that follow. The formats are `p2pvm_authority`'s; [`file`] has the
//! files, [`query`] finds events in them, [`host`] turns reports of the VMs' host into events,
//! [`webhook`] posts some to a URL.

mod bound;
mod file;
pub(crate) mod follow;
pub(crate) mod host;
pub(crate) mod http;
mod query;
pub(crate) mod settings;
mod webhook;
mod writer;

pub(crate) use settings::Settings;
pub(crate) use webhook::run as run_webhook;

use crate::layout::Layout;
use bound::Bound;
use p2pvm_api::{Doing, EventKind, Outcome};
use p2pvm_authority::{Event, Subject};
use p2pvm_host::lock;
use p2pvm_overlay::{MemberId, identity::Identity};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
        mpsc::{SyncSender, TrySendError},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tokio::sync::{Semaphore, broadcast, oneshot};
use writer::{Message, Writer};

/// How many events may wait for the disk.
const WAITING: usize = 4096;
/// How many events a reader that follows may lag behind before it reads them from the disk.
const LAG: usize = 1024;
/// How many members are remembered as known.
/// Reason: the largest network in docs/scale.md has fewer.
const MOST_KNOWN: usize = 65_536;
/// How many readers read the files at a time.
/// Reason: each holds a file's events in memory, and other members may ask for a VM's.
const READERS: usize = 4;
/// How long an ending daemon waits for the disk.
const CLOSING: Duration = Duration::from_secs(2);

/// The log.
pub(crate) struct EventLog {
    dir: PathBuf,
    waiting: SyncSender<Message>,
    /// How many events found no room among those, for the writer to write down.
    refused: Arc<AtomicU64>,
    written: broadcast::Sender<Arc<Event>>,
    bound: Mutex<Bound>,
    /// How often each kind was recorded since the daemon started.
    counts: Mutex<BTreeMap<String, u64>>,
    known: Mutex<BTreeSet<MemberId>>,
    readers: Semaphore,
}

/// Every kind, recorded never.
/// Reason: Prometheus sees a counter grow only from a value that it has read before, so that a
/// counter which appears with its first event would not alert on it.
fn zeros() -> BTreeMap<String, u64> {
    let kinds = EventKind::KNOWN.iter();
    kinds.map(|(_, word)| ((*word).to_owned(), 0)).collect()
}

/// The time by the wall clock, milliseconds since 1970.
pub(crate) fn wall_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

impl EventLog {
    /// Opens the log and starts its writer, which ends with the value returned. What a crash left
    /// half-written at its end is cut off.
    pub(crate) fn open(
        layout: &Layout,
        settings: &Settings,
        identity: Arc<Identity>,
    ) -> Outcome<Arc<Self>> {
        let dir = layout.events();
        let log = file::Log::open(&dir, settings.bounds(), wall_ms()).doing(format_args!(
            "opening the log of events in {}",
            dir.display()
        ))?;
        let known = log.members().take(MOST_KNOWN).collect();
        let (waiting, messages) = std::sync::mpsc::sync_channel(WAITING);
        let written = broadcast::channel(LAG).0;
        let refused = Arc::new(AtomicU64::new(0));
        let writer = Writer::new(log, identity, written.clone(), refused.clone());
        std::thread::Builder::new()
            .name("events".to_owned())
            .spawn(move || writer.run(&messages))
            .doing("starting the writer of the log of events")?;
        Ok(Arc::new(Self {
            dir,
            waiting,
            refused,
            written,
            bound: Mutex::default(),
            counts: Mutex::new(zeros()),
            known: Mutex::new(known),
            readers: Semaphore::new(READERS),
        }))
    }

    /// Records an event: what happened, to whom, figures and names by their keys, and the same in a
    /// sentence. Does not wait. What other members can cause without end is kept a few times a
    /// minute; `p2pvm_events_total` counts all of it.
    pub(crate) fn record(
        &self,
        kind: EventKind,
        subject: Subject,
        fields: &[(&str, String)],
        sentence: impl Into<String>,
    ) {
        *lock(&self.counts).entry(kind.to_string()).or_default() += 1;
        if kind.is_bounded() && !lock(&self.bound).admits(Instant::now(), kind.as_str()) {
            return;
        }
        let field = |(key, value): &(&str, String)| ((*key).to_owned(), value.clone());
        let event = Event {
            // The writer numbers it.
            seq: 0,
            at_ms: wall_ms(),
            subject,
            kind: kind.to_string(),
            fields: fields.iter().map(field).collect(),
            sentence: sentence.into(),
            link: None,
        };
        let event = Box::new(event.within_bounds());
        if let Err(TrySendError::Full(_)) = self.waiting.try_send(Message::Event(event)) {
            self.refused.fetch_add(1, Ordering::Relaxed);
            let lost = EventKind::EventsLost.to_string();
            *lock(&self.counts).entry(lost).or_default() += 1;
        }
    }

    /// Whether the member is new to this log; from now on it is known.
    pub(crate) fn is_new(&self, member: MemberId) -> bool {
        let mut known = lock(&self.known);
        known.len() < MOST_KNOWN && known.insert(member)
    }

    /// How often each kind was recorded since the daemon started.
    pub(crate) fn counts(&self) -> BTreeMap<String, u64> {
        lock(&self.counts).clone()
    }

    /// Waits until all that was recorded is on the disk.
    pub(crate) async fn close(&self) {
        let (done, wait) = oneshot::channel();
        if self.waiting.try_send(Message::Flushed(done)).is_ok() {
            let _ = tokio::time::timeout(CLOSING, wait).await;
        }
    }
}

#[cfg(test)]
#[path = "event_log/tests.rs"]
mod tests;
