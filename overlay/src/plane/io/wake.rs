//! How threads are woken: for a descriptor or the plane's end, whichever comes first, and by each
//! other.

use crate::lock;
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::{EfdFlags, EventFd},
};
use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// The plane's end: raised once, seen by every waiter.
pub(crate) struct Stop {
    raised: AtomicBool,
    event: EventFd,
}

impl Stop {
    pub fn new() -> io::Result<Self> {
        let event =
            EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self {
            raised: AtomicBool::new(false),
            event,
        })
    }

    /// Ends every wait from now on. True the first time.
    pub fn raise(&self) -> bool {
        let first = !self.raised.swap(true, Ordering::SeqCst);
        // Never read, so it stays readable for all waiters.
        let _ = self.event.write(1);
        first
    }

    pub fn raised(&self) -> bool {
        self.raised.load(Ordering::Relaxed)
    }

    /// Blocks until one of `fds` is readable or `limit` is over; false if the plane ends.
    pub fn wait_any(&self, fds: &[BorrowedFd<'_>], limit: Duration) -> bool {
        let mut all: Vec<PollFd> = fds
            .iter()
            .chain([&self.event.as_fd()])
            .map(|fd| PollFd::new(*fd, PollFlags::POLLIN))
            .collect();
        let _ = poll(
            &mut all,
            PollTimeout::try_from(limit).unwrap_or(PollTimeout::NONE),
        );
        !self.raised()
    }

    /// Blocks until `fd` is readable; false if the plane ends.
    pub fn wait_readable(&self, fd: BorrowedFd<'_>) -> bool {
        let mut fds = [
            PollFd::new(fd, PollFlags::POLLIN),
            PollFd::new(self.event.as_fd(), PollFlags::POLLIN),
        ];
        let _ = poll(&mut fds, PollTimeout::NONE);
        !self.raised()
    }
}

/// A bell that any thread rings and one hears.
pub(crate) struct Bell(EventFd);

impl Bell {
    pub fn new() -> io::Result<Self> {
        Ok(Self(EventFd::from_value_and_flags(
            0,
            EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK,
        )?))
    }

    pub fn ring(&self) {
        // Full only if it was rung 2^64 times unheard.
        let _ = self.0.write(1);
    }

    /// Whether it was rung since the last call.
    pub fn heard(&self) -> bool {
        self.0.read().is_ok()
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Wakes the clock before its next tick.
#[derive(Default)]
pub(crate) struct Waker {
    is_woken: Mutex<bool>,
    bell: Condvar,
}

impl Waker {
    pub fn wake(&self) {
        *lock(&self.is_woken) = true;
        self.bell.notify_one();
    }

    /// Blocks until it is woken or `limit` is over.
    pub fn wait(&self, limit: Duration) {
        let woken = lock(&self.is_woken);
        let (mut woken, _) = self
            .bell
            .wait_timeout_while(woken, limit, |k| !*k)
            .unwrap_or_else(PoisonError::into_inner);
        *woken = false;
    }
}
