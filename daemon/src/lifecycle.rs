//! The start of the daemon, its progress, and the order to end.

use p2pvm_api::{Failure, Outcome, StartTimes};
use p2pvm_host::lock;
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::watch;

/// The beginning and the end of one run of the daemon.
pub(crate) struct Lifecycle {
    began: Instant,
    times: Mutex<StartTimes>,
    stop: watch::Sender<bool>,
    /// Whether the program is to start again when it has ended.
    again: AtomicBool,
    /// Why the daemon cannot go on, if it cannot.
    expelled: Mutex<Option<Failure>>,
}

impl Lifecycle {
    pub(crate) fn new(began: Instant) -> Arc<Self> {
        Arc::new(Self {
            began,
            times: Mutex::default(),
            stop: watch::channel(false).0,
            again: AtomicBool::new(false),
            expelled: Mutex::default(),
        })
    }

    /// How long the daemon has run.
    pub(crate) fn uptime(&self) -> Duration {
        self.began.elapsed()
    }

    /// How long each step of the start took.
    pub(crate) fn times(&self) -> StartTimes {
        *lock(&self.times)
    }

    /// Notes a step of the start; `set` gets the milliseconds since the beginning.
    pub(crate) fn note(&self, set: impl FnOnce(&mut StartTimes, u64)) {
        let elapsed = self.uptime().as_millis() as u64;
        set(&mut lock(&self.times), elapsed);
    }

    /// Tells the daemon to end.
    pub(crate) fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// Tells the daemon to end, and the program to start again after that.
    pub(crate) fn start_again(&self) {
        self.again.store(true, Ordering::Release);
        self.stop();
    }

    /// Tells the daemon to end because this node is no member any more.
    pub(crate) fn expel(&self, why: Failure) {
        *lock(&self.expelled) = Some(why);
        self.stop();
    }

    /// Waits until the daemon is told to end.
    pub(crate) fn stopped(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut stop = self.stop.subscribe();
        async move { drop(stop.wait_for(|stop| *stop).await) }
    }

    /// How the run ended: true if the program is to start again.
    ///
    /// # Errors
    /// If this node is no member any more.
    pub(crate) fn end(&self) -> Outcome<bool> {
        let mut expelled = lock(&self.expelled);
        match expelled.take() {
            Some(failure) => Err(failure),
            None => Ok(self.again.load(Ordering::Acquire)),
        }
    }
}
