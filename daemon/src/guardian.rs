//! The guardian: a small process that at once undoes a killed daemon's changes to this machine.
//!
//! It holds one end of a pipe and waits: a byte means that the daemon ends properly, the pipe's end
//! without a byte that it was killed. It has a session of its own and none of the daemon's
//! descriptors, so that it outlives a kill of the daemon and a Ctrl-C in its terminal, and holds
//! neither ports nor lock. If the next daemon is faster, that one undoes the changes: the holder of
//! the state directory's lock does.

use crate::{layout::Layout, lock, machine::changes};
use nix::sys::signal::{SigHandler, Signal, signal};
use p2pvm_api::{Doing, Outcome};
use std::{
    fs::OpenOptions,
    io::{Read, Write},
    process::{Child, ChildStdin, Command, Stdio},
    time::{Duration, Instant},
};

/// How long the kernel may take to release a killed daemon's lock.
const DYING: Duration = Duration::from_secs(5);
const GOODBYE: u8 = b'b';

/// The daemon's end of the guardian's pipe. Dropped without [`Guardian::goodbye`], it lets the
/// guardian act.
pub struct Guardian {
    child: Child,
    pipe: Option<ChildStdin>,
}

impl Guardian {
    /// Starts a guardian for this process, which has the state directory's lock.
    pub fn start(layout: &Layout) -> Outcome<Self> {
        let dir = std::path::absolute(layout.dir()).doing("finding the state directory")?;
        let mut command = Command::new("/proc/self/exe");
        command
            .arg("--dir")
            .arg(dir)
            .args(["guardian", "--of", &std::process::id().to_string()]);
        command.current_dir("/").env_remove("NOTIFY_SOCKET");
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut child = command
            .spawn()
            .doing("starting the process that undoes changes after a kill")?;
        let pipe = child.stdin.take();
        Ok(Self { child, pipe })
    }

    /// Ends the guardian after the daemon has undone everything.
    pub fn goodbye(mut self) {
        if let Some(mut pipe) = self.pipe.take() {
            // A guardian that was killed needs no goodbye.
            let _ = pipe.write_all(&[GOODBYE]);
        }
        let _ = self.child.wait();
    }
}

/// Runs the guardian of the daemon `of`; without `of` undoes leftovers, unless a daemon runs.
pub fn run(layout: &Layout, of: Option<u32>) -> Outcome<()> {
    if of.is_some() {
        let _ = nix::sys::prctl::set_name(c"p2pvm-guardian");
        // Fails only for a leader of a process group, which has left the terminal's already.
        let _ = nix::unistd::setsid();
        for ignored in [
            Signal::SIGINT,
            Signal::SIGHUP,
            Signal::SIGTERM,
            Signal::SIGQUIT,
            Signal::SIGPIPE,
        ] {
            // SAFETY: ignoring a signal runs no code of ours.
            unsafe { signal(ignored, SigHandler::SigIgn) }.doing("ignoring a signal")?;
        }
        let mut said = Vec::new();
        let _ = std::io::stdin().take(1).read_to_end(&mut said);
        if said == [GOODBYE] {
            return Ok(());
        }
    }
    let began = Instant::now();
    while lock::holder(layout).is_some_and(|holder| Some(holder) == of) && began.elapsed() < DYING {
        std::thread::sleep(Duration::from_millis(5));
    }
    if layout.undo().exists() && of.is_some() {
        // Opened only now, so that the log can be moved before.
        if let Ok(mut log) = OpenOptions::new().append(true).open(layout.log()) {
            let _ = writeln!(
                log,
                "the daemon was killed: its guardian undoes its changes to this machine"
            );
        }
    }
    changes::undo_if(layout, || lock::holder(layout).is_none());
    Ok(())
}
