//! Lets `p2pvm ... | head` end quietly: a command whose reader has closed the pipe dies of SIGPIPE
//! like any other tool. Rust's runtime would ignore the signal, and printing would panic. The
//! daemon keeps ignoring it.

use nix::sys::signal::{SigHandler, Signal, signal};

/// Restores the signal's default for this process.
pub fn restore_default() {
    // SAFETY: called before any thread starts; SIG_DFL installs no handler that could run our code.
    if let Err(error) = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) } {
        eprintln!("p2pvm: SIGPIPE stays ignored: {error}");
    }
}
