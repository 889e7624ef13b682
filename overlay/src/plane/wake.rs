//! Waiting for a descriptor or for the plane's end, whichever comes first.

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::{EfdFlags, EventFd},
};
use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::atomic::{AtomicBool, Ordering},
};

/// Raised once, seen by every waiter.
pub(crate) struct Stop {
    raised: AtomicBool,
    event: EventFd,
}

impl Stop {
    pub fn new() -> io::Result<Self> {
        let event = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self { raised: AtomicBool::new(false), event })
    }

    /// Ends every wait, now and from now on. True the first time.
    pub fn raise(&self) -> bool {
        let first = !self.raised.swap(true, Ordering::SeqCst);
        // Never read, so it stays readable for all waiters.
        let _ = self.event.write(1);
        first
    }

    pub fn raised(&self) -> bool {
        self.raised.load(Ordering::Relaxed)
    }

    /// Blocks until `fd` is readable; false if the plane ends.
    pub fn wait_readable(&self, fd: BorrowedFd<'_>) -> bool {
        let mut fds = [PollFd::new(fd, PollFlags::POLLIN), PollFd::new(self.event.as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut fds, PollTimeout::NONE);
        !self.raised()
    }
}
