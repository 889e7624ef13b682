//! `p2pvm ... | head` ends quietly: a command whose reader has gone dies of SIGPIPE like any other
//! tool, where Rust's runtime would ignore the signal and let printing panic. The daemon keeps
//! ignoring it.

use nix::sys::signal::{SigHandler, Signal, signal};

/// Restores the signal's default for this process.
pub fn restore_default() {
    // SAFETY: called before any thread starts; SIG_DFL installs no handler that could run our code.
    if let Err(error) = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) } {
        eprintln!("p2pvm: SIGPIPE stays ignored: {error}");
    }
}
