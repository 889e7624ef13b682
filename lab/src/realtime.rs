//! Lets the forwarder wake when a packet is due, also on a busy machine: it shares the cores with
//! emulated guests.

use std::io;

/// Gives the calling thread the lowest real-time priority, which every ordinary process yields to;
/// children do not inherit it.
///
/// Fails without the permission (an ordinary user, some containers); the forwarder is then exact
/// only on an idle machine.
pub(crate) fn prefer_this_thread() -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: 1 };
    // SAFETY: `parameters` is a valid sched_param that outlives the call; pid 0 is the calling
    // thread.
    let result = unsafe {
        libc::sched_setscheduler(0, libc::SCHED_RR | libc::SCHED_RESET_ON_FORK, &parameters)
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
