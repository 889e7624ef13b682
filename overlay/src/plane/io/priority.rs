//! Gives packet threads priority over the rest of this host, its guests above all. Reason:
//! otherwise a packet waits for a processor behind all other threads. A packet thread runs only
//! while there are packets, and others still get their share beside it.

use std::io;

/// The nice value: about nine times the weight of a thread at the default one.
const NICE: libc::c_int = -10;

/// Raises the calling thread's priority, if the process has `CAP_SYS_NICE`.
pub(crate) fn raise() {
    // SAFETY: takes and returns numbers. On Linux 0 names the calling thread alone, not its
    // process.
    let set = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
    if set != 0 {
        tracing::debug!(error = %io::Error::last_os_error(), "packet threads run at this \
            process's priority");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_thread_alone_is_raised() {
        // SAFETY: as above.
        let nice = || unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
        let before = nice();
        let raised = std::thread::spawn(move || {
            raise();
            nice()
        });
        let raised = raised.join().unwrap();
        assert!(
            raised == NICE || raised == before,
            "raised, or not allowed to be"
        );
        assert_eq!(nice(), before);
    }
}
